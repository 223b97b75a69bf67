//! Who the other gateway is, and an ordered stream of batches to it. No I/O; `now` is the time since any fixed moment.
//!
//! Each start of a gateway has a random session number. A new session of the peer is believed once it has answered a
//! challenge that was made for it, so that nothing recorded earlier is ever taken. From then on its batches are taken
//! once each and in order; what was lost is sent again until it is acknowledged.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::wire::{ACKNOWLEDGED, Body, Datagram, Refused};

/// Batches on their way. More changes wait in the flow table.
pub const WINDOW: usize = ACKNOWLEDGED as usize;
/// A batch that is not acknowledged is sent again after this, then after twice as long, ...
const AGAIN: Duration = Duration::from_millis(200);
const AGAIN_MOST: Duration = Duration::from_secs(2);
/// A batch is missed when a later one has come and it has been under way for this long.
const OVERTAKEN: Duration = Duration::from_millis(10);
/// Between signs of life.
const HELLO: Duration = Duration::from_millis(500);
/// A peer that has been silent for so long is away.
pub const SILENT: Duration = Duration::from_secs(3);

/// A time since a moment that all times here have in common.
pub type Time = Duration;

/// What has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A new session of the peer, whose flow table has so many places: nothing that was told before counts.
    Begun { places: u32 },
    /// The next batch, and how many of ours the peer had taken when it made it.
    Batch { seen: u64, records: Vec<u8> },
}

#[derive(Debug)]
struct Sent {
    number: u64,
    seen: u64,
    records: Vec<u8>,
    first: Time,
    last: Time,
    again: Duration,
    received: bool,
}

/// One end.
#[derive(Debug)]
pub struct Session {
    own: u64,
    places: u32,
    /// The peer's session that has proved itself.
    peer: Option<u64>,
    /// A session that has yet to answer the challenge: session, challenge, when it was made.
    candidate: Option<(u64, u64, Time)>,
    random: fn() -> u64,
    heard: Option<Time>,
    next_hello: Time,
    /// Ready to be sent.
    out: VecDeque<Datagram>,
    next_number: u64,
    in_flight: VecDeque<Sent>,
    expected: u64,
    early: BTreeMap<u64, (u64, Vec<u8>)>,
    acknowledge: bool,
    /// Batches that were sent once more.
    pub resent: u64,
    /// How long the last batches were under way until they were acknowledged.
    pub delay: Duration,
}

impl Session {
    #[must_use]
    pub fn new(places: u32, random: fn() -> u64) -> Self {
        Self {
            own: random().max(1),
            places,
            peer: None,
            candidate: None,
            random,
            heard: None,
            next_hello: Duration::ZERO,
            out: VecDeque::new(),
            next_number: 1,
            in_flight: VecDeque::new(),
            expected: 1,
            early: BTreeMap::new(),
            acknowledge: false,
            resent: 0,
            delay: Duration::ZERO,
        }
    }

    #[must_use]
    pub const fn own(&self) -> u64 {
        self.own
    }

    #[must_use]
    pub const fn peer(&self) -> Option<u64> {
        self.peer
    }

    /// When the peer was heard last.
    #[must_use]
    pub const fn heard(&self) -> Option<Time> {
        self.heard
    }

    #[must_use]
    pub fn is_alive(&self, now: Time) -> bool {
        self.peer.is_some() && self.heard.is_some_and(|heard| now.saturating_sub(heard) < SILENT)
    }

    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// How long the oldest batch has been under way.
    #[must_use]
    pub fn oldest(&self, now: Time) -> Duration {
        self.in_flight.front().map_or(Duration::ZERO, |sent| now.saturating_sub(sent.first))
    }

    /// The number of the next batch.
    #[must_use]
    pub const fn next_number(&self) -> u64 {
        self.next_number
    }

    /// Whether another batch may be sent.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.peer.is_some() && self.in_flight.len() < WINDOW
    }

    /// Sends a batch; only while there is room.
    pub fn send(&mut self, now: Time, records: Vec<u8>) {
        let Some(to) = self.peer else { return };
        let number = self.next_number;
        self.next_number += 1;
        let seen = self.expected - 1;
        let body = Body::Records { number, seen, records: records.clone() };
        self.out.push_back(Datagram { from: self.own, to, body });
        let sent = Sent { number, seen, records, first: now, last: now, again: AGAIN, received: false };
        self.in_flight.push_back(sent);
    }

    /// Takes what has come.
    ///
    /// # Errors
    /// When nothing was taken of it. A batch that came before is acknowledged again all the same.
    pub fn receive(&mut self, now: Time, datagram: Datagram) -> Result<Vec<Event>, Refused> {
        let Datagram { from, to, body } = datagram;
        if let Body::Hello { challenge, answer, places } = body {
            return Ok(self.hello(now, from, to, challenge, answer, places));
        }
        if self.peer != Some(from) || to != self.own {
            // Perhaps it has begun anew, or we have.
            self.challenge(now, from);
            return Err(Refused::Session);
        }
        self.heard = Some(now);
        match body {
            Body::Records { number, seen, records } => self.batch(number, seen, records),
            Body::Acknowledgement { missing, received } => {
                self.acknowledged(now, missing, &received);
                Ok(Vec::new())
            }
            Body::Hello { .. } => Ok(Vec::new()),
        }
    }

    fn hello(
        &mut self,
        now: Time,
        from: u64,
        to: u64,
        challenge: u64,
        answer: u64,
        places: u32,
    ) -> Vec<Event> {
        let mut events = Vec::new();
        if challenge != 0 && to == self.own {
            let body = Body::Hello { challenge: 0, answer: challenge, places: self.places };
            self.out.push_back(Datagram { from: self.own, to: from, body });
        }
        if self.peer == Some(from) {
            if to == self.own {
                self.heard = Some(now);
            } else {
                // It does not know us yet.
                self.say_hello(now, from, 0);
            }
        } else if to == self.own
            && answer != 0
            && self.candidate.is_some_and(|(session, made, _)| session == from && made == answer)
        {
            self.candidate = None;
            self.begin(now, from);
            events.push(Event::Begun { places });
        } else {
            self.challenge(now, from);
        }
        events
    }

    fn begin(&mut self, now: Time, peer: u64) {
        self.peer = Some(peer);
        self.heard = Some(now);
        self.next_number = 1;
        self.in_flight.clear();
        self.expected = 1;
        self.early.clear();
        self.acknowledge = false;
        self.out.retain(|datagram| matches!(datagram.body, Body::Hello { .. }));
    }

    /// Asks a session to prove that it is there now. One at a time, so that repeated old datagrams do not keep a true one
    /// from answering.
    fn challenge(&mut self, now: Time, session: u64) {
        let challenge = match self.candidate {
            Some((candidate, challenge, _)) if candidate == session => challenge,
            Some((_, _, made)) if now.saturating_sub(made) < HELLO * 2 => return,
            _ => {
                let challenge = (self.random)().max(1);
                self.candidate = Some((session, challenge, now));
                challenge
            }
        };
        self.say_hello(now, session, challenge);
    }

    fn say_hello(&mut self, _now: Time, to: u64, challenge: u64) {
        // Answers to a flood of datagrams are few.
        let waiting = self.out.iter().filter(|datagram| matches!(datagram.body, Body::Hello { .. })).count();
        if waiting < 8 {
            let body = Body::Hello { challenge, answer: 0, places: self.places };
            self.out.push_back(Datagram { from: self.own, to, body });
        }
    }

    fn batch(&mut self, number: u64, seen: u64, records: Vec<u8>) -> Result<Vec<Event>, Refused> {
        self.acknowledge = true;
        if number < self.expected || self.early.contains_key(&number) {
            return Err(Refused::Repeated);
        }
        if number > self.expected + ACKNOWLEDGED {
            return Err(Refused::Ahead);
        }
        self.early.insert(number, (seen, records));
        let mut events = Vec::new();
        while let Some((seen, records)) = self.early.remove(&self.expected) {
            self.expected += 1;
            events.push(Event::Batch { seen, records });
        }
        Ok(events)
    }

    fn acknowledged(&mut self, now: Time, missing: u64, received: &[u8; 32]) {
        if missing > self.next_number {
            return;
        }
        while let Some(sent) = self.in_flight.front()
            && sent.number < missing
        {
            self.delay = now.saturating_sub(sent.first);
            self.in_flight.pop_front();
        }
        let mut highest = 0;
        for sent in &mut self.in_flight {
            let Some(bit) = sent.number.checked_sub(missing + 1) else { continue };
            let Some(byte) = usize::try_from(bit / 8).ok().and_then(|at| received.get(at)) else { break };
            if byte >> (bit % 8) & 1 == 1 {
                sent.received = true;
                highest = sent.number;
            }
        }
        for sent in self.in_flight.iter_mut().take_while(|sent| sent.number < highest) {
            if !sent.received && now.saturating_sub(sent.last) >= OVERTAKEN {
                sent.last = Duration::ZERO;
                sent.again = Duration::ZERO;
            }
        }
    }

    /// The next datagram to be sent.
    pub fn transmit(&mut self, now: Time) -> Option<Datagram> {
        if let Some(datagram) = self.out.pop_front() {
            return Some(datagram);
        }
        if now >= self.next_hello {
            self.next_hello = now + HELLO;
            let body = Body::Hello { challenge: 0, answer: 0, places: self.places };
            return Some(Datagram { from: self.own, to: self.peer.unwrap_or(0), body });
        }
        let to = self.peer?;
        if self.acknowledge {
            self.acknowledge = false;
            let mut received = [0u8; 32];
            for number in self.early.keys() {
                let bit = usize::try_from(number - self.expected - 1).unwrap_or(usize::MAX);
                if let Some(byte) = received.get_mut(bit / 8) {
                    *byte |= 1 << (bit % 8);
                }
            }
            let body = Body::Acknowledgement { missing: self.expected, received };
            return Some(Datagram { from: self.own, to, body });
        }
        let due = |sent: &&mut Sent| !sent.received && now >= sent.last + sent.again;
        let sent = self.in_flight.iter_mut().find(due)?;
        sent.last = now;
        sent.again = (sent.again * 2).clamp(AGAIN, AGAIN_MOST);
        self.resent += 1;
        let body = Body::Records { number: sent.number, seen: sent.seen, records: sent.records.clone() };
        Some(Datagram { from: self.own, to, body })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use proptest::prelude::*;

    use super::*;

    fn counting() -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    fn pump(now: Time, from: &mut Session, to: &mut Session) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(datagram) = from.transmit(now) {
            events.extend(to.receive(now, datagram).unwrap_or_default());
        }
        events
    }

    fn meet(now: Time, a: &mut Session, b: &mut Session) {
        for _ in 0..4 {
            pump(now, a, b);
            pump(now, b, a);
        }
        assert_eq!((a.peer(), b.peer()), (Some(b.own()), Some(a.own())));
    }

    #[test]
    fn what_was_recorded_is_not_believed() {
        let now = Duration::from_secs(1);
        let mut a = Session::new(8, counting);
        let mut old = Session::new(8, counting);
        let mut tape = Vec::new();
        for _ in 0..4 {
            while let Some(datagram) = old.transmit(now) {
                tape.push(datagram.clone());
                let _ = a.receive(now, datagram);
            }
            pump(now, &mut a, &mut old);
        }
        old.send(now, vec![2]);
        tape.extend(old.transmit(now));
        assert_eq!(a.peer(), Some(old.own()));
        let now = Duration::from_secs(20);
        let mut new = Session::new(8, counting);
        meet(now, &mut a, &mut new);
        for (second, datagram) in (21..).zip(tape.iter().chain(&tape)) {
            let now = Duration::from_secs(second);
            let events = a.receive(now, datagram.clone()).unwrap_or_default();
            assert!(events.is_empty(), "{datagram:?}");
            assert_eq!(a.peer(), Some(new.own()));
        }
        let now = Duration::from_secs(100);
        new.send(now, vec![9]);
        assert_eq!(pump(now, &mut new, &mut a), [Event::Batch { seen: 0, records: vec![9] }]);
    }

    proptest! {
        #![proptest_config(crate::cases::cases(200))]

        /// Over a network that loses, repeats and swaps, each batch comes once and in order.
        #[test]
        fn batches_come_once_and_in_order(fates in prop::collection::vec(0u8..6, 1..400), count in 1u8..200) {
            let mut a = Session::new(8, counting);
            let mut b = Session::new(8, counting);
            meet(Duration::from_secs(1), &mut a, &mut b);
            let mut fates = fates.into_iter();
            let mut come = Vec::new();
            let mut held: Option<Datagram> = None;
            let mut sent = 0;
            for step in 0..3000u64 {
                let now = Duration::from_secs(2) + Duration::from_millis(step * 20);
                if sent < count && a.has_room() {
                    a.send(now, vec![sent]);
                    sent += 1;
                }
                while let Some(datagram) = a.transmit(now) {
                    let fate = fates.next().unwrap_or(5);
                    let mut arriving = Vec::new();
                    match fate {
                        0 | 1 => {}
                        2 => arriving.extend([datagram.clone(), datagram]),
                        3 => arriving.extend(held.replace(datagram)),
                        _ => arriving.extend([Some(datagram), held.take()].into_iter().flatten()),
                    }
                    for datagram in arriving {
                        come.extend(b.receive(now, datagram).unwrap_or_default());
                    }
                }
                while let Some(datagram) = b.transmit(now) {
                    if fates.next().unwrap_or(5) > 1 {
                        let _ = a.receive(now, datagram);
                    }
                }
                if sent == count && a.in_flight() == 0 {
                    break;
                }
            }
            let expected: Vec<Event> = (0..count).map(|n| Event::Batch { seen: 0, records: vec![n] }).collect();
            prop_assert_eq!(come, expected);
            prop_assert_eq!(a.in_flight(), 0);
        }
    }
}
