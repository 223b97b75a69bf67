//! Looking at the machine. What cannot be looked at is left out of the facts, or says there why.

mod ethtool;
mod firewall;
mod frames;
mod links;
mod pins;
mod ways;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::facts::{Daemon, Facts};
use crate::api::client::Client;
use crate::config::{Config, Forward};
use crate::net::settings;

/// How long interfaces are watched: an answer on a local network takes less.
const WATCH: Duration = Duration::from_millis(1500);

/// Everything that is to be known for `config`. Takes a few seconds, as others are asked and waited for; the daemon's
/// checks are run once, so that their answers can be looked at.
pub async fn gather(config: &Config, client: &Client) -> Facts {
    let mut facts = Facts { daemon: ask(client).await, pins: pins::read(), ..Facts::default() };
    facts.interfaces = links::read().await.unwrap_or_default();
    for name in &config.interfaces {
        if facts.interfaces.contains_key(name) {
            facts.settings.insert(name.clone(), settings::read(name));
        }
    }
    let watched = watch(config, &facts);
    let poll = async {
        if facts.daemon.status.is_some() {
            // A moment later, when the watch has begun. What a check says is in the status already.
            tokio::time::sleep(WATCH / 4).await;
            let _ = tokio::time::timeout(WATCH, client.poll()).await;
        }
    };
    let mut addresses = addresses(config);
    // Those that host names stand for, as the daemon knows them.
    let status = facts.daemon.status.iter();
    let backends = status.flat_map(|status| &status.services).flat_map(|service| &service.backends);
    addresses.extend(backends.filter(|backend| backend.host.is_some()).map(|backend| backend.address));
    addresses.sort_unstable();
    addresses.dedup();
    let ways = tokio::task::spawn_blocking(move || ways::read(&addresses));
    let ((), watched, ways) = tokio::join!(poll, watched, ways);
    (facts.frames, facts.answers) = watched;
    (facts.ways, facts.neighbours) = ways.unwrap_or_default();
    if !config.carp.is_empty() {
        facts.firewall = firewall::read().await;
    }
    facts
}

/// VIPs and servers.
fn addresses(config: &Config) -> Vec<IpAddr> {
    let vips = config.services.iter().flat_map(|service| &service.listen).map(|listen| listen.address);
    let servers = config.pools.iter().flat_map(|pool| &pool.backends).map(|backend| backend.address);
    vips.chain(servers).collect::<BTreeSet<_>>().into_iter().collect()
}

async fn ask(client: &Client) -> Daemon {
    match client.status().await {
        Ok(status) => Daemon {
            unreachable: None,
            status: Some(status),
            counters: client.counters().await.ok(),
            carp: client.carp().await.ok(),
        },
        Err(error) => Daemon { unreachable: Some(error.to_string()), ..Daemon::default() },
    }
}

/// Frames with unfinished checksums on interfaces where they may be, and answers to questions for the VIPs.
async fn watch(config: &Config, facts: &Facts) -> frames::Seen {
    let present = |name: &&String| facts.interfaces.get(*name).is_some_and(|interface| interface.running);
    let direct = |forward| matches!(forward, Forward::Dsr | Forward::Ipip | Forward::Gue);
    // Where the servers have no VIPs, another machine may still have one, but asking would tell it nothing new.
    let asked: BTreeSet<Ipv4Addr> = config
        .services
        .iter()
        .filter(|service| direct(service.forward))
        .flat_map(|service| &service.listen)
        .filter_map(|listen| match listen.address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        })
        .collect();
    let mut watches = Vec::new();
    for name in config.interfaces.iter().filter(present) {
        let Some(interface) = facts.interfaces.get(name) else { continue };
        let watch = frames::Watch {
            name: name.clone(),
            index: interface.index,
            mac: interface.mac,
            checksums: frames::may_be_unfinished(interface),
            ask: asked.iter().copied().collect(),
        };
        if watch.checksums || !watch.ask.is_empty() {
            watches.push(tokio::task::spawn_blocking(move || watch.run(WATCH)));
        }
    }
    let mut seen = frames::Seen::default();
    for watch in watches {
        if let Ok((name, frames, answers)) = watch.await {
            if let Some(frames) = frames {
                seen.0.insert(name, frames);
            }
            seen.1.extend(answers);
        }
    }
    seen
}
