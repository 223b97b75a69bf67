//! The steps taken over maps in memory: whatever came before, the maps hold the last configuration and nothing else.

use std::collections::BTreeMap;

use lb_common::abi::flow::{FlowState, FlowWord};
use lb_common::abi::net::Be16;
use lb_common::env::{Env as _, Line as _, Reach, Route};
use proptest::prelude::*;

use super::image::address_from;
use super::memory::Memory;
use super::plan::plan;
use super::worlds::{CAPACITY, World, endpoints, listens, world};
use super::*;
use crate::config::Listen;

const KEY: HashKey = HashKey { words: [3, 1, 4, 1, 5, 9, 2, 6, 5, 3], seed: 0x0123_4567_89ab_cdef };

fn memory() -> Memory {
    Memory::new(CAPACITY, KEY, 16, Box::new(|_, _| Route::none(Reach::NotForwarded)))
}

fn converge(dataplane: &mut Dataplane<Memory>, world: &World) {
    let wanted = world.image(dataplane.image());
    for step in plan(dataplane.image(), &wanted) {
        dataplane.apply(&step).expect("memory refuses nothing");
    }
    assert_eq!(*dataplane.image(), wanted);
}

fn endpoint(memory: &Memory, side: Side, address: IpAddr, port: u16, protocol: Protocol) -> Option<Id> {
    let port = Be16::new(port);
    match address {
        IpAddr::V4(v4) => (&memory).endpoint4(side, &v4.octets(), port, protocol.wire()),
        IpAddr::V6(v6) => (&memory).endpoint6(side, &v6.octets(), port, protocol.wire()),
    }
}

/// A record without what depends on numbers and places.
type Record<T> = (T, Option<Listen>);

/// What the maps mean, without the numbers in them, which depend on the past.
#[derive(Debug, PartialEq)]
struct Meaning {
    /// Of each VIP: its record, and the servers in its slots.
    listeners: BTreeMap<Listen, (Listener, Vec<(IpAddr, u16)>)>,
    /// Of each server: its record and the VIP its replies come from.
    backends: BTreeMap<(IpAddr, u16, String), Record<Backend>>,
}

fn meaning(memory: &Memory) -> Meaning {
    let env = &memory;
    let server = |id: Id| {
        let backend = env.backend(id).expect("a number within the map");
        assert!(backend.flags.has(lb_common::abi::BackendFlags::VALID), "slot with backend {id}");
        (address_from(backend.addr), backend.port.get())
    };
    let mut meaning = Meaning { listeners: BTreeMap::new(), backends: BTreeMap::new() };
    let mut vip_of = BTreeMap::new();
    for (address, port, protocol) in endpoints() {
        let Some(id) = endpoint(memory, Side::Vip, address, port, protocol) else { continue };
        let mut record = *env.listener(id).expect("a number within the map");
        let table = record.table;
        let slots = (0..table.size()).map(|i| server(env.table_slot(table.offset() + i).expect("a slot")));
        let slots = slots.collect();
        record.table = TableRef::new(0, table.size(), table.members() as u16);
        let listen = Listen { address, port, protocol };
        vip_of.insert(id, listen);
        meaning.listeners.insert(listen, (record, slots));
    }
    for (address, port, protocol) in endpoints() {
        let Some(id) = endpoint(memory, Side::Backend, address, port, protocol) else { continue };
        let mut record = *env.backend(id).expect("a number within the map");
        let vip = vip_of.get(&record.listener).copied();
        record.listener = 0;
        assert_eq!(server(id), (address, port));
        meaning.backends.insert((address, port, protocol.to_string()), (record, vip));
    }
    meaning
}

/// Records in use, reachable or not.
fn used(memory: &Memory) -> (usize, usize) {
    let env = &memory;
    let listeners = (0..CAPACITY.listeners).filter(|id| env.listener(*id).is_some_and(|l| l.family != 0));
    let backends = (0..CAPACITY.backends).filter(|id| env.backend(*id).is_some_and(|b| b.flags.0 != 0));
    (listeners.count(), backends.count())
}

proptest! {
    // Tables are of full size, and building one takes a while without optimisation.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_maps_forget_every_configuration_but_the_last(
        worlds in prop::collection::vec(world(), 1..5),
        last in world(),
        restart in any::<bool>(),
    ) {
        let mut dataplane = Dataplane::over(memory(), Image::default());
        for world in &worlds {
            converge(&mut dataplane, world);
        }
        if restart {
            // Another daemon takes over: it has the maps and what it read from them.
            let image = dataplane.image().clone();
            let maps = std::mem::replace(dataplane.maps_mut(), memory());
            dataplane = Dataplane::over(maps, image.clone());
            prop_assert_eq!(dataplane.image(), &image);
        }
        converge(&mut dataplane, &last);
        let mut fresh = Dataplane::over(memory(), Image::default());
        converge(&mut fresh, &last);

        prop_assert_eq!(used(dataplane.maps()), used(fresh.maps()));
        let (old, new) = (meaning(dataplane.maps()), meaning(fresh.maps()));
        prop_assert_eq!(old.backends, new.backends);
        prop_assert_eq!(old.listeners.keys().collect::<Vec<_>>(), new.listeners.keys().collect::<Vec<_>>());
        for (listen, (record, slots)) in new.listeners {
            let (found, found_slots) = &old.listeners[&listen];
            prop_assert_eq!(*found, record);
            prop_assert!(*found_slots == slots, "the table of {} is another one", listen);
        }
    }
}

/// One listener with these members, of servers that are up.
fn image(members: &[Id]) -> Image {
    let listen = listens().next().expect("one");
    let server = |id: Id| worlds::server(1, [198, 51, 100, id as u8].into());
    Image {
        listeners: [(1, worlds::listener(listen, members.iter().copied()))].into(),
        backends: members.iter().map(|id| (*id, server(*id))).collect(),
    }
}

fn take_all<M: Maps>(dataplane: &mut Dataplane<M>, wanted: &Image) -> Result<(), ApplyError> {
    plan(dataplane.image(), wanted).iter().try_for_each(|step| dataplane.apply(step))
}

#[test]
fn the_flows_of_a_backend_go_with_it() {
    let mut dataplane = Dataplane::over(memory(), Image::default());
    take_all(&mut dataplane, &image(&[1, 2])).unwrap();
    for way in 0..4 {
        let line = (&dataplane.maps()).flow_line(way).unwrap();
        let word = FlowWord::new(7, 1 + way % 2, FlowState::Established, 0);
        assert!(line.replace(0, FlowWord::FREE, word));
    }
    take_all(&mut dataplane, &image(&[2])).unwrap();
    let left: Vec<Id> = (0..4)
        .map(|line| (&dataplane.maps()).flow_line(line).unwrap().load(0))
        .filter(|word| !word.is_free())
        .map(FlowWord::backend)
        .collect();
    assert_eq!(left, [2, 2]);
}

#[test]
fn a_table_that_stands_where_another_does_is_built_anew() {
    let mut dataplane = Dataplane::over(memory(), Image::default());
    take_all(&mut dataplane, &image(&[1])).unwrap();
    let mut two = dataplane.image().clone();
    let mut second = two.listeners[&1].clone();
    second.listen = listens().nth(1).expect("two");
    second.table.members.clear();
    two.listeners.insert(2, second);
    take_all(&mut dataplane, &two).unwrap();

    // Both claim the same slots, as no daemon would leave them.
    let mut maps = std::mem::replace(dataplane.maps_mut(), memory());
    let table = maps.table_ref(1);
    maps.write_table_ref(2, table);
    two.listeners.get_mut(&2).unwrap().table.members = [(1, 1)].into();
    let adopted = Dataplane::over(maps, two);
    assert_eq!(adopted.image().listeners[&1].table.members.len(), 1);
    assert!(adopted.image().listeners[&2].table.members.is_empty(), "so that a plan puts it again");
}

#[test]
fn a_table_without_room_is_refused_and_the_old_one_stays() {
    let small = Capacity { table_slots: 200, ..CAPACITY };
    let maps = Memory::new(small, KEY, 1, Box::new(|_, _| Route::none(Reach::NotForwarded)));
    let mut dataplane = Dataplane::over(maps, Image::default());
    take_all(&mut dataplane, &image(&[1])).unwrap();
    let before = (dataplane.maps().table_ref(1), dataplane.image().listeners.clone());
    let error = take_all(&mut dataplane, &image(&[1, 2])).unwrap_err();
    assert!(matches!(error, ApplyError::NoRoomForTable(131)), "{error}");
    assert_eq!((dataplane.maps().table_ref(1), dataplane.image().listeners.clone()), before);
}
