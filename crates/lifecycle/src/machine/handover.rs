//! Who gives its live tunnels to whom.
//!
//! At a commit each old worker is paired with one of the new generation. If its taker ends, or it could not give
//! what it has, it is paired anew, a few times; and a few times more with a worker that came later, such as the
//! successor of one that was stuck. A giver that has nobody drains: nothing here
//! takes a deadline away, and nothing waits for a handover.
//!
//! # Every interleaving
//!
//! - *The taker dies, or is stuck*: the giver keeps what was not acknowledged, and another worker of the active
//!   generation takes the rest at once; while there is none, the first that becomes active.
//! - *A stuck taker uses up all tries before it is ended*: its successor is one that was not there then, and gets tries of
//!   its own.
//! - *The giver says that it broke off before its taker's end is known*: it waits for a second, or for that end.
//! - *The giver dies, or is told to exit*: there is nothing to give any more.
//! - *The next commit*: everybody who still drains is paired with its workers, and has all tries again. If that
//!   generation's configuration wants no handover, whoever drains goes on by itself.
//! - *The operator asks for it, and nothing else has changed*: those without a taker have all tries again.
//! - *A stop*: nobody gives anything any more.

use std::collections::{BTreeMap, BTreeSet};

use super::Lifecycle;
use crate::{Action, Moment, State, Worker, WorkerId};

/// Givers of the last commit, with what was tried.
#[derive(Debug, Default)]
pub(super) struct Handovers {
    givers: BTreeMap<WorkerId, Giver>,
}

#[derive(Debug, Default)]
struct Giver {
    /// `None` while nobody takes what it has.
    taker: Option<WorkerId>,
    /// With whom it did not go well: the last choice.
    failed: Option<WorkerId>,
    /// Who took what it had until it broke off.
    broke_with: Option<WorkerId>,
    /// It is not paired anew before then.
    not_before: Moment,
    /// In this round.
    tries: u32,
    /// Rounds begun before this one.
    rounds: u32,
    /// Who accepted at the last try of the round.
    known: BTreeSet<WorkerId>,
}

impl Handovers {
    /// Those without a taker have all tries again.
    pub(super) fn retry(&mut self) {
        let idle = self.givers.values_mut().filter(|it| it.taker.is_none());
        idle.for_each(|giver| *giver = Giver::default());
    }

    /// Nobody gives anything any more.
    pub(super) fn clear(&mut self) {
        self.givers.clear();
    }
}

impl Lifecycle {
    /// Whether a worker has a taker for its live tunnels, or will have one as soon as there is one.
    #[must_use]
    pub fn hands_over(&self, giver: WorkerId) -> bool {
        let most = self.settings.handover_tries;
        let giver = self.handovers.givers.get(&giver);
        giver.is_some_and(|giver| giver.taker.is_some() || giver.waits(most))
    }

    /// The commit: whoever is older gives to the new workers, if that is wanted. To be called when these
    /// accept, and before the old ones retire.
    pub(super) fn pair_all(&mut self, now: Moment, wanted: bool, actions: &mut Vec<Action>) {
        self.handovers.clear();
        if !wanted {
            return;
        }
        let newest = self.active();
        let old = |worker: &Worker| Some(worker.generation) != newest;
        for from in self.pick(|it| old(it) && (it.is_active() || gives_still(it))) {
            self.handovers.givers.insert(from, Giver::default());
            self.pair(now, from, actions);
        }
    }

    /// A giver said that nothing goes to its taker any more, which may live: another try may go better, and if that
    /// one is to be avoided, with another one.
    pub(super) fn handover_broken(&mut self, now: Moment, giver: WorkerId, avoid: bool) {
        let pause = self.settings.handover_pause;
        if let Some(giver) = self.handovers.givers.get_mut(&giver)
            && let Some(taker) = giver.taker.take()
        {
            giver.failed = avoid.then_some(taker);
            giver.broke_with = Some(taker);
            giver.not_before = now + pause;
        }
    }

    /// A worker takes nothing any more: its givers need another one.
    pub(super) fn lose_taker(&mut self, worker: WorkerId) {
        for giver in self.handovers.givers.values_mut() {
            if giver.taker == Some(worker) {
                giver.taker = None;
            }
            // Its end says why the giver broke off.
            giver.failed.take_if(|failed| *failed == worker);
            if giver.broke_with.take_if(|it| *it == worker).is_some() {
                giver.not_before = Moment::ZERO;
            }
        }
    }

    /// Finds takers for those that have none, and forgets those that have nothing to give any more.
    pub(super) fn pair_anew(&mut self, now: Moment, actions: &mut Vec<Action>) {
        let workers = &self.workers;
        let givers = &mut self.handovers.givers;
        givers.retain(|id, _| workers.get(id).is_some_and(gives_still));
        self.begin_rounds();
        let most = self.settings.handover_tries;
        let givers = &self.handovers.givers;
        let waiting = givers.iter().filter(|(_, giver)| giver.waits(most));
        let due = waiting.filter(|(_, giver)| giver.not_before <= now);
        let due: Vec<WorkerId> = due.map(|(id, _)| *id).collect();
        for from in due {
            self.pair(now, from, actions);
        }
    }

    /// Those whose tries were used up before a worker came that accepts now have others.
    fn begin_rounds(&mut self) {
        let takers = self.takers();
        let (tries, rounds) = (self.settings.handover_tries, self.settings.handover_rounds);
        for giver in self.handovers.givers.values_mut() {
            let used_up = giver.taker.is_none() && !giver.waits(tries);
            let another = || takers.iter().any(|it| !giver.known.contains(it));
            if used_up && giver.rounds + 1 < rounds && another() {
                giver.tries = 0;
                giver.rounds += 1;
            }
        }
    }

    /// Who accepts for the active generation.
    fn takers(&self) -> Vec<WorkerId> {
        let newest = self.active();
        self.pick(|worker| worker.is_active() && Some(worker.generation) == newest)
    }

    /// When somebody is paired anew, if nothing but time is in the way.
    pub(super) fn handover_wakes_at(&self) -> Option<Moment> {
        if !self.workers.values().any(Worker::is_active) {
            return None;
        }
        let most = self.settings.handover_tries;
        let waiting = self.handovers.givers.values();
        let waiting = waiting.filter(|giver| giver.waits(most));
        waiting.map(|giver| giver.not_before).min()
    }

    fn pair(&mut self, now: Moment, from: WorkerId, actions: &mut Vec<Action>) {
        let Some(to) = self.taker_for(from) else {
            return;
        };
        let takers = self.takers();
        if let Some(giver) = self.handovers.givers.get_mut(&from) {
            giver.tries += 1;
            giver.known = takers.into_iter().collect();
            giver.taker = Some(to);
            giver.not_before = now;
            actions.push(Action::HandOver { from, to });
        }
    }

    /// The worker of the same slot, or of another one where there are fewer; any other that accepts if that one does
    /// not, or has failed.
    fn taker_for(&self, from: WorkerId) -> Option<WorkerId> {
        let slot = self
            .workers
            .get(&from)?
            .slot
            .checked_rem(self.slots.len())?;
        let own = self.slots[slot].own;
        let failed = self.handovers.givers.get(&from)?.failed;
        self.takers().into_iter().min_by_key(|id| {
            let doubtful = self.watchdog.is_doubtful(*id);
            (doubtful, failed == Some(*id), own != Some(*id))
        })
    }
}

impl Giver {
    fn waits(&self, most: u32) -> bool {
        self.taker.is_none() && self.tries < most
    }
}

/// Whether a worker that drains may still hold something.
fn gives_still(worker: &Worker) -> bool {
    matches!(
        worker.state,
        State::Draining {
            dismissed: false,
            ..
        }
    )
}
