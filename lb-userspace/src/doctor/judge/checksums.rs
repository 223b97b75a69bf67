//! Checksums that senders have left unfinished: virtual interfaces leave them to a card, XDP sees the packet before any
//! card does, and what is forwarded then is dropped by its receiver.

use super::super::Finding;
use super::super::facts::{Facts, Interface};
use crate::config::Config;

pub(super) const CHECK: &str = "checksums";

pub(super) fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let present = |name: &String| Some((name.clone(), facts.interfaces.get(name)?));
    config
        .interfaces
        .iter()
        .filter_map(present)
        .filter_map(|(name, one)| judge_one(&name, one, facts))
        .collect()
}

fn judge_one(name: &str, interface: &Interface, facts: &Facts) -> Option<Finding> {
    let frames = facts.frames.get(name);
    if let Some(frames) = frames.filter(|frames| frames.unfinished > 0) {
        let message = format!(
            "{} of {} frames came in with an unfinished checksum; such packets are dropped by who receives them",
            frames.unfinished, frames.seen
        );
        return Some(Finding::problem(
            CHECK,
            name,
            message,
            "on each machine that sends there: ethtool -K eth0 tx off",
        ));
    }
    if interface.kind == "veth"
        && !interface.elsewhere
        && let Some((peer, _)) =
            interface.lower.and_then(|index| facts.by_index(index)).filter(|(_, peer)| peer.tx_checksum)
    {
        let message = format!(
            "its other end, {peer}, leaves checksums unfinished; such packets are dropped by who receives them"
        );
        return Some(Finding::problem(CHECK, name, message, format!("ethtool -K {peer} tx off")));
    }
    frames.map(|frames| {
        let message = match frames.seen {
            0 => "no frame came in while it was watched, so this was not seen".to_owned(),
            seen => format!("whole in {seen} frames that came in while it was watched"),
        };
        Finding::ok(CHECK, name, message)
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::Severity::Problem;
    use super::super::super::facts::Frames;
    use super::super::support::{CONFIG, config, well, wrong};
    use super::*;

    #[test]
    fn frames_and_peers_give_it_away() {
        let config = config(CONFIG);
        let mut facts = well();
        assert_eq!(judge(&config, &facts), [], "a card");
        facts.frames.insert("ext".to_owned(), Frames::default());
        assert_eq!(wrong(&judge(&config, &facts)), []);
        facts.frames.insert("ext".to_owned(), Frames { seen: 3, unfinished: 1 });
        let peer = Interface { index: 9, tx_checksum: true, ..Interface::default() };
        facts.interfaces.insert("veth9".to_owned(), peer);
        let int = facts.interfaces.get_mut("int").expect("int");
        (int.kind, int.lower) = ("veth".to_owned(), Some(9));
        assert_eq!(
            wrong(&judge(&config, &facts)),
            [
                (Problem, "ext", "on each machine that sends there: ethtool -K eth0 tx off"),
                (Problem, "int", "ethtool -K veth9 tx off")
            ]
        );
        facts.interfaces.get_mut("int").expect("int").elsewhere = true;
        assert_eq!(wrong(&judge(&config, &facts)).len(), 1, "number 9 is another one there");
    }
}
