//! From a configuration and what is known of its servers to the image that the maps should hold.

use std::collections::BTreeMap;

use lb_common::maglev;

use super::Capacity;
use super::image::{BackendEntry, Id, Image, ListenerEntry, Server, Table, TableKind};
use crate::api::types::AdminState;
use crate::config::{Backend, Config, Listen, OnDown, Protocol, Service};
use crate::health::Health;

/// Why a configuration does not fit into the maps as they are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{wanted} {what} are configured, but the maps in use were made for {capacity}; run `matapa detach` and start the \
     daemon again to make them larger (this interrupts forwarding)"
)]
pub struct TooMany {
    what: &'static str,
    wanted: usize,
    capacity: u32,
}

/// What is known of the servers.
pub trait Verdicts {
    fn health(&self, config: &Config, service: &Service, listen: &Listen, backend: &Backend) -> Health;
    fn admin(&self, service: &Service, backend: &Backend) -> AdminState;

    /// Whether the packet path found the server silent.
    fn suspects(&self, _server: &Server) -> bool {
        false
    }
}

/// The image for `config`. Whatever `previous` already has keeps its number.
///
/// # Errors
/// When there are more listeners or backends than `capacity` allows.
pub fn desired(
    config: &Config,
    verdicts: &impl Verdicts,
    previous: &Image,
    capacity: Capacity,
) -> Result<Image, TooMany> {
    let size = table_size(config.services.iter().map(|s| s.listen.len()).sum(), capacity);
    let mut listener_numbers = Numbers::new(previous.listeners.keys().copied(), capacity.listeners);
    let mut backend_numbers = Numbers::new(previous.backends.keys().copied(), capacity.backends);
    let known: BTreeMap<Listen, Id> = previous.listeners.iter().map(|(id, l)| (l.listen, *id)).collect();
    let servers: BTreeMap<Server, Id> = previous.backends.iter().map(|(id, b)| (b.server, *id)).collect();

    let kept = config.services.iter().flat_map(|service| &service.listen).map(|listen| {
        let size = known.get(listen).map_or(size, |id| previous.listeners[id].table.size);
        u64::from(size) + 1
    });
    let crowded = kept.sum::<u64>() > u64::from(capacity.table_slots / 2);

    let mut image = Image::default();
    for service in &config.services {
        let pool = &config.pools[service.pool];
        for listen in &service.listen {
            let known_id = known.get(listen).copied();
            let id = match known_id {
                Some(id) => id,
                None => listener_numbers.next().ok_or(TooMany {
                    what: "listeners",
                    wanted: config.services.iter().map(|s| s.listen.len()).sum(),
                    capacity: capacity.listeners,
                })?,
            };
            // A table keeps its size while there is room: another one would move flows that nobody wanted moved.
            let size = known_id.filter(|_| !crowded).map_or(size, |id| previous.listeners[&id].table.size);
            let mut members = BTreeMap::new();
            for backend in pool.backends.iter().filter(|b| b.address.is_ipv4() == listen.address.is_ipv4()) {
                let server = Server {
                    listener: id,
                    address: backend.address,
                    port: backend.port.unwrap_or(listen.port),
                };
                let number = match servers.get(&server) {
                    Some(id) => *id,
                    None => backend_numbers.next().ok_or(TooMany {
                        what: "backends",
                        wanted: config
                            .services
                            .iter()
                            .map(|s| s.listen.len() * config.pools[s.pool].backends.len())
                            .sum(),
                        capacity: capacity.backends,
                    })?,
                };
                let entry = BackendEntry {
                    name: backend.name.clone(),
                    server,
                    weight: backend.weight,
                    health: verdicts.health(config, service, listen, backend),
                    admin: verdicts.admin(service, backend),
                    reset_when_down: pool.on_down == OnDown::Reset && listen.protocol == Protocol::Tcp,
                    suspect: verdicts.suspects(&server),
                };
                if entry.takes_new_flows() {
                    members.insert(number, entry.weight);
                }
                image.backends.insert(number, entry);
            }
            let entry = ListenerEntry {
                service: service.name.clone(),
                listen: *listen,
                session_timeout: u32::try_from(service.session_timeout.as_secs()).unwrap_or(u32::MAX),
                second_chance: service.second_chance && listen.protocol == Protocol::Tcp,
                scheduler: service.scheduler,
                table: Table { kind: TableKind::of(service.scheduler), size, members },
            };
            image.listeners.insert(id, entry);
        }
    }
    Ok(image)
}

/// The largest table of which every listener can have two, one being replaced by the other.
fn table_size(listeners: usize, capacity: Capacity) -> u32 {
    let share = capacity.table_slots as usize / (2 * listeners.max(1) + 1);
    let smallest = maglev::SIZES[maglev::SIZES.len() - 1];
    maglev::SIZES.into_iter().find(|size| (*size as usize) < share).unwrap_or(smallest)
}

/// Numbers that the previous image does not use: one that is given up is reused by a later image at the earliest, when
/// nothing refers to it any more.
struct Numbers {
    used: Vec<Id>,
    next: Id,
    capacity: u32,
}

impl Numbers {
    fn new(used: impl Iterator<Item = Id>, capacity: u32) -> Self {
        Self { used: used.collect(), next: 1, capacity }
    }

    fn next(&mut self) -> Option<Id> {
        while self.used.binary_search(&self.next).is_ok() {
            self.next += 1;
        }
        let id = self.next;
        self.next += 1;
        (id < self.capacity).then_some(id)
    }
}

#[cfg(test)]
mod tests;
