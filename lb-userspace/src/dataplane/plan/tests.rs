//! Laws of plans, over random pairs of configurations.

use std::collections::BTreeSet;

use lb_common::abi::endpoint::ECHO;
use proptest::prelude::*;

use super::super::worlds::{World, ends, listener, listens, server, world};
use super::*;
use crate::config::{Forward, Listen, Protocol};

/// How many listeners or backends of one endpoint the packet path must look at: twice as many as a configuration may
/// have there, as some stay until all that replace them are there.
const MOST: usize = 16;

/// Everybody at an endpoint that packets look at, whether there or not.
fn walk(image: &Image, endpoint: &Endpoint) -> Vec<Id> {
    let next = |id: &Id| {
        let next = match endpoint.side {
            Side::Vip => image.listeners.get(id).map(|l| l.next),
            Side::Backend => image.backends.get(id).map(|b| b.next),
        };
        next.filter(|next| *next != 0 && endpoint.is_chained())
    };
    std::iter::successors(image.endpoints.get(endpoint).copied(), next).take(MOST).collect()
}

/// Those at the endpoints that a packet with this address, port and protocol looks at.
fn met(image: &Image, side: Side, end: (IpAddr, u16, Protocol)) -> Vec<Id> {
    let (address, port, protocol) = end;
    let exact = walk(image, &Endpoint::new(side, address, port, protocol));
    let ranges = Some(walk(image, &Endpoint::new(side, address, 0, protocol))).filter(|_| port != 0);
    exact.into_iter().chain(ranges.into_iter().flatten()).collect()
}

fn covers(listen: &Listen, port: u16) -> bool {
    (listen.port..=listen.last_port).contains(&port)
}

/// The listener that gets a packet to this VIP.
fn listener_for(image: &Image, end: (IpAddr, u16, Protocol)) -> Option<Id> {
    let ids = met(image, Side::Vip, end);
    ids.into_iter().find(|id| image.listeners.get(id).is_some_and(|l| covers(&l.listen, end.1)))
}

/// Whether packets of this port of the server can belong to the backend.
fn sends(image: &Image, id: Id, port: u16) -> bool {
    let Some(backend) = image.backends.get(&id) else { return false };
    let Some(listener) = image.listeners.get(&backend.server.listener) else { return false };
    if backend.server.port == 0 { covers(&listener.listen, port) } else { backend.server.port == port }
}

/// The backend that a packet of a server without a record of its own is taken to be from.
fn backend_of(image: &Image, end: (IpAddr, u16, Protocol)) -> Option<Id> {
    met(image, Side::Backend, end).into_iter().find(|id| sends(image, *id, end.1))
}

/// What must hold for a packet that comes between any two steps from `a` to `b`.
fn without_holes(seen: &Image, a: &Image, b: &Image) -> Result<(), TestCaseError> {
    endpoints_lead_to_theirs(seen)?;
    tables_have_valid_members(seen)?;
    vips_lead_on(seen, a, b)?;
    replies_find_their_backend(seen, b)?;
    what_is_needed_is_there(seen, a, b)
}

fn endpoints_lead_to_theirs(seen: &Image) -> Result<(), TestCaseError> {
    for endpoint in seen.endpoints.keys() {
        let found = walk(seen, endpoint);
        let distinct: BTreeSet<Id> = found.iter().copied().collect();
        prop_assert_eq!(distinct.len(), found.len(), "the chain of {} is a circle", endpoint);
        for id in found {
            match endpoint.side {
                Side::Vip if endpoint.protocol == ECHO => {
                    let vip = seen.listeners.get(&id).map(|l| l.listen.address);
                    prop_assert_eq!(
                        vip,
                        Some(endpoint.address),
                        "a VIP's ICMP leads to another listener or none"
                    );
                }
                Side::Vip => {
                    let place = seen.listeners.get(&id).map(|l| l.listen.endpoint());
                    prop_assert_eq!(place, Some(*endpoint), "a VIP leads to another listener or none");
                }
                Side::Backend => {
                    let Some(backend) = seen.backends.get(&id) else {
                        return Err(TestCaseError::fail(format!("{endpoint} leads to no backend")));
                    };
                    // Its listener may be gone already; it is known by its server then.
                    let place = seen.origin(backend);
                    prop_assert!(
                        place.is_none() || place == Some(*endpoint),
                        "{} leads to another",
                        endpoint
                    );
                }
            }
        }
    }
    Ok(())
}

fn tables_have_valid_members(seen: &Image) -> Result<(), TestCaseError> {
    for (id, listener) in &seen.listeners {
        for member in listener.table.members.keys() {
            let backend = seen.backends.get(member);
            prop_assert_eq!(backend.map(|b| b.server.listener), Some(*id), "a table has another's backend");
            let flags = backend.map(BackendEntry::flags).unwrap_or_default();
            prop_assert!(!flags.has(BackendFlags::DOWN), "a table hands flows to a backend marked down");
        }
    }
    for (key, id) in &seen.siblings {
        let listener = seen.backends.get(id).map(|b| b.server.listener);
        prop_assert_eq!(listener, Some(key.listener), "a sibling leads to another listener's server or none");
    }
    for backend in seen.backends.values() {
        let flags = backend.flags();
        let both = flags.has(BackendFlags::IN_TABLE) && flags.has(BackendFlags::DOWN);
        prop_assert!(!both, "sticky clients go to a backend marked down");
    }
    Ok(())
}

fn vips_lead_on(seen: &Image, a: &Image, b: &Image) -> Result<(), TestCaseError> {
    for end in ends() {
        let members = |image: &Image, id: Id| image.listeners[&id].table.members.len();
        let (found, before, after) = (listener_for(seen, end), listener_for(a, end), listener_for(b, end));
        if let (Some(before), Some(after)) = (before, after) {
            let Some(found) = found else {
                return Err(TestCaseError::fail(format!("{end:?} was out of reach for a moment")));
            };
            prop_assert!(found == before || found == after, "{:?} leads to a third listener", end);
            let always = members(a, before) > 0 && members(b, after) > 0;
            prop_assert!(!always || members(seen, found) > 0, "{:?} was without backends for a moment", end);
        }
        if let Some(found) = found.filter(|id| !a.listeners.contains_key(id)) {
            let (now, then) = (&seen.listeners[&found], &b.listeners[&found]);
            prop_assert_eq!(&now.table, &then.table, "a new VIP is seen before its table is complete");
        }
    }
    Ok(())
}

/// Of backends that packets can reach and that stay. Those that go lose their flows anyway.
fn replies_find_their_backend(seen: &Image, b: &Image) -> Result<(), TestCaseError> {
    for (id, backend) in seen.backends.iter().filter(|(id, _)| b.backends.contains_key(id)) {
        let Some(listener) = seen.listeners.get(&backend.server.listener) else { continue };
        let reachable = walk(seen, &listener.listen.endpoint()).contains(&backend.server.listener);
        let takes_flows = listener.table.members.contains_key(id);
        if !listener.forward.is_answered_here() || !reachable || !takes_flows {
            continue;
        }
        for end in ends().filter(|(address, _, protocol)| {
            (*address, *protocol) == (backend.server.address, listener.listen.protocol)
        }) {
            if !sends(seen, *id, end.1) {
                continue;
            }
            let found = backend_of(seen, end);
            if backend.reverse {
                prop_assert!(found.is_some(), "replies from {:?} were nobody's for a moment", end);
            } else {
                prop_assert_eq!(found, Some(*id), "replies from {:?} were another's for a moment", end);
            }
        }
    }
    Ok(())
}

fn what_is_needed_is_there(seen: &Image, a: &Image, b: &Image) -> Result<(), TestCaseError> {
    for endpoint in seen.endpoints.keys().filter(|e| e.side == Side::Vip) {
        for id in walk(seen, endpoint) {
            let listen = seen.listeners[&id].listen;
            prop_assert!(!listen.is_range() || seen.features.has(Features::RANGES));
            prop_assert!(listen.protocol != Protocol::Any || seen.features.has(Features::ANY_PROTOCOL));
        }
    }
    for (id, listener) in &seen.listeners {
        let Some(range) = listener.snat else { continue };
        let addresses = |image: &Image| -> Vec<_> {
            (0..range.count).map(|i| image.snat_addresses.get(&(range.first + i)).copied()).collect()
        };
        let of = |image: &Image| {
            image.listeners.get(id).filter(|l| l.snat == Some(range)).map(|_| addresses(image))
        };
        let expected = of(b).or_else(|| of(a));
        prop_assert_eq!(Some(addresses(seen)), expected, "listener {} has other source addresses", id);
    }
    if seen.listeners.values().any(|l| matches!(l.forward, Forward::Ipip | Forward::Gue)) {
        prop_assert_eq!(seen.tunnel, b.tunnel);
    }
    Ok(())
}

fn place(steps: &[Op], wanted: impl Fn(&Op) -> bool) -> Option<usize> {
    steps.iter().position(wanted)
}

/// Two configurations, one after the other, with something before them.
fn pair(before: &World, from: &World, to: &World) -> (Image, Image) {
    let a = from.image(&before.image(&Image::default()));
    let b = to.image(&a);
    (a, b)
}

proptest! {
    #[test]
    fn the_steps_lead_from_one_image_to_the_other(before in world(), from in world(), to in world()) {
        let (a, b) = pair(&before, &from, &to);
        let mut seen = a.clone();
        for step in plan(&a, &b) {
            advance(&mut seen, &step);
        }
        prop_assert_eq!(seen, b);
    }

    #[test]
    fn between_equal_images_there_is_nothing_to_do(from in world(), to in world()) {
        let a = from.image(&Image::default());
        prop_assert_eq!(plan(&a, &a), []);
        // Also when the same is wanted again, of an image with gaps in its numbers.
        let b = to.image(&a);
        prop_assert_eq!(plan(&b, &to.image(&b)), []);
    }

    #[test]
    fn no_packet_finds_a_hole_between_two_steps(before in world(), from in world(), to in world()) {
        let (a, b) = pair(&before, &from, &to);
        let mut seen = a.clone();
        without_holes(&seen, &a, &b)?;
        for step in plan(&a, &b) {
            advance(&mut seen, &step);
            if let Err(error) = without_holes(&seen, &a, &b) {
                return Err(TestCaseError::fail(format!("after {step:?}: {error}")));
            }
        }
    }

    #[test]
    fn marks_come_before_flows_and_go_after_them(before in world(), from in world(), to in world()) {
        let (a, b) = pair(&before, &from, &to);
        let steps = plan(&a, &b);
        let first_table = place(&steps, |op| matches!(op, Op::PutTable(..) | Op::PutListener(..)));
        for (id, new) in &b.backends {
            let Some(old) = a.backends.get(id) else { continue };
            let flags = |op: &Op| match op {
                Op::PutBackend(one, entry) if one == id => Some(entry.flags()),
                _ => None,
            };
            let marked = |flag| place(&steps, |op| flags(op).is_some_and(|flags| flags.has(flag)));
            let table = place(&steps, |op| matches!(op, Op::PutTable(one, _) if *one == new.server.listener));
            let down = |b: &BackendEntry| b.flags().has(BackendFlags::DOWN);
            if down(old) && !down(new) {
                let record = place(&steps, |op| flags(op).is_some_and(|flags| !flags.has(BackendFlags::DOWN)));
                prop_assert!(table.is_none() || record < table, "{} takes flows before it is marked up", new.name);
            }
            if !down(old) && down(new) {
                // Sticky clients do not ask the table.
                let takes = |b: &BackendEntry| b.flags().has(BackendFlags::IN_TABLE);
                let spared = |flags: BackendFlags| !flags.has(BackendFlags::IN_TABLE) && !flags.has(BackendFlags::DOWN);
                let left = place(&steps, |op| flags(op).is_some_and(spared));
                prop_assert!(!takes(old) || (left.is_some() && (table.is_none() || left < table)));
                let record = marked(BackendFlags::DOWN);
                prop_assert!(record > table, "{} is marked down while it takes flows", new.name);
            }
            prop_assert!(new.reverse || !old.reverse, "{} has flows with a way back of their own", new.name);
            if new.reverse && !old.reverse {
                let record = marked(BackendFlags::REVERSE);
                prop_assert!(record.is_some());
                prop_assert!(first_table.is_none() || record < first_table, "{} is confused with another", new.name);
            }
        }
    }

    #[test]
    fn each_thing_is_touched_once(before in world(), from in world(), to in world()) {
        let (a, b) = pair(&before, &from, &to);
        let steps = plan(&a, &b);
        let distinct: BTreeSet<String> = steps.iter().map(|step| format!("{step:?}")).collect();
        prop_assert_eq!(distinct.len(), steps.len());
        for (id, new) in &b.backends {
            let writes = steps.iter().filter(|op| matches!(op, Op::PutBackend(one, _) if one == id)).count();
            let unlinked = |entry: &BackendEntry| BackendEntry { next: 0, ..entry.clone() };
            let old = a.backends.get(id);
            let condemned = old.is_some_and(|old| new.flags().0 & !old.flags().0 & 6 != 0);
            let changed = old.map(&unlinked) != Some(unlinked(new));
            // One that goes down is first taken from the sticky clients.
            prop_assert!(writes <= usize::from(changed) + usize::from(condemned));
            prop_assert!(writes >= usize::from(changed));
        }
    }
}

/// Every state from `a` to `b` has no hole; the last one is `b`.
fn check(a: &Image, b: &Image) {
    let mut seen = a.clone();
    for step in plan(a, b) {
        advance(&mut seen, &step);
        without_holes(&seen, a, b).expect("no hole");
    }
    assert_eq!(seen, *b);
}

#[test]
fn a_vip_that_moves_to_another_listener_is_overwritten() {
    let listen = listens().next().expect("one");
    let image = |id: Id, backend: Id| Image {
        listeners: [(id, listener(listen, [backend]))].into(),
        backends: [(backend, server(id, [198, 51, 100, 11].into()))].into(),
        endpoints: [
            (listen.endpoint(), id),
            (Endpoint::echo(listen.address), id),
            (Endpoint::new(Side::Backend, [198, 51, 100, 11].into(), 25, Protocol::Tcp), backend),
        ]
        .into(),
        ..Image::default()
    };
    check(&image(1, 1), &image(2, 2));
}

/// Ranges of one VIP, by the numbers of their listeners, in a chain.
fn ranges(ids: &[Id]) -> Image {
    let listen = |id: Id| {
        let port = 8000 + 100 * u16::try_from(id % 20).expect("small");
        Listen { address: [203, 0, 113, 10].into(), port, last_port: port + 99, protocol: Protocol::Tcp }
    };
    let following = ids.iter().skip(1).copied().chain([0]);
    let entry = |(id, next): (&Id, Id)| {
        let entry = listener(listen(*id), []);
        (*id, ListenerEntry { next, ..entry })
    };
    Image {
        features: Features::RANGES,
        listeners: ids.iter().zip(following).map(entry).collect(),
        endpoints: ids.first().map(|id| (listen(*id).endpoint(), *id)).into_iter().collect(),
        ..Image::default()
    }
}

#[test]
fn a_full_chain_is_replaced_by_another_full_chain() {
    // 21 has the ports of 1, and so on. What stays is in front, behind, and in between.
    let chains: [(&[Id], &[Id]); 5] = [
        (&[1, 2, 3, 4, 5, 6, 7, 8], &[21, 22, 23, 24, 25, 26, 27, 28]),
        (&[1, 2, 3, 4, 5, 6, 7, 8], &[1, 8, 22, 23, 24, 25, 26, 27]),
        (&[1, 2, 3, 4, 5, 6, 7, 8], &[8, 21, 22, 23, 24, 25, 26, 27]),
        (&[1, 2, 3, 4, 5, 6, 7, 8], &[1, 3, 5, 7, 22, 24, 26, 28]),
        (&[1, 2, 3, 4, 5, 6, 7, 8], &[4]),
    ];
    for (from, to) in chains {
        let (a, b) = (ranges(from), ranges(to));
        let mut seen = a.clone();
        for step in plan(&a, &b) {
            advance(&mut seen, &step);
            for port in (8100..8900).step_by(50) {
                let end = ([203, 0, 113, 10].into(), port, Protocol::Tcp);
                let served = listener_for(&a, end).is_some() && listener_for(&b, end).is_some();
                assert!(!served || listener_for(&seen, end).is_some(), "{port} after {step:?}");
            }
        }
        assert_eq!(seen, b);
    }
}

#[test]
fn replies_to_a_range_that_grows_are_not_nobodys() {
    let address = IpAddr::from([198, 51, 100, 11]);
    let range = |last_port| Listen { port: 8000, last_port, ..listens().next().expect("one") };
    let backend = |listener| BackendEntry { reverse: true, ..server(listener, address) };
    let a = Image {
        features: Features::RANGES,
        listeners: [(1, listener(range(8049), []))].into(),
        endpoints: [(range(8049).endpoint(), 1), (Endpoint::echo(range(8049).address), 1)].into(),
        ..Image::default()
    };
    // One server behind the grown range and behind a new VIP, whose number is the higher one.
    let single = listens().next().expect("one");
    let b = Image {
        listeners: [(1, listener(range(8100), [1])), (2, listener(single, [2]))].into(),
        backends: [(1, backend(1)), (2, backend(2))].into(),
        endpoints: [
            (range(8100).endpoint(), 1),
            (single.endpoint(), 2),
            (Endpoint::echo(single.address), 1),
            (Endpoint::new(Side::Backend, address, 25, Protocol::Tcp), 2),
        ]
        .into(),
        ..a.clone()
    };
    check(&a, &b);
}
