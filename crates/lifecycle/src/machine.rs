//! The state machine of generations: `starting → active → draining → gone`.
//!
//! A new generation is a candidate until every one of its workers is ready. Then comes
//! the commit, the one irreversible step: it accepts, the old one drains. What fails
//! before the commit ends the candidate alone; what fails after it is a slot's restart.

mod adopted;
mod crashes;
mod handover;
mod stop;
mod stuck;
mod surplus;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use self::handover::Handovers;
use self::stuck::Replacement;
use crate::watchdog::Watchdog;
use crate::{
    Action, Event, Failure, Generation, Moment, Retired, Settings, Slot, State, Worker, WorkerId,
};

/// What the gateway as a whole is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Clients are served, or are about to be.
    Running,
    /// A stop has been announced, connections are still accepted.
    Announced {
        /// Until then.
        until: Moment,
        /// Then tunnels get this.
        grace: Duration,
    },
    /// Nothing new is accepted.
    Stopping,
}

#[derive(Clone, Debug)]
struct Group {
    generation: Generation,
    slots: usize,
    grace: Duration,
    handover: bool,
}

/// The state machine.
#[derive(Debug)]
pub struct Lifecycle {
    pub(crate) settings: Settings,
    phase: Phase,
    active: Option<Group>,
    candidate: Option<Group>,
    workers: BTreeMap<WorkerId, Worker>,
    slots: Vec<Slot>,
    /// Oldest first.
    pub(crate) retired: Vec<Retired>,
    last_worker: WorkerId,
    finished: bool,
    watchdog: Watchdog,
    replacement: Option<Replacement>,
    handovers: Handovers,
    /// Old generations whose deadline was brought forward.
    expired: BTreeSet<Generation>,
}

impl Lifecycle {
    /// Nothing runs yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            phase: Phase::Running,
            active: None,
            candidate: None,
            workers: BTreeMap::new(),
            slots: Vec::new(),
            retired: Vec::new(),
            last_worker: 0,
            finished: false,
            watchdog: Watchdog::default(),
            replacement: None,
            handovers: Handovers::default(),
            expired: BTreeSet::new(),
        }
    }

    /// Takes an event, and says what has to be done about it. Times that have come are
    /// acted upon as well.
    #[must_use]
    pub fn apply(&mut self, now: Moment, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Begin {
                generation,
                slots,
                grace,
                handover,
            } => {
                let group = Group {
                    generation,
                    slots,
                    grace,
                    handover,
                };
                self.begin(now, group, &mut actions);
            }
            Event::Ready(worker) => self.ready(now, worker, &mut actions),
            Event::Empty(worker) => self.empty(worker, &mut actions),
            Event::Exited(worker) => self.exited(now, worker, &mut actions),
            Event::Released(worker) => self.released(worker),
            Event::LetGo { worker, retired } => self.let_go(worker, retired, &mut actions),
            Event::HandoverBroken { giver, avoid } => self.handover_broken(now, giver, avoid),
            Event::Stop { accept_for, grace } => self.stop(now, accept_for, grace, &mut actions),
            Event::Beat { timeout, signs } => self.beat(now, timeout, &signs, &mut actions),
            Event::Expire {
                generation,
                deadline,
            } => self.expire(generation, deadline, &mut actions),
            Event::Retry => {
                self.retry(now);
                self.handovers.retry();
            }
            Event::Tick => {}
        }
        self.tick(now, &mut actions);
        self.finish(&mut actions);
        actions
    }

    /// When [`Event::Tick`] is wanted at the latest.
    #[must_use]
    pub fn wake_at(&self) -> Option<Moment> {
        let workers = self
            .workers
            .values()
            .filter_map(|worker| match worker.state {
                State::Starting { until } | State::Proving { until } => Some(until),
                State::Draining { deadline, .. } => Some(deadline + self.settings.overtime),
                _ => None,
            });
        let lendable = self.workers.values().any(Worker::is_active);
        let slots = self.slots.iter().flat_map(|slot| {
            let vacant = slot
                .vacant_since
                .filter(|_| lendable)
                .map(|since| since + self.settings.vacant_for);
            [slot.restart_at, vacant]
        });
        let phase = match self.phase {
            Phase::Announced { until, .. } => Some(until),
            _ => None,
        };
        let others = phase.into_iter().chain(self.replacement_wakes_at());
        let others = others.chain(self.retired_until());
        let others = others.chain(self.handover_wakes_at());
        workers.chain(slots.flatten()).chain(others).min()
    }

    /// What the gateway as a whole is doing.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The generation that accepts.
    #[must_use]
    pub fn active(&self) -> Option<Generation> {
        self.active.as_ref().map(|group| group.generation)
    }

    /// The generation that is starting.
    #[must_use]
    pub fn candidate(&self) -> Option<Generation> {
        self.candidate.as_ref().map(|group| group.generation)
    }

    /// Every worker that has not exited.
    #[must_use]
    pub fn workers(&self) -> &BTreeMap<WorkerId, Worker> {
        &self.workers
    }

    /// The slots of the active generation.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// What commits left over and is not closed yet, oldest first.
    #[must_use]
    pub fn retired(&self) -> &[Retired] {
        &self.retired
    }

    fn begin(&mut self, now: Moment, group: Group, actions: &mut Vec<Action>) {
        let failure = match (self.phase, &self.candidate) {
            (Phase::Running, None) => None,
            (Phase::Running, Some(_)) => Some(Failure::Busy),
            _ => Some(Failure::Stopping),
        };
        if let Some(failure) = failure {
            actions.push(Action::Failed {
                generation: group.generation,
                failure,
            });
            return;
        }
        for slot in 0..group.slots {
            self.spawn(now, slot, group.generation, actions);
        }
        self.candidate = Some(group);
    }

    fn spawn(
        &mut self,
        now: Moment,
        slot: usize,
        generation: Generation,
        actions: &mut Vec<Action>,
    ) -> WorkerId {
        self.last_worker += 1;
        let worker = self.last_worker;
        let state = State::Starting {
            until: now + self.settings.ready_within,
        };
        self.workers.insert(
            worker,
            Worker {
                slot,
                generation,
                state,
                started: now,
            },
        );
        actions.push(Action::Spawn {
            worker,
            slot,
            generation,
        });
        worker
    }

    fn ready(&mut self, now: Moment, id: WorkerId, actions: &mut Vec<Action>) {
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        if !matches!(worker.state, State::Starting { .. }) {
            return;
        }
        let (slot, generation) = (worker.slot, worker.generation);
        if self.candidate() == Some(generation) {
            self.enter(id, State::Ready);
            if self
                .of(generation)
                .all(|(_, worker)| worker.state == State::Ready)
            {
                self.commit(now, actions);
            }
        } else if self.awaits_successor(slot) {
            self.enter(id, State::Ready);
        } else if self.slots[slot].served_by.is_some() {
            let until = now + self.settings.proving_for;
            self.enter(id, State::Proving { until });
        } else {
            self.activate(now, id, slot, actions);
        }
    }

    fn enter(&mut self, id: WorkerId, state: State) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.state = state;
        }
    }

    /// Gives slots to their own workers that have lived long enough, or that nobody stands in for any more.
    fn promote(&mut self, now: Moment, actions: &mut Vec<Action>) {
        for slot in 0..self.slots.len() {
            let Some(own) = self.slots[slot].own else {
                continue;
            };
            let stand_in = self.slots[slot].served_by;
            let state = self.workers.get(&own).map(|worker| &worker.state);
            let Some(State::Proving { until }) = state else {
                continue;
            };
            if *until <= now || stand_in.is_none() {
                self.activate(now, own, slot, actions);
                if let Some(worker) = stand_in {
                    actions.push(Action::TakeBack { worker, slot });
                }
            }
        }
    }

    fn of(&self, generation: Generation) -> impl Iterator<Item = (WorkerId, &Worker)> {
        self.workers
            .iter()
            .filter(move |(_, worker)| {
                worker.generation == generation && worker.state != State::Killed
            })
            .map(|(id, worker)| (*id, worker))
    }

    /// The commit point: the new generation accepts first, then the old one stops.
    fn commit(&mut self, now: Moment, actions: &mut Vec<Action>) {
        let Some(group) = self.candidate.take() else {
            return;
        };
        actions.push(Action::Commit(group.generation));
        self.forget_successor();
        self.slots = vec![Slot::default(); group.slots];
        let new: Vec<_> = self
            .of(group.generation)
            .map(|(id, worker)| (id, worker.slot))
            .collect();
        for &(worker, slot) in &new {
            self.activate(now, worker, slot, actions);
            self.slots[slot].own = Some(worker);
        }
        let new: Vec<WorkerId> = new.into_iter().map(|(worker, _)| worker).collect();
        self.retire_sockets(now, group.generation, &new, actions);
        self.give_up_starting("its generation was replaced before it was ready", actions);
        let (deadline, handover) = (now + group.grace, group.handover);
        let generation = group.generation;
        self.active = Some(group);
        self.pair_all(now, handover, actions);
        let old = self.pick(|worker| worker.is_active() && worker.generation != generation);
        self.retire(old, deadline, actions);
    }

    fn activate(&mut self, now: Moment, id: WorkerId, slot: usize, actions: &mut Vec<Action>) {
        self.enter(id, State::Active { since: now });
        self.slots[slot].serve(id);
        actions.push(Action::Accept { worker: id, slot });
    }

    fn pick(&self, which: impl Fn(&Worker) -> bool) -> Vec<WorkerId> {
        self.workers
            .iter()
            .filter(|(_, worker)| which(worker))
            .map(|(id, _)| *id)
            .collect()
    }

    fn retire(&mut self, workers: Vec<WorkerId>, deadline: Moment, actions: &mut Vec<Action>) {
        for id in &workers {
            if let Some(worker) = self.workers.get_mut(id) {
                let (released, dismissed) = match worker.state {
                    State::Draining {
                        released,
                        dismissed,
                        ..
                    } => (released, dismissed),
                    _ => (false, false),
                };
                worker.state = State::Draining {
                    deadline,
                    released,
                    dismissed,
                };
            }
        }
        if !workers.is_empty() {
            actions.push(Action::Retire { workers, deadline });
        }
    }

    fn give_up_starting(&mut self, why: &'static str, actions: &mut Vec<Action>) {
        let idle = |worker: &Worker| {
            matches!(
                worker.state,
                State::Starting { .. } | State::Ready | State::Proving { .. }
            )
        };
        for id in self.pick(idle) {
            self.kill(id, why, actions);
        }
    }

    fn kill(&mut self, id: WorkerId, why: &'static str, actions: &mut Vec<Action>) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.state = State::Killed;
            actions.push(Action::Kill { worker: id, why });
        }
    }

    fn released(&mut self, id: WorkerId) {
        if let Some(Worker {
            state: State::Draining { released, .. },
            ..
        }) = self.workers.get_mut(&id)
        {
            *released = true;
        }
    }

    fn empty(&mut self, id: WorkerId, actions: &mut Vec<Action>) {
        if let Some(Worker {
            state: State::Draining { dismissed, .. },
            ..
        }) = self.workers.get_mut(&id)
            && !*dismissed
        {
            *dismissed = true;
            actions.push(Action::Dismiss(id));
        }
    }

    fn exited(&mut self, now: Moment, id: WorkerId, actions: &mut Vec<Action>) {
        let Some(worker) = self.workers.remove(&id) else {
            return;
        };
        let generation = worker.generation;
        if self.candidate() == Some(generation) {
            self.fail(
                Failure::Died {
                    worker: id,
                    slot: worker.slot,
                },
                actions,
            );
        }
        if self.active() == Some(generation) && self.phase != Phase::Stopping {
            self.lost(now, id, &worker, actions);
        }
        let proving_for = self.settings.proving_for;
        let settled = matches!(worker.state, State::Active { since } if now.saturating_sub(since) >= proving_for);
        for slot in self
            .slots
            .iter_mut()
            .filter(|slot| slot.served_by == Some(id))
        {
            slot.vacate(now, settled);
        }
        self.leave_retired(id);
        self.lose_taker(id);
        let listed = [self.active(), self.candidate()].contains(&Some(generation));
        if !listed
            && !self
                .workers
                .values()
                .any(|worker| worker.generation == generation)
        {
            self.expired.remove(&generation);
            actions.push(Action::Gone(generation));
        }
        self.retry_if_nobody_serves(now);
    }

    /// A worker of the active generation is gone: its slot gets another one.
    fn lost(&mut self, now: Moment, id: WorkerId, worker: &Worker, actions: &mut Vec<Action>) {
        let settings = &self.settings;
        let slot = &mut self.slots[worker.slot];
        if slot.own != Some(id) {
            return;
        }
        if let State::Active { since } = worker.state
            && now.saturating_sub(since) >= settings.settled_after
        {
            slot.deaths = 0;
        }
        let young = now.saturating_sub(worker.started) < settings.crash_within;
        slot.crashes = if young { slot.crashes + 1 } else { 0 };
        slot.schedule_restart(now, settings);
        self.retry_if_nobody_serves(now);
        let slot = &self.slots[worker.slot];
        actions.push(Action::Restarting {
            slot: worker.slot,
            after: slot.restart_at.unwrap_or(now).saturating_sub(now),
            crash_looping: slot.is_crash_looping(&self.settings),
        });
    }

    /// Gives the candidate up. Its workers have accepted nothing yet.
    fn fail(&mut self, failure: Failure, actions: &mut Vec<Action>) {
        let Some(group) = self.candidate.take() else {
            return;
        };
        let own = |worker: &Worker| {
            worker.generation == group.generation && worker.state != State::Killed
        };
        for id in self.pick(own) {
            self.kill(id, "its generation failed", actions);
        }
        actions.push(Action::Failed {
            generation: group.generation,
            failure,
        });
    }

    fn tick(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if let Phase::Announced { until, grace } = self.phase
            && until <= now
        {
            self.stop_accepting(now, grace, actions);
        }
        self.end_the_late(now, actions);
        self.advance_replacement(now, actions);
        self.restart(now, actions);
        self.promote(now, actions);
        self.lend(now, actions);
        self.tend_retired(now, actions);
        self.pair_anew(now, actions);
    }

    fn end_the_late(&mut self, now: Moment, actions: &mut Vec<Action>) {
        let overtime = self.settings.overtime;
        let late =
            self.pick(|worker| matches!(worker.state, State::Starting { until } if until <= now));
        for id in late {
            let Some(worker) = self.workers.get(&id) else {
                continue;
            };
            if self.candidate() == Some(worker.generation) {
                self.fail(Failure::Late { slot: worker.slot }, actions);
            } else if worker.state != State::Killed {
                self.kill(id, "it was not ready in time", actions);
            }
        }
        let over = |worker: &Worker| {
            worker
                .deadline()
                .is_some_and(|deadline| deadline + overtime <= now)
        };
        for id in self.pick(over) {
            self.kill(id, "it outstayed its deadline", actions);
        }
    }

    fn restart(&mut self, now: Moment, actions: &mut Vec<Action>) {
        let Some(generation) = self.active() else {
            return;
        };
        for slot in 0..self.slots.len() {
            if self.slots[slot].restart_at.is_some_and(|at| at <= now) {
                self.slots[slot].restart_at = None;
                self.slots[slot].own = Some(self.spawn(now, slot, generation, actions));
            }
        }
    }

    /// Gives slots that nobody has served for too long to the worker that serves fewest.
    fn lend(&mut self, now: Moment, actions: &mut Vec<Action>) {
        for slot in 0..self.slots.len() {
            let vacant = self.slots[slot].vacant_since;
            if vacant.is_none_or(|since| since + self.settings.vacant_for > now) {
                continue;
            }
            if let Some(worker) = self.who_serves_fewest(None) {
                self.slots[slot].serve(worker);
                actions.push(Action::Accept { worker, slot });
            }
        }
    }

    fn finish(&mut self, actions: &mut Vec<Action>) {
        if self.phase == Phase::Stopping && self.workers.is_empty() && !self.finished {
            self.finished = true;
            actions.push(Action::Finished);
        }
    }
}
