//! Whether the interfaces are there, up, and connected.

use super::super::Finding;
use super::super::facts::Facts;
use crate::config::Config;

pub(super) const CHECK: &str = "interfaces";

pub(super) fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut names: Vec<&str> = config.interfaces.iter().map(String::as_str).collect();
    names.extend(config.carp.iter().map(|carp| carp.interface.as_str()));
    names.sort_unstable();
    names.dedup();
    names.into_iter().map(|name| one(name, facts)).collect()
}

fn one(name: &str, facts: &Facts) -> Finding {
    let Some(interface) = facts.interfaces.get(name) else {
        let there: Vec<&str> = facts.interfaces.keys().map(String::as_str).collect();
        let message = format!("there is no such interface; this machine has {}", there.join(", "));
        return Finding::problem(
            CHECK,
            name,
            message,
            "correct `interfaces` in the configuration, then `matapa reload`",
        );
    };
    if !interface.up {
        return Finding::problem(CHECK, name, "it is down", format!("ip link set dev {name} up"));
    }
    if !interface.running {
        let message = "it is up but has no carrier: a cable, or the other end, is missing";
        return Finding::problem(CHECK, name, message, format!("ip link show dev {name}; ethtool {name}"));
    }
    Finding::ok(CHECK, name, "up, with a carrier")
}

#[cfg(test)]
mod tests {
    use super::super::super::Severity::Problem;
    use super::super::support::{CONFIG, config, well, wrong};
    use super::*;

    #[test]
    fn each_state_is_told() {
        let config = config(CONFIG);
        let mut facts = well();
        assert_eq!(wrong(&judge(&config, &facts)), []);
        facts.interfaces.get_mut("ext").expect("ext").running = false;
        facts.interfaces.get_mut("int").expect("int").up = false;
        assert_eq!(
            wrong(&judge(&config, &facts)),
            [
                (Problem, "ext", "ip link show dev ext; ethtool ext"),
                (Problem, "int", "ip link set dev int up")
            ]
        );
        facts.interfaces.remove("int");
        assert!(judge(&config, &facts)[1].message.contains("this machine has ext"));
    }
}
