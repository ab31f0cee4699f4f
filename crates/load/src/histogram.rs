//! Times in buckets whose width grows with the time: exact to 1.6 % from nanoseconds to years.

use serde::{Deserialize, Serialize};

/// Each power of two has so many buckets.
const SUB_BITS: u32 = 6;
const SUBS: u64 = 1 << SUB_BITS;
const BUCKETS: usize = ((64 - SUB_BITS + 1) as usize) << SUB_BITS;

/// Counts of times in nanoseconds. Written as those that are not 0, with their places.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Sparse", into = "Sparse")]
pub struct Histogram {
    counts: Box<[u64]>,
    count: u64,
    sum: u128,
    max: u64,
}

/// What a [`Histogram`] says, in nanoseconds. All 0 if nothing was recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// How many times were recorded.
    pub count: u64,
    /// Their mean.
    pub mean: u64,
    /// Half of them took at most so long.
    pub p50: u64,
    /// 90 % of them took at most so long.
    pub p90: u64,
    /// 99 % of them took at most so long.
    pub p99: u64,
    /// The longest, exact.
    pub max: u64,
}

impl Summary {
    /// Adds what was recorded elsewhere. Where the times themselves would be needed, the worse is kept.
    pub fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.mean = self.mean.max(other.mean);
        self.p50 = self.p50.max(other.p50);
        self.p90 = self.p90.max(other.p90);
        self.p99 = self.p99.max(other.p99);
        self.max = self.max.max(other.max);
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; BUCKETS].into_boxed_slice(),
            count: 0,
            sum: 0,
            max: 0,
        }
    }
}

impl Histogram {
    /// Counts one time.
    pub fn record(&mut self, nanoseconds: u64) {
        self.counts[bucket(nanoseconds)] += 1;
        self.count += 1;
        self.sum += u128::from(nanoseconds);
        self.max = self.max.max(nanoseconds);
    }

    /// Adds what was recorded elsewhere.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.count += other.count;
        self.sum += other.sum;
        self.max = self.max.max(other.max);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.counts.fill(0);
        (self.count, self.sum, self.max) = (0, 0, 0);
    }

    /// The least time that `share` of all (0 to 1) do not exceed, to the precision of a bucket.
    #[must_use]
    pub fn quantile(&self, share: f64) -> u64 {
        let rank = (self.count as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return highest(index).min(self.max);
            }
        }
        self.max
    }

    /// The usual figures.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary {
            count: self.count,
            mean: self.sum.checked_div(u128::from(self.count)).unwrap_or(0) as u64,
            p50: self.quantile(0.5),
            p90: self.quantile(0.9),
            p99: self.quantile(0.99),
            max: self.max,
        }
    }
}

/// A [`Histogram`] as it is written.
#[derive(Serialize, Deserialize)]
struct Sparse {
    counts: Vec<(usize, u64)>,
    /// Words of 64 bits, the lower one first: not every format has numbers of 128.
    sum: [u64; 2],
    max: u64,
}

impl From<Histogram> for Sparse {
    fn from(histogram: Histogram) -> Self {
        let counts = histogram.counts.iter().copied().enumerate();
        Self {
            counts: counts.filter(|(_, count)| *count > 0).collect(),
            sum: [histogram.sum as u64, (histogram.sum >> 64) as u64],
            max: histogram.max,
        }
    }
}

impl From<Sparse> for Histogram {
    /// Places that there are not are left out.
    fn from(sparse: Sparse) -> Self {
        let [low, high] = sparse.sum.map(u128::from);
        let mut histogram = Self {
            sum: high << 64 | low,
            max: sparse.max,
            ..Self::default()
        };
        for (place, count) in sparse.counts {
            if let Some(bucket) = histogram.counts.get_mut(place) {
                *bucket += count;
                histogram.count += count;
            }
        }
        histogram
    }
}

/// Times below 64 have a bucket each.
fn bucket(time: u64) -> usize {
    if time < SUBS {
        return time as usize;
    }
    let shift = time.ilog2() - SUB_BITS;
    let sub = (time >> shift) - SUBS;
    ((u64::from(shift + 1) << SUB_BITS) + sub) as usize
}

/// The longest time that belongs into a bucket.
fn highest(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < SUBS {
        return bucket;
    }
    let shift = (bucket >> SUB_BITS) - 1;
    let sub = (bucket & (SUBS - 1)) + SUBS;
    // In this order, for the last bucket ends at the last u64.
    (sub << shift) + ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_within_its_bucket_and_buckets_are_narrow() {
        let mut times: Vec<u64> = (0..64).flat_map(|bit| [1 << bit, (1 << bit) | 5]).collect();
        times.extend([0, 63, 64, 65, 127, 128, 1_000_000, u64::MAX]);
        for time in times {
            let bucket = bucket(time);
            let high = highest(bucket);
            assert!(high >= time, "{time}");
            assert!(bucket == 0 || highest(bucket - 1) < time, "{time}");
            assert!((high - time) as f64 <= time as f64 / 64.0, "{time}");
        }
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_times() {
        let mut histogram = Histogram::default();
        (1..=1000)
            .rev()
            .for_each(|time| histogram.record(time * 1000));
        let summary = histogram.summary();
        for (got, exact) in [
            (summary.p50, 500_000),
            (summary.p90, 900_000),
            (summary.p99, 990_000),
        ] {
            assert!(got >= exact && got as f64 <= exact as f64 * 1.016, "{got}");
        }
        assert_eq!((summary.count, summary.max), (1000, 1_000_000));
        assert_eq!(summary.mean, 500_500);
    }

    #[test]
    fn of_two_summaries_the_worse_counts() {
        let mut histogram = Histogram::default();
        (1..=10).for_each(|time| histogram.record(time));
        let mut sum = histogram.summary();
        histogram.record(60);
        sum.add(&histogram.summary());
        assert_eq!((sum.count, sum.p50, sum.max), (21, 6, 60));
    }

    #[test]
    fn two_are_one_when_added_whatever_they_were_written_as() {
        let (mut all, mut one, mut other) = <(Histogram, Histogram, Histogram)>::default();
        for time in (0..2000).map(|n| n * n * n) {
            all.record(time);
            if time % 3 == 0 { &mut one } else { &mut other }.record(time);
        }
        let written = serde_json::to_string(&other).unwrap();
        one.add(&serde_json::from_str(&written).unwrap());
        assert_eq!(one, all);
    }

    #[test]
    fn nothing_recorded_is_nothing_said() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.summary(), Summary::default());
        histogram.record(7);
        histogram.clear();
        assert_eq!(histogram.summary(), Summary::default());
    }
}
