//! Whether a client's largest packet fits into the tunnel to a server.

use super::super::Finding;
use super::super::facts::{Facts, Way};
use super::{backends, shown};
use crate::config::{Backend, Config, Forward, Service};

pub(super) const CHECK: &str = "tunnels";

/// Bytes of headers (RFC 791, RFC 8200, RFC 768).
const IPV4: u32 = 20;
const IPV6: u32 = 40;
const UDP: u32 = 8;
/// The usual largest packet (RFC 894).
const ETHERNET: u32 = 1500;

pub(super) fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for service in &config.services {
        if overhead(service, true).is_none() {
            continue;
        }
        let before = findings.len();
        for backend in backends(config, service) {
            findings.extend(one(config, service, backend, facts));
        }
        if findings.len() == before {
            findings.push(Finding::ok(CHECK, &service.name, "the largest packets fit into its tunnels"));
        }
    }
    findings
}

/// What a tunnel to a server of this family adds to a packet; variant 1 of GUE has no header of its own.
const fn overhead(service: &Service, v4: bool) -> Option<u32> {
    let outer = if v4 { IPV4 } else { IPV6 };
    match service.forward {
        Forward::Ipip => Some(outer),
        Forward::Gue => Some(outer + UDP),
        Forward::Nat | Forward::Snat | Forward::Dsr => None,
    }
}

/// The largest packet that comes in for a tunnel that leaves by `out`: of the other interfaces, or of Ethernet where
/// there is no other.
fn largest(config: &Config, out: &str, facts: &Facts) -> Option<u32> {
    let mtu = |name: &String| facts.interfaces.get(name).map(|interface| interface.mtu);
    let others = config.interfaces.iter().filter(|name| *name != out).filter_map(mtu).max();
    others.or_else(|| config.interfaces.iter().filter_map(mtu).max().map(|mtu| mtu.min(ETHERNET)))
}

fn one(config: &Config, service: &Service, backend: &Backend, facts: &Facts) -> Option<Finding> {
    let Some(Way::Out { device, mtu, .. }) = facts.ways.get(&backend.address) else { return None };
    let (name, interface) = facts.by_index(*device)?;
    let largest = largest(config, name, facts)?;
    let room = mtu.map_or(interface.mtu, |mtu| mtu.min(interface.mtu));
    let overhead = overhead(service, backend.address.is_ipv4())?;
    if room >= largest + overhead {
        return None;
    }
    let message = format!(
        "packets of more than {} bytes do not fit into its tunnel; clients are told, and those that do not listen \
         stall",
        room.saturating_sub(overhead)
    );
    let mend = format!("ip link set dev {name} mtu {}, there and on the server", largest + overhead);
    Some(Finding::warning(CHECK, shown(backend), message, mend))
}

#[cfg(test)]
mod tests {
    use super::super::super::Severity::Warning;
    use super::super::support::{CONFIG, config, ip, well, wrong};
    use super::*;

    #[test]
    fn room_for_headers() {
        assert_eq!(judge(&config(CONFIG), &well()), [], "no tunnel");
        for (mode, needed) in [("ipip", 1520), ("gue", 1528)] {
            let config = config(&format!("{CONFIG}forward = \"{mode}\"\n"));
            let mut facts = well();
            let findings = judge(&config, &facts);
            let mend = format!("ip link set dev int mtu {needed}, there and on the server");
            assert_eq!(
                wrong(&findings),
                [
                    (Warning, "mx1 (198.51.100.11)", mend.as_str()),
                    (Warning, "mx2 (198.51.100.12)", mend.as_str()),
                ]
            );
            facts.interfaces.get_mut("int").expect("int").mtu = needed;
            assert_eq!(wrong(&judge(&config, &facts)), []);
        }
        // With one interface alone, clients' packets are as large as usual.
        let config = config(
            &CONFIG.replace("\"ext\", ", "").replace("pool = \"mx\"", "pool = \"mx\"\nforward = \"ipip\""),
        );
        let mut facts = well();
        assert_eq!(wrong(&judge(&config, &facts)).len(), 2);
        facts.interfaces.get_mut("int").expect("int").mtu = 1520;
        assert_eq!(wrong(&judge(&config, &facts)), []);
    }

    #[test]
    fn a_route_may_be_narrower_than_its_interface() {
        let config = config(&format!("{CONFIG}forward = \"ipip\"\n"));
        let mut facts = well();
        facts.ways.insert(
            ip("198.51.100.11"),
            Way::Out { device: 3, next_hop: ip("198.51.100.11"), mtu: Some(1400) },
        );
        assert!(judge(&config, &facts)[0].message.contains("more than 1380 bytes"));
    }
}
