//! Sockets that a commit left without a place: slots beyond the new number, and listeners
//! that are gone.
//!
//! New connections are steered away from them where there are others, but handshakes that had
//! begun end on them up to three seconds later. So a worker of the active generation goes on with them, and
//! only then are they closed. Each commit makes one lot of them, named by its generation. What
//! a lot consists of is the supervisor's business: it may be nothing, and a later commit
//! may take some of it back into use.
//!
//! # Every interleaving
//!
//! - *A worker dies that serves a lot*: another active one goes on at once; while there is none, the
//!   supervisor's descriptors keep the queues.
//! - *A commit*: its workers serve the older lots as well as their own, before the old workers retire. Sockets that it
//!   takes back have left their lot by then, with their queues: they were never closed.
//! - *A candidate starts*: it may want any of these sockets and has them already, so no lot is
//!   closed until it has committed or failed.
//! - *A worker has let a lot go when a candidate begins*: the supervisor has the sockets still. They
//!   are served again, and let go once more later.
//! - *A worker that retired does not answer* (it is stopped, or stuck): it holds the sockets still, and
//!   they would get connections that nobody accepts. Their time does not end before it has released them or
//!   is gone. So when the supervisor closes a socket it is the last to hold it, and knows
//!   the order of the kernel's group at every moment.
//! - *A worker that serves a lot is stuck*: another one goes on with it before it is ended, and no lot's time ends before
//!   it is gone.
//! - *Several lots*: the oldest goes first. Slots beyond a number are a superset of those beyond a higher
//!   one, so the slots of an older lot are above those of a younger one, and closing goes from the
//!   last slot down.
//! - *A stop*: workers accept what waits in all their queues, and all sockets are closed at once.

use crate::{Action, Generation, Lifecycle, Moment, State, WorkerId};

/// One commit's retired sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retired {
    /// The generation whose commit it was.
    pub generation: Generation,
    /// They are not closed before then.
    pub until: Moment,
    /// The worker that accepts from them.
    pub served_by: Option<WorkerId>,
    /// It has been told to let go.
    pub letting_go: bool,
}

impl Retired {
    fn serve(&mut self, worker: WorkerId, actions: &mut Vec<Action>) {
        self.served_by = Some(worker);
        self.letting_go = false;
        actions.push(Action::Serve {
            worker,
            retired: self.generation,
        });
    }
}

impl Lifecycle {
    /// The commit of `generation`: these workers of it serve all lots, and the new one.
    pub(crate) fn retire_sockets(
        &mut self,
        now: Moment,
        generation: Generation,
        workers: &[WorkerId],
        actions: &mut Vec<Action>,
    ) {
        self.retired.push(Retired {
            generation,
            until: now + self.settings.retired_for,
            served_by: None,
            letting_go: false,
        });
        for (retired, worker) in self.retired.iter_mut().zip(workers.iter().cycle()) {
            retired.serve(*worker, actions);
        }
    }

    /// A worker does not serve its lots any more.
    pub(crate) fn leave_retired(&mut self, worker: WorkerId) {
        for retired in &mut self.retired {
            if retired.served_by == Some(worker) {
                retired.served_by = None;
                retired.letting_go = false;
            }
        }
    }

    /// Lets others go on with the lots of a worker that is about to be ended.
    pub(crate) fn hand_retired_over(
        &mut self,
        from: WorkerId,
        to: impl Fn(&Self) -> Option<WorkerId>,
        actions: &mut Vec<Action>,
    ) {
        self.leave_retired(from);
        while let Some(position) = self.retired.iter().position(|lot| lot.served_by.is_none()) {
            let Some(worker) = to(self) else { break };
            self.retired[position].serve(worker, actions);
        }
    }

    /// A worker has let a lot go: it is closed, unless somebody may want it.
    pub(crate) fn let_go(
        &mut self,
        worker: WorkerId,
        generation: Generation,
        actions: &mut Vec<Action>,
    ) {
        let wanted = self.candidate().is_some();
        let answered = |retired: &Retired| {
            retired.generation == generation
                && retired.served_by == Some(worker)
                && retired.letting_go
        };
        let Some(position) = self.retired.iter().position(answered) else {
            return;
        };
        if wanted {
            self.retired[position].serve(worker, actions);
        } else {
            self.retired.remove(position);
            actions.push(Action::CloseRetired(generation));
        }
    }

    /// Finds a worker for each lot that has none, and ends the time of the oldest.
    pub(crate) fn tend_retired(&mut self, now: Moment, actions: &mut Vec<Action>) {
        while let Some(position) = self.retired.iter().position(|lot| lot.served_by.is_none()) {
            let Some(worker) = self.who_serves_fewest(None) else {
                break;
            };
            self.retired[position].serve(worker, actions);
        }
        if self.retired_until().is_none_or(|until| until > now) {
            return;
        }
        if let Some(oldest) = self.retired.first_mut()
            && let Some(worker) = oldest.served_by
        {
            oldest.letting_go = true;
            actions.push(Action::LetGo {
                worker,
                retired: oldest.generation,
            });
        }
    }

    /// When the oldest lot is let go, if nothing but time is in the way.
    pub(crate) fn retired_until(&self) -> Option<Moment> {
        let oldest = self.retired.first()?;
        let free = oldest.served_by.is_some() && !oldest.letting_go && self.candidate().is_none();
        (free && self.only_the_active_hold_sockets()).then_some(oldest.until)
    }

    /// Whether every other worker has closed its listening sockets, or is gone.
    fn only_the_active_hold_sockets(&self) -> bool {
        let active = self.active();
        self.workers().values().all(|worker| match worker.state {
            State::Draining { released, .. } => released,
            // It may be stuck, and be long in going.
            State::Killed => false,
            _ => Some(worker.generation) == active,
        })
    }
}
