//! `matapa show sync`: whether the other gateway knows the flows, and what is in the way.

use std::fmt::Write as _;

use crate::api::sync::SyncStatus;
use crate::cli::table::clean;

/// One thing a line; reasons only where something was refused or left out.
pub fn screen(status: &SyncStatus) -> String {
    if !status.configured {
        return "no flow synchronisation is configured\n".to_owned();
    }
    let mut shown = String::new();
    let peer = status.peer.map_or_else(String::new, |peer| peer.to_string());
    let heard = status
        .heard_seconds_ago
        .map_or_else(|| "never heard".to_owned(), |seconds| format!("heard {seconds:.1} s ago"));
    let sessions = format!(
        "{} here, {} there, {} begun",
        clean(&status.session),
        status.peer_session.as_deref().map_or_else(|| "none".into(), clean),
        status.sessions
    );
    let held = if status.held_back { ", held back until there is room" } else { "" };
    let rows = [
        ("Peer", format!("{peer} by {}, {heard}", clean(&status.interface))),
        ("State", status.state.name().to_owned()),
        ("Session", sessions),
        (
            "Sent",
            format!(
                "{} flows, {} ends, {} bytes",
                status.flows_sent, status.removals_sent, status.bytes_sent
            ),
        ),
        (
            "Received",
            format!(
                "{} flows, {} ends, {} bytes",
                status.flows_received, status.removals_received, status.bytes_received
            ),
        ),
        ("In flight", format!("{} batches, {} sent again", status.in_flight, status.resent)),
        ("Behind", format!("{} flows{held}", status.behind)),
        ("Lag", format!("{:.1} ms", status.lag_millis)),
    ];
    for (name, value) in rows {
        // Writing to a String cannot fail.
        let _ = writeln!(shown, "{name:<10} {value}");
    }
    for (name, counter) in
        status.refused.iter().chain(&status.left_out).filter(|(_, counter)| counter.value > 0)
    {
        let _ = writeln!(shown, "{} {}: {}", clean(name), counter.value, clean(&counter.help));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::sync::PeerState;
    use crate::api::types::CounterValue;

    #[test]
    fn the_screen() {
        assert_eq!(screen(&SyncStatus::default()), "no flow synchronisation is configured\n");
        let counter = CounterValue { value: 3, verdict: "drop".to_owned(), help: "wrong key".to_owned() };
        let status = SyncStatus {
            configured: true,
            peer: Some([10, 0, 0, 2].into()),
            interface: "eth2".to_owned(),
            state: PeerState::Synchronised,
            flows_sent: 12,
            behind: 4,
            held_back: true,
            refused: [("digest".to_owned(), counter)].into(),
            ..SyncStatus::default()
        };
        let shown = screen(&status);
        for expected in
            ["10.0.0.2 by eth2", "synchronised", "12 flows", "4 flows, held back", "digest 3: wrong key"]
        {
            assert!(shown.contains(expected), "{expected} is not in\n{shown}");
        }
    }
}
