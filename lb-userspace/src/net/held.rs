//! Fragments that came before the first one of their datagram: which to offer to the program again, and when.
//!
//! The program hands such a fragment to the daemon, which runs the program on it once more. While the first one is
//! still unknown the program hands it back; that is recognised by its bytes, and the fragment waits on. Time comes from
//! the caller.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long a fragment waits for the first one.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is offered.
pub const INTERVAL: Duration = Duration::from_millis(5);
/// How many wait at most.
const MAX_FRAMES: usize = 1024;
/// Their bytes together.
const MAX_BYTES: usize = 2 << 20;

/// A frame, and the index of the interface that it came in on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub ingress: u32,
    pub bytes: Box<[u8]>,
}

#[derive(Debug)]
struct Waiting {
    frame: Frame,
    since: Instant,
    /// Offered to the program, which has not handed it back so far.
    offered: Option<Instant>,
}

/// What became of fragments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The program took them.
    pub followed: u64,
    /// The first one did not come in time.
    pub expired: u64,
    /// Newer ones needed the room.
    pub displaced: u64,
}

/// The fragments that wait, the oldest first.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    counts: Counts,
}

impl Queue {
    /// Takes in a frame that the program handed over: a new one, or one that it was offered.
    pub fn hand_in(&mut self, frame: Frame, now: Instant) {
        if let Some(known) =
            self.waiting.iter_mut().find(|waiting| waiting.offered.is_some() && waiting.frame == frame)
        {
            known.offered = None;
            return;
        }
        if frame.bytes.len() > MAX_BYTES {
            self.counts.displaced += 1;
            return;
        }
        self.bytes += frame.bytes.len();
        self.waiting.push_back(Waiting { frame, since: now, offered: None });
        while self.waiting.len() > MAX_FRAMES || self.bytes > MAX_BYTES {
            self.counts.displaced += u64::from(self.remove(0));
        }
    }

    /// The frames to run through the program now. To be called every [`INTERVAL`], after all that the program handed
    /// over has been handed in: what it was offered before and did not hand back, it has taken.
    pub fn offer(&mut self, now: Instant) -> Vec<Frame> {
        let mut place = 0;
        let mut offers = Vec::new();
        while let Some(waiting) = self.waiting.get_mut(place) {
            if waiting.offered.is_some_and(|at| now.saturating_duration_since(at) >= INTERVAL) {
                self.counts.followed += u64::from(self.remove(place));
            } else if waiting.offered.is_none() && now.saturating_duration_since(waiting.since) >= PATIENCE {
                self.counts.expired += u64::from(self.remove(place));
            } else {
                if waiting.offered.is_none() {
                    waiting.offered = Some(now);
                    offers.push(waiting.frame.clone());
                }
                place += 1;
            }
        }
        offers
    }

    /// Whether there is nothing to offer or to wait for.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub const fn counts(&self) -> Counts {
        self.counts
    }

    fn remove(&mut self, place: usize) -> bool {
        let removed = self.waiting.remove(place);
        self.bytes -= removed.as_ref().map_or(0, |waiting| waiting.frame.bytes.len());
        removed.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(mark: u16, len: usize) -> Frame {
        let mut bytes = vec![0; len];
        bytes[..2].copy_from_slice(&mark.to_be_bytes());
        Frame { ingress: 3, bytes: bytes.into() }
    }

    #[test]
    fn a_fragment_is_offered_until_it_does_not_come_back() {
        let (mut queue, mut now) = (Queue::default(), Instant::now());
        queue.hand_in(frame(1, 60), now);
        for _ in 0..3 {
            assert_eq!(queue.offer(now), [frame(1, 60)]);
            queue.hand_in(frame(1, 60), now);
            assert_eq!(queue.waiting.len(), 1, "it does not multiply");
            now += INTERVAL;
        }
        assert_eq!(queue.offer(now), [frame(1, 60)]);
        now += INTERVAL;
        assert_eq!(queue.offer(now), []);
        assert!(queue.is_empty());
        assert_eq!((queue.counts(), queue.bytes), (Counts { followed: 1, ..Counts::default() }, 0));
    }

    #[test]
    fn patience_ends() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        let mut now = start;
        queue.hand_in(frame(1, 60), now);
        while now < start + PATIENCE {
            assert_eq!(queue.offer(now).len(), 1);
            queue.hand_in(frame(1, 60), now);
            now += INTERVAL;
        }
        assert_eq!(queue.offer(now), []);
        assert_eq!(queue.counts(), Counts { expired: 1, ..Counts::default() });
    }

    #[test]
    fn the_oldest_make_room() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for mark in 0..1025 {
            queue.hand_in(frame(mark, 60), now);
        }
        assert_eq!((queue.waiting.len(), queue.counts().displaced), (1024, 1));
        assert_eq!(queue.offer(now)[0], frame(1, 60));

        let mut queue = Queue::default();
        for mark in 0..5 {
            queue.hand_in(frame(mark, 512 << 10), now);
        }
        assert_eq!((queue.bytes, queue.counts().displaced), (MAX_BYTES, 1));
        assert_eq!(queue.offer(now)[0], frame(1, 512 << 10));
    }

    #[test]
    fn equal_fragments_are_kept_apart() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.hand_in(frame(1, 60), now);
        queue.hand_in(frame(1, 60), now);
        assert_eq!(queue.offer(now).len(), 2);
        queue.hand_in(frame(1, 60), now);
        assert_eq!(queue.offer(now + INTERVAL).len(), 1);
        assert_eq!(queue.counts().followed, 1);
    }
}
