//! The commands that change something in the daemon.

use crate::api::client::Client;
use crate::api::types::AdminState;
use crate::cli::args::{BackendCommand, BackendWeight, CarpCommand, ServiceCommand};
use crate::cli::exit::Failure;
use crate::cli::output::print;
use crate::cli::table::{admin, clean};

/// `matapa backend`
///
/// # Errors
/// When the daemon cannot be reached or knows no such backend; so for each command below.
pub async fn backend(client: &Client, command: BackendCommand) -> Result<(), Failure> {
    let (name, state) = match command {
        BackendCommand::Weight(wanted) => return weight(client, wanted).await,
        BackendCommand::Enable(name) => (name, AdminState::Enabled),
        BackendCommand::Disable(name) => (name, AdminState::Disabled),
        BackendCommand::Drain(name) => (name, AdminState::Draining),
    };
    let change = client.set_admin(&name.name, name.service.as_deref(), state).await?;
    let (word, _) = admin(change.state);
    if change.backends.is_empty() {
        return print(&format!("{}: already {word}\n", clean(&name.name)));
    }
    let lines: String =
        change.backends.iter().map(|backend| format!("{}: {word}\n", clean(backend))).collect();
    print(&lines)
}

/// `matapa backend weight`
async fn weight(client: &Client, wanted: BackendWeight) -> Result<(), Failure> {
    let change = client.set_weight(&wanted.name, wanted.service.as_deref(), &wanted.value).await?;
    let lines: String = change
        .backends
        .iter()
        .map(|one| {
            let already = if one.changed { "" } else { " already" };
            let file = one.configured_weight.map(|weight| format!(" (file: {weight})")).unwrap_or_default();
            format!("{}: weight {}{already}{file}\n", clean(&one.backend), one.weight)
        })
        .collect();
    print(&lines)
}

/// `matapa service`
pub async fn service(client: &Client, command: ServiceCommand) -> Result<(), Failure> {
    let (name, enabled) = match command {
        ServiceCommand::Enable(name) => (name, true),
        ServiceCommand::Disable(name) => (name, false),
    };
    let change = client.set_service(&name.name, enabled).await?;
    let already = if change.changed { "" } else { "already " };
    let word = if change.enabled { "enabled" } else { "disabled" };
    print(&format!("{}: {already}{word}\n", clean(&change.service)))
}

/// `matapa carp`
pub async fn carp(client: &Client, command: CarpCommand) -> Result<(), Failure> {
    let (action, name) = match command {
        CarpCommand::Promote(name) => ("promote", name),
        CarpCommand::Demote(name) => ("demote", name),
        CarpCommand::Release(name) => ("release", name),
    };
    let change = client.set_carp(action, name.name.as_deref()).await?;
    let lines: String =
        change.vhids.iter().map(|vhid| format!("{}: {}\n", clean(vhid), clean(&change.wish))).collect();
    print(&lines)
}

/// `matapa poll`
pub async fn poll(client: &Client) -> Result<(), Failure> {
    client.poll().await?;
    print("all checks done\n")
}
