//! The `ENDPOINTS` table: where an address, a port and a protocol, seen from one side, lead to.
//!
//! A packet may read any word at any moment, so each change is one store: a new endpoint fills a free word, one that
//! leads elsewhere from now on gets another number in place. A word has only a fingerprint; which endpoints stand in
//! the table is known from the [`super::image::Image`].

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use lb_common::abi::endpoint::{ANY_PORT, ECHO, ENDPOINT_WAYS};
use lb_common::abi::net::Be16;
use lb_common::abi::{EndpointWord, Side};
use lb_common::hash::{EndpointHash, HashKey, endpoint4, endpoint6};

use super::image::Id;
use crate::config::Protocol;

/// The fewest lines that a table has: one is as small as a page of memory then.
const LEAST_LINES: u32 = 64;
/// As many as [`EndpointHash::line`] can tell apart.
const MOST_LINES: u32 = 1 << 24;

/// What a packet's destination or source is looked up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    pub side: Side,
    pub address: IpAddr,
    /// [`ANY_PORT`] for ranges of ports and what has no ports.
    pub port: u16,
    /// The number in the map: IANA's, [`ECHO`], or that of [`lb_common::abi::Protocol::Any`].
    pub protocol: u8,
}

impl Endpoint {
    pub const fn new(side: Side, address: IpAddr, port: u16, protocol: Protocol) -> Self {
        Self { side, address, port, protocol: protocol.wire().number() }
    }

    /// The one that every VIP has, for ICMP.
    pub const fn echo(address: IpAddr) -> Self {
        Self { side: Side::Vip, address, port: ANY_PORT, protocol: ECHO }
    }

    /// Whether several may be found here, one after the other.
    pub const fn is_chained(&self) -> bool {
        self.port == ANY_PORT && self.protocol != ECHO
    }

    pub fn hash(&self, key: &HashKey) -> EndpointHash {
        let Self { side, address, port, protocol } = *self;
        match address {
            IpAddr::V4(v4) => endpoint4(key, side, &v4.octets(), Be16::new(port), protocol),
            IpAddr::V6(v6) => endpoint6(key, side, &v6.octets(), Be16::new(port), protocol),
        }
    }
}

/// `203.0.113.10:25`, with a word for what it is.
impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let side = match self.side {
            Side::Vip => "service address",
            Side::Backend => "server",
        };
        let address = std::net::SocketAddr::new(self.address, self.port);
        write!(f, "{side} {address} (protocol {})", self.protocol)
    }
}

/// Why an endpoint has no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPlace {
    #[error("all {ENDPOINT_WAYS} words of its line are taken")]
    LineFull,
    #[error("another endpoint in its line has the same fingerprint")]
    SameFingerprint,
}

/// Lines for so many listeners and backends: each listener may need an endpoint of its own and one for its VIP's
/// ICMP, each backend one. Lines are at most half as many as words in them would fill, so that a full line is
/// practically never met.
pub const fn lines_for(listeners: u32, backends: u32) -> u32 {
    let wanted = 2 * (2 * listeners as u64 + backends as u64);
    let lines = wanted.next_power_of_two();
    if lines < LEAST_LINES as u64 {
        LEAST_LINES
    } else if lines > MOST_LINES as u64 {
        MOST_LINES
    } else {
        lines as u32
    }
}

/// The table, mapped or made. The number of its lines is a power of two.
#[derive(Clone, Copy, Debug)]
pub struct EndpointTable<'m> {
    words: &'m [AtomicU64],
}

impl<'m> EndpointTable<'m> {
    pub const fn new(words: &'m [AtomicU64]) -> Self {
        Self { words }
    }

    /// Where the words of a line stand.
    fn places(&self, hash: EndpointHash) -> std::ops::Range<usize> {
        let lines = u32::try_from(self.words.len() / ENDPOINT_WAYS).unwrap_or(MOST_LINES);
        let start = hash.line(lines) as usize * ENDPOINT_WAYS;
        start..start + ENDPOINT_WAYS
    }

    fn line(&self, hash: EndpointHash) -> &'m [AtomicU64] {
        self.words.get(self.places(hash)).unwrap_or_default()
    }

    /// Where an endpoint with this hash leads, by its fingerprint alone.
    pub fn find(&self, hash: EndpointHash) -> Option<Id> {
        self.line(hash)
            .iter()
            .map(|place| EndpointWord(place.load(Ordering::Acquire)))
            .find(|word| !word.is_free() && word.fingerprint() == hash.fingerprint())
            .map(EndpointWord::id)
    }

    /// Makes an endpoint lead to `id`. `old` is where it leads so far.
    ///
    /// # Errors
    /// When there is no place for it; nothing has changed then.
    pub fn put(&self, hash: EndpointHash, old: Option<Id>, id: Id) -> Result<(), NoPlace> {
        let new = EndpointWord::new(hash.fingerprint(), id);
        let mut free = None;
        for (way, place) in self.line(hash).iter().enumerate() {
            let word = EndpointWord(place.load(Ordering::Acquire));
            if word.is_free() {
                if free.is_none() || way == hash.way() {
                    free = Some(place);
                }
            } else if word.fingerprint() == hash.fingerprint() {
                if Some(word.id()) != old && word.id() != id {
                    return Err(NoPlace::SameFingerprint);
                }
                place.store(new.0, Ordering::Release);
                return Ok(());
            }
        }
        free.ok_or(NoPlace::LineFull)?.store(new.0, Ordering::Release);
        Ok(())
    }

    /// Takes away an endpoint that leads to `id`. One that is not there, or leads elsewhere, is left as it is.
    pub fn remove(&self, hash: EndpointHash, id: Id) {
        let word = EndpointWord::new(hash.fingerprint(), id).0;
        for place in self.line(hash) {
            if place.load(Ordering::Acquire) == word {
                place.store(EndpointWord::FREE.0, Ordering::Release);
            }
        }
    }

    /// Frees every word that is none of these endpoints': what a daemon that died between two steps left. Says how many
    /// there were.
    pub fn retain<'e>(
        &self,
        key: &HashKey,
        endpoints: impl Iterator<Item = (&'e Endpoint, &'e Id)>,
    ) -> usize {
        let known: BTreeSet<usize> = endpoints
            .filter_map(|(endpoint, id)| {
                let hash = endpoint.hash(key);
                let word = EndpointWord::new(hash.fingerprint(), *id).0;
                self.places(hash).find(|index| self.words[*index].load(Ordering::Relaxed) == word)
            })
            .collect();
        let mut freed = 0;
        for (index, place) in self.words.iter().enumerate() {
            let taken = !EndpointWord(place.load(Ordering::Relaxed)).is_free();
            if taken && !known.contains(&index) {
                place.store(EndpointWord::FREE.0, Ordering::Release);
                freed += 1;
            }
        }
        freed
    }

    /// Words in use.
    pub fn occupied(&self) -> usize {
        self.words.iter().filter(|place| !EndpointWord(place.load(Ordering::Relaxed)).is_free()).count()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const KEY: HashKey = HashKey { words: [2, 7, 1, 8, 2, 8, 1, 8, 2, 8], seed: 0x0123_4567_89ab_cdef };

    fn words(lines: usize) -> Vec<AtomicU64> {
        (0..lines * ENDPOINT_WAYS).map(|_| AtomicU64::new(0)).collect()
    }

    fn endpoint() -> impl Strategy<Value = Endpoint> {
        let side = prop_oneof![Just(Side::Vip), Just(Side::Backend)];
        let address = prop_oneof![
            (0u8..6).prop_map(|n| IpAddr::from([203, 0, 113, n])),
            (0u16..6).prop_map(|n| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n])),
        ];
        (side, address, 0u16..4, prop::sample::select(vec![ECHO, 6, 17, 255]))
            .prop_map(|(side, address, port, protocol)| Endpoint { side, address, port, protocol })
    }

    proptest! {
        #[test]
        fn the_table_is_a_map(
            steps in prop::collection::vec((endpoint(), prop::option::weighted(0.7, 1u32..1 << 17)), 1..200),
        ) {
            // Few lines, so that some of them are full.
            let words = words(8);
            let table = EndpointTable::new(&words);
            let mut model: BTreeMap<Endpoint, Id> = BTreeMap::new();
            for (endpoint, id) in steps {
                let hash = endpoint.hash(&KEY);
                let old = model.get(&endpoint).copied();
                match (id, old) {
                    (Some(id), _) => match table.put(hash, old, id) {
                        Ok(()) => { model.insert(endpoint, id); }
                        Err(error) => {
                            prop_assert_eq!(error, NoPlace::LineFull);
                            let line = hash.line(8);
                            let there = model.keys().filter(|e| e.hash(&KEY).line(8) == line).count();
                            prop_assert!(old.is_none() && there == ENDPOINT_WAYS);
                        }
                    },
                    (None, Some(old)) => {
                        table.remove(hash, old);
                        model.remove(&endpoint);
                    }
                    (None, None) => table.remove(hash, 77),
                }
                prop_assert_eq!(table.occupied(), model.len());
                for (endpoint, id) in &model {
                    prop_assert_eq!(table.find(endpoint.hash(&KEY)), Some(*id));
                }
            }
            // What the model does not know goes.
            let half: BTreeMap<_, _> = model.iter().step_by(2).map(|(e, id)| (*e, *id)).collect();
            prop_assert_eq!(table.retain(&KEY, half.iter()), model.len() - half.len());
            for (endpoint, id) in &model {
                let left = table.find(endpoint.hash(&KEY));
                prop_assert_eq!(left, half.contains_key(endpoint).then_some(*id));
            }
        }
    }

    #[test]
    fn two_of_one_fingerprint_in_a_line_are_refused() {
        let words = words(1);
        let table = EndpointTable::new(&words);
        let hash = EndpointHash(0xab << 40 | 7);
        table.put(hash, None, 1).unwrap();
        // Another endpoint: what leads to 1 is not known as its own.
        assert_eq!(table.put(EndpointHash(0xcd << 40 | 7), None, 2), Err(NoPlace::SameFingerprint));
        assert_eq!(table.find(hash), Some(1));
        table.put(hash, Some(1), 2).unwrap();
        assert_eq!(table.find(hash), Some(2));
        // One that leads elsewhere by now is not taken away.
        table.remove(hash, 1);
        assert_eq!(table.find(hash), Some(2));
    }

    #[test]
    fn an_endpoint_that_is_led_elsewhere_is_never_missing() {
        let words = words(64);
        let table = EndpointTable::new(&words);
        let hash = Endpoint::echo(IpAddr::from([203, 0, 113, 10])).hash(&KEY);
        table.put(hash, None, 1).unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        let missed = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut missed = 0;
                while !done.load(Ordering::Relaxed) {
                    missed += usize::from(table.find(hash).is_none());
                }
                missed
            });
            for id in 1..100_000 {
                table.put(hash, Some(id), id + 1).unwrap();
            }
            done.store(true, Ordering::Relaxed);
            reader.join().unwrap()
        });
        assert_eq!(missed, 0);
    }

    #[test]
    fn lines_are_a_power_of_two_with_room() {
        assert_eq!(lines_for(1, 1), 64);
        assert_eq!(lines_for(1024, 4096), 16_384);
        assert_eq!(lines_for(1 << 17, 1 << 17), 1 << 20);
        assert_eq!(lines_for(u32::MAX, u32::MAX), 1 << 24);
    }
}
