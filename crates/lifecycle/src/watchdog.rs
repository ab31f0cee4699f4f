//! Tells workers that are stuck from those that are merely busy, or get no CPU.
//!
//! The supervisor looks at all workers in regular beats and hands in what it saw. A worker
//! is silent for as long as nothing of it moves: it answers nothing, counts nothing, and
//! cannot blame the wait for a CPU. Only time between two looks that came when they were due counts:
//! if the supervisor itself stood still, all of this begins anew.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::{Moment, WorkerId};

/// What the supervisor sees of a worker at one moment. Figures only ever grow, but for `wants_cpu`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signs {
    /// Differs once the worker has said something.
    pub heard: u64,
    /// Differs once the worker has counted something on the board.
    pub counted: u64,
    /// For how long it has run on a CPU.
    pub ran: Duration,
    /// For how long it has waited for a CPU, without a wait that has not ended yet.
    pub waited: Duration,
    /// It runs, or waits for a CPU.
    pub wants_cpu: bool,
}

/// What is known of one worker.
#[derive(Clone, Copy, Debug)]
struct Watched {
    signs: Signs,
    silent: Duration,
}

/// Who is silent, and for how long.
#[derive(Debug, Default)]
pub(crate) struct Watchdog {
    timeout: Duration,
    last_beat: Option<Moment>,
    watched: BTreeMap<WorkerId, Watched>,
}

impl Watchdog {
    /// Looks at all workers that are to be watched.
    pub(crate) fn beat(&mut self, now: Moment, timeout: Duration, signs: &[(WorkerId, Signs)]) {
        let passed = now.saturating_sub(self.last_beat.unwrap_or(now));
        self.timeout = timeout;
        self.last_beat = Some(now);
        // Whoever looked so late may have been the one that stood still.
        if passed > timeout / 2 {
            self.watched.clear();
        }
        let before = std::mem::take(&mut self.watched);
        self.watched = signs
            .iter()
            .map(|(worker, signs)| {
                let silent = before
                    .get(worker)
                    .map_or(Duration::ZERO, |watched| watched.silent_now(*signs, passed));
                let signs = *signs;
                (*worker, Watched { signs, silent })
            })
            .collect();
    }

    /// For how long nothing of a worker has moved, by the last look.
    pub(crate) fn silent(&self, worker: WorkerId) -> Duration {
        self.watched
            .get(&worker)
            .map_or(Duration::ZERO, |watched| watched.silent)
    }

    /// Whether nothing of it has moved for the whole timeout.
    pub(crate) fn is_stuck(&self, worker: WorkerId) -> bool {
        self.watched.contains_key(&worker) && self.silent(worker) >= self.timeout
    }

    /// Whether it is on its way there: nothing should be entrusted to it now.
    pub(crate) fn is_doubtful(&self, worker: WorkerId) -> bool {
        self.watched.contains_key(&worker) && self.silent(worker) >= self.timeout / 2
    }
}

impl Watched {
    fn silent_now(&self, signs: Signs, passed: Duration) -> Duration {
        if signs.heard != self.signs.heard || signs.counted != self.signs.counted {
            return Duration::ZERO;
        }
        // The kernel adds a wait for a CPU to its account only when it is over.
        let waits = signs.wants_cpu && signs.ran == self.signs.ran;
        let starved = if waits {
            passed
        } else {
            signs.waited.saturating_sub(self.signs.waited)
        };
        self.silent + passed.saturating_sub(starved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    /// One worker, looked at every second; `signs` says what is seen after so many seconds.
    fn watched_for(seconds: u64, signs: impl Fn(u64) -> Signs) -> Watchdog {
        let mut watchdog = Watchdog::default();
        for second in 0..=seconds {
            watchdog.beat(Duration::from_secs(second), TIMEOUT, &[(1, signs(second))]);
        }
        watchdog
    }

    #[test]
    fn a_worker_of_which_nothing_moves_is_stuck_after_the_timeout_and_not_before() {
        assert!(!watched_for(9, |_| Signs::default()).is_stuck(1));
        assert!(watched_for(10, |_| Signs::default()).is_stuck(1));
    }

    #[test]
    fn a_worker_that_answers_or_counts_is_not_stuck() {
        let answers = |second| Signs {
            heard: second / 9,
            ..Signs::default()
        };
        assert!(!watched_for(60, answers).is_stuck(1));
        let counts = |second| Signs {
            counted: second / 9,
            ..Signs::default()
        };
        assert!(!watched_for(60, counts).is_stuck(1));
    }

    #[test]
    fn time_without_a_cpu_does_not_count() {
        let starved = |second| Signs {
            waited: Duration::from_millis(900) * second as u32,
            ran: Duration::from_millis(100) * second as u32,
            wants_cpu: true,
            ..Signs::default()
        };
        assert!(!watched_for(99, starved).is_stuck(1));
        assert!(watched_for(101, starved).is_stuck(1));
    }

    #[test]
    fn a_wait_for_a_cpu_that_has_not_ended_does_not_count_either() {
        let waits = |_| Signs {
            wants_cpu: true,
            ..Signs::default()
        };
        assert!(!watched_for(60, waits).is_stuck(1));
    }

    #[test]
    fn one_that_loops_is_stuck_although_it_runs() {
        let loops = |second| Signs {
            ran: Duration::from_secs(second),
            wants_cpu: true,
            ..Signs::default()
        };
        assert!(watched_for(10, loops).is_stuck(1));
    }

    #[test]
    fn a_stall_of_the_supervisor_begins_all_anew() {
        let mut watchdog = watched_for(9, |_| Signs::default());
        watchdog.beat(Duration::from_secs(30), TIMEOUT, &[(1, Signs::default())]);
        assert_eq!(watchdog.silent(1), Duration::ZERO);
        watchdog.beat(Duration::from_secs(31), TIMEOUT, &[(1, Signs::default())]);
        assert_eq!(watchdog.silent(1), Duration::from_secs(1));
    }

    #[test]
    fn who_is_not_looked_at_any_more_is_forgotten() {
        let mut watchdog = watched_for(10, |_| Signs::default());
        watchdog.beat(Duration::from_secs(11), TIMEOUT, &[]);
        assert!(!watchdog.is_stuck(1) && !watchdog.is_doubtful(1));
    }
}
