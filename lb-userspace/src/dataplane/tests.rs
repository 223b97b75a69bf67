//! The steps taken over maps in memory: whatever came before, the maps hold the last configuration and nothing else.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::Ordering;

use lb_common::abi::flow::{FlowState, FlowWord, WAYS};
use lb_common::abi::{BackendFlags, Mode, Settings, Side};
use lb_common::env::{Reach, Route};
use lb_common::hash::HashKey;
use lb_common::maglev::SIZES;
use proptest::prelude::*;

use super::endpoints::EndpointTable;
use super::flows::FlowTable;
use super::image::{BackendEntry, TableKind, address_from};
use super::memory::{Memory, Routes};
use super::plan::{Op, plan};
use super::worlds::{CAPACITY, World, ends, listens, world};
use super::*;
use crate::config::{Listen, Protocol, Scheduler};

const KEY: HashKey = HashKey { words: [3, 1, 4, 1, 5, 9, 2, 6, 5, 3], seed: 0x0123_4567_89ab_cdef };

fn no_routes() -> Routes {
    Box::new(|_, _| Route::none(Reach::NotForwarded))
}

fn memory() -> Memory {
    Memory::new(CAPACITY, KEY, 16, no_routes())
}

fn converge(dataplane: &mut Dataplane<Memory>, world: &World) {
    let wanted = world.image(dataplane.image());
    for step in plan(dataplane.image(), &wanted) {
        dataplane.apply(&step).expect("memory refuses nothing");
    }
    assert_eq!(*dataplane.image(), wanted);
}

fn find(memory: &Memory, endpoint: &Endpoint) -> Option<Id> {
    memory.endpoints().find(endpoint.hash(&KEY))
}

/// Everybody that a packet from or to this end looks at.
fn met(memory: &Memory, side: Side, (address, port, protocol): (IpAddr, u16, Protocol)) -> Vec<Id> {
    let chain = |port| {
        let endpoint = Endpoint::new(side, address, port, protocol);
        let next = move |id: &Id| {
            let next = match side {
                Side::Vip => memory.listeners[*id as usize].next,
                Side::Backend => memory.backends[*id as usize].next,
            };
            Some(next).filter(|next| *next != 0 && endpoint.is_chained())
        };
        std::iter::successors(find(memory, &endpoint), next)
    };
    chain(port).chain(Some(chain(0)).filter(|_| port != 0).into_iter().flatten()).collect()
}

/// A record without what depends on numbers and places.
type Record<T> = (T, Option<Listen>);
/// A listener's record, the servers in its slots, and its source addresses.
type ListenerRecord = (Listener, Vec<(IpAddr, u16)>, Vec<IpAddr>);

/// What the maps mean, without the numbers in them, which depend on the past.
#[derive(Debug, PartialEq)]
struct Meaning {
    settings: Settings,
    /// By the ends that packets may have.
    listeners: BTreeMap<(IpAddr, u16, String), ListenerRecord>,
    /// Whose ICMP is answered.
    echo: BTreeSet<IpAddr>,
    /// Of each server, the records that its packets may belong to, and the VIPs of these.
    backends: BTreeMap<(IpAddr, u16, String), Vec<Record<Backend>>>,
    /// By VIP, service and server: which server it is.
    siblings: BTreeSet<(Option<Listen>, IpAddr, u16)>,
}

fn meaning(memory: &Memory) -> Meaning {
    let server = |id: Id| {
        let backend = memory.backends[id as usize];
        assert!(backend.flags.has(BackendFlags::VALID), "slot with backend {id}");
        (address_from(backend.addr), backend.port.get())
    };
    let listen_of = |record: &Listener| {
        let protocol = lb_common::abi::Protocol::from_number(record.protocol)?;
        Some(Listen {
            address: address_from(record.vip),
            port: record.port.get(),
            last_port: record.last_port.get(),
            protocol: Protocol::from_wire(protocol),
        })
    };
    let covers = |listen: &Listen, port| (listen.port..=listen.last_port).contains(&port);
    let mut meaning = Meaning {
        settings: memory.settings,
        listeners: BTreeMap::new(),
        echo: BTreeSet::new(),
        backends: BTreeMap::new(),
        siblings: BTreeSet::new(),
    };
    for end in ends() {
        let (address, port, protocol) = end;
        let name = (address, port, protocol.to_string());
        for id in met(memory, Side::Vip, end) {
            let mut record = memory.listeners[id as usize];
            let listen = listen_of(&record).expect("a record");
            assert_eq!(listen.address, address);
            if !covers(&listen, port) {
                continue;
            }
            let table = record.table;
            let slots = (0..table.size()).map(|i| server(memory.tables[(table.offset() + i) as usize]));
            let slots = slots.collect();
            let sources = usize::from(record.snat_first)..;
            let sources =
                sources.take(record.snat_count.into()).map(|i| address_from(memory.snat_addresses[i]));
            let sources = sources.collect();
            record.table = TableRef::new(0, table.size(), table.members() as u16);
            (record.next, record.service, record.snat_first) = (0, 0, 0);
            assert!(
                meaning.listeners.insert(name.clone(), (record, slots, sources)).is_none(),
                "{end:?} twice"
            );
        }
        if let Some(id) = find(memory, &Endpoint::echo(address)) {
            assert_eq!(address_from(memory.listeners[id as usize].vip), address);
            meaning.echo.insert(address);
        }
    }
    for backend in memory.backends.iter().filter(|b| b.flags.has(BackendFlags::VALID)) {
        let vip = listen_of(&memory.listeners[backend.listener as usize]);
        let listen = vip.expect("a backend has a listener");
        let record = Backend { listener: 0, next: 0, server: 0, ..*backend };
        let (address, port) = (address_from(backend.addr), backend.port.get());
        let name = (address, port, listen.protocol.to_string());
        meaning.backends.entry(name).or_default().push((record, vip));
        if !matches!(backend.mode, Mode::NAT | Mode::SNAT) {
            continue;
        }
        for end in ends().filter(|end| (end.0, end.2) == (address, listen.protocol)) {
            let sends = |b: &Backend| match b.port.get() {
                0 => listen_of(&memory.listeners[b.listener as usize]).is_some_and(|l| covers(&l, end.1)),
                port => port == end.1,
            };
            if !sends(backend) {
                continue;
            }
            let met = met(memory, Side::Backend, end).into_iter().map(|id| memory.backends[id as usize]);
            let found = met.into_iter().find(sends).expect("a reply finds some backend");
            // Without a record for the way back it must be this one.
            assert!(backend.flags.has(BackendFlags::REVERSE) || found == *backend, "{end:?}");
        }
    }
    for records in meaning.backends.values_mut() {
        records.sort_by_key(|(_, vip)| *vip);
    }
    for (key, id) in &memory.siblings {
        let backend = memory.backends[*id as usize];
        assert_eq!((backend.listener, backend.server), (key.listener, key.server));
        let vip = listen_of(&memory.listeners[key.listener as usize]);
        meaning.siblings.insert((vip, address_from(backend.addr), backend.port.get()));
    }
    meaning
}

/// Records and endpoints in use, reachable or not.
fn used(memory: &Memory) -> (usize, usize, usize) {
    let listeners = memory.listeners.iter().filter(|l| l.family != 0).count();
    let backends = memory.backends.iter().filter(|b| b.flags.0 != 0).count();
    (listeners, backends, memory.endpoints().occupied())
}

proptest! {
    // Tables are of full size, and building one takes a while without optimisation.
    #![proptest_config(crate::cases::cases(24))]

    #[test]
    fn the_maps_forget_every_configuration_but_the_last(
        worlds in prop::collection::vec(world(), 1..5),
        last in world(),
    ) {
        let mut dataplane = Dataplane::over(memory(), Image::default());
        for world in &worlds {
            converge(&mut dataplane, world);
        }
        converge(&mut dataplane, &last);
        means_the_last(dataplane.maps(), &last)?;
    }

    #[test]
    fn a_daemon_takes_over_what_another_has_left(worlds in prop::collection::vec(world(), 1..3), last in world()) {
        let mut dataplane = Dataplane::over(memory(), Image::default());
        for world in &worlds {
            converge(&mut dataplane, world);
        }
        let before = dataplane.image().clone();
        let mut maps = std::mem::replace(dataplane.maps_mut(), memory());
        let image = snapshot::read(&maps).expect("memory refuses nothing");
        prop_assert_eq!(known_at_a_restart(&image), known_at_a_restart(&before));
        snapshot::remove_rest(&mut maps, &image).expect("memory refuses nothing");
        let mut dataplane = Dataplane::over(maps, image);
        converge(&mut dataplane, &last);
        means_the_last(dataplane.maps(), &last)?;
    }

    #[test]
    fn a_daemon_that_died_between_two_steps_is_no_harm(
        first in world(),
        second in world(),
        last in world(),
        died in 0.0..1.0f64,
    ) {
        let mut dataplane = Dataplane::over(memory(), Image::default());
        converge(&mut dataplane, &first);
        let wanted = second.image(dataplane.image());
        let steps = plan(dataplane.image(), &wanted);
        let taken = (steps.len() as f64 * died) as usize;
        for step in steps.iter().take(taken) {
            dataplane.apply(step).expect("memory refuses nothing");
        }
        let mut maps = std::mem::replace(dataplane.maps_mut(), memory());
        let image = snapshot::read(&maps).expect("memory refuses nothing");
        snapshot::remove_rest(&mut maps, &image).expect("memory refuses nothing");
        let mut dataplane = Dataplane::over(maps, image);
        converge(&mut dataplane, &last);
        means_the_last(dataplane.maps(), &last)?;
    }

    #[test]
    fn whatever_became_of_the_daemons_before_the_last_configuration_is_all_there_is(
        lives in prop::collection::vec(life(), 1..5),
        last in world(),
    ) {
        let start = Dataplane::over(memory(), Image::default());
        let mut dataplane = lives.iter().fold(start, live);
        converge(&mut dataplane, &last);
        means_the_last(dataplane.maps(), &last)?;
    }

    #[test]
    fn other_maps_get_what_the_old_ones_held_under_the_same_numbers(
        worlds in prop::collection::vec(world(), 1..3),
    ) {
        let mut dataplane = Dataplane::over(memory(), Image::default());
        for world in &worlds {
            converge(&mut dataplane, world);
        }
        let (old, before) = dataplane.into_parts();
        let image = snapshot::read(&old).expect("memory refuses nothing");
        let larger = Memory::new(LARGER, KEY, 32, no_routes());
        let (new, _) = Dataplane::filled(larger, &image).expect("memory refuses nothing").into_parts();
        let found = snapshot::read(&new).expect("memory refuses nothing");
        prop_assert_eq!(known_at_a_restart(&found), known_at_a_restart(&before));
        // Before the new daemon has said anything, packets fare as in the old maps.
        let (old, new) = (meaning(&old), meaning(&new));
        prop_assert_eq!(old.backends, new.backends);
        prop_assert!(old.listeners == new.listeners, "other listeners or tables");
        prop_assert_eq!((old.settings, old.echo, old.siblings), (new.settings, new.echo, new.siblings));
    }
}

/// How a daemon fares that is on the way to a configuration.
#[derive(Clone, Copy, Debug)]
enum End {
    /// It gets there.
    Never,
    /// A step fails, after this part of all steps; it goes on from there.
    Failed(f64),
    /// It is killed between two steps, and another one comes.
    Killed(f64),
    /// It is killed after so many writes, in the middle of a step perhaps.
    KilledWhileWriting(usize),
}

#[derive(Clone, Debug)]
struct Life {
    world: World,
    end: End,
    /// After that everything moves to other maps.
    moved: bool,
}

fn life() -> impl Strategy<Value = Life> {
    let end = prop_oneof![
        Just(End::Never),
        (0.0..1.0f64).prop_map(End::Failed),
        (0.0..1.0f64).prop_map(End::Killed),
        (0usize..150).prop_map(End::KilledWhileWriting),
    ];
    (world(), end, prop::bool::weighted(0.25)).prop_map(|(world, end, moved)| Life { world, end, moved })
}

const LARGER: Capacity = Capacity { listeners: 128, backends: 1024, ..CAPACITY };

/// Memory whose daemon is killed after so many writes: those after it do not happen.
struct Mortal {
    memory: Memory,
    left: Cell<usize>,
    done: Cell<usize>,
    /// Where those go.
    lost: Memory,
}

impl Mortal {
    fn new(memory: Memory, left: usize) -> Self {
        let lost = Memory::new(memory.capacity(), KEY, 16, no_routes());
        Self { memory, left: Cell::new(left), done: Cell::new(0), lost }
    }

    fn lives(&self) -> bool {
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        self.done.set(self.done.get() + 1);
        left > 0
    }

    fn writes(&mut self) -> &mut Memory {
        if self.lives() { &mut self.memory } else { &mut self.lost }
    }

    fn shared(&self) -> &Memory {
        if self.lives() { &self.memory } else { &self.lost }
    }
}

impl Readable for Mortal {
    fn capacity(&self) -> Capacity {
        self.memory.capacity()
    }

    fn hash_key(&self) -> HashKey {
        self.memory.hash_key()
    }

    fn endpoints(&self) -> EndpointTable<'_> {
        // Asked for to be written, by a daemon at work.
        self.shared().endpoints()
    }

    fn flows(&self) -> FlowTable<'_> {
        self.shared().flows()
    }

    fn table_ref(&self, id: Id) -> TableRef {
        // What a dead daemon believes does not matter, as long as it fits.
        if self.left.get() > 0 { self.memory.table_ref(id) } else { self.lost.table_ref(id) }
    }

    fn pace(&self) -> image::Pace {
        self.memory.pace()
    }

    fn settings(&self) -> Settings {
        self.memory.settings()
    }

    fn snat_address(&self, index: u8) -> [u8; 16] {
        self.memory.snat_address(index)
    }

    fn listener(&self, id: Id) -> Listener {
        self.memory.listener(id)
    }

    fn service_name(&self, id: Id) -> String {
        self.memory.service_name(id)
    }

    fn backend(&self, id: Id) -> Backend {
        self.memory.backend(id)
    }

    fn backend_name(&self, id: Id) -> String {
        self.memory.backend_name(id)
    }

    fn slot(&self, index: u32) -> Id {
        self.memory.slot(index)
    }

    fn siblings(&self) -> Result<Vec<(SiblingKey, Id)>, ApplyError> {
        self.memory.siblings()
    }
}

impl Maps for Mortal {
    fn write_features(&mut self, features: Features) {
        self.writes().write_features(features);
    }

    fn write_tunnel(&mut self, tunnel: &TunnelSources) {
        self.writes().write_tunnel(tunnel);
    }

    fn write_snat_address(&mut self, index: u8, address: [u8; 16]) {
        self.writes().write_snat_address(index, address);
    }

    fn write_listener(&mut self, id: Id, record: &Listener, service: &str) {
        self.writes().write_listener(id, record, service);
    }

    fn write_table_ref(&mut self, id: Id, table: TableRef) {
        self.writes().write_table_ref(id, table);
    }

    fn write_backend(&mut self, id: Id, record: &Backend, name: &str) {
        self.writes().write_backend(id, record, name);
    }

    fn put_sibling(&mut self, key: SiblingKey, backend: Id) -> Result<(), ApplyError> {
        self.writes().put_sibling(key, backend)
    }

    fn remove_sibling(&mut self, key: SiblingKey) -> Result<(), ApplyError> {
        self.writes().remove_sibling(key)
    }

    fn write_slots(&mut self, offset: u32, slots: &[Id]) {
        // Half of them, as the last thing that is written.
        let count = if self.left.get() == 1 { slots.len() / 2 } else { slots.len() };
        self.writes().write_slots(offset, &slots[..count]);
    }
}

/// Maps as the daemon leaves them that is killed after so many writes on the way to this world.
fn killed_while_writing(dataplane: Dataplane<Memory>, world: &World, writes: usize) -> Memory {
    let steps = plan(dataplane.image(), &world.image(dataplane.image()));
    let (memory, image) = dataplane.into_parts();
    let mut dataplane = Dataplane::over(Mortal::new(memory, writes), image);
    for step in steps {
        if dataplane.maps().left.get() == 0 {
            break;
        }
        dataplane.apply(&step).expect("memory refuses nothing");
    }
    dataplane.into_parts().0.memory
}

/// What the next daemon makes of maps.
fn adopt(mut maps: Memory) -> Dataplane<Memory> {
    let image = snapshot::read(&maps).expect("memory refuses nothing");
    snapshot::remove_rest(&mut maps, &image).expect("memory refuses nothing");
    Dataplane::over(maps, image)
}

/// A daemon, or two, on the way to a configuration.
fn live(mut dataplane: Dataplane<Memory>, life: &Life) -> Dataplane<Memory> {
    let Life { world, end, moved } = life;
    dataplane = match *end {
        End::Never => {
            converge(&mut dataplane, world);
            dataplane
        }
        End::Failed(part) | End::Killed(part) => {
            let steps = plan(dataplane.image(), &world.image(dataplane.image()));
            for step in steps.iter().take((steps.len() as f64 * part) as usize) {
                dataplane.apply(step).expect("memory refuses nothing");
            }
            if matches!(end, End::Failed(_)) { dataplane } else { adopt(dataplane.into_parts().0) }
        }
        End::KilledWhileWriting(writes) => adopt(killed_while_writing(dataplane, world, writes)),
    };
    if !*moved {
        return dataplane;
    }
    let (_, image) = dataplane.into_parts();
    let larger = Memory::new(LARGER, KEY, 32, no_routes());
    Dataplane::filled(larger, &image).expect("memory refuses nothing")
}

/// An image without what the maps do not tell.
fn known_at_a_restart(image: &Image) -> Image {
    let mut image = image.clone();
    for listener in image.listeners.values_mut() {
        if listener.table.kind != TableKind::Maglev || listener.table.members.is_empty() {
            listener.table.size = 0;
        }
    }
    for backend in image.backends.values_mut() {
        backend.reset_when_down &= backend.health == crate::health::Health::Down;
        // Of others it makes no difference.
        backend.standby &= BackendEntry { standby: false, ..backend.clone() }.takes_new_flows();
    }
    image
}

/// That flows have a record for their way back may stay where it was once so; and as long as it is, none takes the short
/// way.
fn forgive_ways_back(old: &mut Meaning, new: &Meaning) {
    for (name, records) in &mut old.backends {
        let fresh = new.backends.get(name).into_iter().flatten();
        for ((record, _), (fresh, _)) in records.iter_mut().zip(fresh) {
            let had = record.flags.has(BackendFlags::REVERSE) && !fresh.flags.has(BackendFlags::REVERSE);
            if had {
                assert!(!record.flags.has(BackendFlags::SHORT), "{record:?}");
                let flags = record.flags.0 & !BackendFlags::REVERSE.0;
                record.flags = BackendFlags(flags | fresh.flags.0 & BackendFlags::SHORT.0);
            }
        }
    }
}

/// Nothing is left but what a first start with this configuration makes.
fn means_the_last(maps: &Memory, last: &World) -> Result<(), TestCaseError> {
    let mut fresh = Dataplane::over(memory(), Image::default());
    converge(&mut fresh, last);
    prop_assert_eq!(used(maps), used(fresh.maps()));
    let (mut old, new) = (meaning(maps), meaning(fresh.maps()));
    forgive_ways_back(&mut old, &new);
    prop_assert_eq!(old.settings, new.settings);
    prop_assert_eq!(old.echo, new.echo);
    prop_assert_eq!(old.backends, new.backends);
    prop_assert_eq!(old.siblings, new.siblings);
    prop_assert_eq!(old.listeners.keys().collect::<Vec<_>>(), new.listeners.keys().collect::<Vec<_>>());
    for (end, (record, slots, sources)) in new.listeners {
        let (found, found_slots, found_sources) = &old.listeners[&end];
        prop_assert_eq!(*found, record);
        prop_assert!(*found_slots == slots, "the table of {:?} is another one", end);
        prop_assert_eq!(found_sources, &sources);
    }
    Ok(())
}

/// One listener with these members, of servers that are up.
fn image(members: &[Id]) -> Image {
    let listen = listens().next().expect("one");
    let server = |id: Id| worlds::server(1, [198, 51, 100, id as u8].into());
    Image {
        listeners: [(1, worlds::listener(listen, members.iter().copied()))].into(),
        backends: members.iter().map(|id| (*id, server(*id))).collect(),
        ..Image::default()
    }
}

fn take_all<M: Maps>(dataplane: &mut Dataplane<M>, wanted: &Image) -> Result<(), ApplyError> {
    plan(dataplane.image(), wanted).iter().try_for_each(|step| dataplane.apply(step))
}

#[test]
fn the_flows_of_a_backend_go_with_it() {
    let mut dataplane = Dataplane::over(memory(), Image::default());
    take_all(&mut dataplane, &image(&[1, 2])).unwrap();
    let word = |id| FlowWord::new(7, id, FlowState::Established, 0);
    for line in 0..4 {
        let id = 1 + line % 2;
        dataplane.maps().words[line as usize * WAYS].store(word(id).0, Ordering::Relaxed);
        dataplane.maps().live[id as usize].fetch_add(1, Ordering::Relaxed);
    }
    take_all(&mut dataplane, &image(&[2])).unwrap();
    let left: Vec<Id> = dataplane.maps().flows().entries().map(|(_, word, _)| word.backend()).collect();
    let live = |id| dataplane.maps().flows().live(id);
    assert_eq!((live(1), live(2)), (0, 2));
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
fn a_scheduler_that_was_changed_when_the_daemon_died_gets_its_own_table() {
    let mut dataplane = Dataplane::over(memory(), Image::default());
    let mut one = image(&[1]);
    let listener = one.listeners.get_mut(&1).unwrap();
    listener.scheduler = Scheduler::LeastConnections;
    listener.table.kind = TableKind::Each;
    one.endpoints.insert(one.listeners[&1].listen.endpoint(), 1);
    take_all(&mut dataplane, &one).unwrap();
    assert_eq!(dataplane.maps().table_ref(1).size(), 1, "a slot for each member");

    let mut changed = dataplane.image().listeners[&1].clone();
    changed.scheduler = Scheduler::Maglev;
    dataplane.apply(&Op::PutListener(1, changed)).unwrap();
    let found = snapshot::read(dataplane.maps()).unwrap();
    let table = &found.listeners[&1].table;
    assert_eq!((table.kind, table.size), (TableKind::Maglev, SIZES[0]));
    assert!(!table.members.contains_key(&1), "so that a plan puts it again");
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
