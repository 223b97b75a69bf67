//! When each target is checked. Pure: the time is an argument.
//!
//! Every target has a grid of *slots*, one per interval, at a phase of its own; each slot is moved by chance to
//! either side, by up to 5 % of the interval unless told otherwise. So two starts are apart by the interval, give or
//! take 10 %, checks of thousands of targets spread evenly however they were added, and gateways or targets that happen to be in
//! step do not stay in step. The first check does not wait for a slot: it is due at once.
//!
//! A target whose check runs is not due. If it runs past the next slot, the target is due as soon as it is
//! finished. Slots missed because the clock was looked at late are skipped, not made up for.
//!
//! The interval of a target may change. Its slots then continue from the last one, so that targets which change
//! together, as when a whole network goes down, stay apart.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// Names a target within one [`Schedule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetId(pub u64);

/// The shortest interval; a shorter one is taken as this.
pub const MIN_INTERVAL: Duration = Duration::from_millis(1);
/// The longest interval; a longer one is taken as this.
pub const MAX_INTERVAL: Duration = Duration::from_secs(7 * 24 * 3600);

/// How often a target is checked, and how regularly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    pub interval: Duration,
    /// A slot is moved by less than so many percent of the interval, to either side. At most 25, or two checks could
    /// follow each other at once.
    pub jitter: u8,
}

/// With the usual jitter.
impl From<Duration> for Pace {
    fn from(interval: Duration) -> Self {
        Self { interval, jitter: 5 }
    }
}

const MOST_JITTER: u8 = 25;

/// The queue of all targets. Each operation on a target costs O(log n).
#[derive(Clone, Debug)]
pub struct Schedule {
    seed: u64,
    entries: HashMap<TargetId, Entry>,
    /// The targets that are not running, by the time they are due.
    queue: BTreeSet<(Instant, TargetId)>,
}

#[derive(Clone, Debug)]
struct Entry {
    interval: Duration,
    /// Percent.
    jitter: u8,
    /// When it was added.
    added: Instant,
    /// The latest start, by a slot or a poll.
    started: Instant,
    /// The slot of the latest start by one, before jitter; `None` before the first.
    used: Option<Instant>,
    /// The slot that comes next, before jitter.
    slot: Instant,
    /// The same with jitter; for a new target, when it was added.
    next: Instant,
    /// Counts slots, for the jitter.
    round: u64,
    running: bool,
}

impl Schedule {
    /// `seed` decides the phases and the jitter: two schedules of one seed behave alike.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed, entries: HashMap::new(), queue: BTreeSet::new() }
    }

    /// Adds a target, due at `now`. A target already there keeps its schedule; then this returns false.
    pub fn add(&mut self, id: TargetId, pace: impl Into<Pace>, now: Instant) -> bool {
        if self.entries.contains_key(&id) {
            return false;
        }
        let Pace { interval, jitter } = pace.into();
        let (interval, jitter) = (interval.clamp(MIN_INTERVAL, MAX_INTERVAL), jitter.min(MOST_JITTER));
        // The first slot comes before a whole interval has passed: this is what spreads the targets.
        let slot = now + below(interval, hash(self.seed, id, 0));
        let times = Entry {
            interval,
            jitter,
            added: now,
            started: now,
            used: None,
            slot,
            next: now,
            round: 0,
            running: false,
        };
        self.entries.insert(id, times);
        self.queue.insert((now, id));
        true
    }

    /// Checks a target at another interval from `now` on, counted from its last slot. Nothing happens if it is gone or
    /// has this interval already.
    pub fn set_interval(&mut self, id: TargetId, interval: Duration, now: Instant) {
        let interval = interval.clamp(MIN_INTERVAL, MAX_INTERVAL);
        let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.interval != interval) else {
            return;
        };
        let before = entry.next;
        entry.change(interval, self.seed, id, now);
        if !entry.running {
            self.queue.remove(&(before, id));
            self.queue.insert((entry.next, id));
        }
    }

    /// Forgets a target, running or not. Returns whether it was there.
    pub fn remove(&mut self, id: TargetId) -> bool {
        match self.entries.remove(&id) {
            Some(entry) => {
                self.queue.remove(&(entry.next, id));
                true
            }
            None => false,
        }
    }

    /// The targets whose check starts at `now`, in the order they became due. They are running from here on,
    /// until [`Schedule::finished`].
    pub fn due(&mut self, now: Instant) -> Vec<TargetId> {
        let mut due = Vec::new();
        while let Some(&(next, id)) = self.queue.first()
            && next <= now
        {
            self.queue.pop_first();
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.running = true;
                entry.advance(self.seed, id, now);
                due.push(id);
            }
        }
        due
    }

    /// Starts the check of every target that is not running, as [`Schedule::due`] does, but the slots stay
    /// where they are.
    pub fn poll_all(&mut self, now: Instant) -> Vec<TargetId> {
        // What is due anyway uses up its slot, so that it is not checked twice.
        let mut started = self.due(now);
        for (_, id) in std::mem::take(&mut self.queue) {
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.running = true;
                entry.started = now;
                started.push(id);
            }
        }
        started
    }

    /// The check of `id` is over. Nothing happens if it was not running or the target is gone.
    pub fn finished(&mut self, id: TargetId) {
        if let Some(entry) = self.entries.get_mut(&id)
            && entry.running
        {
            entry.running = false;
            self.queue.insert((entry.next, id));
        }
    }

    /// When [`Schedule::due`] has something next; `None` while every target is running.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.queue.first().map(|&(next, _)| next)
    }

    /// Whether a check of `id` runs.
    #[must_use]
    pub fn is_running(&self, id: TargetId) -> bool {
        self.entries.get(&id).is_some_and(|entry| entry.running)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl Entry {
    /// Moves on to the slot after a start at `now`.
    fn advance(&mut self, seed: u64, id: TargetId, now: Instant) {
        self.started = now;
        if self.round > 0 {
            self.used = Some(self.slot);
            self.slot += self.interval;
        }
        self.round += 1;
        // After a start that was late by more than half an interval the next slot would follow too soon. The
        // first slot of a new target may follow soon, to spread the targets.
        let earliest = if self.round == 1 { now } else { now + self.interval / 2 };
        self.settle(earliest, seed, id, now);
    }

    /// Continues at another interval.
    fn change(&mut self, interval: Duration, seed: u64, id: TargetId, now: Instant) {
        self.interval = interval;
        let earliest = match self.used {
            Some(used) => {
                self.slot = used + interval;
                now.max(self.started + interval / 2)
            }
            // As for a new target.
            None => {
                self.slot = self.added + below(interval, hash(seed, id, 0));
                now
            }
        };
        self.settle(earliest, seed, id, now);
    }

    /// Skips the slots before `earliest`, and applies the jitter.
    fn settle(&mut self, earliest: Instant, seed: u64, id: TargetId, now: Instant) {
        let late = earliest.saturating_duration_since(self.slot);
        if !late.is_zero() {
            let interval = self.interval.as_nanos();
            let past = u64::try_from(late.as_nanos() % interval).unwrap_or(0);
            self.slot = earliest - Duration::from_nanos(past);
            if past > 0 {
                self.slot += self.interval;
            }
        }
        let width = self.interval * u32::from(self.jitter) / 100;
        let jittered = self.slot + below(width * 2, hash(seed, id, self.round));
        // On a machine that has just started, `Instant` may not reach back far enough; then no jitter.
        self.next = jittered.checked_sub(width).unwrap_or(self.slot).max(now);
    }
}

/// A duration below `limit`, picked by `hash`.
fn below(limit: Duration, hash: u64) -> Duration {
    let nanos = (limit.as_nanos() * u128::from(hash)) >> 64;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

fn hash(seed: u64, id: TargetId, round: u64) -> u64 {
    mix(mix(mix(seed) ^ id.0) ^ round)
}

/// The output function of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators,
/// OOPSLA 2014). Counters in, uniform bits out.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn ms(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    #[test]
    fn the_first_check_is_due_at_once() {
        let now = Instant::now();
        let mut schedule = Schedule::new(1);
        assert!(schedule.next_deadline().is_none());
        assert!(schedule.add(TargetId(7), SECOND, now));
        assert!(!schedule.add(TargetId(7), SECOND, now));
        assert_eq!(schedule.next_deadline(), Some(now));
        assert_eq!(schedule.due(now), [TargetId(7)]);
        assert!(schedule.is_running(TargetId(7)));
        assert_eq!(schedule.next_deadline(), None);
        assert_eq!(schedule.due(now + SECOND), []);
        schedule.finished(TargetId(7));
        assert!(schedule.next_deadline().unwrap() <= now + SECOND + ms(50));
    }

    #[test]
    fn what_is_removed_is_never_due() {
        let now = Instant::now();
        let mut schedule = Schedule::new(1);
        schedule.add(TargetId(1), SECOND, now);
        schedule.add(TargetId(2), SECOND, now);
        assert!(schedule.remove(TargetId(1)));
        assert!(!schedule.remove(TargetId(1)));
        assert_eq!(schedule.due(now), [TargetId(2)]);
        // Also while it runs.
        assert!(schedule.remove(TargetId(2)));
        schedule.finished(TargetId(2));
        assert!(schedule.is_empty());
        assert_eq!(schedule.next_deadline(), None);
        assert_eq!(schedule.due(now + SECOND * 100), []);
    }

    #[test]
    fn a_second_report_of_the_end_changes_nothing() {
        let now = Instant::now();
        let mut schedule = Schedule::new(1);
        schedule.add(TargetId(1), SECOND, now);
        schedule.due(now);
        schedule.finished(TargetId(1));
        let deadline = schedule.next_deadline();
        schedule.finished(TargetId(1));
        schedule.finished(TargetId(2));
        assert_eq!(schedule.next_deadline(), deadline);
        assert_eq!(schedule.len(), 1);
    }

    #[test]
    fn poll_starts_everything_that_is_idle_and_keeps_the_slots() {
        let now = Instant::now();
        let mut schedule = Schedule::new(3);
        for id in 0..10 {
            schedule.add(TargetId(id), SECOND * 10, now);
        }
        schedule.due(now);
        for id in 0..9 {
            schedule.finished(TargetId(id));
        }
        let deadline = schedule.next_deadline();
        let mut polled = schedule.poll_all(now + ms(1));
        polled.sort();
        assert_eq!(polled, (0..9).map(TargetId).collect::<Vec<_>>());
        assert_eq!(schedule.poll_all(now + ms(1)), []);
        for id in polled {
            schedule.finished(id);
        }
        assert_eq!(schedule.next_deadline(), deadline);
    }

    #[test]
    fn a_poll_of_new_targets_is_their_first_check() {
        let now = Instant::now();
        let mut schedule = Schedule::new(3);
        schedule.add(TargetId(1), SECOND, now);
        assert_eq!(schedule.poll_all(now), [TargetId(1)]);
        schedule.finished(TargetId(1));
        assert_eq!(schedule.due(now), []);
    }

    #[test]
    fn a_late_look_starts_each_target_once() {
        let now = Instant::now();
        let mut schedule = Schedule::new(5);
        for id in 0..100 {
            schedule.add(TargetId(id), SECOND, now);
        }
        let mut start = |at| {
            let due = schedule.due(at);
            for &id in &due {
                schedule.finished(id);
            }
            due.len()
        };
        assert_eq!(start(now), 100);
        let woken = now + SECOND * 3600;
        assert_eq!(start(woken), 100);
        assert_eq!(start(woken), 0);
        // And not again for some time.
        assert_eq!(start(woken + ms(400)), 0);
        assert_eq!(start(woken + ms(1600)), 100);
    }

    #[test]
    fn a_check_that_ran_past_its_slot_is_followed_by_the_next_at_once() {
        let now = Instant::now();
        let mut schedule = Schedule::new(5);
        schedule.add(TargetId(1), SECOND, now);
        schedule.due(now);
        let end = now + SECOND * 5;
        assert_eq!(schedule.due(end), []);
        schedule.finished(TargetId(1));
        assert_eq!(schedule.due(end), [TargetId(1)]);
        schedule.finished(TargetId(1));
        assert_eq!(schedule.due(end + ms(400)), []);
    }

    #[test]
    fn thousands_of_targets_spread_over_the_interval() {
        const TARGETS: u64 = 5000;
        const BUCKETS: usize = 50;
        let now = Instant::now();
        let mut schedule = Schedule::new(42);
        for id in 0..TARGETS {
            schedule.add(TargetId(id), SECOND, now);
        }
        assert_eq!(schedule.due(now).len(), 5000);
        (0..TARGETS).for_each(|id| schedule.finished(TargetId(id)));

        let mut buckets = [0_usize; BUCKETS];
        let mut at = now;
        // Ten intervals, looked at every millisecond.
        for tick in 0..10_000_usize {
            at += ms(1);
            for id in schedule.due(at) {
                buckets[tick % 1000 / (1000 / BUCKETS)] += 1;
                schedule.finished(id);
            }
        }
        let mean = buckets.iter().sum::<usize>() / BUCKETS;
        assert!((980..=1020).contains(&mean), "{mean}");
        for count in buckets {
            assert!((mean * 7 / 10..=mean * 13 / 10).contains(&count), "{buckets:?}");
        }
    }

    /// Starts of `ids` until `end`, looked at every millisecond, with checks that take no time.
    fn run(schedule: &mut Schedule, from: Instant, end: Instant) -> BTreeMap<TargetId, Vec<Instant>> {
        let mut starts: BTreeMap<TargetId, Vec<Instant>> = BTreeMap::new();
        let mut at = from;
        while at < end {
            for id in schedule.due(at) {
                starts.entry(id).or_default().push(at);
                schedule.finished(id);
            }
            at += ms(1);
        }
        starts
    }

    #[test]
    fn another_interval_counts_from_the_last_slot() {
        let now = Instant::now();
        let mut schedule = Schedule::new(9);
        let id = TargetId(1);
        schedule.add(id, Pace { interval: SECOND * 10, jitter: 0 }, now);
        let starts = run(&mut schedule, now, now + SECOND * 25);
        let last = *starts[&id].last().unwrap();
        schedule.set_interval(id, SECOND, now + SECOND * 25);
        let starts = run(&mut schedule, now + SECOND * 25, now + SECOND * 35);
        assert!(starts[&id].windows(2).all(|pair| pair[1] - pair[0] == SECOND), "{starts:?}");
        assert_eq!((starts[&id][0] - last).subsec_millis(), 0, "on the grid of the last slot");
        assert_eq!(starts[&id].len(), 10);
        let last = *starts[&id].last().unwrap();
        schedule.set_interval(id, SECOND * 10, now + SECOND * 35);
        let starts = run(&mut schedule, now + SECOND * 35, now + SECOND * 60);
        assert_eq!(starts[&id].iter().map(|at| *at - last).collect::<Vec<_>>(), [SECOND * 10, SECOND * 20]);
    }

    #[test]
    fn an_interval_that_changes_during_a_check_holds_from_then_on() {
        let now = Instant::now();
        let mut schedule = Schedule::new(9);
        let id = TargetId(1);
        schedule.add(id, Pace { interval: SECOND * 10, jitter: 0 }, now);
        run(&mut schedule, now, now + SECOND * 11);
        let start = schedule.next_deadline().unwrap();
        assert_eq!(schedule.due(start), [id]);
        schedule.set_interval(id, SECOND, start + ms(100));
        assert_eq!(schedule.next_deadline(), None, "it runs");
        schedule.finished(id);
        assert_eq!(schedule.next_deadline(), Some(start + SECOND));
        schedule.set_interval(TargetId(2), SECOND, now);
    }

    #[test]
    fn targets_that_change_together_stay_apart() {
        let now = Instant::now();
        let mut schedule = Schedule::new(42);
        for id in 0..1000 {
            schedule.add(TargetId(id), SECOND * 10, now);
        }
        // All at once: new ones, and later polled ones.
        for (interval, at) in [(SECOND * 2, now), (SECOND, now + SECOND * 5)] {
            run(&mut schedule, at, at + ms(1));
            schedule.poll_all(at + ms(1));
            for id in 0..1000 {
                schedule.finished(TargetId(id));
                schedule.set_interval(TargetId(id), interval, at + ms(1));
            }
            let starts = run(&mut schedule, at + ms(2), at + SECOND * 3);
            let mut per_tenth = BTreeMap::<_, usize>::new();
            for start in starts.values().flatten() {
                *per_tenth.entry((*start - at).as_millis() / 100).or_default() += 1;
            }
            let most = per_tenth.values().max().unwrap();
            let expected = usize::try_from(100_000 / interval.as_millis()).unwrap();
            assert!(*most <= expected * 2, "{interval:?}: {per_tenth:?}");
        }
    }

    #[test]
    fn jitter_is_as_told() {
        let now = Instant::now();
        for (jitter, least, most) in [(0, 1000, 1000), (25, 500, 1500)] {
            let mut schedule = Schedule::new(4);
            schedule.add(TargetId(1), Pace { interval: SECOND, jitter }, now);
            let starts = run(&mut schedule, now, now + SECOND * 200);
            let gaps: Vec<u128> =
                starts[&TargetId(1)][1..].windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
            assert!(gaps.iter().all(|gap| (least..=most).contains(gap)), "{gaps:?}");
            assert!((196..=204).contains(&gaps.len()), "{}", gaps.len());
            let spread = gaps.iter().max().unwrap() - gaps.iter().min().unwrap();
            assert!(spread >= u128::from(jitter) * 20, "{jitter}: {spread}");
        }
    }

    #[test]
    fn seeds_differ_and_equal_seeds_agree() {
        let now = Instant::now();
        let second_start = |seed| {
            let mut schedule = Schedule::new(seed);
            schedule.add(TargetId(0), SECOND, now);
            schedule.due(now);
            schedule.finished(TargetId(0));
            schedule.next_deadline().unwrap()
        };
        assert_eq!(second_start(1), second_start(1));
        assert_ne!(second_start(1), second_start(2));
    }

    #[test]
    fn absurd_intervals_do_no_harm() {
        let now = Instant::now();
        let mut schedule = Schedule::new(1);
        schedule.add(TargetId(0), Duration::ZERO, now);
        schedule.add(TargetId(1), Duration::MAX, now);
        assert_eq!(schedule.due(now).len(), 2);
        schedule.finished(TargetId(0));
        schedule.finished(TargetId(1));
        assert!(schedule.next_deadline().unwrap() < now + ms(2));
    }

    proptest! {
        #![proptest_config(crate::cases::cases(64))]

        /// With checks that take less than the interval and a clock looked at now and then: every target is
        /// started once per interval, give or take the jitter and how late the look was; it never runs twice
        /// at a time; and starts are never closer than the jitter and the lateness explain.
        #[test]
        fn every_target_is_checked_each_interval(
            seed in any::<u64>(),
            intervals in prop::collection::vec(100_u64..2000, 1..12),
            // How long checks take, in percent of the interval, and the clock's steps.
            percents in prop::collection::vec(0_u64..90, 1..20),
            steps in prop::collection::vec(1_u64..30, 1..20),
        ) {
            let begin = Instant::now();
            let mut schedule = Schedule::new(seed);
            for (id, &interval) in intervals.iter().enumerate() {
                schedule.add(TargetId(id as u64), ms(interval), begin);
            }
            let max_step = ms(*steps.iter().max().unwrap());
            let mut now = begin;
            let mut starts: BTreeMap<TargetId, Vec<Instant>> = BTreeMap::new();
            let mut running: BTreeMap<TargetId, Instant> = BTreeMap::new();
            let mut checks = percents.iter().cycle();
            let mut steps = steps.iter().cycle();
            while now < begin + SECOND * 20 {
                running.retain(|&id, &mut end| {
                    if end <= now {
                        schedule.finished(id);
                    }
                    end > now
                });
                for id in schedule.due(now) {
                    let interval = intervals[usize::try_from(id.0).unwrap()];
                    let end = now + ms(interval * checks.next().unwrap() / 100);
                    prop_assert!(running.insert(id, end).is_none(), "two at a time");
                    starts.entry(id).or_default().push(now);
                }
                now += ms(*steps.next().unwrap());
            }
            for (id, starts) in starts {
                let interval = ms(intervals[usize::try_from(id.0).unwrap()]);
                prop_assert_eq!(starts[0], begin);
                // The second start follows the first early, to spread the targets.
                prop_assert!(starts[1] - starts[0] <= interval * 11 / 10 + max_step);
                let mut since_slot = Duration::ZERO;
                for (index, pair) in starts.windows(2).enumerate() {
                    let gap = pair[1] - pair[0];
                    // If the first check ran past the first slot, the second start was late.
                    let longest = if index == 1 { interval * 16 / 10 } else { interval * 11 / 10 };
                    prop_assert!(gap <= longest + max_step, "{:?} of {:?}", gap, interval);
                    if index > 1 {
                        prop_assert!(gap + max_step >= interval * 4 / 10, "{:?} of {:?}", gap, interval);
                        since_slot += gap;
                    }
                }
                // The grid does not drift: on average, exactly one start per interval.
                let counted = u32::try_from(starts.len().saturating_sub(3)).unwrap();
                let slack = interval * 2 + max_step;
                prop_assert!(since_slot <= interval * counted + slack);
                prop_assert!(since_slot + slack >= interval * counted);
            }
        }
    }
}
