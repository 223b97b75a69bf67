//! One gateway's part over its flow table, without socket and clock.

use std::collections::BTreeMap;
use std::time::Duration;

use super::directory::Directory;
use super::enter::{Entered, Entry};
use super::key::Key;
use super::scan::{Scanned, Shadow};
use super::session::{Event, Session, Time};
use super::wire::{Datagram, LONGEST_BODY, Record, Refused};
use crate::dataplane::flows::{Clock, FlowTable};

/// Numbers since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// New and changed flows that were sent, without repetitions.
    pub flows_sent: u64,
    pub removals_sent: u64,
    pub flows_received: u64,
    pub removals_received: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub entered: BTreeMap<Entered, u64>,
    pub refused: BTreeMap<Refused, u64>,
    /// Sessions of the peer that have begun.
    pub sessions: u64,
}

/// What happened that somebody may want to hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happened {
    /// A session of the peer has begun; both tell each other everything.
    Begun,
    /// The peer has told everything.
    Received,
    /// We have told everything, and it has been acknowledged as far as it is in flight.
    Sent,
}

#[derive(Debug)]
pub struct Node {
    key: Key,
    pub session: Session,
    shadow: Shadow,
    pub counts: Counts,
    /// The peer has told everything of its present session.
    pub received_all: bool,
    pub sent_all: bool,
    /// A scan has stopped for want of room.
    pub held_back: bool,
    /// The peer's table is larger than any that is believed.
    pub last_refused: Option<Refused>,
}

/// Places of the largest flow table that can be configured.
const MOST_PLACES: u32 = 64 << 20;

impl Node {
    #[must_use]
    pub fn new(key: Key, places: usize, random: fn() -> u64) -> Self {
        let number = u32::try_from(places).unwrap_or(u32::MAX);
        Self {
            key,
            session: Session::new(number, random),
            shadow: Shadow::new(places),
            counts: Counts::default(),
            received_all: false,
            sent_all: false,
            held_back: false,
            last_refused: None,
        }
    }

    /// Takes a datagram.
    pub fn receive(
        &mut self,
        now: Time,
        bytes: &[u8],
        table: &FlowTable<'_>,
        directory: &Directory,
        clock: Clock,
    ) -> Vec<Happened> {
        self.counts.bytes_received += bytes.len() as u64;
        let events =
            Datagram::open(bytes, &self.key).and_then(|datagram| self.session.receive(now, datagram));
        let events = match events {
            Ok(events) => events,
            Err(refused) => {
                self.refuse(refused);
                return Vec::new();
            }
        };
        let mut happened = Vec::new();
        for event in events {
            match event {
                Event::Begun { places } => {
                    self.shadow.clear(places.min(MOST_PLACES));
                    (self.received_all, self.sent_all) = (false, false);
                    self.counts.sessions += 1;
                    happened.push(Happened::Begun);
                }
                Event::Batch { seen, records } => match Record::all(&records) {
                    Some(records) => {
                        let senior = self.session.peer().is_some_and(|peer| self.session.own() > peer);
                        let entry = Entry { seen, table, directory, clock, senior };
                        for record in records {
                            self.take(&entry, record, &mut happened);
                        }
                    }
                    None => self.refuse(Refused::Malformed),
                },
            }
        }
        happened
    }

    pub fn refuse(&mut self, refused: Refused) {
        *self.counts.refused.entry(refused).or_default() += 1;
        self.last_refused = Some(refused);
    }

    fn take(&mut self, entry: &Entry<'_, '_>, record: Record, happened: &mut Vec<Happened>) {
        match record {
            Record::Flow { place, flow } => {
                self.counts.flows_received += 1;
                let entered = entry.flow(&mut self.shadow, place, &flow);
                *self.counts.entered.entry(entered).or_default() += 1;
            }
            Record::Gone { place } => {
                self.counts.removals_received += 1;
                entry.gone(&mut self.shadow, place);
            }
            Record::Complete => {
                self.received_all = true;
                happened.push(Happened::Received);
            }
        }
    }

    /// Puts what differs into batches while there is room for them. True when the whole table has been looked at.
    pub fn scan(
        &mut self,
        now: Time,
        table: &FlowTable<'_>,
        directory: &Directory,
        clock: Clock,
    ) -> (bool, Vec<Happened>) {
        let mut happened = Vec::new();
        while self.session.has_room() {
            let number = self.session.next_number();
            let mut batch = Vec::with_capacity(LONGEST_BODY);
            let Scanned { flows, gone, complete } =
                self.shadow.scan(table, directory, clock, number, |record| record.put(&mut batch));
            self.counts.flows_sent += flows;
            self.counts.removals_sent += gone;
            if complete && !self.sent_all && Record::Complete.put(&mut batch) {
                self.sent_all = true;
                happened.push(Happened::Sent);
            }
            if !batch.is_empty() {
                self.session.send(now, batch);
            }
            if complete {
                self.held_back = false;
                return (true, happened);
            }
        }
        self.held_back = self.session.peer().is_some();
        (false, happened)
    }

    /// The next datagram for the peer.
    pub fn transmit(&mut self, now: Time) -> Option<Vec<u8>> {
        let bytes = self.session.transmit(now)?.seal(&self.key);
        self.counts.bytes_sent += bytes.len() as u64;
        Some(bytes)
    }

    /// Places that differ from what the peer knows.
    #[must_use]
    pub fn behind(&self, table: &FlowTable<'_>) -> u64 {
        if self.session.peer().is_none() { 0 } else { self.shadow.behind(table) }
    }

    /// How long what was sent last was, or is, under way.
    #[must_use]
    pub fn delay(&self, now: Time) -> Duration {
        self.session.oldest(now).max(self.session.delay)
    }
}

#[cfg(test)]
mod tests;
