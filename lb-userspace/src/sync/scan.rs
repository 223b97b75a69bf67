//! What the other gateway knows of the flow table, and where the table differs.
//!
//! For each place there is the word that both agree on, and who said it last. Nothing else is kept: what cannot be sent
//! now is found again at the next scan.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use lb_common::abi::flow::{FlowState, FlowWord, WAYS};

use super::directory::Directory;
use super::wire::Record;
use crate::dataplane::flows::{Clock, FlowTable, hash_behind};

/// In [`Shadow::origins`], beside a place: both gateways have changed the flow at once, and ours counts. No table has so
/// many places.
const DECIDED: u32 = 1 << 31;

/// A bit of a word in which it differs from itself, but remains one of a flow: the lowest of its moves.
const MOVED: u64 = 1 << 37;

/// What both agree on. 16 bytes for each place, and 4 for each of the other gateway's.
#[derive(Debug)]
pub struct Shadow {
    words: Vec<u64>,
    /// The other gateway's place and one, where it was the last to speak of the flow; 0: we were.
    origins: Vec<u32>,
    /// The batch in which we told of it, as far as that fits; 0: we did not.
    told: Vec<u32>,
    /// For each of its places, ours and one.
    theirs: Vec<u32>,
    /// Places whose flow, of which we were the last to speak, went when one of the other gateway's came there: it has yet to
    /// hear that. At most one for each place.
    owed: VecDeque<u32>,
    /// Where the next part of a scan begins.
    cursor: usize,
}

/// How a part of a scan ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scanned {
    /// Flows that were told of, new or changed.
    pub flows: u64,
    pub gone: u64,
    /// The end of the table was reached.
    pub complete: bool,
}

impl Shadow {
    #[must_use]
    pub fn new(places: usize) -> Self {
        Self {
            words: vec![0; places],
            origins: vec![0; places],
            told: vec![0; places],
            theirs: Vec::new(),
            owed: VecDeque::new(),
            cursor: 0,
        }
    }

    /// The other gateway knows nothing, and its table has so many places.
    pub fn clear(&mut self, places: u32) {
        self.words.fill(0);
        self.origins.fill(0);
        self.told.fill(0);
        self.theirs.clear();
        // Zeroed memory that is never touched costs nothing.
        self.theirs.resize(places as usize, 0);
        self.owed.clear();
        self.cursor = 0;
    }

    /// The word that was agreed on.
    #[must_use]
    pub fn agreed(&self, place: usize) -> FlowWord {
        FlowWord(self.words[place])
    }

    /// Notes that the other gateway has said this of the flow at `place`, which stands at `origin` there.
    pub fn heard(&mut self, place: usize, word: FlowWord, origin: u32) {
        self.words[place] = word.0;
        self.told[place] = 0;
        self.spoken(place, origin, 0);
    }

    fn spoken(&mut self, place: usize, origin: u32, flag: u32) {
        if let Some(theirs) = self.theirs.get_mut(origin as usize) {
            *theirs = u32::try_from(place + 1).unwrap_or(0);
            self.origins[place] = (origin + 1) | flag;
        }
    }

    /// What stood at `place` has gone, and a flow of the other gateway comes there before a scan has seen that.
    pub fn replaced(&mut self, place: usize) {
        if !self.agreed(place).is_free() && !self.is_theirs(place) {
            self.owed.extend(u32::try_from(place));
        }
    }

    /// Whether we have told of the flow at `place` what the other gateway had not heard when it had taken `seen` of our
    /// batches.
    #[must_use]
    pub fn is_crossed(&self, place: usize, seen: u64) -> bool {
        u64::from(self.told[place]) > seen
    }

    /// Has what stands at `place` told to the other gateway, which has nothing of the flow.
    pub fn tell(&mut self, place: usize) {
        self.words[place] = 0;
        self.origins[place] = 0;
    }

    /// Has `word`, which stands at `place`, told to the other gateway, which has what we told it last, or soon will.
    pub fn tell_again(&mut self, place: usize, word: FlowWord) {
        self.words[place] = word.0 ^ MOVED;
        self.origins[place] = 0;
    }

    /// Has what stands at `place` told to the other gateway, which has another word of the flow at `origin`; by force if
    /// both have changed it at once. Until it is told, the other one was the last to speak: were the flow to go before, that
    /// would not hear of it.
    pub fn answer(&mut self, place: usize, origin: u32, decided: bool) {
        self.words[place] = 0;
        self.spoken(place, origin, if decided { DECIDED } else { 0 });
    }

    /// Where the flow stands here of which the other gateway was the last to speak, at this place of its own.
    #[must_use]
    pub fn place_of(&self, origin: u32) -> Option<usize> {
        let place = self.theirs.get(origin as usize)?.checked_sub(1)? as usize;
        let spoken = self.origins.get(place)? & !DECIDED;
        (spoken == origin + 1).then_some(place)
    }

    /// Whether the other gateway was the last to speak of the flow here.
    #[must_use]
    pub fn is_theirs(&self, place: usize) -> bool {
        self.origins[place] & !DECIDED != 0
    }

    /// Nothing stands at `place` any more, which the other gateway knows.
    pub fn freed(&mut self, place: usize) {
        self.words[place] = 0;
        self.origins[place] = 0;
        self.told[place] = 0;
    }

    /// Goes on through the table and hands what differs to `put`, for the batch with this number, until that has no more room or the end is reached.
    pub fn scan(
        &mut self,
        table: &FlowTable<'_>,
        directory: &Directory,
        clock: Clock,
        number: u64,
        mut put: impl FnMut(Record) -> bool,
    ) -> Scanned {
        let mut scanned = Scanned::default();
        // Before any flow is told of that has come to such a place since.
        while let Some(place) = self.owed.front() {
            if !put(Record::Gone { place: *place }) {
                return scanned;
            }
            self.owed.pop_front();
            scanned.gone += 1;
        }
        let words = table.words();
        while let Some(place) = words.get(self.cursor) {
            let index = self.cursor;
            let word = FlowWord(place.load(Ordering::Relaxed));
            if word.0 != self.words[index]
                && !self.look(table, directory, clock, number, index, word, &mut put, &mut scanned)
            {
                return scanned;
            }
            self.cursor += 1;
        }
        self.cursor = 0;
        scanned.complete = true;
        scanned
    }

    /// How many places differ.
    #[must_use]
    pub fn behind(&self, table: &FlowTable<'_>) -> u64 {
        let differs = |(word, agreed): (FlowWord, FlowWord)| {
            !matches!(word.state(), FlowState::Reverse) && word.0 >> 16 != agreed.0 >> 16
        };
        let words = table.words().iter().map(|word| FlowWord(word.load(Ordering::Relaxed)));
        words.zip(self.words.iter().map(|word| FlowWord(*word))).filter(|pair| differs(*pair)).count() as u64
    }

    /// Of a place whose word is not the agreed one. False when there is no room.
    #[expect(
        clippy::too_many_arguments,
        reason = "the inner part of one loop, apart so that the loop stays small"
    )]
    fn look(
        &mut self,
        table: &FlowTable<'_>,
        directory: &Directory,
        clock: Clock,
        number: u64,
        index: usize,
        word: FlowWord,
        put: &mut impl FnMut(Record) -> bool,
        scanned: &mut Scanned,
    ) -> bool {
        let agreed = FlowWord(self.words[index]);
        let Ok(place) = u32::try_from(index) else { return true };
        if word.is_free() || word.state() == FlowState::Reverse {
            if agreed.is_free() {
                return true;
            }
            // What the other gateway has told of goes when that says so.
            let ours = !self.is_theirs(index);
            if ours && !put(Record::Gone { place }) {
                return false;
            }
            scanned.gone += u64::from(ours);
            self.freed(index);
            return true;
        }
        let differs = word.0 >> 16 != agreed.0 >> 16;
        let older = word.time().wrapping_sub(agreed.time());
        if !differs && f64::from(older) * clock.seconds_per_tick < directory.refresh(word).as_secs_f64() {
            return true;
        }
        let tuple = table.tuple(index);
        let is_whole = || {
            let hash = hash_behind(&tuple, directory.listen(tuple.listener)?, directory.key())?;
            (hash.fingerprint() == word.fingerprint() && hash.line(table.lines()) as usize == index / WAYS)
                .then_some(())
        };
        let decided = self.origins[index] & DECIDED != 0;
        // A packet may have come a moment after the clock was read.
        let ahead = word.time().wrapping_sub(clock.now) < 8;
        let age = if ahead { 0.0 } else { clock.age(word.time()) };
        let flow = is_whole().and_then(|()| directory.describe(word, &tuple, age as u16, decided));
        // What cannot be read yet is looked at again.
        let Some(flow) = flow else { return true };
        if !put(Record::Flow { place, flow }) {
            return false;
        }
        self.words[index] = word.0;
        self.origins[index] = 0;
        self.told[index] = u32::try_from(number).unwrap_or(u32::MAX);
        scanned.flows += 1;
        true
    }
}
