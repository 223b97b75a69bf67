//! The addresses of each name, and when it is asked for again.
//!
//! Pure: the time comes in as a value. The rules:
//!
//! - A good answer holds for its TTL, within the bounds of `[resolver]`. Then it is asked for again.
//! - Without one the last good answer stays, and the question is asked again after 1, 2, 4 ... seconds, at most a minute.
//!   "There is no such name" and "it has no address" are no good answers: to lose a server's record is easier than to lose
//!   the server, and of that the checks tell. But where a name has addresses of one family, that it has none of the other
//!   is believed.
//! - Addresses that an answer no longer has are *leaving* until [`Answers::forget`]. They are used until one of the others
//!   is up ([`Answers::hand_over`]), so that a name that moves does not leave a service without servers. One that comes
//!   back is as if it had never left.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{MOST_ADDRESSES, Outcome, Question, Reply};
use crate::config::{Config, Families, Resolver, no_server};

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// What is known of one name.
#[derive(Clone, Debug)]
pub struct Known {
    families: Families,
    addresses: BTreeSet<IpAddr>,
    /// With the time since which they get no new flows.
    leaving: BTreeMap<IpAddr, Option<Instant>>,
    /// An answer is awaited.
    asked: bool,
    /// When to ask, unless it is asked already.
    due: Instant,
    /// In a row.
    failures: u32,
    /// How often there was no good answer, in all.
    pub failed: u64,
    /// Why there was no good answer last time.
    pub error: Option<String>,
    /// Addresses of the last answer that were left out, and why.
    pub unusable: Vec<String>,
}

impl Known {
    fn new(families: Families, now: Instant) -> Self {
        Self {
            families,
            addresses: BTreeSet::new(),
            leaving: BTreeMap::new(),
            asked: false,
            due: now,
            failures: 0,
            failed: 0,
            error: None,
            unusable: Vec::new(),
        }
    }

    /// Those that the name has, by the last good answer.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().copied()
    }

    /// Those that it had, with the time since which they get no new flows, if that is so.
    pub fn leaving(&self) -> impl Iterator<Item = (IpAddr, Option<Instant>)> {
        self.leaving.iter().map(|(address, since)| (*address, *since))
    }

    /// How long until it is asked for again.
    pub fn due_in(&self, now: Instant) -> Duration {
        self.due.saturating_duration_since(now)
    }
}

/// What an answer has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    pub added: Vec<IpAddr>,
    pub gone: Vec<IpAddr>,
    /// There was no good answer, and the time before there was, or nothing had been asked.
    pub failed: Option<String>,
    /// The first good answer after one or more that were not.
    pub recovered: bool,
    /// Addresses that are left out from now on, and why.
    pub unusable: Vec<String>,
}

/// Of all names of a configuration.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    hosts: BTreeMap<String, Known>,
    bounds: Resolver,
}

impl Answers {
    /// Takes in which names there are from now on. Of those that were known the answers stay; all are asked for at once.
    pub fn follow(&mut self, config: &Config, now: Instant) {
        let mut wanted: BTreeMap<&str, Families> = BTreeMap::new();
        for host in config.pools.iter().flat_map(|pool| &pool.hosts) {
            let families = wanted.entry(&host.host).or_default();
            *families = families.and(host.families);
        }
        self.bounds = config.resolver.clone();
        self.hosts.retain(|host, _| wanted.contains_key(host.as_str()));
        for (host, families) in wanted {
            let known = self.hosts.entry(host.to_owned()).or_insert_with(|| Known::new(families, now));
            known.families = families;
            known.addresses.retain(|address| families.has(*address));
            known.due = now;
        }
    }

    /// An address that an earlier daemon had for an answer: it stands until the first good one.
    pub fn restore(&mut self, host: &str, address: IpAddr) {
        if let Some(known) = self.hosts.get_mut(host).filter(|known| known.families.has(address)) {
            known.addresses.insert(address);
        }
    }

    pub fn get(&self, host: &str) -> Option<&Known> {
        self.hosts.get(host)
    }

    /// Every name that is asked for.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Known)> {
        self.hosts.iter().map(|(host, known)| (host.as_str(), known))
    }

    /// What is to be asked now. Each must be answered.
    pub fn due(&mut self, now: Instant) -> Vec<Question> {
        // Where no family is wanted, nothing would come of it.
        let due = |known: &Known| !known.asked && known.due <= now && known.families != Families::default();
        let due = self.hosts.iter_mut().filter(|(_, known)| due(known));
        due.map(|(host, known)| {
            known.asked = true;
            Question { host: host.clone(), families: known.families }
        })
        .collect()
    }

    /// Takes in an answer; nothing when nobody waits for it any more.
    pub fn answered(&mut self, host: &str, reply: &Reply, now: Instant) -> Option<Change> {
        let bounds = (self.bounds.min_ttl, self.bounds.max_ttl);
        let known = self.hosts.get_mut(host).filter(|known| known.asked)?;
        known.asked = false;
        let mut change = Change::default();
        let (mut errors, mut ttls) = (Vec::new(), Vec::new());
        let mut found = BTreeSet::new();
        let mut left_out = Vec::new();
        let outcomes = [(true, &reply.v4), (false, &reply.v6)];
        let some = outcomes.iter().any(|(_, outcome)| matches!(outcome, Some(Outcome::Addresses(..))));
        for (v4, outcome) in outcomes {
            let kept = known.addresses.iter().copied().filter(|address| address.is_ipv4() == v4);
            match outcome {
                Some(Outcome::Addresses(addresses, ttl)) => {
                    ttls.push(*ttl);
                    for address in addresses {
                        match no_server(*address) {
                            None => found.extend(Some(*address).filter(|one| known.families.has(*one))),
                            Some(reason) => left_out.push(format!("{address} is {reason}")),
                        }
                    }
                }
                Some(Outcome::Nothing(_)) if some => {}
                Some(Outcome::Nothing(text) | Outcome::Failed(text)) => {
                    errors.push(text.clone());
                    found.extend(kept);
                }
                None => found.extend(kept.filter(|address| known.families.has(*address))),
            }
        }
        if found.len() > MOST_ADDRESSES {
            left_out.push(format!("it has {} addresses, of which {MOST_ADDRESSES} are used", found.len()));
            // Those that are used already first, so that no connection has to go for nothing.
            let (old, new): (Vec<IpAddr>, Vec<IpAddr>) =
                found.into_iter().partition(|one| known.addresses.contains(one));
            found = old.into_iter().chain(new).take(MOST_ADDRESSES).collect();
        }
        if found.is_empty() {
            // Nothing that could be used.
            if errors.is_empty() {
                errors.push(left_out.join(", "));
            }
            found.clone_from(&known.addresses);
        }
        for address in known.addresses.difference(&found) {
            known.leaving.insert(*address, None);
            change.gone.push(*address);
        }
        change.added = found.difference(&known.addresses).copied().collect();
        known.leaving.retain(|address, _| !found.contains(address));
        known.addresses = found;
        change.unusable = left_out.iter().filter(|text| !known.unusable.contains(text)).cloned().collect();
        known.unusable = left_out;
        if errors.is_empty() {
            change.recovered = known.error.take().is_some();
            known.failures = 0;
            let ttl = ttls.into_iter().min().unwrap_or(bounds.1);
            known.due = now + ttl.clamp(bounds.0, bounds.1);
        } else {
            // An address that cannot be used says no more when it is asked for again at once.
            errors.dedup();
            let text = errors.join("; ");
            if known.error.is_none() {
                change.failed = Some(text.clone());
            }
            known.error = Some(text);
            known.failed += 1;
            let doubled = FIRST_RETRY.saturating_mul(1 << known.failures.min(6));
            known.failures = known.failures.saturating_add(1);
            known.due = now + doubled.min(LAST_RETRY);
        }
        Some(change)
    }

    /// One of the addresses that a host has is up: those that leave get no new flows from now on. True when that is news.
    pub fn hand_over(&mut self, host: &str, now: Instant) -> bool {
        let Some(known) = self.hosts.get_mut(host) else { return false };
        let mut news = false;
        for since in known.leaving.values_mut().filter(|since| since.is_none()) {
            *since = Some(now);
            news = true;
        }
        news
    }

    /// A leaving address has no connections left.
    pub fn forget(&mut self, host: &str, address: IpAddr) {
        if let Some(known) = self.hosts.get_mut(host) {
            known.leaving.remove(&address);
        }
    }
}

#[cfg(test)]
mod tests;
