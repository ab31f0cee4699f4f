//! Moments of this process as numbers that mean the same in another one on the same machine.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// One moment on both scales: an [`Instant`], and nanoseconds of CLOCK_MONOTONIC (clock_gettime(2)).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    now: Instant,
    ns: u64,
}

impl Clock {
    /// Now.
    pub(crate) fn now() -> Self {
        // In this order, so that what has a number got it later than that.
        let now = Instant::now();
        // CLOCK_MONOTONIC is always there: clock_gettime(2) fails for other clocks.
        let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        Self {
            now,
            ns: nanos(time),
        }
    }

    /// Nanoseconds since the machine was started.
    pub(crate) const fn ns(&self) -> u64 {
        self.ns
    }

    pub(crate) fn to_ns(self, at: Instant) -> u64 {
        match at.checked_duration_since(self.now) {
            Some(later) => self.ns.saturating_add(nanos(later)),
            None => self.ns.saturating_sub(nanos(self.now - at)),
        }
    }

    /// The moment, or now if no [`Instant`] can hold it.
    pub(crate) fn to_instant(self, ns: u64) -> Instant {
        let at = match ns.checked_sub(self.ns) {
            Some(later) => self.now.checked_add(Duration::from_nanos(later)),
            None => self.now.checked_sub(Duration::from_nanos(self.ns - ns)),
        };
        at.unwrap_or(self.now)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_the_same_on_another_clock_of_the_machine() {
        let (one, other) = (Clock::now(), Clock::now());
        let begin = Instant::now();
        for offset in [-3600.0, -0.25, 0.0, 0.001, 7200.0_f64] {
            let offset_abs = Duration::from_secs_f64(offset.abs());
            let at = if offset < 0.0 {
                begin - offset_abs
            } else {
                begin + offset_abs
            };
            let there = other.to_instant(one.to_ns(at));
            let error = there.max(at) - there.min(at);
            assert!(error < Duration::from_millis(1), "{offset}: {error:?}");
        }
    }
}
