//! Whether packets to the services' addresses come here.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::super::Finding;
use super::super::facts::{Facts, Way};
use crate::config::Config;

pub(super) const CHECK: &str = "addresses";

pub(super) fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let vips: BTreeSet<IpAddr> =
        config.services.iter().flat_map(|service| &service.listen).map(|listen| listen.address).collect();
    vips.into_iter().filter_map(|vip| one(config, facts, vip)).collect()
}

fn one(config: &Config, facts: &Facts, vip: IpAddr) -> Option<Finding> {
    let way = facts.ways.get(&vip)?;
    let subject = vip.to_string();
    if *way == Way::Local {
        return Some(Finding::ok(CHECK, subject, "is an address of this machine"));
    }
    if let Some(carp) = config.carp.iter().find(|carp| carp.addresses.iter().any(|own| own.address == vip)) {
        return Some(shared(facts, &carp.name, subject));
    }
    let length = if vip.is_ipv4() { 32 } else { 128 };
    let first = config.interfaces.first().map_or("eth0", String::as_str);
    if let Way::Out { device, next_hop, .. } = way
        && *next_hop == vip
    {
        let name = facts.name_of(*device);
        let message = format!(
            "is in the network of {name}, but is no address of this machine, so nobody answers when it is asked for"
        );
        return Some(Finding::problem(
            CHECK,
            subject,
            message,
            format!("ip addr add {vip}/{length} dev {name}"),
        ));
    }
    if has_traffic(config, facts, vip) {
        return Some(Finding::ok(
            CHECK,
            subject,
            "is no address of this machine, but packets to it come here",
        ));
    }
    let message = "is no address of this machine, and no packet for it has come yet: it must be added, or a router \
                   must send it here";
    let mend =
        format!("ip addr add {vip}/{length} dev {first}, or on the router: ip route add {vip} via GATEWAY");
    Some(Finding::warning(CHECK, subject, message, mend))
}

/// One that CARP moves.
fn shared(facts: &Facts, carp: &str, subject: String) -> Finding {
    let vhids = facts.daemon.carp.iter().flat_map(|status| &status.vhids);
    match vhids.into_iter().find(|vhid| vhid.name == carp).map(|vhid| vhid.state.as_str()) {
        Some("master") => {
            let message = format!("carp {carp} is master, but the address is not here");
            Finding::problem(CHECK, subject, message, "matapa show carp; journalctl -u matapa")
        }
        Some(state) => Finding::ok(CHECK, subject, format!("carp {carp} is {state}: another gateway has it")),
        None => {
            let message = format!("carp {carp} would take it, but the daemon does not tell of it");
            Finding::warning(CHECK, subject, message, "matapa show carp")
        }
    }
}

fn has_traffic(config: &Config, facts: &Facts, vip: IpAddr) -> bool {
    let services = facts.daemon.status.iter().flat_map(|status| &status.services);
    let listens = |name: &str| {
        let service = config.services.iter().find(|service| service.name == name);
        service.is_some_and(|service| service.listen.iter().any(|listen| listen.address == vip))
    };
    services.into_iter().any(|service| service.packets > 0 && listens(&service.name))
}

#[cfg(test)]
mod tests {
    use super::super::super::Severity::{Problem, Warning};
    use super::super::support::{CONFIG, config, ip, well, wrong};
    use super::*;

    #[test]
    fn an_address_that_nobody_has() {
        let config = config(CONFIG);
        let mut facts = well();
        let vip = ip("203.0.113.10");
        assert_eq!(wrong(&judge(&config, &facts)), []);
        facts.ways.insert(vip, Way::Out { device: 2, next_hop: vip, mtu: None });
        assert_eq!(
            wrong(&judge(&config, &facts)),
            [(Problem, "203.0.113.10", "ip addr add 203.0.113.10/32 dev ext")]
        );
        for way in [Way::None(String::new()), Way::Out { device: 2, next_hop: ip("192.0.2.9"), mtu: None }] {
            facts.ways.insert(vip, way);
            assert_eq!(wrong(&judge(&config, &facts))[0].0, Warning);
        }
        facts.daemon.status.as_mut().expect("a status").services[0].packets = 1;
        assert_eq!(wrong(&judge(&config, &facts)), []);
    }

    #[test]
    fn a_shared_address_is_elsewhere_rightly() {
        let text = format!(
            "{CONFIG}\n[carp.mail]\ninterface = \"ext\"\nvhid = 1\naddresses = [\"203.0.113.10/24\"]\npassword = \"x\"\n"
        );
        let config = config(&text);
        let mut facts = well();
        facts.ways.insert(ip("203.0.113.10"), Way::None(String::new()));
        assert_eq!(wrong(&judge(&config, &facts))[0].0, Warning);
        for (state, number) in [("backup", 0), ("master", 1)] {
            facts.daemon.carp = serde_json::from_value(serde_json::json!({
                "vhids": [{
                    "name": "mail", "interface": "ext", "vhid": 1, "state": state, "since_seconds": 1, "reason": "",
                    "wish": "released", "addresses": [], "group": "carp", "preempt": false, "advbase": 1, "advskew": 0,
                    "advertised_advbase": 1, "advertised_advskew": 0, "demotion": 0, "peer": null, "sent": 0,
                    "send_errors": 0, "received": 0, "transitions": 0,
                }],
                "groups": [], "rejected": {},
            }))
            .expect("a status");
            assert_eq!(wrong(&judge(&config, &facts)).len(), number, "{state}");
        }
    }
}
