//! Flows of one table become flows of another one, on the same machine, while packets change both.
//!
//! The old table is a gateway that tells of its flows, and the new one is another that takes them in: which of two
//! words of a flow is right is decided as between gateways. Repeated until packets come to the new table only.

use std::collections::BTreeMap;

use super::directory::Directory;
use super::enter::{Entered, Entry};
use super::scan::Shadow;
use super::wire::Record;
use crate::dataplane::flows::{Clock, FlowTable};

/// How often a flow is tried that packets change at the very moment.
const TRIES: usize = 8;

/// What was carried over, and what was not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Flows that are new in the new table.
    pub flows: u64,
    /// Flows that were there from an earlier pass and had changed.
    pub changed: u64,
    /// Flows that have ended since an earlier pass.
    pub gone: u64,
    /// Flows that were left out, by why.
    pub left_out: BTreeMap<Entered, u64>,
}

impl Carried {
    /// Of several passes.
    pub fn add(&mut self, other: &Self) {
        self.flows += other.flows;
        self.changed += other.changed;
        self.gone += other.gone;
        for (why, count) in &other.left_out {
            *self.left_out.entry(*why).or_default() += count;
        }
    }

    /// Why flows were left out, in words; `None` when none were.
    pub fn losses(&self) -> Option<String> {
        let words = Entered::LEFT_OUT.iter().filter_map(|(why, _, what)| {
            let count = self.left_out.get(why).filter(|count| **count > 0)?;
            Some(format!("{count} {what}"))
        });
        Some(words.collect::<Vec<_>>().join(", ")).filter(|words| !words.is_empty())
    }
}

/// What both tables agree on.
#[derive(Debug)]
pub struct Transfer {
    from: Directory,
    to: Directory,
    told: Shadow,
    heard: Shadow,
}

impl Transfer {
    /// Between a table of the services and servers in `from`, with so many places, and one of those in `to`. What is one
    /// in both may have another number.
    pub fn new(from: Directory, to: Directory, from_places: u64, to_places: u64) -> Self {
        let places = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        let (told, mut heard) = (Shadow::new(places(from_places)), Shadow::new(places(to_places)));
        heard.clear(u32::try_from(from_places).unwrap_or(u32::MAX));
        Self { from, to, told, heard }
    }

    /// Carries over what is new or has changed since the last pass.
    pub fn pass(&mut self, from: &FlowTable<'_>, to: &FlowTable<'_>, clock: Clock) -> Carried {
        let Self { from: theirs, to: ours, told, heard } = self;
        let entry = Entry { table: to, directory: ours, clock, senior: true, seen: 0 };
        let mut carried = Carried::default();
        told.scan(from, theirs, clock, 1, |record| {
            match record {
                Record::Complete => {}
                Record::Gone { place } => carried.gone += u64::from(entry.gone(heard, place)),
                Record::Flow { place, flow } => {
                    let mut tries = (0..TRIES).map(|_| entry.flow(heard, place, &flow));
                    match tries.find(|entered| *entered != Entered::Busy).unwrap_or(Entered::Busy) {
                        Entered::New => carried.flows += 1,
                        Entered::Changed => carried.changed += 1,
                        // The packets of the new table know better.
                        Entered::Kept => {}
                        left_out => *carried.left_out.entry(left_out).or_default() += 1,
                    }
                }
            }
            true
        });
        carried
    }
}

#[cfg(test)]
mod tests;
