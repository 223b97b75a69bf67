//! Numbers that last: of listeners and backends, of services, and of servers within their service.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{Config, Listen};
use crate::dataplane::image::{Id, Image};

/// Numbers that the previous image does not use: one that is given up is reused by a later image at the earliest, when
/// nothing refers to it any more.
pub(super) struct Numbers {
    used: BTreeSet<Id>,
    next: Id,
    capacity: u32,
}

impl Numbers {
    pub(super) fn new(used: impl Iterator<Item = Id>, capacity: u32) -> Self {
        Self { used: used.collect(), next: 1, capacity }
    }

    pub(super) fn next(&mut self) -> Option<Id> {
        while self.used.contains(&self.next) {
            self.next += 1;
        }
        let id = self.next;
        self.next += 1;
        (id < self.capacity).then_some(id)
    }
}

/// The number of each service: the one it had, by its name; else, as a service may be renamed and a name may be cut
/// short in the maps, that of a listener it has taken over; else a new one.
pub(super) fn service_numbers(config: &Config, previous: &Image) -> Vec<u32> {
    let mut by_name: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    let mut by_listen: BTreeMap<Listen, u32> = BTreeMap::new();
    for listener in previous.listeners.values() {
        by_name.entry(&listener.service).or_default().push(listener.service_number);
        by_listen.insert(listener.listen, listener.service_number);
    }
    let mut taken = BTreeSet::new();
    let mut found: Vec<Option<u32>> = Vec::new();
    for service in &config.services {
        let mut named = by_name.get(service.name.as_str()).into_iter().flatten();
        found.push(named.find(|number| taken.insert(**number)).copied());
    }
    for (service, found) in config.services.iter().zip(&mut found).filter(|(_, found)| found.is_none()) {
        let mut listened = service.listen.iter().filter_map(|listen| by_listen.get(listen));
        *found = listened.find(|number| taken.insert(**number)).copied();
    }
    let mut numbers = Numbers::new(by_listen.into_values(), u32::MAX);
    // 32 bits of numbers are never all used.
    found.into_iter().map(|number| number.or_else(|| numbers.next()).unwrap_or(u32::MAX)).collect()
}

/// The numbers that servers have within each service.
pub(super) fn server_numbers(image: &Image) -> BTreeMap<u32, BTreeSet<u32>> {
    let mut numbers: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for backend in image.backends.values() {
        if let Some(listener) = image.listeners.get(&backend.server.listener) {
            numbers.entry(listener.service_number).or_default().insert(backend.number);
        }
    }
    numbers
}

/// Numbers of servers within one service.
pub(super) struct ServerNumbers {
    numbers: Numbers,
    taken: BTreeSet<u32>,
}

impl ServerNumbers {
    /// `used` were given before.
    pub(super) fn new(used: BTreeSet<u32>) -> Self {
        Self { numbers: Numbers { used, next: 1, capacity: u32::MAX }, taken: BTreeSet::new() }
    }

    /// Takes a number that the service had before. False when another server has taken it.
    pub(super) fn claim(&mut self, number: u32) -> bool {
        number != 0 && self.taken.insert(number)
    }

    /// One that no server had.
    pub(super) fn next(&mut self) -> u32 {
        self.numbers.next().unwrap_or(u32::MAX)
    }
}
