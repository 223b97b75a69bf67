//! The steps from one image to another, in an order in which no packet sees a hole.

use std::collections::BTreeMap;

use super::image::{BackendEntry, Id, Image, ListenerEntry, Server, Table};
use crate::config::{Listen, Protocol};

/// One step. Each leaves the maps in a state that packets can live with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Write a backend's record, a new one or over the old.
    PutBackend(Id, BackendEntry),
    /// Let packets from the server find the backend.
    PutOrigin(Server, Protocol, Id),
    /// Write the record of a listener, all but its table.
    PutListener(Id, ListenerEntry),
    /// Build a table beside the old one and swap them.
    PutTable(Id, Table),
    /// Let packets to the VIP find the listener.
    PutVip(Listen, Id),
    RemoveVip(Listen),
    RemoveListener(Id),
    RemoveOrigin(Server, Protocol),
    /// Clear a backend's record and forget its flows.
    RemoveBackend(Id),
}

/// The steps that turn `actual` into `desired`. None when they are equal.
///
/// A number that is in both stands for the same listener or server in both, as [`super::desired`] sees to.
///
/// What is added is complete before anything points to it: backends, then tables, then VIPs. What is removed is
/// unreachable before it goes, in the reverse order. A backend that comes up is marked so before tables hand flows to
/// it, one that goes down only after they have stopped, so that no flow is reset that was just begun.
pub fn plan(actual: &Image, desired: &Image) -> Vec<Op> {
    let mut before = Vec::new();
    let mut listeners = Vec::new();
    let mut tables = Vec::new();
    let mut after = Vec::new();
    let mut vips = Vec::new();
    let mut removed = Vec::new();

    for (&id, new) in &desired.backends {
        match actual.backends.get(&id) {
            Some(old) if old == new => {}
            Some(old) if old.server == new.server => {
                let goes_down = new.flags().0 & !old.flags().0 != 0;
                let steps = if goes_down { &mut after } else { &mut before };
                steps.push(Op::PutBackend(id, new.clone()));
            }
            _ => {
                before.push(Op::PutBackend(id, new.clone()));
                before.push(Op::PutOrigin(new.server, protocol_of(desired, new), id));
            }
        }
    }
    for (&id, new) in &desired.listeners {
        let old = actual.listeners.get(&id).filter(|old| old.listen == new.listen);
        match old {
            Some(old) => {
                let unchanged = ListenerEntry { table: old.table.clone(), ..new.clone() };
                if *old != unchanged {
                    listeners.push(Op::PutListener(id, new.clone()));
                }
                if old.table != new.table {
                    tables.push(Op::PutTable(id, new.table.clone()));
                }
            }
            None => {
                listeners.push(Op::PutListener(id, new.clone()));
                if !new.table.members.is_empty() {
                    tables.push(Op::PutTable(id, new.table.clone()));
                }
                vips.push(Op::PutVip(new.listen, id));
            }
        }
    }

    for (&id, old) in &actual.listeners {
        let gone = desired.listeners.get(&id).is_none_or(|new| new.listen != old.listen);
        if gone {
            // A VIP that moves to another listener is overwritten, never absent.
            if desired.listener_at(&old.listen).is_none() {
                removed.push(Op::RemoveVip(old.listen));
            }
            removed.push(Op::RemoveListener(id));
        }
    }
    for (&id, old) in &actual.backends {
        let gone = desired.backends.get(&id).is_none_or(|new| new.server != old.server);
        if gone {
            let protocol = protocol_of(actual, old);
            let elsewhere = desired.backends.values().any(|new| {
                (new.server.address, new.server.port) == (old.server.address, old.server.port)
                    && protocol_of(desired, new) == protocol
            });
            if !elsewhere {
                removed.push(Op::RemoveOrigin(old.server, protocol));
            }
            removed.push(Op::RemoveBackend(id));
        }
    }

    [before, listeners, tables, after, vips, removed].concat()
}

fn protocol_of(image: &Image, backend: &BackendEntry) -> Protocol {
    image.listeners.get(&backend.server.listener).map_or(Protocol::Tcp, |l| l.listen.protocol)
}

/// What an image is after a step. The implementations of [`super::Dataplane`] keep theirs by this.
pub fn advance(image: &mut Image, op: &Op) {
    match op {
        Op::PutBackend(id, entry) => {
            image.backends.insert(*id, entry.clone());
        }
        Op::PutListener(id, entry) => {
            let table = image.listeners.get(id).filter(|old| old.listen == entry.listen).map_or_else(
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
        Op::RemoveListener(id) => {
            image.listeners.remove(id);
        }
        Op::RemoveBackend(id) => {
            image.backends.remove(id);
        }
        Op::PutOrigin(..) | Op::PutVip(..) | Op::RemoveVip(_) | Op::RemoveOrigin(..) => {}
    }
}

#[cfg(test)]
mod tests;
