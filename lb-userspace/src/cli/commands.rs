//! The commands that change something in the daemon.

use crate::api::client::Client;
use crate::api::types::AdminState;
use crate::cli::args::{BackendCommand, CarpCommand};
use crate::cli::exit::Failure;
use crate::cli::output::print;
use crate::cli::table::{admin, clean};

/// `matapa backend`
///
/// # Errors
/// When the daemon cannot be reached or knows no such backend; so for each command below.
pub async fn backend(client: &Client, command: BackendCommand) -> Result<(), Failure> {
    let (name, state) = match command {
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
