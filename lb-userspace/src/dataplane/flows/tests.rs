//! Ageing with a clock that wraps, forgetting, and listing what can be believed.

use std::collections::BTreeSet;

use lb_common::abi::net::Be16;
use proptest::prelude::*;

use super::*;
use crate::config::{Flows, Listen, Protocol};
use crate::dataplane::worlds;

const KEY: HashKey = HashKey { words: [2, 7, 1, 8, 2, 8, 1, 8, 2, 8], seed: 0x0123_4567_89ab_cdef };
const LINES: usize = 4;
/// Numbers of backends are below it.
const BACKENDS: usize = 128;
/// As [`worlds::listener`] has it.
const SESSION: u32 = 600;

/// The words that a flow table stands on.
struct Words {
    words: Vec<AtomicU64>,
    tuples: Vec<AtomicU64>,
    live: Vec<AtomicU64>,
}

impl Words {
    fn new() -> Self {
        let zeros = |n: usize| (0..n).map(|_| AtomicU64::new(0)).collect();
        Self { words: zeros(LINES * WAYS), tuples: zeros(LINES * WAYS * TUPLE_WORDS), live: zeros(BACKENDS) }
    }

    fn table(&self) -> FlowTable<'_> {
        FlowTable::new(&self.words, &self.tuples, &self.live)
    }

    /// As the packet path does: whoever changes a word counts its backend's live flows.
    fn put(&self, index: usize, word: FlowWord) {
        let old = FlowWord(self.words[index].swap(word.0, Ordering::Relaxed));
        for (word, change) in [(old, u64::MAX), (word, 1)] {
            if word.state().is_live() {
                self.live[word.backend() as usize].fetch_add(change, Ordering::Relaxed);
            }
        }
    }

    /// Ages the flows with the timeouts that a configuration has unless it says otherwise.
    fn sweep(&self, image: &Image, clock: Clock) -> Swept {
        self.table().sweep(image, clock, &Flows::default())
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
        let listen =
            Listen { address: vip.parse().unwrap(), port: 25, last_port: 25, protocol: Protocol::Tcp };
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
    FlowTuple {
        client,
        client_port: Be16::new(client_port),
        vip_port: Be16::new(25),
        listener,
        ..FlowTuple::default()
    }
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
            let swept = words.sweep(&image, clock(ticks));
            prop_assert_eq!((swept.occupied, swept.expired), (1, 0), "after {} ticks", ticks);
        }
        let swept = words.sweep(&image, clock(ticks + 1));
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
        let swept = words.sweep(&image, Clock { now, seconds_per_tick: 1.0 });
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
        let swept = words.sweep(&image, Clock { now: 100, seconds_per_tick: 1.0 });
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
    let swept = words.sweep(&image, Clock { now: 11, seconds_per_tick: 1.0 });
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
    let (old, new): ([u64; TUPLE_WORDS], [u64; TUPLE_WORDS]) =
        (bytemuck::must_cast(tuple(2, 50_000)), bytemuck::must_cast(tuple(1, 40_000)));
    for torn in 1..7u8 {
        let mixed: [u64; TUPLE_WORDS] =
            std::array::from_fn(|i| if torn >> i & 1 == 0 { old[i] } else { new[i] });
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

/// A flow at one place with the entry for its way back at another.
fn record_pair(words: &Words, (flow, way_back): (usize, usize), backend: Id, state: FlowState, time: u16) {
    let tuple = tuple(1, 40_000 + u16::try_from(flow).expect("small"));
    let place = |index: usize| u32::try_from(index + 1).expect("small");
    words.put_tuple(flow, FlowTuple { partner: place(way_back), ..tuple });
    words.put_tuple(way_back, FlowTuple { partner: place(flow), ..tuple });
    words.put(flow, word(5, backend, state, time));
    words.put(way_back, word(6, backend, FlowState::Reverse, time));
}

fn at(now: u16) -> Clock {
    Clock { now, seconds_per_tick: 1.0 }
}

#[test]
fn a_way_back_ages_with_its_flow_and_is_no_flow() {
    let (words, image) = (Words::new(), image());
    record_pair(&words, (3, 20), 1, FlowState::Established, 100);
    record_pair(&words, (21, 4), 1, FlowState::Closed, 100);
    let swept = words.sweep(&image, at(105));
    assert_eq!((swept.occupied, swept.reverse, swept.expired), (2, 2, 0));
    assert_eq!(swept.live, BTreeMap::from([(1, 1)]));
    assert_eq!(
        words.table().list(&image, &KEY, |_| true).filter(|f| f.state == FlowState::Reverse).count(),
        0
    );
    // Its own time is that of its beginning, and its flow is in use.
    words.put(3, word(5, 1, FlowState::Established, 650));
    let swept = words.sweep(&image, at(700));
    assert_eq!((swept.occupied, swept.reverse, swept.expired), (1, 1, 1));
    assert!(words.get(21).is_free() && words.get(4).is_free() && !words.get(20).is_free());
    let swept = words.sweep(&image, at(650 + SESSION as u16 + 1));
    assert_eq!((swept.occupied, swept.expired), (0, 1));
    assert!(words.get(20).is_free());
    assert_eq!((swept.live, swept.drift), (BTreeMap::new(), BTreeMap::new()));
}

#[test]
fn a_way_back_without_its_flow_goes() {
    let (words, image) = (Words::new(), image());
    let orphan = |spoil: &dyn Fn()| {
        for index in [3, 20] {
            words.put(index, FlowWord::FREE);
        }
        record_pair(&words, (3, 20), 1, FlowState::Established, 100);
        spoil();
        // While it is being recorded the two do not fit together.
        words.sweep(&image, at(101));
        assert!(!words.get(20).is_free(), "a way back that was just recorded was freed");
        words.sweep(&image, at(102));
        words.get(20).is_free()
    };
    assert!(!orphan(&|| ()));
    assert!(orphan(&|| words.put(3, FlowWord::FREE)), "evicted");
    assert!(orphan(&|| words.put(3, word(5, 2, FlowState::Opening, 101))), "moved to another backend");
    assert!(orphan(&|| words.put(3, word(5, 1, FlowState::Direct, 101))), "not a flow");
    assert!(orphan(&|| words.put(3, word(5, 1, FlowState::Reverse, 101))), "another's way back");
    assert!(orphan(&|| words.put_tuple(3, tuple(1, 50_000))), "another flow");
    assert!(orphan(&|| words.put_tuple(20, FlowTuple { partner: 0, ..tuple(1, 40_003) })), "of nobody");
    assert!(orphan(&|| words.put_tuple(20, FlowTuple { partner: u32::MAX, ..tuple(1, 40_003) })), "nowhere");
}

#[test]
fn a_flow_takes_no_others_way_back_with_it() {
    let (words, image) = (Words::new(), image());
    record_pair(&words, (3, 20), 1, FlowState::Established, 100);
    // The place was taken by the way back of another flow.
    record_pair(&words, (5, 20), 1, FlowState::Established, 700);
    let swept = words.sweep(&image, at(701));
    assert_eq!((swept.occupied, swept.reverse, swept.expired), (1, 1, 1));
    assert!(words.get(3).is_free() && !words.get(20).is_free());
}

#[test]
fn forgetting_a_backend_takes_ways_back_along() {
    let (words, image) = (Words::new(), image());
    record_pair(&words, (3, 20), 1, FlowState::Established, 100);
    record_pair(&words, (5, 21), 2, FlowState::Established, 100);
    assert_eq!(words.table().forget(1), 1);
    assert!(words.get(3).is_free() && words.get(20).is_free());
    assert!(!words.get(5).is_free() && !words.get(21).is_free());
    assert_eq!((words.table().live(1), words.table().live(2)), (0, 1));
    assert_eq!(words.sweep(&image, at(101)).drift, BTreeMap::new());
}

#[test]
fn what_a_killed_daemon_left_is_set_right() {
    let (words, mut image) = (Words::new(), image());
    record_pair(&words, (3, 20), 1, FlowState::Established, 100);
    words.put(7, word(9, 2, FlowState::Datagram, 100));
    words.put(8, word(9, 77, FlowState::Datagram, 100));
    // Freed and not counted out; counted out and not there.
    words.live[1].fetch_add(3, Ordering::Relaxed);
    words.live[2].fetch_sub(1, Ordering::Relaxed);
    words.live[90].fetch_add(1, Ordering::Relaxed);
    assert_eq!(words.sweep(&image, at(100)).drift, BTreeMap::from([(1, 3), (2, -1), (90, 1)]));
    image.backends.remove(&1);
    image.listeners.remove(&1);
    words.table().adopt(&image);
    assert!(words.get(3).is_free() && words.get(20).is_free() && words.get(8).is_free());
    let swept = words.sweep(&image, at(100));
    assert_eq!((swept.drift, swept.live), (BTreeMap::new(), BTreeMap::from([(2, 1)])));
}

#[test]
fn a_number_below_zero_is_shown_as_none() {
    let words = Words::new();
    words.live[1].fetch_sub(1, Ordering::Relaxed);
    assert_eq!(words.table().live(1), 0);
    assert_eq!(words.table().live(100_000), 0);
}

#[test]
fn flows_of_ranges_and_of_other_protocols_are_listed() {
    let (words, mut image) = (Words::new(), image());
    let address = image.listeners[&1].listen.address;
    let range = Listen { address, port: 8000, last_port: 8100, protocol: Protocol::Tcp };
    let any = Listen { address, port: 0, last_port: 0, protocol: Protocol::Any };
    image.listeners.insert(3, worlds::listener(range, []));
    image.listeners.insert(4, worlds::listener(any, []));
    let flow = |listener, client_port, vip_port| FlowTuple {
        client_port: Be16::new(client_port),
        vip_port: Be16::new(vip_port),
        ..FlowTuple { listener, ..tuple(1, 0) }
    };
    let good = [flow(3, 40_000, 8000), flow(3, 40_000, 8100), flow(4, 0, 0)];
    for tuple in good {
        words.record(&image, tuple, 1, FlowState::Datagram);
    }
    words.record(&image, flow(3, 40_000, 8050), 1, FlowState::Reverse);
    let table = words.table();
    let listed: Vec<FlowTuple> = table.list(&image, &KEY, |_| true).map(|flow| flow.tuple).collect();
    assert_eq!(listed.len(), good.len());
    assert!(good.iter().all(|tuple| listed.contains(tuple)));
    // A port outside the range is no flow of this listener, whatever its hash.
    assert_eq!(hash_of(&flow(3, 40_000, 8101), &image, &KEY), None);
    assert_eq!(hash_of(&flow(4, 0, 1), &image, &KEY), None);
}

/// Packets change words, and whoever changes one counts it; meanwhile the daemon ages, forgets and adopts.
#[test]
fn the_number_of_live_flows_is_exact_whatever_happens_at_once() {
    const PACKETS: usize = 200_000;
    let (words, image) = (Words::new(), image());
    let states = TIMEOUTS.map(|(state, _)| state);
    let packets = |mut seed: u64| {
        for _ in 0..PACKETS {
            // A linear congruential generator (Knuth's MMIX).
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let pick = |shift: u32, of: usize| (seed >> shift) as usize % of;
            let place = &words.words[pick(20, LINES * WAYS)];
            let old = FlowWord(place.load(Ordering::Relaxed));
            let new = match pick(28, 4) {
                0 => FlowWord::FREE,
                1 => {
                    word(pick(32, 9) as u32, 1 + pick(36, 3) as Id, FlowState::Reverse, pick(48, 2000) as u16)
                }
                _ => word(
                    pick(32, 9) as u32,
                    1 + pick(36, 3) as Id,
                    states[pick(40, states.len())],
                    pick(48, 2000) as u16,
                ),
            };
            if place.compare_exchange(old.0, new.0, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                for (word, change) in [(old, u64::MAX), (new, 1)] {
                    if word.state().is_live() {
                        words.live[word.backend() as usize].fetch_add(change, Ordering::Relaxed);
                    }
                }
            }
        }
    };
    let expired = std::thread::scope(|scope| {
        let threads = [1, 2, 3].map(|seed| scope.spawn(move || packets(seed)));
        let mut expired = 0;
        let mut round = 0u16;
        while threads.iter().any(|thread| !thread.is_finished()) {
            round = round.wrapping_add(1);
            expired += words.sweep(&image, at(round % 4000)).expired;
            words.table().forget(Id::from(round % 3) + 1);
        }
        expired
    });
    assert_ne!(expired, 0, "nothing was aged meanwhile");
    // Nobody is at it any more: every word counts, and nothing else.
    let mut counted = vec![0; BACKENDS];
    for (_, word, _) in words.table().entries().filter(|(_, word, _)| word.state().is_live()) {
        counted[word.backend() as usize] += 1;
    }
    let live: Vec<u64> = words.live.iter().map(|live| live.load(Ordering::Relaxed)).collect();
    assert_eq!(live, counted);
    assert_eq!(words.sweep(&image, at(0)).drift, BTreeMap::new());
}
