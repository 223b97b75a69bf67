//! Whether the servers' answers come back through the gateway, where they must: with `nat` and `snat`.

use super::super::Finding;
use super::super::facts::{Facts, Way};
use super::{answered_through_here, shown};
use crate::config::{Config, Forward};

pub(super) const CHECK: &str = "way back";

/// Fewer packets to servers may be on their way.
const ENOUGH: u64 = 3;

pub(super) fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings = unseen_interfaces(config, facts);
    findings.extend(one_way(config, facts));
    if findings.is_empty() && answered_through_here(config).next().is_some() {
        findings.push(Finding::ok(CHECK, "", "servers are behind interfaces that carry the program"));
    }
    findings
}

/// Servers behind an interface that the configuration does not name: their answers are not translated.
fn unseen_interfaces(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    for backend in answered_through_here(config).flat_map(|(_, backends)| backends) {
        let Some(Way::Out { device, .. }) = facts.ways.get(&backend.address) else { continue };
        let Some((name, _)) = facts.by_index(*device) else { continue };
        if carries(config, facts, *device) {
            continue;
        }
        let message = format!("its answers come in on {name}, which `interfaces` does not name");
        let mend = format!("add \"{name}\" to `interfaces`, then `matapa reload`");
        let finding = Finding::problem(CHECK, shown(backend), message, mend);
        if !findings.contains(&finding) {
            findings.push(finding);
        }
    }
    findings
}

/// Whether the program sees what comes in there: on the interface itself, or, for a VLAN, on the one below.
fn carries(config: &Config, facts: &Facts, index: u32) -> bool {
    let mut at = Some(index);
    // Two tags at most.
    for _ in 0..3 {
        let Some((name, interface)) = at.and_then(|index| facts.by_index(index)) else { return false };
        if config.interfaces.iter().any(|known| known == name) {
            return true;
        }
        at = interface.lower.filter(|_| interface.kind == "vlan" && !interface.elsewhere);
    }
    false
}

/// What went to servers and did not come back, by the counters.
fn one_way(config: &Config, facts: &Facts) -> Option<Finding> {
    if !config.services.iter().all(|service| matches!(service.forward, Forward::Nat | Forward::Snat)) {
        return None;
    }
    let counters = facts.daemon.counters.as_ref()?;
    let value = |names: [&str; 2]| -> u64 {
        names.iter().filter_map(|name| counters.counters.get(*name)).map(|counter| counter.value).sum()
    };
    let there = value(["to_backend", "to_backend_by_kernel"]);
    let back = value(["to_client", "to_client_by_kernel"]);
    (there >= ENOUGH && back == 0).then(|| {
        let message = format!(
            "{there} packets went to servers and none came back: their route to the clients does not lead through \
             this gateway"
        );
        let mend = "on each server: ip route replace default via THIS-GATEWAY; or forward = \"snat\" in the service";
        Finding::problem(CHECK, "", message, mend)
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::facts::Interface;
    use super::super::support::{CONFIG, config, counters, ip, well, wrong};
    use super::*;

    #[test]
    fn answers_that_come_in_elsewhere() {
        let config = config(CONFIG);
        let mut facts = well();
        assert_eq!(wrong(&judge(&config, &facts)), []);
        let server = ip("198.51.100.11");
        facts.ways.insert(server, Way::Out { device: 4, next_hop: server, mtu: None });
        let vlan = Interface { index: 4, kind: "vlan".to_owned(), lower: Some(3), ..Interface::default() };
        facts.interfaces.insert("int.7".to_owned(), vlan);
        assert_eq!(wrong(&judge(&config, &facts)), [], "the interface below carries the program");
        facts.interfaces.get_mut("int.7").expect("int.7").lower = Some(9);
        let findings = judge(&config, &facts);
        assert_eq!(wrong(&findings)[0].2, "add \"int.7\" to `interfaces`, then `matapa reload`");
    }

    #[test]
    fn answers_that_never_come() {
        let config = config(CONFIG);
        let mut facts = well();
        for (there, back, wrong_ones) in [(2, 0, 0), (9, 0, 1), (9, 1, 0)] {
            facts.daemon.counters = Some(counters(&[("to_backend", there), ("to_client_by_kernel", back)]));
            assert_eq!(wrong(&judge(&config, &facts)).len(), wrong_ones, "{there} {back}");
        }
    }
}
