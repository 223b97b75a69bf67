//! From facts to findings. Each module looks at one thing.

mod backends;
mod checksums;
mod daemon;
mod direct;
mod firewall;
mod forwarding;
mod interfaces;
mod neighbours;
mod nftables;
mod offloads;
mod program;
#[cfg(test)]
mod support;
mod tunnels;
mod vips;
mod way_back;

use super::facts::Facts;
use super::{Finding, Severity};
use crate::config::{Backend, Config, Forward, Service};

type Judge = fn(&Config, &Facts) -> Vec<Finding>;

/// What is looked at, in the order in which it is told: what the rest depends on comes first.
pub const CHECKS: &[(&str, Judge)] = &[
    (daemon::CHECK, daemon::judge),
    (interfaces::CHECK, interfaces::judge),
    (program::CHECK, program::judge),
    (forwarding::CHECK, forwarding::judge),
    (vips::CHECK, vips::judge),
    (backends::CHECK, backends::judge),
    (neighbours::CHECK, neighbours::judge),
    (way_back::CHECK, way_back::judge),
    (direct::CHECK, direct::judge),
    (tunnels::CHECK, tunnels::judge),
    (checksums::CHECK, checksums::judge),
    (offloads::CHECK, offloads::judge),
    (firewall::CHECK, firewall::judge),
];

/// Everything that can be said.
pub fn examine(config: &Config, facts: &Facts) -> Vec<Finding> {
    CHECKS.iter().flat_map(|(_, judge)| judge(config, facts)).collect()
}

/// Whether anything is wrong.
pub fn is_well(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.severity == Severity::Ok)
}

/// The servers of a service.
fn backends<'a>(config: &'a Config, service: &Service) -> Vec<&'a Backend> {
    config.members(service).map(|member| member.backend).collect()
}

/// Services whose answers come back through the gateway, with their servers.
fn answered_through_here(config: &Config) -> impl Iterator<Item = (&Service, Vec<&Backend>)> {
    let through = |service: &&Service| matches!(service.forward, Forward::Nat | Forward::Snat);
    config.services.iter().filter(through).map(|service| (service, backends(config, service)))
}

/// `mx1 (198.51.100.11)`, or the address alone if that is its name.
fn shown(backend: &Backend) -> String {
    let address = backend.address.to_string();
    if backend.name.starts_with(&address) || backend.name.starts_with(&format!("[{address}]")) {
        address
    } else {
        format!("{} ({address})", backend.name)
    }
}

/// "1 server", "2 servers".
fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
