//! Old generations beyond the number that may stay: the deadline of the oldest ones comes now.
//!
//! Which ones they are is decided here; when their tunnels can be closed without haste is
//! for [`crate::Closes::soonest`], which knows what others have reserved.

use super::Lifecycle;
use crate::{Action, Generation, Moment, State};

impl Lifecycle {
    /// Generations that drain beyond the newest `most` of those that hold something, oldest
    /// first; without those that were told already. Each wants [`crate::Event::Expire`]. 0 is no limit.
    #[must_use]
    pub fn surplus(&self, most: usize, holds: impl Fn(Generation) -> bool) -> Vec<Generation> {
        if most == 0 {
            return Vec::new();
        }
        let draining = self.workers.values().filter(|worker| worker.is_draining());
        let mut old: Vec<_> = draining.map(|worker| worker.generation).collect();
        old.sort_unstable();
        old.dedup();
        old.retain(|generation| holds(*generation));
        old.truncate(old.len().saturating_sub(most));
        old.retain(|generation| !self.expired.contains(generation));
        old
    }

    /// What an old generation holds is closed by `deadline`, unless that is due sooner anyway.
    pub(super) fn expire(
        &mut self,
        generation: Generation,
        deadline: Moment,
        actions: &mut Vec<Action>,
    ) {
        self.expired.insert(generation);
        let later = self.pick(|worker| {
            let State::Draining {
                deadline: own,
                dismissed,
                ..
            } = worker.state
            else {
                return false;
            };
            worker.generation == generation && !dismissed && own > deadline
        });
        self.retire(later, deadline, actions);
    }
}
