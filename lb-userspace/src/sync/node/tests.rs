//! Two gateways over a network that loses, repeats and swaps datagrams, while their tables change and they start anew.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use lb_common::abi::flow::{FlowState, FlowTuple, FlowWord, WAYS};
use lb_common::abi::net::Be16;
use lb_common::flow::preferred;
use lb_common::hash::{FlowHash, HashKey, flow4, ports};
use proptest::prelude::*;

use super::*;
use crate::config::{Flows, Forward, Listen, Protocol};
use crate::dataplane::image::{Id, Image, SnatRange};
use crate::dataplane::worlds;
use crate::sync::task::{PlainFlows, SharedFlows as _};

const LINES: usize = 64;
const VIP: [u8; 4] = [203, 0, 113, 10];
const SNAT: [u8; 4] = [198, 51, 100, 1];
const SERVERS: [[u8; 4]; 3] = [[198, 51, 100, 11], [198, 51, 100, 12], [198, 51, 100, 13]];

fn counting() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// One gateway. Numbers and hash key are its own: only addresses are common.
struct Gateway {
    node: Node,
    flows: PlainFlows,
    directory: Directory,
    key: HashKey,
    /// Number of the listener; the backends' are those after it.
    first: Id,
    now: u16,
    forward: Forward,
}

impl Gateway {
    fn new(first: Id, forward: Forward, servers: usize) -> Self {
        let key = HashKey { words: [first; 10], seed: u64::from(first) };
        let listen = Listen { address: VIP.into(), port: 25, last_port: 25, protocol: Protocol::Tcp };
        let mut image = Image::default();
        let mut listener = worlds::listener(listen, []);
        listener.forward = forward;
        if forward == Forward::Snat {
            listener.snat = Some(SnatRange { first: 3, count: 1, first_port: 1024, last_port: 2047 });
            image.snat_addresses.insert(3, SNAT.into());
        }
        image.listeners.insert(first, listener);
        for (id, server) in (first + 1..).zip(SERVERS).take(servers) {
            let mut backend = worlds::server(first, IpAddr::from(server));
            backend.forward = forward;
            backend.reverse = forward == Forward::Snat;
            image.backends.insert(id, backend);
        }
        let flows = PlainFlows::new(LINES, first as usize + 8);
        Self {
            node: Node::new([1; 32], LINES * WAYS, counting),
            directory: Directory::new(&image, key, &Flows::default()),
            flows,
            key,
            first,
            now: u16::try_from(first).unwrap() * 1000,
            forward,
        }
    }

    fn clock(&self) -> Clock {
        Clock { now: self.now, seconds_per_tick: 1.0 }
    }

    fn hash(&self, port: u16) -> FlowHash {
        flow4(&self.key, &[192, 0, 2, 7], &VIP, ports(port, 25), 6)
    }

    fn place(&self, port: u16) -> Option<usize> {
        let hash = self.hash(port);
        let first = hash.line(LINES as u32) as usize * WAYS;
        let table = self.flows.table();
        (first..first + WAYS).find(|place| {
            let word = table.word(*place);
            !word.is_free() && word.fingerprint() == hash.fingerprint()
        })
    }

    /// As packets do.
    fn put(&self, port: u16, server: u32, state: FlowState) {
        let table = self.flows.table();
        let hash = self.hash(port);
        let new = FlowWord::new(hash.fingerprint(), self.first + 1 + server, state, self.now);
        let (place, old) = match self.place(port) {
            Some(place) => (place, table.word(place)),
            None => {
                let first = hash.line(LINES as u32) as usize * WAYS;
                let free = (first..first + WAYS).find(|place| table.word(*place).is_free());
                let Some(place) = free else { return };
                (place, FlowWord::FREE)
            }
        };
        table.change(place, old, new).unwrap();
        if old.is_free() {
            let tuple = FlowTuple {
                client: lb_common::abi::net::mapped([192, 0, 2, 7]),
                client_port: Be16::new(port),
                vip_port: Be16::new(25),
                listener: self.first,
                snat_port: Be16::new(if self.forward == Forward::Snat { 1024 + port } else { 0 }),
                snat_index: if self.forward == Forward::Snat { 3 } else { 0 },
                ..FlowTuple::default()
            };
            table.write_tuple(place, &tuple);
        }
    }

    /// Forgets a flow, unless it is only known from the other gateway: that says when such a flow is over.
    fn free(&self, port: u16) {
        if let Some(place) = self.place(port).filter(|place| !self.node.shadow.is_theirs(*place)) {
            let table = self.flows.table();
            let (word, tuple) = (table.word(place), table.tuple(place));
            table.change(place, word, FlowWord::FREE).unwrap();
            table.free_way_back(place, word, &tuple);
        }
    }

    /// What it has to tell now.
    fn say(&mut self, now: Time) -> Vec<Vec<u8>> {
        self.node.scan(now, &self.flows.table(), &self.directory, self.clock());
        std::iter::from_fn(|| self.node.transmit(now)).collect()
    }

    fn hear(&mut self, now: Time, said: Vec<Vec<u8>>) {
        for bytes in said {
            let clock = self.clock();
            self.node.receive(now, &bytes, &self.flows.table(), &self.directory, clock);
        }
    }

    /// Server and state of a flow.
    fn flow(&self, port: u16) -> Option<(u32, FlowState)> {
        let word = self.flows.table().word(self.place(port)?);
        Some((word.backend() - self.first - 1, word.state()))
    }

    fn all(&self) -> Vec<Option<(u32, FlowState)>> {
        (0..PORTS).map(|port| self.flow(port)).collect()
    }

    fn restart(&mut self) {
        self.node = Node::new([1; 32], LINES * WAYS, counting);
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

const PORTS: u16 = 40;

/// One step of both; `fates` decides what the network does to each datagram, and does nothing once it is empty.
fn step(now: Time, a: &mut Gateway, b: &mut Gateway, fates: &mut impl Iterator<Item = u8>) {
    for turn in 0..2 {
        let (from, to) = if turn == 0 { (&mut *a, &mut *b) } else { (&mut *b, &mut *a) };
        let mut arriving = Vec::new();
        for bytes in from.say(now) {
            match fates.next() {
                Some(0 | 1) => {}
                Some(2) => arriving.extend([bytes.clone(), bytes]),
                Some(3) => arriving.insert(0, bytes),
                _ => arriving.push(bytes),
            }
        }
        to.hear(now, arriving);
    }
}

fn settle(a: &mut Gateway, b: &mut Gateway, from: u64) {
    for round in 0..600 {
        step(Duration::from_millis((from + round) * 100), a, b, &mut std::iter::empty());
    }
}

#[test]
fn a_flow_goes_over_with_its_age_and_way_back() {
    for forward in [Forward::Nat, Forward::Snat, Forward::Dsr, Forward::Ipip] {
        let (mut a, mut b) = (Gateway::new(1, forward, 3), Gateway::new(20, forward, 3));
        a.put(7, 2, FlowState::Established);
        a.now += 30;
        settle(&mut a, &mut b, 0);
        assert_eq!(b.flow(7), Some((2, FlowState::Established)), "{forward:?}");
        let flows = b.flows.clone();
        let table = flows.table();
        let place = b.place(7).unwrap();
        assert_eq!(b.now.wrapping_sub(table.word(place).time()), 30);
        assert_eq!(table.live(23), 1);
        let reverse = table.entries().filter(|(_, word, _)| word.state() == FlowState::Reverse).count();
        assert_eq!(reverse, usize::from(forward == Forward::Snat));
        assert!(a.node.received_all && b.node.received_all);
        if forward == Forward::Snat {
            assert_eq!((table.tuple(place).snat_port.get(), table.tuple(place).snat_index), (1031, 3));
            assert_ne!(table.tuple(place).partner, 0);
        }
        // Nothing is echoed, and nothing is said twice.
        assert_eq!((a.node.counts.flows_sent, b.node.counts.flows_sent), (1, 0));
        a.free(7);
        settle(&mut a, &mut b, 700);
        assert_eq!(b.flow(7), None);
        assert_eq!(table.entries().count(), 0, "the way back is left");
        assert_eq!(table.live(23), 0);
    }
}

#[test]
fn what_lives_here_stays() {
    let (mut a, mut b) = (Gateway::new(1, Forward::Nat, 3), Gateway::new(20, Forward::Nat, 3));
    a.put(7, 2, FlowState::Established);
    settle(&mut a, &mut b, 0);
    b.now += 1;
    b.put(7, 2, FlowState::ClientClosed);
    a.free(7);
    // B's change and A's removal are under way at once.
    settle(&mut a, &mut b, 700);
    assert_eq!(b.flow(7), Some((2, FlowState::ClientClosed)));
    assert_eq!(a.flow(7), b.flow(7));
}

#[test]
fn a_removal_is_told_though_another_flow_has_come_to_its_place() {
    let (mut a, mut b) = (Gateway::new(1, Forward::Nat, 3), Gateway::new(20, Forward::Nat, 3));
    b.put(7, 2, FlowState::Established);
    settle(&mut a, &mut b, 0);
    assert!(a.flow(7).is_some());
    let line = |port: u16| b.hash(port).line(LINES as u32);
    let place = b.place(7);
    let takes_it = |port: u16| Some(preferred(b.hash(port).fingerprint())) == place.map(|place| place % WAYS);
    let other = (8..u16::MAX).find(|port| line(*port) == line(7) && takes_it(*port)).unwrap();
    b.free(7);
    a.put(other, 1, FlowState::Established);
    settle(&mut a, &mut b, 700);
    assert_eq!(b.place(other), place, "the place was to be taken");
    assert_eq!(a.flow(7), None);
    assert_eq!(a.flow(other), b.flow(other));
}

#[test]
fn a_flow_that_goes_before_a_change_is_answered_is_not_left_with_one_gateway() {
    let (mut a, mut b) = (Gateway::new(1, Forward::Nat, 3), Gateway::new(20, Forward::Nat, 3));
    a.put(7, 2, FlowState::Established);
    settle(&mut a, &mut b, 0);
    let now = Duration::from_secs(70);
    b.put(7, 2, FlowState::ClientClosed);
    a.put(7, 2, FlowState::BackendClosed);
    b.hear(now, a.say(now));
    b.free(7);
    settle(&mut a, &mut b, 710);
    assert_eq!(a.flow(7), b.flow(7));
}

#[test]
fn a_flow_whose_end_crosses_its_beginning_is_not_left_with_one_gateway() {
    let (mut a, mut b) = (Gateway::new(1, Forward::Nat, 3), Gateway::new(20, Forward::Nat, 3));
    a.restart();
    assert!(a.node.session.own() > b.node.session.own(), "the first is to decide");
    settle(&mut a, &mut b, 0);
    let now = Duration::from_secs(70);
    a.put(7, 2, FlowState::Established);
    b.put(7, 2, FlowState::Established);
    let (slow, mut fast) = (a.say(now), b.say(now));
    b.free(7);
    fast.extend(b.say(now));
    a.hear(now, fast);
    a.free(7);
    b.hear(now, slow);
    settle(&mut a, &mut b, 710);
    assert_eq!(a.flow(7), b.flow(7));
}

#[test]
fn what_is_not_configured_is_counted() {
    let (mut a, mut b) = (Gateway::new(1, Forward::Nat, 3), Gateway::new(20, Forward::Nat, 2));
    a.put(7, 2, FlowState::Established);
    settle(&mut a, &mut b, 0);
    assert_eq!(b.flow(7), None);
    assert_eq!(b.node.counts.entered.get(&Entered::UnknownBackend), Some(&1));
    b.directory = Directory::default();
    a.put(8, 1, FlowState::Established);
    settle(&mut a, &mut b, 700);
    assert_eq!(b.node.counts.entered.get(&Entered::UnknownService), Some(&1));
}

#[test]
fn another_key_is_refused() {
    let (mut a, mut b) = (Gateway::new(1, Forward::Nat, 3), Gateway::new(20, Forward::Nat, 3));
    b.node = Node::new([2; 32], LINES * WAYS, counting);
    a.put(7, 2, FlowState::Established);
    settle(&mut a, &mut b, 0);
    assert_eq!(b.flow(7), None);
    assert!(b.node.counts.refused.get(&Refused::Digest).is_some_and(|count| *count > 0));
    assert_eq!(b.node.session.peer(), None);
}

#[test]
fn with_the_window_full_changes_wait_in_the_table() {
    let (mut a, mut b) = (Gateway::new(1, Forward::Nat, 3), Gateway::new(20, Forward::Nat, 3));
    settle(&mut a, &mut b, 0);
    // The peer is silent: batches fill the window, and stop.
    for round in 0..2000u64 {
        a.now = a.now.wrapping_add(1);
        a.put((round % u64::from(PORTS)) as u16, (round % 3) as u32, FlowState::Established);
        let clock = a.clock();
        a.node.scan(Duration::from_secs(100 + round), &a.flows.table(), &a.directory, clock);
        while a.node.transmit(Duration::from_secs(100 + round)).is_some() {}
    }
    assert!(a.node.held_back && a.node.behind(&a.flows.table()) > 0);
    assert_eq!(a.node.session.in_flight(), crate::sync::session::WINDOW);
    b.now = a.now;
    settle(&mut a, &mut b, 30_000);
    assert_eq!(a.all(), b.all());
    assert_eq!(a.node.behind(&a.flows.table()), 0);
}

#[derive(Clone, Debug)]
enum Act {
    Put { at_b: bool, port: u16, server: u32, state: FlowState },
    Free { at_b: bool, port: u16 },
    Tick,
    Restart { at_b: bool },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let state = prop::sample::select(vec![
        FlowState::Opening,
        FlowState::Answered,
        FlowState::Established,
        FlowState::ClientClosed,
        FlowState::BackendClosed,
        FlowState::Closed,
    ]);
    let put = (any::<bool>(), 0..PORTS, 0u32..3, state).prop_map(|(at_b, port, server, state)| Act::Put {
        at_b,
        port,
        server,
        state,
    });
    let act = prop_oneof![
        12 => put,
        4 => (any::<bool>(), 0..PORTS).prop_map(|(at_b, port)| Act::Free { at_b, port }),
        4 => Just(Act::Tick),
        1 => any::<bool>().prop_map(|at_b| Act::Restart { at_b }),
    ];
    prop::collection::vec(act, 1..120)
}

proptest! {
    #![proptest_config(crate::cases::cases(150))]

    /// Whatever happens on both sides and in between, the tables are one in the end.
    #[test]
    fn both_tables_converge(
        acts in acts(),
        fates in prop::collection::vec(0u8..8, 0..600),
        snat in any::<bool>(),
    ) {
        let forward = if snat { Forward::Snat } else { Forward::Nat };
        let (mut a, mut b) = (Gateway::new(1, forward, 3), Gateway::new(20, forward, 3));
        let mut fates = fates.into_iter();
        for (round, act) in (0u64..).zip(acts) {
            match act {
                Act::Put { at_b, port, server, state } => {
                    // Packets do not move a flow to another server once it is answered.
                    let gateway = if at_b { &b } else { &a };
                    let server = if snat { gateway.flow(port).map_or(u32::from(port) % 3, |flow| flow.0) } else { server };
                    gateway.put(port, server, state);
                }
                Act::Free { at_b, port } => if at_b { &b } else { &a }.free(port),
                Act::Tick => {
                    a.now = a.now.wrapping_add(1);
                    b.now = b.now.wrapping_add(1);
                }
                Act::Restart { at_b } => if at_b { &mut b } else { &mut a }.restart(),
            }
            step(Duration::from_millis(round * 100), &mut a, &mut b, &mut fates);
        }
        settle(&mut a, &mut b, 1000);
        prop_assert_eq!(a.all(), b.all());
        prop_assert!(a.is_counted() && b.is_counted());
    }
}
