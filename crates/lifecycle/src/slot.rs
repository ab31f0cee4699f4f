//! One slot: a place for a worker, with listening sockets that outlive it.

use std::time::Duration;

use crate::{Moment, Settings, WorkerId};

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
    /// How often in a row its worker died young: within [`Settings::crash_within`] of its start.
    pub crashes: u32,
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
    /// It is long at once where workers crash all the time: others serve meanwhile.
    pub(crate) fn schedule_restart(&mut self, now: Moment, settings: &Settings) {
        self.deaths = self.deaths.saturating_add(1);
        self.own = None;
        let pause = if self.is_crash_looping(settings) {
            settings.crash_pause
        } else {
            self.pause(settings)
        };
        self.restart_at = Some(now + pause);
    }

    /// The pause after as many deaths as there were.
    pub(crate) fn pause(&self, settings: &Settings) -> Duration {
        let factor = 2u32.saturating_pow(self.deaths.saturating_sub(1).min(20));
        let pause = settings.backoff_first.saturating_mul(factor);
        pause.min(settings.backoff_most)
    }

    /// Whether its workers have died young so often in a row that it is hardly by chance.
    #[must_use]
    pub fn is_crash_looping(&self, settings: &Settings) -> bool {
        self.crashes >= settings.crashes
    }
}
