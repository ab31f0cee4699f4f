//! Slots whose workers crash all the time: tried seldom while others serve their sockets.

use super::Lifecycle;
use crate::{Moment, Worker, WorkerId};

impl Lifecycle {
    /// Whether the workers of a slot crash so often that it is not tried eagerly any more.
    #[must_use]
    pub fn is_crash_looping(&self, slot: usize) -> bool {
        let slot = self.slots.get(slot);
        slot.is_some_and(|slot| slot.is_crash_looping(&self.settings))
    }

    /// While nobody serves at all, even a slot whose workers crash is tried as often as any.
    pub(super) fn retry_if_nobody_serves(&mut self, now: Moment) {
        let moves = |(id, worker): (&WorkerId, &Worker)| {
            worker.is_active() && !self.watchdog.is_doubtful(*id)
        };
        if self.workers.iter().any(moves) {
            return;
        }
        for slot in &mut self.slots {
            let most = now + slot.pause(&self.settings);
            slot.restart_at = slot.restart_at.map(|at| at.min(most));
        }
    }

    /// Slots whose workers crash are tried again at once.
    pub(super) fn retry(&mut self, now: Moment) {
        for slot in &mut self.slots {
            if slot.is_crash_looping(&self.settings) && slot.restart_at.is_some() {
                slot.restart_at = Some(now);
            }
        }
    }
}
