//! Two tables of different sizes, while packets come to one and then to the other.

use std::net::IpAddr;

use lb_common::abi::flow::{FlowState, FlowTuple, FlowWord, WAYS};
use lb_common::abi::net::{Be16, mapped};
use lb_common::hash::{FlowHash, HashKey, flow4, ports};
use proptest::prelude::*;

use super::*;
use crate::config::{Flows, Forward, Listen, Protocol};
use crate::dataplane::image::{Id, Image, SnatRange};
use crate::dataplane::worlds;
use crate::sync::task::{PlainFlows, SharedFlows as _};

const KEY: HashKey = HashKey { words: [7; 10], seed: 7 };
const VIP: [u8; 4] = [203, 0, 113, 10];
const CLIENT: [u8; 4] = [192, 0, 2, 7];
const SERVERS: [[u8; 4]; 3] = [[198, 51, 100, 11], [198, 51, 100, 12], [198, 51, 100, 13]];
const CLOCK: Clock = Clock { now: 1000, seconds_per_tick: 1.0 };

/// One table, and what its numbers mean: the listener's is `first`, the servers' are those after it.
struct Table {
    flows: PlainFlows,
    lines: u32,
    first: Id,
    snat: bool,
    directory: Directory,
}

impl Table {
    fn new(lines: u32, first: Id, forward: Forward, servers: usize) -> Self {
        let snat = forward == Forward::Snat;
        let listen = Listen { address: VIP.into(), port: 25, last_port: 25, protocol: Protocol::Tcp };
        let mut image = Image::default();
        let mut listener = worlds::listener(listen, []);
        listener.forward = forward;
        if snat {
            listener.snat = Some(SnatRange { first: 3, count: 1, first_port: 1024, last_port: 2047 });
            image.snat_addresses.insert(3, [198, 51, 100, 1].into());
        }
        image.listeners.insert(first, listener);
        for (id, server) in (first + 1..).zip(SERVERS).take(servers) {
            let mut backend = worlds::server(first, IpAddr::from(server));
            backend.forward = forward;
            backend.reverse = snat;
            image.backends.insert(id, backend);
        }
        let directory = Directory::new(&image, KEY, &Flows::default());
        Self { flows: PlainFlows::new(lines as usize, first as usize + 8), lines, first, snat, directory }
    }

    fn hash(port: u16) -> FlowHash {
        flow4(&KEY, &CLIENT, &VIP, ports(port, 25), 6)
    }

    fn line(&self, port: u16) -> std::ops::Range<usize> {
        let first = Self::hash(port).line(self.lines) as usize * WAYS;
        first..first + WAYS
    }

    fn place(&self, port: u16) -> Option<usize> {
        let fingerprint = Self::hash(port).fingerprint();
        let table = self.flows.table();
        self.line(port).find(|place| {
            let word = table.word(*place);
            !word.is_free() && word.fingerprint() == fingerprint
        })
    }

    /// As packets do.
    fn put(&self, port: u16, server: u32, state: FlowState, time: u16) {
        let table = self.flows.table();
        let new = FlowWord::new(Self::hash(port).fingerprint(), self.first + 1 + server, state, time);
        let place = self.place(port);
        let place = place.or_else(|| self.line(port).find(|place| table.word(*place).is_free()));
        let Some(place) = place else { return };
        let old = table.word(place);
        table.change(place, old, new).unwrap();
        if old.is_free() {
            let tuple = FlowTuple {
                client: mapped(CLIENT),
                client_port: Be16::new(port),
                vip_port: Be16::new(25),
                listener: self.first,
                snat_port: Be16::new(if self.snat { 1024 + port } else { 0 }),
                snat_index: if self.snat { 3 } else { 0 },
                ..FlowTuple::default()
            };
            table.write_tuple(place, &tuple);
        }
    }

    fn free(&self, port: u16) {
        if let Some(place) = self.place(port) {
            let table = self.flows.table();
            let (word, tuple) = (table.word(place), table.tuple(place));
            table.change(place, word, FlowWord::FREE).unwrap();
            table.free_way_back(place, word, &tuple);
        }
    }

    /// Server and state of a flow.
    fn flow(&self, port: u16) -> Option<(u32, FlowState)> {
        let word = self.flows.table().word(self.place(port)?);
        Some((word.backend() - self.first - 1, word.state()))
    }

    /// Each live flow is counted once.
    fn is_counted(&self) -> bool {
        let table = self.flows.table();
        (0..3).all(|server| {
            let id = self.first + 1 + server;
            let live = table.entries().filter(|(_, word, _)| word.backend() == id && word.state().is_live());
            live.count() as u64 == table.live(id)
        })
    }
}

fn transfer(from: &Table, to: &Table) -> Transfer {
    let places = |table: &Table| table.flows.table().capacity();
    Transfer::new(from.directory.clone(), to.directory.clone(), places(from), places(to))
}

fn pass(transfer: &mut Transfer, from: &Table, to: &Table) -> Carried {
    transfer.pass(&from.flows.table(), &to.flows.table(), CLOCK)
}

#[test]
fn a_flow_comes_over_whole_and_once() {
    for forward in [Forward::Nat, Forward::Snat, Forward::Dsr] {
        let (from, to) = (Table::new(64, 1, forward, 3), Table::new(16, 20, forward, 3));
        from.put(7, 2, FlowState::Established, 970);
        let mut transfer = transfer(&from, &to);
        assert_eq!(pass(&mut transfer, &from, &to), Carried { flows: 1, ..Carried::default() });
        assert_eq!(pass(&mut transfer, &from, &to), Carried::default());
        assert_eq!(to.flow(7), Some((2, FlowState::Established)));
        let (table, place) = (to.flows.table(), to.place(7).unwrap());
        assert_eq!(table.word(place).time(), 970);
        let tuple = table.tuple(place);
        assert_eq!((tuple.listener, tuple.snat_port), (20, Be16::new(if to.snat { 1031 } else { 0 })));
        assert_eq!(tuple.partner != 0, to.snat, "the way back stands elsewhere in a table of another size");
        assert!(to.is_counted());
        from.free(7);
        assert_eq!(pass(&mut transfer, &from, &to), Carried { gone: 1, ..Carried::default() });
        assert_eq!(table.entries().count(), 0);
        assert!(to.is_counted());
    }
}

#[test]
fn what_both_tables_have_seen_of_a_flow_is_joined() {
    let (from, to) = (Table::new(64, 1, Forward::Nat, 3), Table::new(64, 1, Forward::Nat, 3));
    from.put(7, 1, FlowState::Opening, 999);
    let mut transfer = transfer(&from, &to);
    pass(&mut transfer, &from, &to);
    // The server's answer came while the old program was there, the client's FIN to the new one.
    from.put(7, 1, FlowState::Established, 1000);
    to.put(7, 1, FlowState::ClientClosed, 1000);
    pass(&mut transfer, &from, &to);
    assert_eq!(to.flow(7), Some((1, FlowState::ClientClosed)));
    // And the other way round.
    from.put(8, 1, FlowState::Opening, 999);
    pass(&mut transfer, &from, &to);
    from.put(8, 1, FlowState::Established, 1000);
    to.put(8, 1, FlowState::Answered, 1000);
    pass(&mut transfer, &from, &to);
    assert_eq!(to.flow(8), Some((1, FlowState::Established)));
}

#[test]
fn what_cannot_come_over_is_told() {
    let (from, to) = (Table::new(64, 1, Forward::Nat, 3), Table::new(1, 1, Forward::Nat, 2));
    from.put(1, 2, FlowState::Established, 1000);
    for port in 2..20 {
        from.put(port, 0, FlowState::Opening, 1000);
    }
    let carried = pass(&mut transfer(&from, &to), &from, &to);
    assert_eq!(carried.left_out.get(&Entered::UnknownBackend), Some(&1));
    let text = carried.losses().unwrap();
    assert!(text.contains("1 flows to servers that are not configured here"), "{text}");
    assert_eq!(Carried::default().losses(), None);
}

#[test]
fn a_smaller_table_keeps_the_connections_that_are_alive() {
    let (from, to) = (Table::new(64, 1, Forward::Nat, 3), Table::new(1, 1, Forward::Nat, 3));
    for port in 1..30 {
        from.put(port, 0, if port > 24 { FlowState::Established } else { FlowState::Opening }, 1000);
    }
    let carried = pass(&mut transfer(&from, &to), &from, &to);
    assert!((25..30).all(|port| to.flow(port).is_some()), "{carried:?}");
    assert!(to.is_counted());
}

fn state() -> impl Strategy<Value = FlowState> {
    prop_oneof![
        Just(FlowState::Opening),
        Just(FlowState::Established),
        Just(FlowState::ClientClosed),
        Just(FlowState::Closed)
    ]
}

/// What a packet, or the age of a flow, does: to the flow of a port, with a server and a state; or its end.
fn change() -> impl Strategy<Value = (u16, Option<(u32, FlowState)>)> {
    (0u16..24, prop::option::weighted(0.8, (0u32..3, state())))
}

fn make(table: &Table, (port, change): (u16, Option<(u32, FlowState)>)) {
    match change {
        Some((server, state)) => table.put(port, server, state, CLOCK.now),
        None => table.free(port),
    }
}

proptest! {
    #[test]
    fn in_the_end_the_new_table_has_what_the_old_one_had(
        passes in prop::collection::vec(prop::collection::vec(change(), 0..12), 1..5),
        after in prop::collection::vec(change(), 0..6),
        snat in any::<bool>(),
        lines in prop_oneof![Just(16u32), Just(64), Just(256)],
    ) {
        let forward = if snat { Forward::Snat } else { Forward::Nat };
        let (from, to) = (Table::new(64, 1, forward, 3), Table::new(lines, 9, forward, 3));
        let mut transfer = transfer(&from, &to);
        for changes in passes {
            changes.into_iter().for_each(|change| make(&from, change));
            pass(&mut transfer, &from, &to);
        }
        let both = |port: &u16| (from.flow(*port), to.flow(*port));
        for port in 0..24 {
            let (old, new) = both(&port);
            prop_assert_eq!(old, new, "port {}", port);
        }
        prop_assert!(to.is_counted());
        // From now on packets come to the new one. Passes that find nothing new in the old one change nothing.
        after.into_iter().for_each(|change| make(&to, change));
        let moved: Vec<_> = (0..24).map(|port| to.flow(port)).collect();
        pass(&mut transfer, &from, &to);
        prop_assert_eq!(moved, (0..24).map(|port| to.flow(port)).collect::<Vec<_>>());
        prop_assert!(to.is_counted());
    }
}
