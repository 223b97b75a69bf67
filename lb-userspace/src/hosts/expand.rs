//! From the hosts of a configuration to backends.

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_common::abi::NAME_LEN;

use super::answers::Answers;
use crate::config::{Backend, Config, Host, Service};
use crate::dataplane::image::{Image, server_port, serves};

/// An address that cannot be a backend because of something else in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeftOut {
    pub host: String,
    pub address: IpAddr,
    /// After "is".
    pub reason: String,
}

/// Gives each host of `config` the backends that `answers` say, in place of those that it has. What is said of an
/// address in the file goes before what a name says, and what one name says before another, in the order of the file.
pub fn expand(config: &mut Config, answers: &Answers) -> Vec<LeftOut> {
    for pool in &mut config.pools {
        pool.backends.retain(|backend| backend.host.is_none());
    }
    let gateway = own(config);
    let mut left_out = BTreeSet::new();
    // An address that has left one name and come to another is the other's.
    for leaving in [false, true] {
        for index in 0..config.pools.len() {
            for host in config.pools[index].hosts.clone() {
                let Some(known) = answers.get(&host.host) else { continue };
                let addresses: Vec<(IpAddr, bool)> = if leaving {
                    known.leaving().map(|(address, since)| (address, since.is_some())).collect()
                } else {
                    known.addresses().map(|address| (address, false)).collect()
                };
                for (address, drained) in addresses.into_iter().filter(|(one, _)| host.families.has(*one)) {
                    let backend = backend(&host, address, drained);
                    let of_gateway = gateway.iter().find(|(taken, _)| *taken == address);
                    let other =
                        || same_as(config, index, &backend).map(|name| format!("backend {name} already"));
                    match of_gateway.map(|(_, what)| (*what).to_owned()).or_else(other) {
                        None => config.pools[index].backends.push(backend),
                        // The one that goes on has its connections.
                        Some(_) if leaving => {}
                        Some(reason) => {
                            left_out.insert(LeftOut { host: host.host.clone(), address, reason });
                        }
                    }
                }
            }
        }
    }
    left_out.into_iter().collect()
}

fn backend(host: &Host, address: IpAddr, leaving: bool) -> Backend {
    Backend {
        name: host.backend_name(address),
        address,
        port: host.port,
        weight: host.weight,
        priority: host.priority,
        max_connections: host.max_connections,
        enabled: host.enabled,
        host: Some(host.host.clone()),
        leaving,
    }
}

/// Addresses that packets would come back from.
fn own(config: &Config) -> Vec<(IpAddr, &'static str)> {
    let vips = config.services.iter().flat_map(|service| &service.listen);
    let sources = config.services.iter().filter_map(|service| service.snat.as_ref());
    vips.map(|listen| (listen.address, "the address of a service"))
        .chain(sources.flat_map(|snat| &snat.addresses).map(|address| (*address, "a source of snat")))
        .collect()
}

/// The backend that is the same server to some listener, or has the same name.
fn same_as(config: &Config, pool: usize, new: &Backend) -> Option<String> {
    if let Some(old) = config.pools[pool].backends.iter().find(|old| old.name == new.name) {
        return Some(old.name.clone());
    }
    let uses = |service: &&Service| service.pool == pool || service.backup == Some(pool);
    config.services.iter().filter(uses).find_map(|service| {
        config.members(service).map(|member| member.backend).find_map(|old| {
            let same = |listen| {
                old.address == new.address
                    && serves(service, listen, new)
                    && server_port(listen, old) == server_port(listen, new)
            };
            (old.name == new.name || service.listen.iter().any(same)).then(|| old.name.clone())
        })
    })
}

/// What an earlier daemon has left in the maps: its backends bear the names that the hosts of `config` give them.
pub fn restore(config: &Config, image: &Image, now: std::time::Instant) -> Answers {
    let mut answers = Answers::default();
    answers.follow(config, now);
    for service in &config.services {
        let hosts = [Some(service.pool), service.backup].into_iter().flatten();
        let hosts: Vec<&Host> = hosts.flat_map(|index| &config.pools[index].hosts).collect();
        if hosts.is_empty() {
            continue;
        }
        for listener in service.listen.iter().filter_map(|listen| image.listener_at(listen)) {
            for (_, entry) in image.backends_of(listener) {
                let address = entry.server.address;
                let of = |host: &&&Host| cut(&host.backend_name(address)) == cut(&entry.name);
                if let Some(host) = hosts.iter().find(of) {
                    answers.restore(&host.host, address);
                }
            }
        }
    }
    answers
}

/// As the maps keep a name.
fn cut(name: &str) -> &str {
    name.get(..NAME_LEN).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::config::parse;
    use crate::hosts::{Outcome, Reply};

    fn config(pools: &str) -> Config {
        let text = format!(
            "interfaces = [\"eth0\"]\n{pools}\n[services.mail]\nlisten = \"203.0.113.10:25\"\npool = \"mx\"\n"
        );
        parse(&text, Path::new("m.toml")).unwrap_or_else(|error| panic!("{:?}: {text}", error.lines()))
    }

    fn answers(config: &Config, addresses: &[&str]) -> Answers {
        let now = Instant::now();
        let mut answers = Answers::default();
        answers.follow(config, now);
        let addresses: Vec<IpAddr> = addresses.iter().map(|one| one.parse().unwrap()).collect();
        for question in answers.due(now) {
            let found = Outcome::Addresses(addresses.clone(), Duration::from_secs(60));
            answers.answered(&question.host, &Reply { v4: Some(found), v6: None }, now);
        }
        answers
    }

    fn names(config: &Config) -> Vec<&str> {
        config.pools[0].backends.iter().map(|backend| backend.name.as_str()).collect()
    }

    #[test]
    fn each_address_is_a_backend_with_a_name_of_its_own() {
        let mut config =
            config("[pools.mx]\nbackends = [{ host = \"mx.example.com\", port = 2525, weight = 3 }]");
        let answers = answers(&config, &["198.51.100.12", "198.51.100.11"]);
        for _ in 0..2 {
            assert_eq!(expand(&mut config, &answers), []);
            let expected = ["mx.example.com:2525-198.51.100.11", "mx.example.com:2525-198.51.100.12"];
            assert_eq!(names(&config), expected);
        }
        let first = &config.pools[0].backends[0];
        assert_eq!((first.port, first.weight, first.leaving), (Some(2525), 3, false));
        assert_eq!(first.host.as_deref(), Some("mx.example.com"));
    }

    #[test]
    fn what_would_be_something_else_is_left_out() {
        let mut config = config(
            "[pools.mx]\nbackends = [\"a.example.com\", \"b.example.com:25\", { name = \"x\", address = \"198.51.100.11\" }]",
        );
        let answers = answers(&config, &["198.51.100.11", "198.51.100.12", "203.0.113.10"]);
        let left_out = expand(&mut config, &answers);
        assert_eq!(names(&config), ["x", "a.example.com-198.51.100.12"]);
        let told: Vec<String> =
            left_out.iter().map(|one| format!("{} {} is {}", one.host, one.address, one.reason)).collect();
        assert_eq!(
            told,
            [
                "a.example.com 198.51.100.11 is backend x already",
                "a.example.com 203.0.113.10 is the address of a service",
                "b.example.com 198.51.100.11 is backend x already",
                "b.example.com 198.51.100.12 is backend a.example.com-198.51.100.12 already",
                "b.example.com 203.0.113.10 is the address of a service",
            ]
        );
    }
}
