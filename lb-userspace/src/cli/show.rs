//! `matapa show`: asks, prints, and asks again if told to.

use std::io::IsTerminal as _;

use crate::api::client::Client;
use crate::cli::args::{Screen, Show};
use crate::cli::exit::Failure;
use crate::cli::output::print;
use crate::cli::{carp, screens, sync};

/// Home, then erase to the end: less flicker than the other way round.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Prints the screen once, or, with `--watch`, until something ends it.
///
/// # Errors
/// When the daemon cannot be reached or refuses, or the output is closed.
pub async fn show(client: &Client, show: Show) -> Result<(), Failure> {
    let screen = show.screen.unwrap_or_default();
    let Some(period) = show.watch else { return print(&render(client, &screen, show.json).await?) };
    let terminal = std::io::stdout().is_terminal();
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut first = true;
    loop {
        ticks.tick().await;
        let text = render(client, &screen, show.json).await?;
        let between = match (show.json, terminal, first) {
            (false, true, _) => CLEAR,
            (false, false, false) => "\n",
            _ => "",
        };
        first = false;
        print(&format!("{between}{text}"))?;
    }
}

async fn render(client: &Client, screen: &Screen, json: bool) -> Result<String, Failure> {
    if json {
        return Ok(raw(client, screen).await?);
    }
    match screen {
        Screen::Summary => Ok(screens::summary(&client.status().await?)),
        Screen::Services(of) => screens::services(&client.status().await?, of.service.as_deref()),
        Screen::Backends { of, checks: true } => {
            Ok(screens::checks(&client.checks(of.service.as_deref()).await?))
        }
        Screen::Backends { of, .. } => screens::backends(&client.status().await?, of.service.as_deref()),
        Screen::Flows { of, limit } => {
            Ok(screens::flows(&client.flows(*limit, of.service.as_deref()).await?))
        }
        Screen::Carp => Ok(carp::screen(&client.carp().await?)),
        Screen::Sync => Ok(sync::screen(&client.sync().await?)),
        Screen::Counters { all } => Ok(screens::counters(&client.counters().await?, *all)),
    }
}

async fn raw(client: &Client, screen: &Screen) -> Result<String, crate::api::client::ClientError> {
    let bytes = match screen {
        Screen::Backends { of, checks: true } => client.checks_json(of.service.as_deref()).await?,
        Screen::Summary | Screen::Services(_) | Screen::Backends { .. } => client.status_json().await?,
        Screen::Flows { of, limit } => client.flows_json(*limit, of.service.as_deref()).await?,
        Screen::Carp => client.carp_json().await?,
        Screen::Sync => client.sync_json().await?,
        Screen::Counters { .. } => client.counters_json().await?,
    };
    Ok(format!("{}\n", String::from_utf8_lossy(&bytes).trim_end()))
}
