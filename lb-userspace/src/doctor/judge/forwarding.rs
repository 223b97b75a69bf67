//! Settings of the kernel that keep packets from going through.

use super::super::Finding;
use super::super::facts::{Facts, Way};
use crate::config::Config;
use crate::net::settings;

pub(super) const CHECK: &str = "forwarding";

pub(super) fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let listeners = || config.services.iter().flat_map(|service| &service.listen);
    let (v4, v6) = (
        listeners().any(|listen| listen.address.is_ipv4()),
        listeners().any(|listen| listen.address.is_ipv6()),
    );
    let own_vip = listeners()
        .any(|listen| listen.address.is_ipv4() && facts.ways.get(&listen.address) == Some(&Way::Local));
    let mut findings = Vec::new();
    for name in &config.interfaces {
        let Some(found) = facts.settings.get(name) else { continue };
        let mut obstacles = settings::obstacles(name, found, v4, v6);
        // The daemon sets it at its start.
        if own_vip && facts.daemon.status.is_some() {
            obstacles.extend(settings::refuses_vips(name, found));
        }
        if obstacles.is_empty() {
            findings.push(Finding::ok(CHECK, name, "the kernel forwards, and lets answers pass"));
        }
        for obstacle in obstacles {
            let subject = format!("{name} {}", obstacle.name);
            findings.push(Finding::problem(CHECK, subject, obstacle.message, obstacle.mend));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::support::{CONFIG, config, ip, well, wrong};
    use super::*;

    #[test]
    fn each_setting_is_named() {
        let config = config(CONFIG);
        let mut facts = well();
        assert_eq!(wrong(&judge(&config, &facts)), []);
        let ext = facts.settings.get_mut("ext").expect("ext");
        (ext.forwarding4, ext.forwarding6, ext.rp_filter, ext.accept_local) =
            (Some(0), Some(0), Some(1), Some(0));
        let findings = judge(&config, &facts);
        let subjects: Vec<&str> = wrong(&findings).iter().map(|finding| finding.1).collect();
        assert_eq!(subjects, ["ext ip_forward", "ext rp_filter", "ext accept_local"], "no service over IPv6");
        facts.ways.insert(ip("203.0.113.10"), Way::None(String::new()));
        assert_eq!(wrong(&judge(&config, &facts)).len(), 2, "no VIP of its own to be forged");
    }
}
