//! `matapa monitor`: one line for each event.

use std::time::Duration;

use crate::api::client::Client;
use crate::api::types::{Event, EventKind, ServiceState};
use crate::cli::exit::Failure;
use crate::cli::output::print;
use crate::cli::table::{admin, clean, health};

/// Prints events until the daemon goes away or nobody reads them any more.
///
/// # Errors
/// Always, in the end: [`crate::cli::exit::ExitCode::Unreachable`] when the daemon goes away.
pub async fn monitor(client: &Client, json: bool) -> Result<(), Failure> {
    let mut lines = client.events().await?;
    let mut last = None;
    loop {
        let line = lines.next().await?;
        let parsed = if json { None } else { serde_json::from_str::<Event>(&line).ok() };
        let Some(event) = parsed else {
            // An event that only a newer daemon knows is shown as it came.
            print(&format!("{line}\n"))?;
            continue;
        };
        let missed = last.map_or(0, |last: u64| event.number.saturating_sub(last.saturating_add(1)));
        if missed > 0 {
            print(&format!(
                "{} missed {missed} events: they came faster than they were read\n",
                stamp(event.time)
            ))?;
        }
        last = Some(event.number);
        print(&format!("{}\n", event_line(&event)))?;
    }
}

/// Time and sentence, for a terminal.
pub fn event_line(event: &Event) -> String {
    format!("{} {}", stamp(event.time), clean(&sentence(&event.kind)))
}

fn sentence(kind: &EventKind) -> String {
    match kind {
        EventKind::Health { service, backend, from, to, reason, .. } => {
            let ((from, _), (to, _)) = (health(*from), health(*to));
            let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
            format!("health {service}/{backend} {from} -> {to}{reason}")
        }
        EventKind::Certificate { service, backend, expires, days } => {
            let end = match *days {
                days if days < 0 => "has ended".to_owned(),
                1 => "ends in 1 day".to_owned(),
                days => format!("ends in {days} days"),
            };
            format!("certificate {service}/{backend} {end}: {}", stamp(*expires))
        }
        EventKind::Suspect { service, backend, moved_away } => {
            format!("suspect {service}/{backend} left {moved_away} connections unanswered")
        }
        EventKind::Admin { service, backend, state } => {
            format!("admin {service}/{backend} {}", admin(*state).0)
        }
        EventKind::Pools { service, using, backup } => {
            let names = using.join(", ");
            match (using.is_empty(), backup) {
                (true, _) => format!("pools {service} none can be used"),
                (false, true) => format!("pools {service} {names}: the backup is in use"),
                (false, false) => format!("pools {service} {names}"),
            }
        }
        EventKind::Weight { service, backend, weight, by_hand } => {
            let file = if *by_hand { "" } else { ", as the file says" };
            format!("weight {service}/{backend} {weight}{file}")
        }
        EventKind::Service { service, state } => {
            let state = match state {
                ServiceState::Active => "active",
                ServiceState::Down => "down: no backend takes new flows",
                ServiceState::Disabled => "disabled: it takes no new flows",
            };
            format!("service {service} {state}")
        }
        EventKind::Resolved { host, added, gone } => {
            let list = |sign: &str, addresses: &[std::net::IpAddr]| -> String {
                addresses.iter().map(|address| format!(" {sign}{address}")).collect()
            };
            let changes = list("+", added) + &list("-", gone);
            let changes = if changes.is_empty() { " again, as before".to_owned() } else { changes };
            format!("resolved {host}{changes}")
        }
        EventKind::Unresolved { host, reason } => {
            format!("unresolved {host}, what it had stays: {reason}")
        }
        EventKind::Reload { operations } => format!("reload done, {}", changes(*operations)),
        EventKind::ReloadRefused { errors } => {
            format!("reload refused, the old configuration stays: {}", errors.join("; "))
        }
        EventKind::Adopted { services, flows } => {
            format!("adopted {services} services and {flows} flows from the daemon before")
        }
        EventKind::Applied { operations, micros } => {
            format!("applied {} in {}", changes(*operations), duration(*micros))
        }
        EventKind::Carp { name, interface, vhid, from, to, reason } => {
            format!("carp {name} (vhid {vhid} on {interface}) {from} -> {to}: {reason}")
        }
        EventKind::SyncPeerUp { peer } => format!("sync peer {peer} is there"),
        EventKind::SyncPeerDown { peer } => format!("sync peer {peer} is silent"),
        EventKind::SyncReceived { flows, millis } => {
            format!("sync received everything, {flows} flows, {millis} ms after start")
        }
        EventKind::SyncAlone => "sync has no peer; going on with the flows that are here".to_owned(),
        EventKind::FlowsReset { service, backend, flows } => {
            format!("reset {flows} flows of {service}/{backend}")
        }
    }
}

/// `3 changes to the kernel's maps`
pub fn changes(operations: u64) -> String {
    match operations {
        0 => "nothing to change".to_owned(),
        1 => "1 map change".to_owned(),
        many => format!("{many} map changes"),
    }
}

fn duration(micros: u64) -> String {
    if micros < 10_000 { format!("{micros} µs") } else { format!("{} ms", micros / 1000) }
}

/// Seconds since the epoch as RFC 3339 in UTC, with milliseconds.
pub(super) fn stamp(seconds: f64) -> String {
    let since = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    let (days, rest) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

/// Year, month and day so many days after 1970-01-01, in the Gregorian calendar: years are counted from
/// March, so that the leap day is a year's last, in eras of 400 years (146,097 days).
fn civil(days: u64) -> (u64, u64, u64) {
    const DAYS_TO_EPOCH: u64 = 719_468;
    let days = days.saturating_add(DAYS_TO_EPOCH);
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::stamp;

    #[test]
    fn times_read_as_dates() {
        assert_eq!(stamp(0.0), "1970-01-01T00:00:00.000Z");
        assert_eq!(stamp(951_782_400.25), "2000-02-29T00:00:00.250Z");
        assert_eq!(stamp(1_767_225_599.999), "2025-12-31T23:59:59.999Z");
        assert_eq!(stamp(4_107_542_400.0), "2100-03-01T00:00:00.000Z");
        assert_eq!(stamp(-1.0), "1970-01-01T00:00:00.000Z");
    }
}
