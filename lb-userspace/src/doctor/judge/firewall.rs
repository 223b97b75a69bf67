//! Whether a firewall drops what gateways tell each other.

use std::net::IpAddr;

use super::super::Finding;
use super::super::facts::{Facts, Firewall};
use super::nftables::{Drop, Packet, fate};
use crate::carp::wire::{GROUP4, GROUP6, PROTOCOL};
use crate::config::{Carp, Config};

pub(super) const CHECK: &str = "firewall";

pub(super) fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    if config.carp.is_empty() {
        return Vec::new();
    }
    match &facts.firewall {
        Firewall::NotAsked => Vec::new(),
        Firewall::NoTool => {
            vec![Finding::ok(CHECK, "", "nft(8) is not installed, so rules of nftables were not looked at")]
        }
        Firewall::Unreadable(reason) => {
            let message = format!("the rules of nftables cannot be read: {reason}");
            vec![Finding::warning(CHECK, "", message, "sudo nft list ruleset")]
        }
        Firewall::Rules(rules) => {
            let dropped: Vec<Finding> = config.carp.iter().flat_map(|carp| dropped(carp, rules)).collect();
            if dropped.is_empty() {
                vec![Finding::ok(
                    CHECK,
                    "",
                    "nftables lets CARP (protocol 112) through, as far as can be told",
                )]
            } else {
                dropped
            }
        }
    }
}

fn dropped(carp: &Carp, rules: &[serde_json::Value]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for v4 in [true, false] {
        let group = if v4 { IpAddr::V4(GROUP4) } else { IpAddr::V6(GROUP6) };
        let is = |address: &IpAddr| address.is_ipv4() == v4;
        let destination = match carp.peers.as_slice() {
            [] => carp.addresses.iter().any(|own| is(&own.address)).then_some(group),
            peers => peers.iter().copied().find(is),
        };
        let Some(destination) = destination else { continue };
        for incoming in [true, false] {
            let packet = Packet {
                v4,
                protocol: PROTOCOL,
                protocol_names: &["vrrp", "carp"],
                destination,
                interface: &carp.interface,
                incoming,
            };
            findings.extend(fate(rules, &packet).map(|drop| finding(carp, &drop, v4, incoming)));
        }
    }
    findings
}

fn finding(carp: &Carp, drop: &Drop, v4: bool, incoming: bool) -> Finding {
    let (family, field) = if v4 { ("IPv4", "ip protocol") } else { ("IPv6", "ip6 nexthdr") };
    let (way, interface) = if incoming { ("incoming", "iifname") } else { ("outgoing", "oifname") };
    let what = match drop.handle {
        Some(handle) => format!("rule {handle} of chain {}", drop.chain),
        None => format!("the policy of chain {}", drop.chain),
    };
    let consequence =
        if incoming { "this gateway is master beside another" } else { "another gateway takes over as well" };
    let message = format!("{what} drops {way} advertisements over {family}, so {consequence}");
    let mend =
        format!("nft insert rule {} {interface} {} {field} {PROTOCOL} accept", drop.chain, carp.interface);
    Finding::problem(CHECK, &carp.name, message, mend)
}

#[cfg(test)]
mod tests {
    use super::super::super::Severity::Problem;
    use super::super::support::{CONFIG, config, well, wrong};
    use super::*;
    use serde_json::json;

    #[test]
    fn a_policy_that_drops_carp() {
        let text = format!(
            "{CONFIG}\n[carp.mail]\ninterface = \"ext\"\nvhid = 1\naddresses = [\"203.0.113.10/24\"]\npassword = \"x\"\n"
        );
        let config = config(&text);
        let mut facts = well();
        for firewall in [Firewall::NotAsked, Firewall::NoTool, Firewall::Rules(vec![])] {
            facts.firewall = firewall;
            assert_eq!(wrong(&judge(&config, &facts)), []);
        }
        let chain = json!({ "chain": { "family": "ip", "table": "fw", "name": "in", "type": "filter", "hook": "input",
                                       "prio": 0, "policy": "drop" } });
        facts.firewall = Firewall::Rules(vec![chain]);
        assert_eq!(
            wrong(&judge(&config, &facts)),
            [(Problem, "mail", "nft insert rule ip fw in iifname ext ip protocol 112 accept")]
        );
    }
}
