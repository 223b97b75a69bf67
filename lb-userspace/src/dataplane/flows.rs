//! The flow table in shared memory: ageing, counting, listing, without a system call.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use lb_common::abi::flow::{FlowState, FlowTuple, FlowWord, WAYS};
use lb_common::abi::net::{mapped, unmapped};
use lb_common::hash::{FlowHash, HashKey, flow4, flow6, ports};

use super::image::{Id, Image, address_bytes};

/// Seconds after which an idle flow is forgotten, by state; established ones have their service's timeout.
///
/// Closed ones stay for a moment so that late segments find their way, opening ones as long as a client retries in
/// earnest, half-closed ones as long as IPVS keeps its FIN_WAIT.
const OPENING: u32 = 30;
const CLOSING: u32 = 120;
const CLOSED: u32 = 10;
const DATAGRAM: u32 = 60;
const DIRECT: u32 = 3600;

/// Words of a [`FlowTuple`].
const TUPLE_WORDS: usize = size_of::<FlowTuple>() / 8;

/// The flow table, mapped or made.
#[derive(Clone, Copy, Debug)]
pub struct FlowTable<'m> {
    words: &'m [AtomicU64],
    tuples: &'m [AtomicU64],
}

/// How the coarse clock of the flow table runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clock {
    /// The time now, in ticks.
    pub now: u16,
    pub seconds_per_tick: f64,
}

impl Clock {
    /// Seconds since `then`.
    pub fn age(&self, then: u16) -> f64 {
        f64::from(self.now.wrapping_sub(then)) * self.seconds_per_tick
    }
}

/// What a sweep found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Live flows per backend: neither closed nor passed by.
    pub live: BTreeMap<Id, u64>,
    /// Occupied places, live or not.
    pub occupied: u64,
    pub expired: u64,
}

/// A flow as a person wants to see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    pub backend: Id,
    pub state: FlowState,
    pub time: u16,
    pub tuple: FlowTuple,
}

impl<'m> FlowTable<'m> {
    /// Over the words of the lines and of the tuples. The lengths must belong together: 3 tuple words for each word.
    pub fn new(words: &'m [AtomicU64], tuples: &'m [AtomicU64]) -> Self {
        assert_eq!(words.len() * TUPLE_WORDS, tuples.len(), "flow words and tuples do not belong together");
        Self { words, tuples }
    }

    /// How many flows fit in.
    pub fn capacity(&self) -> u64 {
        self.words.len() as u64
    }

    fn occupied(&self) -> impl Iterator<Item = (usize, &'m AtomicU64, FlowWord)> {
        self.words.iter().enumerate().filter_map(|(index, place)| {
            let word = FlowWord(place.load(Ordering::Relaxed));
            (!word.is_free()).then_some((index, place, word))
        })
    }

    /// Every occupied place: its number, its word, and the tuple beside it as it stands, another flow's for a moment.
    pub fn entries(&self) -> impl Iterator<Item = (usize, FlowWord, FlowTuple)> {
        self.occupied().map(|(index, _, word)| (index, word, self.tuple(index)))
    }

    /// Frees what has been idle too long, and counts the rest.
    pub fn sweep(&self, image: &Image, clock: Clock) -> Swept {
        let mut swept = Swept::default();
        for (_, place, word) in self.occupied() {
            let session = || {
                let listener = image.backends.get(&word.backend()).map(|b| b.server.listener);
                listener.and_then(|id| image.listeners.get(&id)).map_or(0, |l| l.session_timeout)
            };
            let timeout = match word.state() {
                FlowState::Free => 0,
                FlowState::Opening | FlowState::Answered => OPENING,
                FlowState::Established => session(),
                FlowState::ClientClosed | FlowState::BackendClosed => CLOSING,
                FlowState::Closed => CLOSED,
                FlowState::Datagram => DATAGRAM,
                FlowState::Direct => DIRECT,
            };
            // A packet may have come a moment after `clock` was read: its age is negative, not enormous.
            let fresh = word.time().wrapping_sub(clock.now) < 8;
            if !fresh && clock.age(word.time()) > f64::from(timeout) {
                // Fails when a packet comes at this very moment, and then the flow is not idle.
                let freed =
                    place.compare_exchange(word.0, FlowWord::FREE.0, Ordering::Relaxed, Ordering::Relaxed);
                if freed.is_ok() {
                    swept.expired += 1;
                    continue;
                }
            }
            swept.occupied += 1;
            if !matches!(word.state(), FlowState::Closed | FlowState::Direct) {
                *swept.live.entry(word.backend()).or_default() += 1;
            }
        }
        swept
    }

    /// Forgets the flows of a backend; says how many there were.
    pub fn forget(&self, backend: Id) -> u64 {
        let mut forgotten = 0;
        for (_, place, word) in self.occupied() {
            if word.backend() != backend {
                continue;
            }
            // Packets of the flow may change the word meanwhile; the backend in it stays.
            let mut current = word;
            while current.backend() == backend && !current.is_free() {
                match place.compare_exchange(
                    current.0,
                    FlowWord::FREE.0,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                ) {
                    Ok(_) => {
                        forgotten += 1;
                        break;
                    }
                    Err(found) => current = FlowWord(found),
                }
            }
        }
        forgotten
    }

    /// Flows whose tuple is readable, as far as `wanted` says yes.
    ///
    /// The packet path claims a place before it writes the tuple, so a tuple may be another flow's for a moment: it is
    /// believed only if its hash leads to this place.
    pub fn list<'a>(
        &'a self,
        image: &'a Image,
        key: &'a HashKey,
        wanted: impl Fn(FlowWord) -> bool + 'a,
    ) -> impl Iterator<Item = Flow> + 'a {
        let lines = (self.words.len() / WAYS) as u32;
        self.occupied().filter(move |(_, _, word)| wanted(*word)).filter_map(move |(index, _, word)| {
            let tuple = self.tuple(index);
            let hash = hash_of(&tuple, image, key)?;
            (hash.fingerprint() == word.fingerprint() && hash.line(lines) as usize == index / WAYS)
                .then(|| Flow { backend: word.backend(), state: word.state(), time: word.time(), tuple })
        })
    }

    fn tuple(&self, index: usize) -> FlowTuple {
        let words: [u64; TUPLE_WORDS] =
            std::array::from_fn(|i| self.tuples[index * TUPLE_WORDS + i].load(Ordering::Relaxed));
        bytemuck::must_cast(words)
    }
}

/// The hash that the packet path had for a tuple.
fn hash_of(tuple: &FlowTuple, image: &Image, key: &HashKey) -> Option<FlowHash> {
    let listen = image.listeners.get(&tuple.listener)?.listen;
    let protocol = listen.protocol.wire().number();
    let vip = address_bytes(listen.address);
    let ports = ports(tuple.client_port.get(), tuple.vip_port.get());
    if !listen.address.is_ipv4() {
        return Some(flow6(key, &tuple.client, &vip, ports, protocol));
    }
    let client = unmapped(&tuple.client);
    // The rest of a mapped address is not in the hash: it may be that of another flow.
    (tuple.client == mapped(*client)).then(|| flow4(key, client, unmapped(&vip), ports, protocol))
}

#[cfg(test)]
mod tests;
