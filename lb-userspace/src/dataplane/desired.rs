//! From a configuration and what is known of its servers to the image that the maps should hold.

mod numbers;
mod paths;
mod snat;

use std::collections::{BTreeMap, BTreeSet};

use lb_common::abi::{Features, SiblingKey};
use lb_common::maglev;

use super::Capacity;
use super::image::{
    BackendEntry, ByHand, Id, Identity, Image, ListenerEntry, Server, SnatRange, Table, TableKind,
    TunnelSources, server_port, serves,
};
use crate::api::types::AdminState;
use crate::config::{Backend, Config, Forward, Listen, Member, OnDown, Protocol, Role, Service};
use crate::health::Health;
use numbers::{Numbers, ServerNumbers, server_numbers, service_numbers};
use snat::SnatPlaces;

/// Why a configuration does not fit into the maps as they are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error(
        "{wanted} {what} are configured, but the maps in use were made for {capacity}; restart the daemon to move to \
         larger ones (forwarding goes on)"
    )]
    TooMany { what: &'static str, wanted: usize, capacity: u32 },
    #[error(
        "service {service} has {wanted} source addresses, and there is no room for them beside those of other \
         services and of connections that still use earlier ones: there are {} places in all; name fewer in \
         `snat`, or the same in several services",
        lb_common::abi::SNAT_ADDRESSES
    )]
    SnatAddresses { service: String, wanted: usize },
}

/// What is known of the servers.
pub trait Verdicts {
    fn health(&self, service: &Service, listen: &Listen, member: &Member<'_>) -> Health;
    fn admin(&self, service: &Service, backend: &Backend) -> AdminState;

    /// What of it an operator has decided against the file.
    fn by_hand(&self, service: &Service, backend: &Backend) -> ByHand {
        ByHand { admin: self.admin(service, backend) != AdminState::Enabled, weight: None }
    }

    /// Whether an operator has enabled or disabled the service.
    fn service_by_hand(&self, _service: &Service) -> Option<bool> {
        None
    }

    /// The share of new flows, as far as it has it by now.
    fn weight(&self, _service: &Service, _listen: &Listen, member: &Member<'_>) -> u16 {
        member.backend.weight
    }

    /// Whether the listener hands new flows to others, or to nobody, instead.
    fn stands_by(&self, _service: &Service, _listen: &Listen, member: &Member<'_>) -> bool {
        member.role == Role::Backup
    }

    /// Whether the packet path found the server silent.
    fn suspects(&self, _server: &Server) -> bool {
        false
    }
}

/// The image for `config`. Whatever `previous` already has keeps its number and its place.
///
/// # Errors
/// When there is more of something than the maps have room for.
pub fn desired(
    config: &Config,
    verdicts: &impl Verdicts,
    previous: &Image,
    capacity: Capacity,
) -> Result<Image, Unfit> {
    Draft::new(config, previous, capacity).image(verdicts)
}

/// An image in the making.
struct Draft<'a> {
    config: &'a Config,
    previous: &'a Image,
    capacity: Capacity,
    known: BTreeMap<Identity, Id>,
    servers: BTreeMap<Server, Id>,
    listener_numbers: Numbers,
    backend_numbers: Numbers,
    /// Numbers of servers by the number of their service.
    server_numbers: BTreeMap<u32, BTreeSet<u32>>,
    snat: SnatPlaces,
    /// Of a new listener's table.
    size: u32,
    /// Tables of the sizes they have would not fit.
    crowded: bool,
    image: Image,
}

impl<'a> Draft<'a> {
    fn new(config: &'a Config, previous: &'a Image, capacity: Capacity) -> Self {
        let known: BTreeMap<Identity, Id> =
            previous.listeners.iter().map(|(id, l)| (l.identity(), *id)).collect();
        let size = table_size(count_listeners(config), capacity);
        let kept = listeners(config).map(|(service, listen)| {
            let id = known.get(&Identity::of(listen, service.forward));
            u64::from(id.map_or(size, |id| previous.listeners[id].table.size)) + 1
        });
        let crowded = kept.sum::<u64>() > u64::from(capacity.table_slots / 2);
        Self {
            config,
            previous,
            capacity,
            known,
            servers: previous.backends.iter().map(|(id, b)| (b.server, *id)).collect(),
            listener_numbers: Numbers::new(previous.listeners.keys().copied(), capacity.listeners),
            backend_numbers: Numbers::new(previous.backends.keys().copied(), capacity.backends),
            server_numbers: server_numbers(previous),
            snat: SnatPlaces::new(previous),
            size,
            crowded,
            image: Image {
                pace: previous.pace,
                features: features(config),
                tunnel: TunnelSources::of(&config.tunnel),
                ..Image::default()
            },
        }
    }

    fn image(mut self, verdicts: &impl Verdicts) -> Result<Image, Unfit> {
        let services = service_numbers(self.config, self.previous);
        for (service, number) in self.config.services.iter().zip(services) {
            let pool: Vec<Member<'_>> = self.config.members(service).collect();
            let ids: Vec<Id> = service
                .listen
                .iter()
                .map(|listen| self.listener_id(service, listen))
                .collect::<Result<_, _>>()?;
            let servers = self.server_numbers(service, number, &pool, &ids);
            for (listen, &id) in service.listen.iter().zip(&ids) {
                let mut members = BTreeMap::new();
                for (member, &server_number) in pool.iter().zip(&servers) {
                    let backend = member.backend;
                    if !serves(service, listen, backend) {
                        continue;
                    }
                    let server =
                        Server { listener: id, address: backend.address, port: server_port(listen, backend) };
                    let backend_id = self.backend_id(&server)?;
                    let entry = BackendEntry {
                        name: backend.name.clone(),
                        server,
                        number: server_number,
                        forward: service.forward,
                        gue_port: if service.forward == Forward::Gue { service.gue_port } else { 0 },
                        weight: verdicts.weight(service, listen, member),
                        max_flows: backend.max_connections,
                        health: verdicts.health(service, listen, member),
                        admin: verdicts.admin(service, backend),
                        by_hand: verdicts.by_hand(service, backend),
                        reset_when_down: member.pool.on_down == OnDown::Reset
                            && listen.protocol == Protocol::Tcp,
                        suspect: verdicts.suspects(&server),
                        standby: verdicts.stands_by(service, listen, member),
                        reverse: false,
                        vip: BackendEntry::short_vip(listen, service.forward, &server),
                        next: 0,
                    };
                    if entry.takes_new_flows() {
                        members.insert(backend_id, entry.weight);
                    }
                    if service.sticky.is_some() {
                        let key = SiblingKey { listener: id, server: server_number };
                        self.image.siblings.insert(key, backend_id);
                    }
                    self.image.backends.insert(backend_id, entry);
                }
                let mut entry = self.listener(service, number, listen, id, members)?;
                entry.by_hand = verdicts.service_by_hand(service);
                self.image.listeners.insert(id, entry);
            }
        }
        self.image.snat_addresses = self.snat.into_addresses();
        paths::mark_reverse(&mut self.image, self.previous);
        paths::lead(&mut self.image, self.previous);
        Ok(self.image)
    }

    fn listener(
        &mut self,
        service: &Service,
        service_number: u32,
        listen: &Listen,
        id: Id,
        members: BTreeMap<Id, u16>,
    ) -> Result<ListenerEntry, Unfit> {
        let pace = self.image.pace;
        // A table keeps its size while there is room: another one would move flows that nobody wanted moved.
        let kept = self.previous.listeners.get(&id).filter(|_| !self.crowded);
        let size = kept.map_or(self.size, |old| old.table.size);
        let tcp = listen.protocol == Protocol::Tcp;
        Ok(ListenerEntry {
            service: service.name.clone(),
            service_number,
            listen: *listen,
            forward: service.forward,
            session_timeout: u32::try_from(service.session_timeout.as_secs()).unwrap_or(u32::MAX),
            second_chance: service.second_chance && tcp && service.forward.is_answered_here(),
            new_flow_limit: pace.share(service.new_flow_limit),
            sticky_ticks: service.sticky.map_or(0, |time| pace.ticks(time)),
            snat: self.snat_range(service, listen)?,
            scheduler: service.scheduler,
            by_hand: None,
            when_empty: service.when_empty,
            table: Table { kind: TableKind::of(service.scheduler), size, members },
            next: 0,
        })
    }

    fn snat_range(&mut self, service: &Service, listen: &Listen) -> Result<Option<SnatRange>, Unfit> {
        let Some(snat) = service.snat.as_ref().filter(|_| service.forward == Forward::Snat) else {
            return Ok(None);
        };
        let family = |address: &&std::net::IpAddr| address.is_ipv4() == listen.address.is_ipv4();
        let addresses: Vec<_> = snat.addresses.iter().filter(family).copied().collect();
        let unfit = || Unfit::SnatAddresses { service: service.name.clone(), wanted: addresses.len() };
        let first = self.snat.place(&addresses).ok_or_else(unfit)?;
        let count = u8::try_from(addresses.len()).map_err(|_| unfit())?;
        Ok(Some(SnatRange { first, count, first_port: snat.first_port, last_port: snat.last_port }))
    }

    fn listener_id(&mut self, service: &Service, listen: &Listen) -> Result<Id, Unfit> {
        if let Some(id) = self.known.get(&Identity::of(listen, service.forward)) {
            return Ok(*id);
        }
        self.listener_numbers.next().ok_or_else(|| Unfit::TooMany {
            what: "listeners",
            wanted: count_listeners(self.config),
            capacity: self.capacity.listeners,
        })
    }

    fn backend_id(&mut self, server: &Server) -> Result<Id, Unfit> {
        if let Some(id) = self.servers.get(server) {
            return Ok(*id);
        }
        self.backend_numbers.next().ok_or_else(|| {
            let of = |s: &Service| s.listen.len() * self.config.members(s).count();
            Unfit::TooMany {
                what: "backends",
                wanted: self.config.services.iter().map(of).sum(),
                capacity: self.capacity.backends,
            }
        })
    }

    /// The number of each backend within the service: the one it had behind any of the listeners.
    fn server_numbers(&self, service: &Service, number: u32, pool: &[Member<'_>], ids: &[Id]) -> Vec<u32> {
        let known = |backend: &Backend| {
            service.listen.iter().zip(ids).find_map(|(listen, &listener)| {
                let old = self.previous.listeners.get(&listener)?;
                let server =
                    Server { listener, address: backend.address, port: server_port(listen, backend) };
                let entry = self.previous.backends.get(self.servers.get(&server)?)?;
                (old.service_number == number).then_some(entry.number)
            })
        };
        let mut numbers = ServerNumbers::new(self.server_numbers.get(&number).cloned().unwrap_or_default());
        // First those that have one, so that no new one takes it.
        let kept: Vec<Option<u32>> =
            pool.iter().map(|member| known(member.backend).filter(|number| numbers.claim(*number))).collect();
        kept.into_iter().map(|number| number.unwrap_or_else(|| numbers.next())).collect()
    }
}

fn listeners(config: &Config) -> impl Iterator<Item = (&Service, &Listen)> {
    config.services.iter().flat_map(|service| service.listen.iter().map(move |listen| (service, listen)))
}

fn count_listeners(config: &Config) -> usize {
    config.services.iter().map(|s| s.listen.len()).sum()
}

fn features(config: &Config) -> Features {
    let mut features = Features::default();
    for (_, listen) in listeners(config) {
        if listen.is_range() {
            features = features.with(Features::RANGES);
        }
        if listen.protocol == Protocol::Any {
            features = features.with(Features::ANY_PROTOCOL);
        }
    }
    features
}

/// The largest table of which every listener can have two, one being replaced by the other.
fn table_size(listeners: usize, capacity: Capacity) -> u32 {
    let share = capacity.table_slots as usize / (2 * listeners.max(1) + 1);
    let smallest = maglev::SIZES[maglev::SIZES.len() - 1];
    maglev::SIZES.into_iter().find(|size| (*size as usize) < share).unwrap_or(smallest)
}

#[cfg(test)]
mod tests;
