//! The watchdog, as the world of random events sees it.

use std::time::Duration;

use wsgate_lifecycle::{Event, Lifecycle, Settings, Signs, WorkerId};

use crate::{Process, TIMEOUT, World};

impl World {
    /// What must hold when a worker that is stuck is ended.
    pub(crate) fn abort(&mut self, worker: WorkerId, silent: Duration) {
        let aborting = |process: &&Process| process.aborted.is_some();
        assert_eq!(
            self.processes.values().filter(aborting).count(),
            0,
            "one at a time"
        );
        assert_eq!(
            self.replacing, None,
            "the next one waits until the slot has a worker of its own"
        );
        let process = &self.processes[&worker];
        let moved = process.moved.expect("it was looked at before");
        assert!(
            self.now - moved >= TIMEOUT && silent >= TIMEOUT,
            "it moved {:?} ago",
            self.now - moved
        );
        for slot in &process.accepts {
            let others = self.processes.iter().filter(|(id, _)| **id != worker);
            let served = others.filter(|(_, other)| other.accepts.contains(slot));
            assert_eq!(served.count(), 1, "first somebody else accepts");
        }
        let has_successor = |slot: &usize| {
            let mut others = self.processes.iter().filter(|(id, _)| **id != worker);
            others.any(|(_, other)| other.slot == *slot && other.accepts.contains(slot))
        };
        let slot = process.deadline.is_none().then_some(process.slot);
        let waits = |slot: &usize| !has_successor(slot) && !self.crash_looping.contains(slot);
        self.replacing = slot.filter(|slot| !self.stop_asked && waits(slot));
        let process = self.processes.get_mut(&worker).expect("a live worker");
        process.aborted = Some(self.now);
        process.accepts.clear();
        self.handovers.lose(worker);
    }

    /// What the supervisor sees at its next look.
    fn look(&mut self) -> Vec<(WorkerId, Signs)> {
        let late = self
            .last_beat
            .is_some_and(|before| self.now - before > TIMEOUT / 2);
        self.last_beat = Some(self.now);
        for process in self.processes.values_mut() {
            if !process.frozen {
                process.answers += 1;
            }
            if !process.frozen || late || process.moved.is_none() {
                process.moved = Some(self.now);
            }
        }
        let signs = |(id, process): (&WorkerId, &Process)| {
            let heard = process.answers;
            let signs = Signs {
                heard,
                ..Signs::default()
            };
            (*id, signs)
        };
        self.processes.iter().map(signs).collect()
    }

    pub(crate) fn beats(
        &mut self,
        lifecycle: &mut Lifecycle,
        settings: &Settings,
        n: usize,
        ms: u64,
    ) {
        for _ in 0..n {
            self.now += Duration::from_millis(ms);
            let event = Event::Beat {
                timeout: TIMEOUT,
                signs: self.look(),
            };
            let actions = lifecycle.apply(self.now, event);
            self.carry_out(actions);
            self.check(lifecycle, settings);
            self.reap(lifecycle);
            self.check(lifecycle, settings);
        }
    }
}
