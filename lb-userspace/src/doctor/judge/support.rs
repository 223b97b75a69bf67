//! A gateway on which everything is well, for tests to spoil.

use std::net::IpAddr;
use std::path::Path;

use super::super::facts::{Daemon, Facts, Interface, Neighbour, Way, Xdp};
use super::{Finding, Severity};
use crate::api::types::{Counters, Status};
use crate::config::{self, Config};

pub(super) const CONFIG: &str = r#"
interfaces = ["ext", "int"]

[pools.mx]
backends = [
  { name = "mx1", address = "198.51.100.11" },
  { name = "mx2", address = "198.51.100.12" },
]

[services.mail]
listen = "203.0.113.10:25"
pool = "mx"
"#;

pub(super) fn config(text: &str) -> Config {
    config::parse(text, Path::new("test.toml")).unwrap_or_else(|errors| panic!("{errors}"))
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// `ext` is 2, `int` is 3; servers are behind `int`.
pub(super) fn well() -> Facts {
    let mut facts = Facts::default();
    for (name, index) in [("ext", 2), ("int", 3)] {
        let interface = Interface {
            index,
            mac: [2, 0, 0, 0, 0, 1],
            up: true,
            running: true,
            mtu: 1500,
            xdp: Some(Xdp { id: 7, generic: false, name: "matapa_xdp".to_owned() }),
            ..Interface::default()
        };
        facts.interfaces.insert(name.to_owned(), interface);
        facts.settings.insert(
            name.to_owned(),
            crate::net::settings::Settings {
                forwarding4: Some(1),
                forwarding6: Some(1),
                rp_filter: Some(0),
                accept_local: Some(1),
            },
        );
    }
    facts.ways.insert(ip("203.0.113.10"), Way::Local);
    for server in ["198.51.100.11", "198.51.100.12"] {
        facts.ways.insert(ip(server), Way::Out { device: 3, next_hop: ip(server), mtu: None });
        facts.neighbours.insert((3, ip(server)), Neighbour::Known([2, 0, 0, 0, 0, 0x11]));
    }
    facts.daemon = Daemon { status: Some(status("active", "up")), ..Daemon::default() };
    facts
}

pub(super) fn status(service: &str, health: &str) -> Status {
    let backend = |id: u32| {
        serde_json::json!({
            "id": id, "name": format!("mx{id}"), "address": format!("198.51.100.1{id}"), "port": null, "weight": 1,
            "health": health, "admin": "enabled", "availability_percent": null, "checks": 1, "checks_up": 1,
            "last_error": (health == "down").then_some("connection refused"), "last_check_millis": 1, "flows": 0,
            "packets": 0, "bytes": 0,
        })
    };
    serde_json::from_value(serde_json::json!({
        "version": "0", "pid": 1, "uptime_seconds": 1, "config_file": "x", "interfaces": [
            { "name": "ext", "index": 2, "mode": "native" }, { "name": "int", "index": 3, "mode": "native" },
        ],
        "services": [{
            "id": 1, "name": "mail", "state": service, "listen": ["203.0.113.10:25/tcp"], "pool": "mx",
            "forward": "nat", "scheduler": "maglev", "flows": 0, "packets": 0, "bytes": 0,
            "backends": [backend(1), backend(2)],
        }],
    }))
    .expect("a status")
}

pub(super) fn counters(values: &[(&str, u64)]) -> Counters {
    let counters = values.iter().map(|(name, value)| {
        let value = crate::api::types::CounterValue {
            value: *value,
            verdict: "forward".to_owned(),
            help: String::new(),
        };
        ((*name).to_owned(), value)
    });
    Counters { counters: counters.collect() }
}

/// What is wrong: severity, subject, and the mending command.
pub(super) fn wrong(findings: &[Finding]) -> Vec<(Severity, &str, &str)> {
    findings
        .iter()
        .filter(|finding| finding.severity != Severity::Ok)
        .map(|finding| {
            (finding.severity, finding.subject.as_str(), finding.mend.as_deref().unwrap_or_default())
        })
        .collect()
}
