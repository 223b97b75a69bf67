//! Whether the program is on the interfaces, in the driver, and the only one.

use super::super::Finding;
use super::super::facts::{Facts, Interface, Xdp};
use crate::config::{Config, XdpMode};

pub(super) const CHECK: &str = "program";

/// What all instances of the program are called by.
const OURS: &str = "matapa";

pub(super) fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(reason) = &facts.pins.unreadable {
        let message = format!("pins cannot be looked at: {reason}");
        findings.push(Finding::warning(CHECK, &facts.pins.directory, message, "sudo matapa doctor"));
    }
    if config.services.is_empty() {
        return findings;
    }
    for name in &config.interfaces {
        if let Some(interface) = facts.interfaces.get(name) {
            findings.push(match &interface.xdp {
                Some(xdp) => attached(config, name, interface, xdp),
                None => absent(name, interface, facts),
            });
        }
    }
    findings
}

fn attached(config: &Config, name: &str, interface: &Interface, xdp: &Xdp) -> Finding {
    if !xdp.name.is_empty() && !xdp.name.starts_with(OURS) {
        let message = format!("another XDP program is on it: {} (number {})", xdp.name, xdp.id);
        let mend = format!("ip link set dev {name} xdp off; systemctl restart matapa");
        return Finding::problem(CHECK, name, message, mend);
    }
    if !xdp.generic {
        return Finding::ok(CHECK, name, "forwards in the driver");
    }
    let driver = if interface.driver.is_empty() { "its driver" } else { &interface.driver };
    if config.xdp_mode == XdpMode::Generic {
        let message = "forwards in generic mode, as configured, which costs several times as much per packet";
        return Finding::warning(
            CHECK,
            name,
            message,
            "xdp_mode = \"auto\" in the configuration, then `matapa reload`",
        );
    }
    let message = format!(
        "forwards in generic mode, several times slower: {driver} has no native XDP, or not as it is set"
    );
    Finding::warning(CHECK, name, message, format!("ethtool -i {name}; journalctl -u matapa -g {name}"))
}

fn absent(name: &str, interface: &Interface, facts: &Facts) -> Finding {
    let pinned = facts.pins.links.iter().find(|link| link.interface == name);
    let running = facts.daemon.status.is_some();
    let start = if running { "matapa reload" } else { "systemctl start matapa" };
    let message = match pinned {
        Some(link) if link.index != interface.index => {
            "no program, though one is pinned for it: the interface was removed and made again since"
        }
        Some(_) => "no program, though one is pinned for it: somebody has taken it off",
        None if running => "no program: the daemon does not know this interface",
        None => "no program, so nothing is forwarded",
    };
    // A link whose interface has gone cannot be used again.
    let mend = if pinned.is_some() && running { "systemctl restart matapa" } else { start };
    Finding::problem(CHECK, name, message, mend)
}

#[cfg(test)]
mod tests {
    use super::super::super::Severity::{Problem, Warning};
    use super::super::super::facts::PinnedLink;
    use super::super::support::{CONFIG, config, well, wrong};
    use super::*;

    #[test]
    fn a_foreign_program_and_a_slow_one() {
        let config = config(CONFIG);
        let mut facts = well();
        assert_eq!(wrong(&judge(&config, &facts)), []);
        facts.interfaces.get_mut("ext").and_then(|ext| ext.xdp.as_mut()).expect("a program").name =
            "pass".to_owned();
        facts.interfaces.get_mut("int").and_then(|int| int.xdp.as_mut()).expect("a program").generic = true;
        let findings = judge(&config, &facts);
        let found = wrong(&findings);
        assert_eq!(found[0], (Problem, "ext", "ip link set dev ext xdp off; systemctl restart matapa"));
        assert_eq!((found[1].0, found[1].1), (Warning, "int"));
        // Without the right to know its name, it is taken as ours.
        facts.interfaces.get_mut("ext").and_then(|ext| ext.xdp.as_mut()).expect("a program").name.clear();
        assert_eq!(wrong(&judge(&config, &facts)).len(), 1);
    }

    #[test]
    fn one_that_is_gone() {
        let config = config(CONFIG);
        let mut facts = well();
        facts.interfaces.get_mut("ext").expect("ext").xdp = None;
        assert_eq!(wrong(&judge(&config, &facts)), [(Problem, "ext", "matapa reload")]);
        facts.pins.links = vec![PinnedLink { interface: "ext".to_owned(), index: 9 }];
        assert!(judge(&config, &facts)[0].message.contains("made again"));
        facts.pins.links[0].index = 2;
        assert!(judge(&config, &facts)[0].message.contains("taken it off"));
        facts.daemon.status = None;
        assert_eq!(wrong(&judge(&config, &facts)), [(Problem, "ext", "systemctl start matapa")]);
    }
}
