//! Latencies in buckets, a sixteenth wide, as the programs count them.

use super::layout::{BUCKETS, bucket};

/// How many latencies were in each bucket.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS as usize] }
    }
}

impl Histogram {
    /// One latency, in nanoseconds.
    pub fn record(&mut self, nanoseconds: u64) {
        self.add(bucket(nanoseconds), 1);
    }

    /// So many latencies of one bucket; those beyond the last one are nobody's.
    pub fn add(&mut self, bucket: u32, count: u64) {
        if let Some(place) = self.counts.get_mut(bucket as usize) {
            *place += count;
        }
    }

    /// What another one has besides.
    pub fn merge(&mut self, other: &Self) {
        for (place, count) in self.counts.iter_mut().zip(&other.counts) {
            *place += count;
        }
    }

    /// What was counted since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let counts =
            self.counts.iter().zip(&earlier.counts).map(|(now, then)| now.saturating_sub(*then)).collect();
        Self { counts }
    }

    /// How many latencies there are.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The latency in nanoseconds that this share of all (0 to 1) does not exceed: the middle of its bucket. `None`: there
    /// are too few for such a share to mean anything.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let total = self.total();
        let beyond = (1.0 - share) * total as f64;
        if total == 0 || beyond < 1.0 - 1e-9 {
            return None;
        }
        let rank = (share * total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        let low = lowest(found as u32);
        Some((low + lowest(found as u32 + 1).max(low + 1) - 1) as f64 / 2.0)
    }
}

/// The least latency in a bucket.
fn lowest(bucket: u32) -> u64 {
    let (group, fine) = (bucket >> 4, u64::from(bucket & 15));
    if group == 0 { fine } else { (16 + fine) << (group - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_a_hole() {
        for number in 0..BUCKETS - 1 {
            assert_eq!(bucket(lowest(number)), number);
            assert_eq!(bucket(lowest(number + 1) - 1), number);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_within_a_sixteenth() {
        let mut histogram = Histogram::default();
        for nanoseconds in 1..=10_000 {
            histogram.record(nanoseconds);
        }
        for (share, right) in [(0.5, 5_000.0), (0.99, 9_900.0), (0.999, 9_990.0)] {
            let found = histogram.quantile(share).unwrap();
            assert!((found - right).abs() <= right / 16.0, "{found} instead of {right}");
        }
    }

    #[test]
    fn too_few_have_no_such_quantile() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        (0..100).for_each(|_| histogram.record(1000));
        assert!(histogram.quantile(0.99).is_some());
        assert_eq!(histogram.quantile(0.999), None);
    }

    #[test]
    fn what_is_new_is_told_from_what_was_there() {
        let mut before = Histogram::default();
        before.record(100);
        let mut after = before.clone();
        after.record(1_000_000);
        assert_eq!(after.since(&before).total(), 1);
        assert!(after.since(&before).quantile(0.0).unwrap() > 900_000.0);
        before.merge(&after);
        assert_eq!(before.total(), 3);
    }
}
