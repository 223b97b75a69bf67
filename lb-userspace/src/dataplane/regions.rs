//! Where tables stand in the `TABLES` map: ranges of slots, taken and given back.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long a range that was given back may still be read: far longer than a program runs.
const QUARANTINE: Duration = Duration::from_millis(100);

/// Ranges of slots.
#[derive(Debug)]
pub struct Regions {
    /// Free ranges: offset to length. Neighbours are merged.
    free: BTreeMap<u32, u32>,
    /// Given back, and when.
    resting: Vec<(Instant, u32, u32)>,
}

impl Regions {
    /// All of `capacity` slots are free.
    pub fn new(capacity: u32) -> Self {
        Self { free: BTreeMap::from([(0, capacity)]), resting: Vec::new() }
    }

    /// Takes the first range of `size` slots that is free. When there is none, says how long to wait for one that may
    /// become free; `None` when waiting will not help.
    pub fn take(&mut self, size: u32, now: Instant) -> Result<u32, Option<Duration>> {
        // Offsets stay even: an element of the map holds two slots, and each belongs to one table only.
        let size = size.next_multiple_of(2);
        self.wake(now);
        let Some((&offset, &len)) = self.free.iter().find(|(_, len)| **len >= size) else {
            let first = self.resting.iter().map(|(since, _, _)| *since).min();
            return Err(first.map(|since| (since + QUARANTINE).saturating_duration_since(now)));
        };
        self.free.remove(&offset);
        if len > size {
            self.free.insert(offset + size, len - size);
        }
        Ok(offset)
    }

    /// Takes a range that is known to be in use. False when it is not free.
    pub fn claim(&mut self, offset: u32, size: u32) -> bool {
        let size = size.next_multiple_of(2);
        let Some((&start, &len)) = self.free.range(..=offset).next_back() else { return false };
        if u64::from(start) + u64::from(len) < u64::from(offset) + u64::from(size) {
            return false;
        }
        self.free.remove(&start);
        if offset > start {
            self.free.insert(start, offset - start);
        }
        let end = offset + size;
        if start + len > end {
            self.free.insert(end, start + len - end);
        }
        true
    }

    /// Gives a range back; it rests before it is taken again.
    pub fn give(&mut self, offset: u32, size: u32, now: Instant) {
        self.resting.push((now, offset, size.next_multiple_of(2)));
    }

    fn wake(&mut self, now: Instant) {
        let (awake, resting) = self
            .resting
            .drain(..)
            .partition(|(since, _, _)| now.saturating_duration_since(*since) >= QUARANTINE);
        self.resting = resting;
        let awake: Vec<(Instant, u32, u32)> = awake;
        for (_, offset, size) in awake {
            self.release(offset, size);
        }
    }

    fn release(&mut self, mut offset: u32, mut size: u32) {
        if let Some((&before, &len)) = self.free.range(..offset).next_back()
            && before + len == offset
        {
            self.free.remove(&before);
            offset = before;
            size += len;
        }
        if let Some(len) = self.free.remove(&(offset + size)) {
            size += len;
        }
        self.free.insert(offset, size);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_range_rests_before_it_is_taken_again() {
        let start = Instant::now();
        let mut regions = Regions::new(100);
        let first = regions.take(60, start).unwrap();
        regions.give(first, 60, start);
        assert_eq!(regions.take(60, start), Err(Some(QUARANTINE)));
        assert_eq!(regions.take(60, start + QUARANTINE), Ok(first));
        assert_eq!(regions.take(60, start + QUARANTINE), Err(None));
    }

    #[test]
    fn a_claimed_range_is_not_handed_out() {
        let mut regions = Regions::new(100);
        assert!(regions.claim(20, 30));
        assert!(!regions.claim(40, 10));
        assert!(!regions.claim(90, 20));
        assert_eq!(regions.take(40, Instant::now()), Ok(50));
        assert_eq!(regions.take(20, Instant::now()), Ok(0));
    }

    proptest! {
        #[test]
        fn ranges_never_overlap_and_nothing_is_lost(steps in prop::collection::vec((any::<bool>(), 1u32..40), 1..80)) {
            let mut now = Instant::now();
            let mut regions = Regions::new(200);
            let mut taken: Vec<(u32, u32)> = Vec::new();
            for (take, size) in steps {
                now += QUARANTINE;
                if take {
                    if let Ok(offset) = regions.take(size, now) {
                        let size = size.next_multiple_of(2);
                        prop_assert!(offset + size <= 200);
                        prop_assert!(taken.iter().all(|(o, s)| offset + size <= *o || o + s <= offset));
                        taken.push((offset, size));
                    }
                } else if !taken.is_empty() {
                    let (offset, given) = taken.swap_remove(size as usize % taken.len());
                    regions.give(offset, given, now);
                }
            }
            for (offset, size) in taken {
                regions.give(offset, size, now);
            }
            prop_assert_eq!(regions.take(200, now + QUARANTINE), Ok(0));
        }
    }
}
