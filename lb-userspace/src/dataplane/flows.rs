//! The flow table in shared memory: ageing, counting, listing, without a system call.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lb_common::abi::Live;
use lb_common::abi::flow::{FlowState, FlowTuple, FlowWord, WAYS};
use lb_common::abi::net::{mapped, unmapped};
use lb_common::hash::{FlowHash, HashKey, flow4, flow6, ports};

use super::image::{Id, Image, address_bytes};
use crate::config::{Flows, Listen};

/// How long a connection that was made past the VIP is remembered as such.
const DIRECT: Duration = Duration::from_secs(3600);
/// Ticks in which the entry for a way back may be without its flow: it is being recorded.
const UNSETTLED: u16 = 2;
/// How often the words are counted to find out what `LIVE` should be, while packets change both.
const COUNTS: usize = 5;

/// Words of a [`FlowTuple`].
const TUPLE_WORDS: usize = size_of::<FlowTuple>() / 8;

/// The flow table, mapped or made.
#[derive(Clone, Copy, Debug)]
pub struct FlowTable<'m> {
    words: &'m [AtomicU64],
    tuples: &'m [AtomicU64],
    live: &'m [AtomicU64],
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
    /// Live flows per backend, by `LIVE`: neither closed nor passed by.
    pub live: BTreeMap<Id, u64>,
    /// Flows, live or not.
    pub occupied: u64,
    /// Places that hold the way back of a flow.
    pub reverse: u64,
    pub expired: u64,
    /// By how much `LIVE` exceeds the flows that were found, where it does. Packets change both while they are
    /// compared; when none come, there is nothing here.
    pub drift: BTreeMap<Id, i64>,
}

/// A flow as a person wants to see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    pub backend: Id,
    pub state: FlowState,
    pub time: u16,
    pub tuple: FlowTuple,
}

/// When flows are forgotten.
struct Limits {
    now: Clock,
    timeouts: Flows,
    /// Seconds, by backend.
    sessions: Vec<u32>,
}

impl Limits {
    fn new(image: &Image, now: Clock, timeouts: &Flows) -> Self {
        let count = image.backends.keys().next_back().map_or(0, |last| *last as usize + 1);
        let mut sessions = vec![0; count];
        for (id, backend) in &image.backends {
            let listener = image.listeners.get(&backend.server.listener);
            sessions[*id as usize] = listener.map_or(0, |l| l.session_timeout);
        }
        Self { now, timeouts: timeouts.clone(), sessions }
    }

    fn is_over(&self, word: FlowWord) -> bool {
        let timeout = match word.state() {
            FlowState::Free | FlowState::Reverse => return false,
            FlowState::Opening | FlowState::Answered => self.timeouts.opening,
            FlowState::Established => {
                let session = self.sessions.get(word.backend() as usize).copied().unwrap_or(0);
                Duration::from_secs(session.into())
            }
            FlowState::ClientClosed | FlowState::BackendClosed => self.timeouts.closing,
            FlowState::Closed => self.timeouts.closed,
            FlowState::Datagram => self.timeouts.datagram,
            FlowState::Direct => DIRECT,
        };
        !self.is_ahead(word) && self.now.age(word.time()) > timeout.as_secs_f64()
    }

    /// A packet may have come a moment after the clock was read: its age is negative, not enormous.
    const fn is_ahead(&self, word: FlowWord) -> bool {
        word.time().wrapping_sub(self.now.now) < 8
    }

    const fn is_settled(&self, word: FlowWord) -> bool {
        !self.is_ahead(word) && self.now.now.wrapping_sub(word.time()) >= UNSETTLED
    }
}

impl<'m> FlowTable<'m> {
    /// Over the words of the lines and of the tuples, and the numbers of live flows. The lengths of the first two must
    /// belong together: 4 tuple words for each word.
    pub fn new(words: &'m [AtomicU64], tuples: &'m [AtomicU64], live: &'m [AtomicU64]) -> Self {
        assert_eq!(words.len() * TUPLE_WORDS, tuples.len(), "flow words and tuples do not belong together");
        Self { words, tuples, live }
    }

    /// How many flows fit in.
    pub fn capacity(&self) -> u64 {
        self.words.len() as u64
    }

    /// Live flows of a backend.
    pub fn live(&self, backend: Id) -> u64 {
        self.count(backend).flows()
    }

    fn count(&self, backend: Id) -> Live {
        Live(self.live.get(backend as usize).map_or(0, |live| live.load(Ordering::Relaxed)))
    }

    /// The most live flows with which a backend still gets new ones; 0 where nothing was set.
    pub fn limit(&self, backend: Id) -> u32 {
        self.count(backend).limit()
    }

    /// Sets what [`FlowTable::limit`] says, while packets count.
    pub fn set_limit(&self, backend: Id, limit: u32) {
        let change = Live::change(self.limit(backend), limit);
        if let Some(live) = self.live.get(backend as usize).filter(|_| change != 0) {
            live.fetch_add(change, Ordering::Relaxed);
        }
    }

    fn occupied(&self) -> impl Iterator<Item = (usize, FlowWord)> {
        self.words.iter().enumerate().filter_map(|(index, place)| {
            let word = FlowWord(place.load(Ordering::Relaxed));
            (!word.is_free()).then_some((index, word))
        })
    }

    /// Every occupied place: its number, its word, and the tuple beside it as it stands, another flow's for a moment.
    pub fn entries(&self) -> impl Iterator<Item = (usize, FlowWord, FlowTuple)> {
        self.occupied().map(|(index, word)| (index, word, self.tuple(index)))
    }

    /// Frees what has been idle too long, and counts the rest.
    pub fn sweep(&self, image: &Image, clock: Clock, timeouts: &Flows) -> Swept {
        let limits = Limits::new(image, clock, timeouts);
        let mut swept = Swept::default();
        let mut counted = vec![0i64; self.live.len()];
        for (index, word) in self.occupied() {
            if word.state() == FlowState::Reverse {
                let gone =
                    limits.is_settled(word) && !self.has_flow(index, word) && self.free(index, word).is_ok();
                swept.reverse += u64::from(!gone);
                continue;
            }
            if limits.is_over(word) {
                let tuple = self.tuple(index);
                // Fails when a packet comes at this very moment, and then the flow is not idle.
                if self.free(index, word).is_ok() {
                    let way_back = self.free_way_back(index, word, &tuple);
                    // It may have been counted already.
                    let counted = way_back.is_some_and(|place| place < index);
                    swept.reverse = swept.reverse.saturating_sub(u64::from(counted));
                    swept.expired += 1;
                    continue;
                }
            }
            swept.occupied += 1;
            if word.state().is_live()
                && let Some(counted) = counted.get_mut(word.backend() as usize)
            {
                *counted += 1;
            }
        }
        for (id, (live, counted)) in (0..).zip(self.live.iter().zip(counted)) {
            let drift = Live(live.load(Ordering::Relaxed)).signed().wrapping_sub(counted);
            if drift != 0 {
                swept.drift.insert(id, drift);
            }
            let live = self.live(id);
            if live != 0 {
                swept.live.insert(id, live);
            }
        }
        swept
    }

    /// Makes a table that an earlier daemon has left fit to `image`: forgets the flows of backends that it does not
    /// have, and sets the numbers of live flows right, which a daemon that was killed between two writes left wrong.
    pub fn adopt(&self, image: &Image) {
        for (index, word) in self.occupied() {
            if !image.backends.contains_key(&word.backend()) {
                self.free_of(index, word.backend());
            }
        }
        // Packets come meanwhile, so that a single comparison may be off by a few, up or down.
        let drifts: [Vec<i64>; COUNTS] = std::array::from_fn(|_| self.drift());
        for (id, live) in self.live.iter().enumerate() {
            let mut found: [i64; COUNTS] = std::array::from_fn(|count| drifts[count][id]);
            found.sort_unstable();
            let drift = found[COUNTS / 2];
            if drift != 0 {
                live.fetch_sub(drift.cast_unsigned(), Ordering::Relaxed);
            }
        }
    }

    /// By how much `LIVE` exceeds the live flows in the table, for each backend.
    fn drift(&self) -> Vec<i64> {
        let mut drift: Vec<i64> =
            self.live.iter().map(|live| Live(live.load(Ordering::Relaxed)).signed()).collect();
        for (_, word) in self.occupied().filter(|(_, word)| word.state().is_live()) {
            if let Some(drift) = drift.get_mut(word.backend() as usize) {
                *drift -= 1;
            }
        }
        drift
    }

    /// Forgets the flows of a backend; says how many there were.
    pub fn forget(&self, backend: Id) -> u64 {
        let of_backend = self.occupied().filter(|(_, word)| word.backend() == backend);
        of_backend.map(|(index, _)| u64::from(self.free_of(index, backend))).sum()
    }

    /// Frees a place whatever packets do to it meanwhile, as long as it belongs to this backend. True when it was a
    /// flow.
    fn free_of(&self, index: usize, backend: Id) -> bool {
        let mut word = self.word(index);
        while word.backend() == backend && !word.is_free() {
            match self.free(index, word) {
                Ok(()) => return word.state() != FlowState::Reverse,
                Err(found) => word = found,
            }
        }
        false
    }

    /// Frees a place if its word is still this one. Whoever takes away a live flow's word counts it out.
    fn free(&self, index: usize, word: FlowWord) -> Result<(), FlowWord> {
        self.change(index, word, FlowWord::FREE)
    }

    /// Replaces a place's word if it is still `old`. Whoever changes a word counts its flow out and in.
    pub(crate) fn change(&self, index: usize, old: FlowWord, new: FlowWord) -> Result<(), FlowWord> {
        let place = &self.words[index];
        place.compare_exchange(old.0, new.0, Ordering::Relaxed, Ordering::Relaxed).map_err(FlowWord)?;
        let live = |word: FlowWord| {
            let counted = word.state().is_live().then_some(word.backend() as usize);
            counted.and_then(|backend| self.live.get(backend))
        };
        if let Some(live) = live(new) {
            live.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(live) = live(old) {
            live.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The words of all places.
    pub(crate) const fn words(&self) -> &'m [AtomicU64] {
        self.words
    }

    /// Eight words a line.
    pub(crate) fn lines(&self) -> u32 {
        u32::try_from(self.words.len() / WAYS).unwrap_or(u32::MAX)
    }

    pub(crate) fn write_tuple(&self, index: usize, tuple: &FlowTuple) {
        let words: [u64; TUPLE_WORDS] = bytemuck::must_cast(*tuple);
        for (place, word) in self.tuples[index * TUPLE_WORDS..].iter().zip(words) {
            place.store(word, Ordering::Relaxed);
        }
    }

    /// Frees the entry for the way back of a flow that was freed. Says where it stood.
    pub(crate) fn free_way_back(&self, index: usize, word: FlowWord, tuple: &FlowTuple) -> Option<usize> {
        let place = partner(tuple).filter(|place| *place < self.words.len())?;
        let entry = self.word(place);
        let is_its = entry.state() == FlowState::Reverse
            && entry.backend() == word.backend()
            && self.tuple(place) == pointing_to(index, tuple);
        // Fails when it is another flow's by now.
        (is_its && self.free(place, entry).is_ok()).then_some(place)
    }

    /// Whether the flow whose way back stands here is still there.
    fn has_flow(&self, index: usize, entry: FlowWord) -> bool {
        let tuple = self.tuple(index);
        let Some(place) = partner(&tuple).filter(|place| *place < self.words.len()) else { return false };
        let word = self.word(place);
        !matches!(word.state(), FlowState::Free | FlowState::Reverse | FlowState::Direct)
            && word.backend() == entry.backend()
            && self.tuple(place) == pointing_to(index, &tuple)
    }

    pub(crate) fn word(&self, index: usize) -> FlowWord {
        FlowWord(self.words[index].load(Ordering::Relaxed))
    }

    /// The word of the flow with this client, client's port, port and listener.
    pub fn find(&self, tuple: &FlowTuple, image: &Image, key: &HashKey) -> Option<FlowWord> {
        let hash = hash_of(tuple, image, key)?;
        let line = hash.line((self.words.len() / WAYS) as u32) as usize;
        (line * WAYS..(line + 1) * WAYS)
            .map(|place| self.word(place))
            .find(|word| !word.is_free() && word.fingerprint() == hash.fingerprint())
    }

    /// The word at a place.
    pub fn at(&self, place: usize) -> Option<FlowWord> {
        (place < self.words.len()).then(|| self.word(place))
    }

    /// Flows whose tuple is readable, as far as `wanted` says yes. Entries for the way back are none.
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
        let flows =
            self.occupied().filter(move |(_, word)| word.state() != FlowState::Reverse && wanted(*word));
        flows.filter_map(move |(index, word)| {
            let tuple = self.tuple(index);
            let hash = hash_of(&tuple, image, key)?;
            (hash.fingerprint() == word.fingerprint() && hash.line(lines) as usize == index / WAYS)
                .then(|| Flow { backend: word.backend(), state: word.state(), time: word.time(), tuple })
        })
    }

    pub(crate) fn tuple(&self, index: usize) -> FlowTuple {
        let words: [u64; TUPLE_WORDS] =
            std::array::from_fn(|i| self.tuples[index * TUPLE_WORDS + i].load(Ordering::Relaxed));
        bytemuck::must_cast(words)
    }
}

/// The place of the entry for the other direction.
fn partner(tuple: &FlowTuple) -> Option<usize> {
    tuple.partner.checked_sub(1).map(|place| place as usize)
}

/// The tuple at the other end of a pair, whose partner stands at `index`.
fn pointing_to(index: usize, tuple: &FlowTuple) -> FlowTuple {
    FlowTuple { partner: u32::try_from(index + 1).unwrap_or(0), ..*tuple }
}

/// The hash that the packet path had for a tuple.
fn hash_of(tuple: &FlowTuple, image: &Image, key: &HashKey) -> Option<FlowHash> {
    hash_behind(tuple, &image.listeners.get(&tuple.listener)?.listen, key)
}

/// Likewise, of a flow whose listener is known.
pub(crate) fn hash_behind(tuple: &FlowTuple, listen: &Listen, key: &HashKey) -> Option<FlowHash> {
    if !(listen.port..=listen.last_port).contains(&tuple.vip_port.get()) {
        return None;
    }
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
