//! `matapa show carp`: who has the shared addresses, and why.

use std::fmt::Write as _;

use comfy_table::Cell;

use crate::api::carp::{CarpStatus, VhidStatus};
use crate::cli::table::{
    Column::{Number, Prose, Text},
    Meaning, clean, lines, status as word, table, text,
};

/// A line for each vhid, then what demotes it, then what was not taken.
pub fn screen(status: &CarpStatus) -> String {
    if status.vhids.is_empty() {
        return "no carp is configured\n".to_owned();
    }
    let mut table = table(&[
        Text("Name"),
        Text("Interface"),
        Number("Vhid"),
        Text("State"),
        Number("For"),
        Text("Advertises"),
        Number("Demotion"),
        Prose("Addresses"),
        Prose("Why"),
    ]);
    for vhid in &status.vhids {
        table.add_row([
            text(&vhid.name),
            text(&vhid.interface),
            Cell::new(vhid.vhid),
            state(vhid),
            Cell::new(format!("{} s", vhid.since_seconds)),
            Cell::new(format!("{}+{}/256 s", vhid.advertised_advbase, vhid.advertised_advskew)),
            Cell::new(vhid.demotion),
            text(&vhid.addresses.join(", ")),
            text(&vhid.reason),
        ]);
    }
    let mut shown = lines(&table);
    for vhid in &status.vhids {
        if let Some(peer) = &vhid.peer {
            let demoted =
                if peer.demotion > 0 { format!(", demoted by {}", peer.demotion) } else { String::new() };
            // Writing to a String cannot fail.
            let _ = writeln!(
                shown,
                "{}: last heard {} ({}+{}/256 s{demoted}) {:.1} s ago",
                clean(&vhid.name),
                peer.address,
                peer.advbase,
                peer.advskew,
                peer.seconds_ago
            );
        }
    }
    for group in status.groups.iter().filter(|group| group.demotion > 0) {
        let owners: Vec<String> =
            group.owners.iter().map(|(owner, by)| format!("{} (+{by})", clean(owner))).collect();
        let _ = writeln!(
            shown,
            "group {} is demoted by {}: {}",
            clean(&group.name),
            group.demotion,
            owners.join(", ")
        );
    }
    for (name, counter) in status.rejected.iter().filter(|(_, counter)| counter.value > 0) {
        let _ = writeln!(shown, "{} {}: {}", clean(name), counter.value, clean(&counter.help));
    }
    shown
}

fn state(vhid: &VhidStatus) -> Cell {
    let meaning = match vhid.state.as_str() {
        "master" => Meaning::Good,
        "init" => Meaning::Bad,
        _ => Meaning::Notice,
    };
    match vhid.wish.as_str() {
        "promoted" | "demoted" => word(&format!("{} ({})", vhid.state, vhid.wish), meaning),
        _ => word(&clean(&vhid.state), meaning),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::carp::{GroupStatus, PeerStatus};
    use crate::api::types::CounterValue;

    #[test]
    fn the_screen() {
        assert_eq!(screen(&CarpStatus::default()), "no carp is configured\n");
        let vhid = VhidStatus {
            name: "mail".to_owned(),
            interface: "eth0".to_owned(),
            vhid: 10,
            state: "backup".to_owned(),
            since_seconds: 7,
            reason: "the link is up".to_owned(),
            wish: "demoted".to_owned(),
            addresses: vec!["203.0.113.10/24".to_owned()],
            group: "carp".to_owned(),
            preempt: true,
            advbase: 1,
            advskew: 0,
            advertised_advbase: 1,
            advertised_advskew: 240,
            demotion: 129,
            peer: Some(PeerStatus {
                address: [192, 0, 2, 2].into(),
                advbase: 1,
                advskew: 100,
                demotion: 0,
                seconds_ago: 0.42,
            }),
            sent: 1,
            send_errors: 0,
            received: 2,
            transitions: 1,
        };
        let group = GroupStatus {
            name: "carp".to_owned(),
            demotion: 1,
            owners: [("no backend of service mail is up".to_owned(), 1)].into(),
        };
        let counter = CounterValue { value: 3, verdict: "drop".to_owned(), help: "wrong digest".to_owned() };
        let rejected = [("carp_digest".to_owned(), counter)].into();
        let shown = screen(&CarpStatus { vhids: vec![vhid], groups: vec![group], rejected });
        for expected in [
            "mail",
            "backup (demoted)",
            "1+240/256 s",
            "last heard 192.0.2.2 (1+100/256 s) 0.4 s ago",
            "group carp is demoted by 1: no backend of service mail is up (+1)",
            "carp_digest 3: wrong digest",
        ] {
            assert!(shown.contains(expected), "{expected} is not in\n{shown}");
        }
    }
}
