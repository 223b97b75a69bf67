//! Whether packets find a way to the servers: a route, and somebody at its end who answers.

use super::super::Finding;
use super::super::facts::{Facts, Neighbour, Way};
use super::{backends, count, shown};
use crate::config::Config;

pub(super) const CHECK: &str = "next hops";

pub(super) fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    let mut known = 0;
    for backend in config.services.iter().flat_map(|service| backends(config, service)) {
        let finding = match facts.ways.get(&backend.address) {
            None => continue,
            Some(Way::Local) => Finding::problem(
                CHECK,
                shown(backend),
                "is an address of this machine, and no packet that came in is forwarded to it",
                "write the server's own address into the configuration",
            ),
            Some(Way::None(reason)) => Finding::problem(
                CHECK,
                shown(backend),
                format!("there is no route to it: {reason}"),
                format!("ip route add {} via ROUTER", backend.address),
            ),
            Some(Way::Out { device, next_hop, .. }) => match facts.neighbours.get(&(*device, *next_hop)) {
                Some(Neighbour::Silent) => {
                    let name = facts.name_of(*device);
                    let who = if *next_hop == backend.address {
                        "it".to_owned()
                    } else {
                        format!("its router {next_hop}")
                    };
                    Finding::problem(
                        CHECK,
                        shown(backend),
                        format!("nobody on {name} answers when {who} is asked for"),
                        format!("ip neigh show to {next_hop}; ping -c 3 -I {name} {next_hop}"),
                    )
                }
                Some(Neighbour::Known(_)) | None => {
                    known += 1;
                    continue;
                }
            },
        };
        if !findings.contains(&finding) {
            findings.push(finding);
        }
    }
    if findings.is_empty() && known > 0 {
        findings.push(Finding::ok(CHECK, "", format!("{} can be reached", count(known, "server"))));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::super::Severity::Problem;
    use super::super::support::{CONFIG, config, ip, well, wrong};
    use super::*;

    #[test]
    fn who_is_silent_and_who_has_no_route() {
        let config = config(CONFIG);
        let mut facts = well();
        assert_eq!(wrong(&judge(&config, &facts)), []);
        facts.neighbours.insert((3, ip("198.51.100.11")), Neighbour::Silent);
        facts.ways.insert(ip("198.51.100.12"), Way::None("Network is unreachable".to_owned()));
        let findings = judge(&config, &facts);
        assert_eq!(
            wrong(&findings),
            [
                (
                    Problem,
                    "mx1 (198.51.100.11)",
                    "ip neigh show to 198.51.100.11; ping -c 3 -I int 198.51.100.11"
                ),
                (Problem, "mx2 (198.51.100.12)", "ip route add 198.51.100.12 via ROUTER"),
            ]
        );
    }
}
