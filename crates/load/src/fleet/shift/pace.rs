//! Events at a rate, evenly spread. One that is late comes at once, and delays none after it.

use std::time::Duration;

/// So many each second, none if 0.
#[derive(Debug)]
pub(super) struct Pace {
    per_second: f64,
    done: u64,
}

impl Pace {
    pub(super) const fn new(per_second: f64) -> Self {
        Self {
            per_second,
            done: 0,
        }
    }

    /// The number of the next one that is due, if one is.
    pub(super) fn due(&mut self, since: Duration) -> Option<u64> {
        let due = since.as_secs_f64() * self.per_second;
        ((self.done as f64) < due).then(|| {
            self.done += 1;
            self.done - 1
        })
    }

    /// When the next one is due, after the start.
    pub(super) fn next(&self) -> Option<Duration> {
        (self.per_second > 0.0).then(|| Duration::from_secs_f64(self.done as f64 / self.per_second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_due_comes_and_nothing_else() {
        let mut pace = Pace::new(4.0);
        let at = |millis| Duration::from_millis(millis);
        assert_eq!(pace.due(at(0)), None);
        assert_eq!(pace.due(at(1)), Some(0));
        assert_eq!(pace.due(at(1)), None);
        assert_eq!(pace.next(), Some(at(250)));
        assert_eq!(pace.due(at(800)), Some(1));
        assert_eq!(pace.due(at(800)), Some(2));
        assert_eq!(pace.due(at(800)), Some(3));
        assert_eq!(pace.due(at(800)), None);
    }

    #[test]
    fn a_rate_of_nothing_is_never_due() {
        let mut pace = Pace::new(0.0);
        assert_eq!((pace.due(Duration::MAX), pace.next()), (None, None));
    }
}
