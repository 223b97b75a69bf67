//! Ageing with a clock that wraps, forgetting, and listing what can be believed.

use std::collections::BTreeSet;

use lb_common::abi::net::Be16;
use proptest::prelude::*;

use super::*;
use crate::config::{Listen, Protocol};
use crate::dataplane::worlds;

const KEY: HashKey = HashKey { words: [2, 7, 1, 8, 2, 8, 1, 8, 2, 8], seed: 0x0123_4567_89ab_cdef };
const LINES: usize = 4;
/// As [`worlds::listener`] has it.
const SESSION: u32 = 600;

/// The words that a flow table stands on.
struct Words {
    words: Vec<AtomicU64>,
    tuples: Vec<AtomicU64>,
}

impl Words {
    fn new() -> Self {
        let zeros = |n: usize| (0..n).map(|_| AtomicU64::new(0)).collect();
        Self { words: zeros(LINES * WAYS), tuples: zeros(LINES * WAYS * TUPLE_WORDS) }
    }

    fn table(&self) -> FlowTable<'_> {
        FlowTable::new(&self.words, &self.tuples)
    }

    fn put(&self, index: usize, word: FlowWord) {
        self.words[index].store(word.0, Ordering::Relaxed);
    }

    fn put_tuple(&self, index: usize, tuple: FlowTuple) {
        let words: [u64; TUPLE_WORDS] = bytemuck::must_cast(tuple);
        for (place, word) in self.tuples[index * TUPLE_WORDS..].iter().zip(words) {
            place.store(word, Ordering::Relaxed);
        }
    }

    fn get(&self, index: usize) -> FlowWord {
        FlowWord(self.words[index].load(Ordering::Relaxed))
    }

    /// Records the flow where the packet path would; says where.
    fn record(&self, image: &Image, tuple: FlowTuple, backend: Id, state: FlowState) -> usize {
        let hash = hash_of(&tuple, image, &KEY).expect("a listener that is there");
        let line = hash.line(LINES as u32) as usize * WAYS;
        let index = (line..line + WAYS).find(|i| self.get(*i).is_free()).expect("room in the line");
        self.put(index, word(hash.fingerprint(), backend, state, 0));
        self.put_tuple(index, tuple);
        index
    }
}

fn word(fingerprint: u32, backend: Id, state: FlowState, time: u16) -> FlowWord {
    FlowWord::new(fingerprint, backend, state, time)
}

/// Two listeners, one for each family, each with a backend of its own number.
fn image() -> Image {
    let mut image = Image::default();
    for (id, vip, server) in [(1, "203.0.113.10", "198.51.100.11"), (2, "2001:db8::10", "2001:db8:64::11")] {
        let listen = Listen { address: vip.parse().unwrap(), port: 25, protocol: Protocol::Tcp };
        image.listeners.insert(id, worlds::listener(listen, [id]));
        let backend = worlds::server(id, server.parse().unwrap());
        image.backends.insert(id, backend);
    }
    image
}

fn tuple(listener: Id, client_port: u16) -> FlowTuple {
    let client = match listener {
        1 => mapped([192, 0, 2, 1]),
        _ => "2001:db8:c1::1".parse::<std::net::Ipv6Addr>().unwrap().octets(),
    };
    FlowTuple { client, client_port: Be16::new(client_port), vip_port: Be16::new(25), listener }
}

/// Seconds that a flow in this state may be idle.
const TIMEOUTS: [(FlowState, u32); 8] = [
    (FlowState::Opening, 30),
    (FlowState::Answered, 30),
    (FlowState::Established, SESSION),
    (FlowState::ClientClosed, 120),
    (FlowState::BackendClosed, 120),
    (FlowState::Closed, 10),
    (FlowState::Datagram, 60),
    (FlowState::Direct, 3600),
];

fn state() -> impl Strategy<Value = (FlowState, u32)> {
    prop::sample::select(TIMEOUTS.to_vec())
}

proptest! {
    #[test]
    fn an_idle_flow_goes_after_the_timeout_of_its_state(
        (state, timeout) in state(),
        seconds_per_tick in prop_oneof![Just(1.0), Just(1.024), Just(0.853)],
        start in any::<u16>(),
    ) {
        let (words, image) = (Words::new(), image());
        // The last tick at which it is not too old; any start, so that the clock wraps in between.
        let ticks = (f64::from(timeout) / seconds_per_tick).floor() as u16;
        words.put(9, word(5, 1, state, start));
        let clock = |ticks| Clock { now: start.wrapping_add(ticks), seconds_per_tick };
        for ticks in [0, 1, ticks] {
            let swept = words.table().sweep(&image, clock(ticks));
            prop_assert_eq!((swept.occupied, swept.expired), (1, 0), "after {} ticks", ticks);
        }
        let swept = words.table().sweep(&image, clock(ticks + 1));
        prop_assert_eq!(swept, Swept { expired: 1, ..Swept::default() });
        prop_assert!(words.get(9).is_free());
    }

    #[test]
    fn a_packet_that_came_after_the_clock_was_read_is_not_old(
        (state, _) in state(),
        now in any::<u16>(),
        ahead in 0u16..8,
    ) {
        let (words, image) = (Words::new(), image());
        words.put(0, word(5, 1, state, now.wrapping_add(ahead)));
        let swept = words.table().sweep(&image, Clock { now, seconds_per_tick: 1.0 });
        prop_assert_eq!((swept.occupied, swept.expired), (1, 0));
    }

    #[test]
    fn every_flow_is_counted_once_and_only_the_live_ones_are_live(
        flows in prop::collection::vec((state(), 1u32..4), 0..LINES * WAYS),
    ) {
        let (words, image) = (Words::new(), image());
        for (index, ((state, _), backend)) in flows.iter().enumerate() {
            words.put(index, word(index as u32, *backend, *state, 100));
        }
        let swept = words.table().sweep(&image, Clock { now: 100, seconds_per_tick: 1.0 });
        prop_assert_eq!((swept.occupied, swept.expired), (flows.len() as u64, 0));
        for id in 1..4 {
            let live = |&&((state, _), backend): &&((FlowState, u32), Id)| {
                backend == id && !matches!(state, FlowState::Closed | FlowState::Direct)
            };
            let expected = flows.iter().filter(live).count() as u64;
            prop_assert_eq!(swept.live.get(&id).copied().unwrap_or(0), expected);
        }
        prop_assert_eq!(words.table().capacity(), (LINES * WAYS) as u64);
    }

    #[test]
    fn forgetting_a_backend_leaves_the_others_flows(
        flows in prop::collection::vec((state(), 1u32..4), 0..LINES * WAYS),
        gone in 1u32..4,
    ) {
        let words = Words::new();
        for (index, ((state, _), backend)) in flows.iter().enumerate() {
            words.put(index, word(index as u32, *backend, *state, 7));
        }
        let forgotten = words.table().forget(gone);
        let (theirs, others): (Vec<_>, Vec<_>) =
            flows.iter().enumerate().partition(|(_, (_, backend))| *backend == gone);
        prop_assert_eq!(forgotten, theirs.len() as u64);
        prop_assert!(theirs.iter().all(|(index, _)| words.get(*index).is_free()));
        for (index, ((state, _), backend)) in others {
            prop_assert_eq!(words.get(index), word(index as u32, *backend, *state, 7));
        }
        prop_assert_eq!(words.table().forget(gone), 0);
    }
}

#[test]
fn an_established_flow_of_nobody_has_no_timeout_to_wait_for() {
    let (words, image) = (Words::new(), image());
    words.put(0, word(5, 99, FlowState::Established, 10));
    let swept = words.table().sweep(&image, Clock { now: 11, seconds_per_tick: 1.0 });
    assert_eq!(swept.expired, 1);
}

#[test]
fn flows_are_listed_with_both_ends() {
    let (words, image) = (Words::new(), image());
    let four = words.record(&image, tuple(1, 40_000), 1, FlowState::Established);
    let six = words.record(&image, tuple(2, 40_001), 2, FlowState::Opening);
    let table = words.table();
    let mut listed: Vec<Flow> = table.list(&image, &KEY, |_| true).collect();
    listed.sort_by_key(|flow| flow.backend);
    let flow = |backend, state, tuple| Flow { backend, state, time: 0, tuple };
    let expected =
        [flow(1, FlowState::Established, tuple(1, 40_000)), flow(2, FlowState::Opening, tuple(2, 40_001))];
    assert_eq!(listed, expected);
    let opening = |word: FlowWord| word.state() == FlowState::Opening;
    assert_eq!(table.list(&image, &KEY, opening).count(), 1);
    words.put(four, FlowWord::FREE);
    words.put(six, FlowWord::FREE);
    assert_eq!(table.list(&image, &KEY, |_| true).count(), 0);
}

#[test]
fn a_tuple_that_is_not_the_flows_is_not_believed() {
    let (words, image) = (Words::new(), image());
    let listed = || words.table().list(&image, &KEY, |_| true).count();
    let index = words.record(&image, tuple(1, 40_000), 1, FlowState::Established);
    assert_eq!(listed(), 1);
    // The place was claimed, and the tuple there is still the one before.
    words.put_tuple(index, tuple(1, 40_001));
    assert_eq!(listed(), 0);
    // Half written: each word of the tuple by itself.
    let (old, new): ([u64; 3], [u64; 3]) =
        (bytemuck::must_cast(tuple(2, 50_000)), bytemuck::must_cast(tuple(1, 40_000)));
    for torn in 1..7u8 {
        let mixed: [u64; 3] = std::array::from_fn(|i| if torn >> i & 1 == 0 { old[i] } else { new[i] });
        if mixed != new {
            words.put_tuple(index, bytemuck::must_cast(mixed));
            assert_eq!(listed(), 0, "{torn:03b}");
        }
    }
    // Of a listener that was removed, or of none.
    words.put_tuple(index, FlowTuple { listener: 9, ..tuple(1, 40_000) });
    assert_eq!(listed(), 0);
    words.put_tuple(index, FlowTuple::default());
    assert_eq!(listed(), 0);
    words.put_tuple(index, tuple(1, 40_000));
    assert_eq!(listed(), 1);
    // The right tuple in another line than its hash leads to.
    let elsewhere = (index + WAYS) % (LINES * WAYS);
    words.put(elsewhere, words.get(index));
    words.put_tuple(elsewhere, tuple(1, 40_000));
    words.put(index, FlowWord::FREE);
    assert_eq!(listed(), 0);
}

#[test]
fn many_flows_are_all_listed() {
    let (words, image) = (Words::new(), image());
    let ports: BTreeSet<u16> = (0..8).map(|n| 40_000 + n).collect();
    for port in &ports {
        words.record(&image, tuple(1, *port), 1, FlowState::Established);
    }
    let table = words.table();
    let listed: BTreeSet<u16> =
        table.list(&image, &KEY, |_| true).map(|flow| flow.tuple.client_port.get()).collect();
    assert_eq!(listed, ports);
}
