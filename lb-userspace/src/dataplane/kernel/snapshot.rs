//! What pinned maps hold: the image that an earlier daemon left, whole or half changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use lb_common::abi::net::Protocol as Wire;
use lb_common::abi::{
    self, Backend, BackendFlags, Endpoint4, Endpoint6, Listener, ListenerFlags, SchedulerCode, Side, TableRef,
};
use lb_common::maglev;
use log::warn;

use super::Kernel;
use crate::api::types::AdminState;
use crate::config::{Listen, Protocol, Scheduler};
use crate::dataplane::image::{
    BackendEntry, Id, Image, ListenerEntry, Server, Table, TableKind, address_from,
};
use crate::health::Health;

type Endpoint = (u8, std::net::IpAddr, u16, u8);

/// Reads the maps. What is not reachable by packets is left out, and may be overwritten.
pub fn read(kernel: &Kernel) -> Image {
    let endpoints = endpoints(kernel);
    let points_to = |side: Side, address, port, protocol: Wire, id: Id| {
        endpoints.get(&(side as u8, address, port, protocol.number())) == Some(&id)
    };
    let mut image = Image::default();
    for id in 1..kernel.capacity.listeners {
        let record: Listener = kernel.listeners.read(id as usize);
        let (Some(_), Some(wire)) = (record.family(), Wire::from_number(record.protocol)) else { continue };
        let address = address_from(record.vip);
        if !points_to(Side::Vip, address, record.port.get(), wire, id) {
            continue;
        }
        let protocol = match wire {
            Wire::Tcp => Protocol::Tcp,
            Wire::Udp => Protocol::Udp,
        };
        let scheduler = match record.scheduler {
            SchedulerCode::SOURCE_HASH => Scheduler::SourceHash,
            SchedulerCode::ROUND_ROBIN => Scheduler::RoundRobin,
            SchedulerCode::RANDOM => Scheduler::Random,
            _ => Scheduler::Maglev,
        };
        let entry = ListenerEntry {
            service: name(&kernel.listener_names.read::<[u8; abi::NAME_LEN]>(id as usize)),
            listen: Listen { address, port: record.port.get(), protocol },
            session_timeout: record.session_timeout,
            second_chance: record.flags.has(ListenerFlags::SECOND_CHANCE),
            scheduler,
            table: Table {
                kind: TableKind::of(scheduler),
                size: record.table.size(),
                members: BTreeMap::new(),
            },
        };
        image.listeners.insert(id, entry);
    }
    for id in 1..kernel.capacity.backends {
        let record: Backend = kernel.backends.read(id as usize);
        let Some(listener) = image.listeners.get(&record.listener) else { continue };
        let (address, port) = (address_from(record.addr), record.port.get());
        if !record.flags.has(BackendFlags::VALID)
            || !points_to(Side::Backend, address, port, listener.listen.protocol.wire(), id)
        {
            continue;
        }
        image
            .backends
            .insert(id, backend(kernel, id, &record, Server { listener: record.listener, address, port }));
    }
    read_tables(kernel, &mut image);
    image
}

fn backend(kernel: &Kernel, id: Id, record: &Backend, server: Server) -> BackendEntry {
    BackendEntry {
        name: name(&kernel.backend_names.read::<[u8; abi::NAME_LEN]>(id as usize)),
        server,
        weight: record.weight,
        health: match record.health {
            1 => Health::Up,
            2 => Health::Down,
            _ => Health::Unknown,
        },
        admin: match record.admin {
            1 => AdminState::Draining,
            2 => AdminState::Disabled,
            _ => AdminState::Enabled,
        },
        // Known only while it is down; wrong otherwise, and written anew then.
        reset_when_down: record.flags.has(BackendFlags::RESET),
        suspect: false,
    }
}

/// A table's members are the backends in its slots. When the slots are not what these members give, the daemon died
/// between two steps: such a table gets a member that no configuration has, so that it is built anew.
fn read_tables(kernel: &Kernel, image: &mut Image) {
    let mut tables = Vec::new();
    for (&id, listener) in &image.listeners {
        let at: TableRef = kernel.listeners.read::<Listener>(id as usize).table;
        let slots: Vec<Id> =
            (at.offset()..at.offset().saturating_add(at.size())).map(|i| kernel.slot(i)).collect();
        let members: BTreeMap<Id, u16> = slots
            .iter()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .map(|id| (*id, image.backends.get(id).map_or(0, |b| b.weight)))
            .collect();
        let kind = listener.table.kind;
        // A rotation is as long as its members need, and of a table without slots the size is not known; any will do.
        let size = if kind == TableKind::Rotation || at.size() == 0 { maglev::SIZES[0] } else { at.size() };
        let mut table = Table { kind, size, members };
        if image.fill(&table, kernel.key.seed) != slots {
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

fn endpoints(kernel: &Kernel) -> BTreeMap<Endpoint, Id> {
    let v4 = kernel.endpoints4.iter().filter_map(Result::ok).map(|(key, id)| {
        let e: Endpoint4 = bytemuck::cast(key);
        ((e.side, Ipv4Addr::from(e.addr).into(), e.port.get(), e.protocol), id)
    });
    let v6 = kernel.endpoints6.iter().filter_map(Result::ok).map(|(key, id)| {
        let e: Endpoint6 = bytemuck::cast(key);
        ((e.side, Ipv6Addr::from(e.addr).into(), e.port.get(), e.protocol), id)
    });
    v4.chain(v6).collect()
}

fn name(bytes: &[u8; abi::NAME_LEN]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
