//! The steps from one image to another, in an order in which no packet sees a hole.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::abi::{BackendFlags, Features, SiblingKey, Side};

use super::endpoints::Endpoint;
use super::image::{BackendEntry, Id, Image, ListenerEntry, Table, TunnelSources};

pub mod words;

/// One step. Each leaves the maps in a state that packets can live with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Say what packets must look for.
    PutFeatures(Features),
    PutTunnel(TunnelSources),
    /// Write an address that no listener refers to so far.
    PutSnatAddress(u8, IpAddr),
    /// Write a backend's record, a new one or over the old.
    PutBackend(Id, BackendEntry),
    /// Let the search for a backend go on at another one.
    LinkBackend(Id, Id),
    PutSibling(SiblingKey, Id),
    /// Write the record of a listener, all but its table.
    PutListener(Id, ListenerEntry),
    /// Build a table beside the old one and swap them.
    PutTable(Id, Table),
    /// Let the search for a listener go on at another one.
    LinkListener(Id, Id),
    /// Let packets find a listener or backend.
    PutEndpoint(Endpoint, Id),
    RemoveEndpoint(Endpoint),
    RemoveListener(Id),
    RemoveSibling(SiblingKey),
    /// Clear a backend's record and forget its flows.
    RemoveBackend(Id),
}

/// The steps that turn `actual` into `desired`. None when they are equal.
///
/// A number that is in both stands for the same listener or server in both, as [`super::desired`] sees to.
///
/// What is added is complete before anything points to it: what packets must look for, backends, then tables, then
/// VIPs. What is removed is unreachable before it goes, in the reverse order. A backend that comes up is marked so
/// before tables hand flows to it, one that goes down only after they have stopped, so that no flow is reset that was
/// just begun. A backend whose flows need a record for their way back is marked so before the other one takes flows
/// that could be confused with its own.
pub fn plan(actual: &Image, desired: &Image) -> Vec<Op> {
    let Backends { records, going_down } = backends(actual, desired);
    let Listeners { records: listeners, growing, tables, shrinking } = listeners(actual, desired);
    [
        surroundings(actual, desired),
        records,
        links(actual, desired, Side::Backend),
        added_endpoints(actual, desired, Side::Backend),
        added_siblings(actual, desired),
        listeners,
        growing,
        tables,
        links(actual, desired, Side::Vip),
        added_endpoints(actual, desired, Side::Vip),
        shrinking,
        going_down,
        removed_endpoints(actual, desired, Side::Vip),
        removed_listeners(actual, desired),
        removed_endpoints(actual, desired, Side::Backend),
        loose_ends(actual, desired, Side::Vip),
        loose_ends(actual, desired, Side::Backend),
        removed_siblings(actual, desired),
        removed_backends(actual, desired),
        features(actual, desired),
    ]
    .concat()
}

/// What listeners refer to, and what they need packets to look for.
fn surroundings(actual: &Image, desired: &Image) -> Vec<Op> {
    let mut ops = Vec::new();
    let both = actual.features.with(desired.features);
    if both != actual.features {
        ops.push(Op::PutFeatures(both));
    }
    if actual.tunnel != desired.tunnel {
        ops.push(Op::PutTunnel(desired.tunnel));
    }
    let addresses = desired.snat_addresses.iter();
    let new = addresses.filter(|(index, address)| actual.snat_addresses.get(index) != Some(address));
    ops.extend(new.map(|(index, address)| Op::PutSnatAddress(*index, *address)));
    ops
}

/// What nothing needs any more is no longer looked for.
fn features(actual: &Image, desired: &Image) -> Vec<Op> {
    let both = actual.features.with(desired.features);
    if both == desired.features { Vec::new() } else { vec![Op::PutFeatures(desired.features)] }
}

struct Backends {
    records: Vec<Op>,
    /// The last word on those that go down.
    going_down: Vec<Op>,
}

fn backends(actual: &Image, desired: &Image) -> Backends {
    let mut records = Vec::new();
    let mut going_down = Vec::new();
    for (&id, wanted) in &desired.backends {
        let Some(old) = kept_backend(actual, desired, id) else {
            records.push(Op::PutBackend(id, wanted.clone()));
            continue;
        };
        let new = BackendEntry { next: old.next, ..wanted.clone() };
        if *old == new {
            continue;
        }
        let condemning = BackendFlags(BackendFlags::DOWN.0 | BackendFlags::RESET.0);
        if new.flags().0 & !old.flags().0 & condemning.0 == 0 {
            records.push(Op::PutBackend(id, new));
            continue;
        }
        // Sticky clients do not ask the tables: first, they stop coming.
        let spared = BackendEntry {
            health: old.health,
            reset_when_down: old.reset_when_down,
            suspect: true,
            ..new.clone()
        };
        if *old != spared {
            records.push(Op::PutBackend(id, spared));
        }
        // By then its chain is linked.
        going_down.push(Op::PutBackend(id, wanted.clone()));
    }
    Backends { records, going_down }
}

struct Listeners {
    records: Vec<Op>,
    /// Of those that take ports over while they have no servers: first they get those, whose replies may lead to other
    /// listeners' records.
    growing: Vec<Op>,
    tables: Vec<Op>,
    /// Records of those that give up ports, which others may have taken over by then, and then their tables: until
    /// then, what is for those ports goes to the servers that there were.
    shrinking: Vec<Op>,
}

fn listeners(actual: &Image, desired: &Image) -> Listeners {
    let (mut records, mut growing, mut tables, mut shrinking) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (&id, new) in &desired.listeners {
        match kept_listener(actual, desired, id) {
            Some(old) => {
                let unchanged = ListenerEntry { table: old.table.clone(), next: old.next, ..new.clone() };
                let change = new.listen.last_port.cmp(&old.listen.last_port);
                let record = match change {
                    // By then its chain is linked.
                    Ordering::Less => Some(new.clone()),
                    _ if *old == unchanged => None,
                    _ => Some(ListenerEntry { next: old.next, ..new.clone() }),
                };
                let record = record.map(|entry| Op::PutListener(id, entry));
                let table = (old.table != new.table).then(|| Op::PutTable(id, new.table.clone()));
                match change {
                    Ordering::Less => shrinking.extend(record.into_iter().chain(table)),
                    Ordering::Greater if old.table.members.is_empty() => {
                        growing.extend(table.into_iter().chain(record));
                    }
                    Ordering::Equal | Ordering::Greater => {
                        records.extend(record);
                        tables.extend(table);
                    }
                }
            }
            None => {
                records.push(Op::PutListener(id, new.clone()));
                if !new.table.members.is_empty() {
                    tables.push(Op::PutTable(id, new.table.clone()));
                }
            }
        }
    }
    Listeners { records, growing, tables, shrinking }
}

/// Changes in the chains of one side. What stays in a chain stays in its order there, and what is new comes last, as
/// [`super::desired`] sees to; so from the last to the first, each link leads to all that follow, and what goes is
/// left out by one write.
fn links(actual: &Image, desired: &Image, side: Side) -> Vec<Op> {
    let mut ops = Vec::new();
    for endpoint in desired.endpoints.keys().filter(|endpoint| endpoint.side == side && endpoint.is_chained())
    {
        for id in desired.chain(endpoint).into_iter().rev() {
            ops.extend(link(actual, desired, side, id));
        }
    }
    ops
}

/// What stays but is in no chain leads to nothing. Only a plan of which a part was carried out leaves it so that there is
/// something to do.
fn loose_ends(actual: &Image, desired: &Image, side: Side) -> Vec<Op> {
    let chained = desired.endpoints.keys().filter(|endpoint| endpoint.side == side && endpoint.is_chained());
    let chained: BTreeSet<Id> = chained.flat_map(|endpoint| desired.chain(endpoint)).collect();
    let all: Vec<Id> = match side {
        Side::Vip => desired.listeners.keys().copied().collect(),
        Side::Backend => desired.backends.keys().copied().collect(),
    };
    let loose = all.into_iter().filter(|id| !chained.contains(id));
    loose.filter_map(|id| link(actual, desired, side, id)).collect()
}

fn link(actual: &Image, desired: &Image, side: Side, id: Id) -> Option<Op> {
    match side {
        Side::Vip => {
            let next = desired.listeners.get(&id)?.next;
            (kept_listener(actual, desired, id)?.next != next).then_some(Op::LinkListener(id, next))
        }
        Side::Backend => {
            let next = desired.backends.get(&id)?.next;
            (kept_backend(actual, desired, id)?.next != next).then_some(Op::LinkBackend(id, next))
        }
    }
}

/// Endpoints that are new or lead elsewhere from now on.
fn added_endpoints(actual: &Image, desired: &Image, side: Side) -> Vec<Op> {
    let wanted = desired.endpoints.iter().filter(|(endpoint, _)| endpoint.side == side);
    let new = wanted.filter(|(endpoint, id)| actual.endpoints.get(endpoint) != Some(id));
    new.map(|(endpoint, id)| Op::PutEndpoint(*endpoint, *id)).collect()
}

fn removed_endpoints(actual: &Image, desired: &Image, side: Side) -> Vec<Op> {
    let there = actual.endpoints.keys().filter(|endpoint| endpoint.side == side);
    let gone = there.filter(|endpoint| !desired.endpoints.contains_key(endpoint));
    gone.map(|endpoint| Op::RemoveEndpoint(*endpoint)).collect()
}

fn added_siblings(actual: &Image, desired: &Image) -> Vec<Op> {
    let new = desired.siblings.iter().filter(|(key, id)| actual.siblings.get(key) != Some(id));
    new.map(|(key, id)| Op::PutSibling(*key, *id)).collect()
}

fn removed_siblings(actual: &Image, desired: &Image) -> Vec<Op> {
    let gone = actual.siblings.keys().filter(|key| !desired.siblings.contains_key(key));
    gone.map(|key| Op::RemoveSibling(*key)).collect()
}

fn removed_listeners(actual: &Image, desired: &Image) -> Vec<Op> {
    let gone = actual.listeners.keys().filter(|id| kept_listener(actual, desired, **id).is_none());
    gone.map(|id| Op::RemoveListener(*id)).collect()
}

fn removed_backends(actual: &Image, desired: &Image) -> Vec<Op> {
    let gone = actual.backends.keys().filter(|id| kept_backend(actual, desired, **id).is_none());
    gone.map(|id| Op::RemoveBackend(*id)).collect()
}

/// What a listener was, if it is the same one in both images.
fn kept_listener<'a>(actual: &'a Image, desired: &Image, id: Id) -> Option<&'a ListenerEntry> {
    let (old, new) = (actual.listeners.get(&id)?, desired.listeners.get(&id)?);
    old.is_same(new).then_some(old)
}

/// Likewise of a backend.
fn kept_backend<'a>(actual: &'a Image, desired: &Image, id: Id) -> Option<&'a BackendEntry> {
    let (old, new) = (actual.backends.get(&id)?, desired.backends.get(&id)?);
    (old.server == new.server).then_some(old)
}

/// What an image is after a step. The implementations of [`super::Dataplane`] keep theirs by this.
pub fn advance(image: &mut Image, op: &Op) {
    match op {
        Op::PutFeatures(features) => image.features = *features,
        Op::PutTunnel(tunnel) => image.tunnel = *tunnel,
        Op::PutSnatAddress(index, address) => {
            image.snat_addresses.insert(*index, *address);
        }
        Op::PutBackend(id, entry) => {
            image.backends.insert(*id, entry.clone());
        }
        Op::LinkBackend(id, next) => {
            if let Some(backend) = image.backends.get_mut(id) {
                backend.next = *next;
            }
        }
        Op::PutSibling(key, id) => {
            image.siblings.insert(*key, *id);
        }
        Op::PutListener(id, entry) => {
            let table = image.listeners.get(id).filter(|old| old.is_same(entry)).map_or_else(
                || Table { members: BTreeMap::new(), ..entry.table.clone() },
                |old| old.table.clone(),
            );
            image.listeners.insert(*id, ListenerEntry { table, ..entry.clone() });
        }
        Op::PutTable(id, table) => {
            if let Some(listener) = image.listeners.get_mut(id) {
                listener.table = table.clone();
            }
        }
        Op::LinkListener(id, next) => {
            if let Some(listener) = image.listeners.get_mut(id) {
                listener.next = *next;
            }
        }
        Op::PutEndpoint(endpoint, id) => {
            image.endpoints.insert(*endpoint, *id);
        }
        Op::RemoveEndpoint(endpoint) => {
            image.endpoints.remove(endpoint);
        }
        Op::RemoveListener(id) => {
            image.listeners.remove(id);
        }
        Op::RemoveSibling(key) => {
            image.siblings.remove(key);
        }
        Op::RemoveBackend(id) => {
            image.backends.remove(id);
        }
    }
}

#[cfg(test)]
mod tests;
