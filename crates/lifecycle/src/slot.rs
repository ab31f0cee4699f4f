//! One slot: a place for a worker, with listening sockets that outlive it.

use std::time::Duration;

use crate::{Moment, WorkerId};

/// A slot's state. Its sockets are the supervisor's; only who accepts from them changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Its own worker of the active generation, starting or active.
    pub own: Option<WorkerId>,
    /// The worker that accepts from its sockets: its own, or another one while it has none.
    pub served_by: Option<WorkerId>,
    /// Since when nobody accepts from its sockets.
    pub vacant_since: Option<Moment>,
    /// Since when it has not been served for long: a worker that dies as soon as it
    /// accepts has not ended a vacancy.
    pub troubled_since: Option<Moment>,
    /// How often in a row its worker died.
    pub deaths: u32,
    /// When its next worker is started.
    pub restart_at: Option<Moment>,
}

impl Slot {
    /// A worker of its own accepts from now on.
    pub(crate) fn serve(&mut self, worker: WorkerId) {
        self.served_by = Some(worker);
        self.vacant_since = None;
    }

    /// Whoever accepted does not any more. `settled`: it had lived for a while.
    pub(crate) fn vacate(&mut self, now: Moment, settled: bool) {
        self.served_by = None;
        if settled {
            self.troubled_since = None;
        }
        self.vacant_since = Some(*self.troubled_since.get_or_insert(now));
    }

    /// Its own worker died: the next one starts after a time that doubles with each death.
    pub(crate) fn schedule_restart(&mut self, now: Moment, first: Duration, most: Duration) {
        let factor = 2u32.saturating_pow(self.deaths.min(20));
        self.deaths = self.deaths.saturating_add(1);
        self.own = None;
        self.restart_at = Some(now + first.saturating_mul(factor).min(most));
    }
}
