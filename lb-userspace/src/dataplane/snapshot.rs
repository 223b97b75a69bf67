//! What pinned maps hold: the image that an earlier daemon left, whole or half changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::abi::endpoint::ECHO;
use lb_common::abi::net::Protocol as Wire;
use lb_common::abi::{
    Backend, BackendFlags, Listener, ListenerFlags, SchedulerCode, Settings, SiblingKey, TableRef,
};
use lb_common::hash::HashKey;
use lb_common::maglev;
use log::warn;

use super::endpoints::{Endpoint, EndpointTable};
use super::flows::FlowTable;
use super::image::{
    BackendEntry, ByHand, Id, Image, ListenerEntry, Pace, Server, SnatRange, Table, TableKind, TunnelSources,
    address_from,
};
use super::{ApplyError, Capacity, Maps};
use crate::api::types::AdminState;
use crate::config::{Forward, Listen, Protocol, Scheduler, WhenEmpty};
use crate::health::Health;

/// Maps that can be read.
pub trait Readable {
    fn capacity(&self) -> Capacity;

    /// The key of the flows' hash.
    fn hash_key(&self) -> HashKey;

    fn endpoints(&self) -> EndpointTable<'_>;
    fn flows(&self) -> FlowTable<'_>;

    /// Where a listener's table is, by the listener's own record.
    fn table_ref(&self, id: Id) -> TableRef;
    fn pace(&self) -> Pace;
    fn settings(&self) -> Settings;
    fn snat_address(&self, index: u8) -> [u8; 16];
    fn listener(&self, id: Id) -> Listener;
    /// The name of the listener's service, which may be cut short.
    fn service_name(&self, id: Id) -> String;
    fn backend(&self, id: Id) -> Backend;
    /// Likewise.
    fn backend_name(&self, id: Id) -> String;
    /// The backend in a slot of `TABLES`.
    fn slot(&self, index: u32) -> Id;

    /// # Errors
    /// When the kernel refuses it.
    fn siblings(&self) -> Result<Vec<(SiblingKey, Id)>, ApplyError>;
}

/// Reads the maps. Listeners that packets cannot reach, and what belongs to them, are left out, and may be overwritten.
///
/// # Errors
/// When the kernel refuses to read a map.
pub fn read(maps: &impl Readable) -> Result<Image, ApplyError> {
    let settings = maps.settings();
    let mut image = Image {
        pace: maps.pace(),
        features: settings.features,
        tunnel: TunnelSources::from_settings(&settings),
        snat_addresses: snat_addresses(maps),
        ..Image::default()
    };
    let modes = modes(maps);
    for id in 1..maps.capacity().listeners {
        let record = maps.listener(id);
        if let Some(entry) = listener(maps, id, &record, modes.get(&id).copied()) {
            image.listeners.insert(id, entry);
        }
    }
    read_vips(maps, &mut image);
    for id in 1..maps.capacity().backends {
        let record = maps.backend(id);
        let known = record.flags.has(BackendFlags::VALID) && image.listeners.contains_key(&record.listener);
        if let Some(entry) = known.then(|| backend(maps, id, &record)).flatten() {
            image.backends.insert(id, entry);
        }
    }
    read_origins(maps, &mut image);
    read_siblings(maps, &mut image)?;
    read_tables(maps, &mut image);
    Ok(image)
}

/// The mode of each listener, which its backends have.
fn modes(maps: &impl Readable) -> BTreeMap<Id, Forward> {
    let records = (1..maps.capacity().backends).map(|id| maps.backend(id));
    let valid = records.filter(|record| record.flags.has(BackendFlags::VALID));
    valid.filter_map(|record| Some((record.listener, Forward::from_mode(record.mode)?))).collect()
}

fn listener(maps: &impl Readable, id: Id, record: &Listener, mode: Option<Forward>) -> Option<ListenerEntry> {
    record.family()?;
    let protocol = Protocol::from_wire(Wire::from_number(record.protocol)?);
    let scheduler = match record.scheduler {
        SchedulerCode::SOURCE_HASH => Scheduler::SourceHash,
        SchedulerCode::ROUND_ROBIN => Scheduler::RoundRobin,
        SchedulerCode::RANDOM => Scheduler::Random,
        SchedulerCode::LEAST_CONNECTIONS => Scheduler::LeastConnections,
        _ => Scheduler::Maglev,
    };
    let snat = SnatRange {
        first: record.snat_first,
        count: record.snat_count,
        first_port: record.snat_port,
        last_port: record.snat_last_port,
    };
    let by_hand = [(ListenerFlags::ENABLED_BY_HAND, true), (ListenerFlags::DISABLED_BY_HAND, false)];
    let by_hand = by_hand.into_iter().find(|(flag, _)| record.flags.has(*flag)).map(|(_, enabled)| enabled);
    let when_empty = match record.flags {
        flags if flags.has(ListenerFlags::PASS_WHEN_EMPTY) => WhenEmpty::Pass,
        flags if flags.has(ListenerFlags::REFUSE_WHEN_EMPTY) => WhenEmpty::Reset,
        _ => WhenEmpty::Drop,
    };
    let forward = mode.unwrap_or(if snat.last_port == 0 { Forward::Nat } else { Forward::Snat });
    Some(ListenerEntry {
        service: maps.service_name(id),
        service_number: record.service,
        listen: Listen {
            address: address_from(record.vip),
            port: record.port.get(),
            last_port: record.last_port.get(),
            protocol,
        },
        forward,
        session_timeout: record.session_timeout,
        second_chance: record.flags.has(ListenerFlags::SECOND_CHANCE),
        new_flow_limit: record.new_flow_limit,
        sticky_ticks: if record.flags.has(ListenerFlags::STICKY) { record.sticky_ticks } else { 0 },
        snat: (forward == Forward::Snat).then_some(snat),
        scheduler,
        when_empty,
        by_hand,
        table: Table { kind: TableKind::of(scheduler), size: record.table.size(), members: BTreeMap::new() },
        next: record.next,
    })
}

fn backend(maps: &impl Readable, id: Id, record: &Backend) -> Option<BackendEntry> {
    let mut entry = BackendEntry {
        name: maps.backend_name(id),
        server: Server {
            listener: record.listener,
            address: address_from(record.addr),
            port: record.port.get(),
        },
        number: record.server,
        forward: Forward::from_mode(record.mode)?,
        gue_port: record.outer_port.get(),
        weight: record.weight,
        max_flows: record.flags.has(BackendFlags::LIMITED).then(|| maps.flows().limit(id)),
        health: match record.health {
            1 => Health::Up,
            2 => Health::Down,
            _ => Health::Unknown,
        },
        admin: match record.admin {
            1 => AdminState::Draining,
            2 | 3 => AdminState::Disabled,
            _ => AdminState::Enabled,
        },
        by_hand: ByHand {
            admin: matches!(record.admin, 1 | 2 | 4),
            weight: record.weight_by_hand.checked_sub(1),
        },
        // Known only while it is down; wrong otherwise, and written anew then.
        reset_when_down: record.flags.has(BackendFlags::RESET),
        suspect: false,
        standby: false,
        reverse: record.flags.has(BackendFlags::REVERSE),
        vip: short_vip(record),
        next: record.next,
    };
    // Or it was suspected of silence, which the next daemon does not hold against it.
    entry.standby = entry.takes_new_flows() && !record.flags.has(BackendFlags::IN_TABLE);
    Some(entry)
}

fn short_vip(record: &Backend) -> Option<Listen> {
    let (port, protocol) = (record.vip_port.get(), Wire::from_number(record.protocol)?);
    let (address, protocol) = (address_from(record.vip), Protocol::from_wire(protocol));
    (port != 0).then_some(Listen { address, port, last_port: port, protocol })
}

/// Of the listeners' endpoints, those that lead to one that answers to them; and of the listeners, those that are found
/// by one. A word in the map has only a fingerprint: the record that it leads to tells.
fn read_vips(maps: &impl Readable, image: &mut Image) {
    let ends = image.listeners.values().flat_map(|l| [l.listen.endpoint(), Endpoint::echo(l.listen.address)]);
    let found: BTreeMap<Endpoint, Id> = ends
        .filter_map(|endpoint| {
            let id = maps.endpoints().find(endpoint.hash(&maps.hash_key()))?;
            let listen = image.listeners.get(&id)?.listen;
            let answers = match endpoint.protocol {
                ECHO => listen.address == endpoint.address,
                _ => listen.endpoint() == endpoint,
            };
            answers.then_some((endpoint, id))
        })
        .collect();
    image.endpoints = found;
    let mut reached = BTreeSet::new();
    for endpoint in image.endpoints.keys().filter(|endpoint| endpoint.protocol != ECHO) {
        let answering = |id: &Id| image.listeners[id].listen.endpoint() == *endpoint;
        match endpoint.is_chained() {
            true => reached.extend(image.chain(endpoint).into_iter().filter(answering)),
            false => reached.extend(image.endpoints.get(endpoint)),
        }
    }
    image.listeners.retain(|id, _| reached.contains(id));
    image.endpoints.retain(|_, id| reached.contains(id));
}

/// Likewise of the backends, which need no endpoint of their own.
fn read_origins(maps: &impl Readable, image: &mut Image) {
    let origins = image.backends.values().filter_map(|backend| image.origin(backend));
    let found: Vec<(Endpoint, Id)> = origins
        .filter_map(|endpoint| {
            let id = maps.endpoints().find(endpoint.hash(&maps.hash_key()))?;
            (image.origin(image.backends.get(&id)?) == Some(endpoint)).then_some((endpoint, id))
        })
        .collect();
    image.endpoints.extend(found);
}

fn read_siblings(maps: &impl Readable, image: &mut Image) -> Result<(), ApplyError> {
    for (key, id) in maps.siblings()? {
        let fits = |b: &BackendEntry| b.server.listener == key.listener && b.number == key.server;
        if image.backends.get(&id).is_some_and(fits) {
            image.siblings.insert(key, id);
        }
    }
    Ok(())
}

fn snat_addresses(maps: &impl Readable) -> BTreeMap<u8, IpAddr> {
    let all = (0..=u8::MAX).map(|index| (index, maps.snat_address(index)));
    all.filter(|(_, bytes)| *bytes != [0; 16]).map(|(index, bytes)| (index, address_from(bytes))).collect()
}

/// A table's members are the backends in its slots. When the slots are not what these members give, the daemon died
/// between two steps: such a table gets a member that no configuration has, so that it is built anew.
fn read_tables(maps: &impl Readable, image: &mut Image) {
    let mut tables = Vec::new();
    for (&id, listener) in &image.listeners {
        let at: TableRef = maps.listener(id).table;
        let slots: Vec<Id> =
            (at.offset()..at.offset().saturating_add(at.size())).map(|i| maps.slot(i)).collect();
        let members: BTreeMap<Id, u16> = slots
            .iter()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .map(|id| (*id, image.backends.get(id).map_or(0, |b| b.weight)))
            .collect();
        let kind = listener.table.kind;
        // Other kinds are as long as their members need, and of a table without slots the size is not known; any will
        // do. Nor is it where the scheduler has just become another one, and the table is still of the old kind.
        let known = kind == TableKind::Maglev && maglev::SIZES.contains(&at.size());
        let size = if known { at.size() } else { maglev::SIZES[0] };
        let mut table = Table { kind, size, members };
        if image.fill(&table, maps.hash_key().seed) != slots {
            warn!(
                "the table of {} {} was left half changed and will be built anew",
                listener.service, listener.listen
            );
            table.members = BTreeMap::from([(0, 0)]);
        }
        tables.push((id, table));
    }
    for (id, table) in tables {
        if let Some(listener) = image.listeners.get_mut(&id) {
            listener.table = table;
        }
    }
}

/// Removes what `image`, which was read from these maps, has nothing to do with: what a daemon that died between two
/// steps left.
///
/// # Errors
/// When the kernel refuses it.
pub fn remove_rest(maps: &mut impl Maps, image: &Image) -> Result<(), ApplyError> {
    let freed = maps.endpoints().retain(&maps.hash_key(), image.endpoints.iter());
    if freed != 0 {
        warn!("{freed} endpoints that led nowhere were removed");
    }
    for id in (1..maps.capacity().listeners).filter(|id| !image.listeners.contains_key(id)) {
        if maps.listener(id).family().is_some() {
            maps.write_listener(id, &Listener::default(), "");
        }
    }
    for (key, id) in maps.siblings()? {
        if image.siblings.get(&key) != Some(&id) {
            maps.remove_sibling(key)?;
        }
    }
    for id in (1..maps.capacity().backends).filter(|id| !image.backends.contains_key(id)) {
        if maps.backend(id).flags.has(BackendFlags::VALID) {
            maps.write_backend(id, &Backend::default(), "");
        }
    }
    maps.flows().adopt(image);
    Ok(())
}
