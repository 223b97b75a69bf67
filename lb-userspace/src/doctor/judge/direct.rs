//! Servers that have the service's address themselves (`dsr`, `ipip`, `gue`): they must not say so on the network.

use std::net::IpAddr;

use super::super::Finding;
use super::super::facts::{ArpAnswer, Facts, Neighbour, Way};
use super::{backends, shown};
use crate::config::{Backend, Config, Forward, Service};

pub(super) const CHECK: &str = "vip owners";

pub(super) fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<Finding> =
        facts.answers.iter().filter_map(|answer| foreign(config, facts, answer)).collect();
    for service in config.services.iter().filter(|service| is_direct(service)) {
        // Said once for each, as it is the likeliest cause that nothing can be seen of.
        let message = "whether its servers have the address cannot be seen from here, except by the connections that \
                       work";
        let mut finding = Finding::ok(CHECK, &service.name, message);
        let vips: Vec<String> = service.listen.iter().map(|listen| listen.address.to_string()).collect();
        finding.mend = vips.first().map(|vip| format!("on each server: ip addr show to {vip}"));
        findings.push(finding);
    }
    findings
}

const fn is_direct(service: &Service) -> bool {
    matches!(service.forward, Forward::Dsr | Forward::Ipip | Forward::Gue)
}

/// Somebody else answers for a VIP.
fn foreign(config: &Config, facts: &Facts, answer: &ArpAnswer) -> Option<Finding> {
    let vip = IpAddr::V4(answer.vip);
    if facts.interfaces.values().any(|interface| interface.mac == answer.mac) {
        return None;
    }
    let subject = format!("{vip} on {}", answer.interface);
    if let Some(server) = owner(config, facts, answer) {
        let message = format!(
            "the server {} answers when the address is asked for, so clients go past the gateway",
            shown(server)
        );
        let mend = format!(
            "on {}: sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2",
            server.name
        );
        return Some(Finding::problem(CHECK, subject, message, mend));
    }
    let here = facts.ways.get(&vip) == Some(&Way::Local);
    let shared = config.carp.iter().any(|carp| carp.addresses.iter().any(|own| own.address == vip));
    if shared && !here {
        return None;
    }
    let mac = answer.mac.map(|byte| format!("{byte:02x}")).join(":");
    let message = format!("another machine, {mac}, answers when the address is asked for");
    Some(Finding::problem(CHECK, subject, message, format!("arping -D -I {} {vip}", answer.interface)))
}

/// The server with the MAC address of the answer.
fn owner<'a>(config: &'a Config, facts: &Facts, answer: &ArpAnswer) -> Option<&'a Backend> {
    config.services.iter().flat_map(|service| backends(config, service)).find(|backend| {
        let Some(Way::Out { device, next_hop, .. }) = facts.ways.get(&backend.address) else { return false };
        *next_hop == backend.address
            && facts.neighbours.get(&(*device, *next_hop)) == Some(&Neighbour::Known(answer.mac))
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::Severity::Problem;
    use super::super::support::{CONFIG, config, ip, well, wrong};
    use super::*;

    #[test]
    fn a_server_that_tells_of_its_address() {
        let config = config(&format!("{CONFIG}forward = \"dsr\"\n"));
        let mut facts = well();
        let findings = judge(&config, &facts);
        assert_eq!(wrong(&findings), []);
        assert!(findings[0].mend.as_ref().expect("a hint").contains("ip addr show to 203.0.113.10"));
        let answer = |mac| ArpAnswer { vip: [203, 0, 113, 10].into(), interface: "int".to_owned(), mac };
        facts.answers = vec![answer([2, 0, 0, 0, 0, 1])];
        assert_eq!(wrong(&judge(&config, &facts)), [], "it is ourselves");
        facts.answers = vec![answer([2, 0, 0, 0, 0, 0x11])];
        let findings = judge(&config, &facts);
        let found = wrong(&findings);
        assert_eq!((found[0].0, found[0].1), (Problem, "203.0.113.10 on int"));
        assert!(found[0].2.starts_with("on mx1: sysctl -w"), "{found:?}");
        facts.answers = vec![answer([2, 0, 0, 0, 0, 0x99])];
        assert_eq!(wrong(&judge(&config, &facts))[0].2, "arping -D -I int 203.0.113.10");
    }

    #[test]
    fn another_master_may_answer() {
        let text = format!(
            "{CONFIG}\n[carp.mail]\ninterface = \"ext\"\nvhid = 1\naddresses = [\"203.0.113.10/24\"]\npassword = \"x\"\n"
        );
        let config = config(&text);
        let mut facts = well();
        facts.answers = vec![ArpAnswer {
            vip: [203, 0, 113, 10].into(),
            interface: "ext".to_owned(),
            mac: [0, 0, 0x5e, 0, 1, 1],
        }];
        assert_eq!(wrong(&judge(&config, &facts)).len(), 1, "two have it");
        facts.ways.insert(ip("203.0.113.10"), Way::None(String::new()));
        assert_eq!(wrong(&judge(&config, &facts)).len(), 0);
    }
}
