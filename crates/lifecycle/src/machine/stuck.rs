//! Replaces workers that are stuck, one at a time.
//!
//! First somebody else accepts from every socket that the stuck one accepts from, then it is
//! ended. Who is ended is decided at a beat only, when what is known of it is fresh: between two beats
//! the supervisor may have stood still. The next one waits until the slot has a worker of its own again.

use std::time::Duration;

use super::{Lifecycle, Phase};
use crate::{Action, Moment, Signs, Slot, State, Worker, WorkerId};

/// The replacement under way.
#[derive(Debug)]
pub(super) struct Replacement {
    worker: WorkerId,
    /// Its slot, if it is to have another worker.
    slot: Option<usize>,
    step: Step,
}

#[derive(Debug)]
enum Step {
    /// Nobody else could take the sockets over: its successor starts first.
    AwaitsSuccessor,
    /// It was told to abort, and is killed then, if it has not been already.
    Aborted { kill_at: Option<Moment> },
    /// It is gone.
    Gone,
}

impl Lifecycle {
    /// A look at all workers; see [`crate::Signs`].
    pub(super) fn beat(
        &mut self,
        now: Moment,
        timeout: Duration,
        signs: &[(WorkerId, Signs)],
        actions: &mut Vec<Action>,
    ) {
        // Those that start have a time limit of their own.
        let watched: Vec<_> = signs
            .iter()
            .filter(|(id, _)| self.workers.get(id).is_some_and(|it| it.is_watched()))
            .copied()
            .collect();
        self.watchdog.beat(now, timeout, &watched);
        self.advance_replacement(now, actions);
        match &self.replacement {
            None => self.begin_replacement(now, actions),
            Some(Replacement {
                worker,
                step: Step::AwaitsSuccessor,
                ..
            }) => self.hand_over_or_give_up(now, *worker, actions),
            Some(_) => {}
        }
    }

    /// When the replacement under way needs a tick.
    pub(super) fn replacement_wakes_at(&self) -> Option<Moment> {
        match self.replacement.as_ref()?.step {
            Step::Aborted { kill_at } => kill_at,
            _ => None,
        }
    }

    /// What needs no fresh look.
    pub(super) fn advance_replacement(&mut self, now: Moment, actions: &mut Vec<Action>) {
        let Some(mut current) = self.replacement.take() else {
            return;
        };
        if !self.workers.contains_key(&current.worker) {
            current.step = Step::Gone;
            self.let_successor_in(now, current.slot, actions);
        }
        if let Step::Aborted { kill_at } = &mut current.step
            && kill_at.is_some_and(|at| at <= now)
        {
            *kill_at = None;
            actions.push(Action::Kill {
                worker: current.worker,
                why: "it was stuck, and did not abort",
            });
        }
        let settled = current.slot.is_none_or(|slot| self.has_settled(slot));
        let done = settled && matches!(current.step, Step::Gone);
        self.replacement = (!done).then_some(current);
    }

    /// Whether a successor of a stuck worker is to wait, once it is ready, for the decision.
    pub(super) fn awaits_successor(&self, slot: usize) -> bool {
        self.replacement.as_ref().is_some_and(|current| {
            current.slot == Some(slot) && matches!(current.step, Step::AwaitsSuccessor)
        })
    }

    /// A new generation has taken all slots over: the worker drains now, and needs no successor.
    pub(super) fn forget_successor(&mut self) {
        let waits = |it: &Replacement| matches!(it.step, Step::AwaitsSuccessor);
        self.replacement.take_if(|it| waits(it));
    }

    /// The worker that it was to replace has ended by itself.
    fn let_successor_in(&mut self, now: Moment, slot: Option<usize>, actions: &mut Vec<Action>) {
        if let Some(slot) = slot
            && let Some(successor) = self.waiting_successor(slot)
        {
            self.activate(now, successor, slot, actions);
        }
    }

    /// The own worker of a slot of the active generation, if it is ready and waits.
    fn waiting_successor(&self, slot: usize) -> Option<WorkerId> {
        let own = self.slots.get(slot)?.own?;
        let worker = self.workers.get(&own)?;
        (worker.state == State::Ready).then_some(own)
    }

    /// Whether nothing is to be awaited of a slot: it has its own worker, or will not have one soon.
    fn has_settled(&self, slot: usize) -> bool {
        let Some(slot) = self.slots.get(slot) else {
            return true;
        };
        let own = slot.own.and_then(|id| self.workers.get(&id));
        self.phase != Phase::Running
            || slot.is_crash_looping(&self.settings)
            || own.is_some_and(|worker| worker.is_active())
    }

    fn begin_replacement(&mut self, now: Moment, actions: &mut Vec<Action>) {
        let stuck = self.pick(|worker| worker.is_watched());
        let stuck = stuck.into_iter().filter(|id| self.watchdog.is_stuck(*id));
        // Those that clients wait for first.
        let order = |id: &WorkerId| {
            let drains = self.workers.get(id).is_some_and(|it| it.is_draining());
            (!drains, self.watchdog.silent(*id))
        };
        let Some(id) = stuck.max_by_key(order) else {
            return;
        };
        let Some((active, slot)) = self.workers.get(&id).map(|it| (it.is_active(), it.slot)) else {
            return;
        };
        if !active || self.hand_over(now, id, actions) {
            return self.abort(now, id, actions);
        }
        let Some(generation) = self.active() else {
            return;
        };
        self.slots[slot].own = Some(self.spawn(now, slot, generation, actions));
        self.replacement = Some(Replacement {
            worker: id,
            slot: Some(slot),
            step: Step::AwaitsSuccessor,
        });
    }

    /// A successor was started first: is it there by now, and is it wanted still?
    fn hand_over_or_give_up(&mut self, now: Moment, id: WorkerId, actions: &mut Vec<Action>) {
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        let (active, slot) = (worker.is_active(), worker.slot);
        if self.watchdog.is_stuck(id) {
            if !active || self.hand_over(now, id, actions) {
                self.abort(now, id, actions);
            }
            return;
        }
        // It moves again. The successor has accepted nothing.
        self.replacement = None;
        if active {
            let successor = self.slots[slot].own.replace(id);
            self.slots[slot].restart_at = None;
            if let Some(successor) = successor.filter(|successor| *successor != id) {
                self.kill(
                    successor,
                    "the worker that it was to replace answers again",
                    actions,
                );
            }
        }
    }

    /// Lets others accept from every socket that a worker accepts from, or does nothing if there is nobody.
    fn hand_over(&mut self, now: Moment, id: WorkerId, actions: &mut Vec<Action>) -> bool {
        let slots: Vec<usize> = (0..self.slots.len())
            .filter(|slot| self.slots[*slot].served_by == Some(id))
            .collect();
        let waiting = |slot: &usize| Some((self.waiting_successor(*slot)?, *slot));
        let successor = slots.iter().find_map(waiting);
        let somebody = self.who_serves_fewest(Some(id)).is_some();
        if !somebody && successor.is_none() {
            return slots.is_empty();
        }
        if let Some((own, slot)) = successor {
            self.activate(now, own, slot, actions);
        }
        for slot in slots {
            if successor.is_some_and(|(_, taken)| taken == slot) {
                continue;
            }
            if let Some(worker) = self.who_serves_fewest(Some(id)) {
                self.slots[slot].serve(worker);
                actions.push(Action::Accept { worker, slot });
            }
        }
        let others = |lifecycle: &Self| {
            let successor = successor.map(|(own, _)| own);
            lifecycle.who_serves_fewest(Some(id)).or(successor)
        };
        self.hand_retired_over(id, others, actions);
        true
    }

    /// The active worker that serves fewest slots. Those that do not move are none if they are
    /// to stand in for `stuck`, and the last choice else.
    pub(crate) fn who_serves_fewest(&self, stuck: Option<WorkerId>) -> Option<WorkerId> {
        let doubtful = |id: &WorkerId| self.watchdog.is_doubtful(*id);
        let active = self.pick(Worker::is_active).into_iter();
        let able = active.filter(|id| stuck.is_none_or(|stuck| *id != stuck && !doubtful(id)));
        able.min_by_key(|id| {
            let served = |slot: &&Slot| slot.served_by == Some(*id);
            (doubtful(id), self.slots.iter().filter(served).count())
        })
    }

    fn abort(&mut self, now: Moment, id: WorkerId, actions: &mut Vec<Action>) {
        let silent = self.watchdog.silent(id);
        let settled_after = self.settings.settled_after;
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let slot = (!worker.is_draining()).then_some(worker.slot);
        if let (State::Active { since }, Some(slot)) = (&worker.state, slot)
            && now.saturating_sub(*since) >= settled_after
            // One that was adopted may be of a slot that there is no more.
            && let Some(slot) = self.slots.get_mut(slot)
        {
            slot.deaths = 0;
        }
        worker.state = State::Killed;
        self.replacement = Some(Replacement {
            worker: id,
            slot,
            step: Step::Aborted {
                kill_at: Some(now + self.settings.abort_within),
            },
        });
        self.lose_taker(id);
        actions.push(Action::Abort { worker: id, silent });
    }
}
