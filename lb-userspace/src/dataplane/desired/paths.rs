//! How packets find their listener, and replies their backend.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::config::{Forward, Protocol};
use crate::dataplane::endpoints::Endpoint;
use crate::dataplane::image::{BackendEntry, Id, Image, ListenerEntry};

/// Marks the backends whose replies do not tell the client and the VIP by themselves. The mark stays while the backend
/// does, as its flows may have records for their way back. Ports count that a listener has had or will have: while the
/// maps change it has them beside another one.
pub(super) fn mark_reverse(image: &mut Image, previous: &Image) {
    let shared = sharing(image, previous);
    let mut marked = Vec::new();
    for (id, backend) in &image.backends {
        let Some(listener) = image.listeners.get(&backend.server.listener) else { continue };
        if !backend.forward.is_answered_here() {
            continue;
        }
        let folded = listener.listen.is_range() && backend.server.port != 0;
        let before = previous.backends.get(id).is_some_and(|old| old.reverse);
        if before || folded || backend.forward == Forward::Snat || shared.contains(id) {
            marked.push(*id);
        }
    }
    for id in marked {
        if let Some(backend) = image.backends.get_mut(&id) {
            backend.reverse = true;
        }
    }
}

/// First and last port of a server that a backend's packets go to, and the backend.
type Span = (u16, u16, Id);

/// Backends that some port of their server has in common with another backend.
fn sharing(image: &Image, previous: &Image) -> BTreeSet<Id> {
    let mut servers: BTreeMap<(IpAddr, Protocol), Vec<Span>> = BTreeMap::new();
    for (id, backend) in &image.backends {
        let Some(listener) = image.listeners.get(&backend.server.listener) else { continue };
        if backend.forward.is_answered_here() {
            let before = previous.listeners.get(&backend.server.listener);
            let (first, last) = ports(listener, before, backend);
            let of_server = servers.entry((backend.server.address, listener.listen.protocol)).or_default();
            of_server.push((first, last, *id));
        }
    }
    let mut shared = BTreeSet::new();
    for mut spans in servers.into_values() {
        spans.sort_unstable();
        let mut reach = None;
        for (index, (first, last, id)) in spans.iter().enumerate() {
            let earlier = reach.is_some_and(|reach| *first <= reach);
            let later = spans.get(index + 1).is_some_and(|(next, ..)| next <= last);
            if earlier || later {
                shared.insert(*id);
            }
            reach = reach.max(Some(*last));
        }
    }
    shared
}

/// The ports of the server that packets of this backend go to, or went to `before`.
fn ports(listener: &ListenerEntry, before: Option<&ListenerEntry>, backend: &BackendEntry) -> (u16, u16) {
    match backend.server.port {
        0 => {
            let last = before.map_or(0, |before| before.listen.last_port);
            (listener.listen.port, listener.listen.last_port.max(last))
        }
        port => (port, port),
    }
}

/// Leads packets to listeners and backends: fills in the endpoints and the chains.
///
/// Who was first at an endpoint stays so: of backends, the one that flows without a record for their way back belong
/// to. In a chain, what stays keeps its order, and what is new comes last.
pub(super) fn lead(image: &mut Image, previous: &Image) {
    let mut found: BTreeMap<Endpoint, Vec<Id>> = BTreeMap::new();
    for (id, listener) in &image.listeners {
        found.entry(listener.listen.endpoint()).or_default().push(*id);
        found.entry(Endpoint::echo(listener.listen.address)).or_default().push(*id);
    }
    let mut origins: BTreeMap<Endpoint, Vec<Id>> = BTreeMap::new();
    for (id, backend) in &image.backends {
        if let Some(origin) = image.origin(backend) {
            origins.entry(origin).or_default().push(*id);
        }
    }
    for (endpoint, mut ids) in found {
        in_order(&mut ids, &endpoint, previous, |_| 0);
        if endpoint.is_chained() {
            for (id, next) in links(&ids) {
                if let Some(listener) = image.listeners.get_mut(&id) {
                    listener.next = next;
                }
            }
        }
        image.endpoints.extend(ids.first().map(|id| (endpoint, *id)));
    }
    for (endpoint, mut ids) in origins {
        in_order(&mut ids, &endpoint, previous, |id| {
            // Rather one that was there before, and one that packets without a record may be answered for.
            let new = !previous.backends.contains_key(&id);
            let nat = image.backends.get(&id).is_some_and(|b| b.forward == Forward::Nat);
            u8::from(new) * 2 + u8::from(!nat)
        });
        if endpoint.is_chained() {
            for (id, next) in links(&ids) {
                if let Some(backend) = image.backends.get_mut(&id) {
                    backend.next = next;
                }
            }
        }
        image.endpoints.extend(ids.first().map(|id| (endpoint, *id)));
    }
}

/// Puts those that were at the endpoint before in front, in their order, and the others behind them by rank and number.
fn in_order(ids: &mut [Id], endpoint: &Endpoint, previous: &Image, rank: impl Fn(Id) -> u8) {
    let before = if endpoint.is_chained() {
        previous.chain(endpoint)
    } else {
        previous.endpoints.get(endpoint).copied().into_iter().collect()
    };
    ids.sort_by_key(|id| {
        let place = before.iter().position(|known| known == id).unwrap_or(before.len());
        (place, rank(*id), *id)
    });
}

/// Each with the one after it; 0 for the last.
fn links(ids: &[Id]) -> impl Iterator<Item = (Id, Id)> {
    let following = ids.iter().skip(1).copied().chain([0]);
    ids.iter().copied().zip(following)
}
