//! Who gives its tunnels to whom, as the world of random events sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use wsgate_lifecycle::{Action, Event, Lifecycle, Moment, Phase, Settings, WorkerId};

use crate::by_hand::ready_gateway;
use crate::{Happening, Process, World};

/// What there is to know about handovers.
#[derive(Default)]
pub(crate) struct Book {
    /// The generations whose configuration wants handovers.
    wanted: BTreeSet<u64>,
    /// Those of the last commit.
    givers: BTreeMap<WorkerId, Giver>,
    /// The last commit.
    newest: u64,
    stopped: bool,
}

#[derive(Debug, Default)]
struct Giver {
    /// `None` once it has ended, or the giver has said that it takes nothing.
    taker: Option<WorkerId>,
    /// With those who are `known`.
    tries: u32,
    rounds: u32,
    /// Who accepted at its last try.
    known: BTreeSet<WorkerId>,
    /// The taker of whom it said so, and when it may be paired anew.
    broken: Option<(WorkerId, Moment)>,
}

impl Book {
    pub(crate) fn begin(&mut self, generation: u64, handover: bool) {
        if handover {
            self.wanted.insert(generation);
        }
    }

    pub(crate) fn commit(&mut self, generation: u64) {
        self.newest = generation;
        self.givers.clear();
    }

    /// Whoever has no taker begins anew.
    pub(crate) fn retry(&mut self) {
        let idle = self.givers.values_mut().filter(|it| it.taker.is_none());
        idle.for_each(|giver| *giver = Giver::default());
    }

    pub(crate) fn stop(&mut self) {
        self.stopped = true;
    }

    /// It is gone, or about to be ended because it is stuck.
    pub(crate) fn lose(&mut self, worker: WorkerId) {
        self.givers.remove(&worker);
        for giver in self.givers.values_mut() {
            giver.taker.take_if(|taker| *taker == worker);
            giver.broken.take_if(|(taker, _)| *taker == worker);
        }
    }
}

impl World {
    pub(crate) fn hand_over(&mut self, from: WorkerId, to: WorkerId) {
        assert_ne!(from, to);
        let newest = self.handovers.newest;
        assert!(
            self.handovers.wanted.contains(&newest),
            "generation {newest} wants no handover"
        );
        assert!(!self.handovers.stopped, "a stop hands nothing over");
        let taker = &self.processes[&to];
        assert!(
            taker.generation == newest && !taker.accepts.is_empty(),
            "only who accepts takes: {taker:?}"
        );
        let giver = &self.processes[&from];
        assert!(
            giver.generation < newest && may_hold(giver),
            "there is nothing to give: {giver:?}"
        );
        let takers = self.takers();
        let settings = Settings::default();
        let giver = self.handovers.givers.entry(from).or_default();
        assert_eq!(giver.taker, None, "one taker at a time");
        if giver.tries == settings.handover_tries {
            assert!(
                takers.difference(&giver.known).next().is_some(),
                "whoever is there has had all tries: {giver:?}"
            );
            giver.rounds += 1;
            giver.tries = 0;
        }
        giver.taker = Some(to);
        giver.tries += 1;
        giver.known = takers;
        assert!(
            giver.rounds < settings.handover_rounds,
            "it goes on for ever"
        );
    }

    fn takers(&self) -> BTreeSet<WorkerId> {
        let newest = self.handovers.newest;
        let taking = self
            .processes
            .iter()
            .filter(|(_, it)| it.generation == newest && !it.accepts.is_empty());
        taking.map(|(id, _)| *id).collect()
    }

    /// Who gives accepts nothing any more, once all actions of one event are carried out.
    pub(crate) fn check_givers_drain(&self) {
        for giver in self.handovers.givers.keys() {
            let giver = &self.processes[giver];
            assert!(giver.deadline.is_some(), "it does not drain: {giver:?}");
        }
    }

    pub(crate) fn break_off(&mut self, n: usize) -> Option<WorkerId> {
        let givers = &self.handovers.givers;
        let able: Vec<_> = givers.iter().filter(|(_, it)| it.taker.is_some()).collect();
        let worker = *able.get(n.checked_rem(able.len())?)?.0;
        let giver = self.handovers.givers.get_mut(&worker)?;
        let again = self.now + Settings::default().handover_pause;
        giver.broken = Some((giver.taker.take()?, again));
        Some(worker)
    }

    /// Everybody who may have something to give has a taker, if there is one and tries are left.
    pub(crate) fn check_handovers(&self, lifecycle: &Lifecycle, settings: &Settings) {
        let newest = self.handovers.newest;
        let takers = self.takers();
        if !self.handovers.wanted.contains(&newest)
            || lifecycle.phase() == Phase::Stopping
            || takers.is_empty()
        {
            return;
        }
        let older = self
            .processes
            .iter()
            .filter(|(_, it)| it.generation < newest);
        for (id, process) in older.filter(|(_, it)| it.deadline.is_some() && may_hold(it)) {
            let giver = self.handovers.givers.get(id);
            let giver = giver.unwrap_or_else(|| panic!("{id} was left out: {process:?}"));
            let waits = giver.broken.is_some_and(|(_, until)| until > self.now);
            let used_up = giver.tries == settings.handover_tries
                && (takers.is_subset(&giver.known) || giver.rounds + 1 == settings.handover_rounds);
            assert!(
                giver.taker.is_some() || used_up || waits,
                "{id} has nobody: {giver:?}"
            );
        }
    }
}

fn may_hold(process: &Process) -> bool {
    !process.dismissed && !process.killed && process.aborted.is_none()
}

/// Slots of both generations; the new one takes over. The new workers come after the old ones.
fn reloaded_gateway(before: usize, after: usize) -> (Lifecycle, World) {
    let (mut lifecycle, mut world) = ready_gateway(before);
    reload(&mut lifecycle, &mut world, after, true);
    (lifecycle, world)
}

fn reload(lifecycle: &mut Lifecycle, world: &mut World, slots: usize, handover: bool) {
    let begin = Happening::Reload {
        slots,
        grace_ms: 60_000,
        handover,
    };
    let event = world.event(begin).expect("an event");
    world.carry_out(lifecycle.apply(world.now, event));
    for _ in 0..slots {
        let event = world.event(Happening::Ready(0)).expect("an event");
        world.carry_out(lifecycle.apply(world.now, event));
    }
}

fn takers(world: &World) -> Vec<(WorkerId, Option<WorkerId>)> {
    let givers = world.handovers.givers.iter();
    givers.map(|(id, giver)| (*id, giver.taker)).collect()
}

fn dies(lifecycle: &mut Lifecycle, world: &mut World, worker: WorkerId) -> Vec<Action> {
    world.lose(worker);
    let actions = lifecycle.apply(world.now, Event::Exited(worker));
    world.carry_out(actions.clone());
    actions
}

#[test]
fn each_gives_to_the_new_worker_of_its_slot_and_those_beyond_to_the_others() {
    let (_, world) = reloaded_gateway(5, 2);
    let expected = [(1, 6), (2, 7), (3, 6), (4, 7), (5, 6)];
    assert_eq!(takers(&world), expected.map(|(from, to)| (from, Some(to))));
}

#[test]
fn those_who_drain_already_give_as_well_and_nobody_does_where_it_is_not_wanted() {
    let (mut lifecycle, mut world) = reloaded_gateway(1, 1);
    reload(&mut lifecycle, &mut world, 1, true);
    assert_eq!(takers(&world), [(1, Some(3)), (2, Some(3))]);
    reload(&mut lifecycle, &mut world, 1, false);
    assert_eq!(takers(&world), []);
}

#[test]
fn when_a_taker_dies_another_one_takes_at_once_or_the_first_that_accepts() {
    let (mut lifecycle, mut world) = reloaded_gateway(2, 2);
    let hand_over = |from, to| Action::HandOver { from, to };
    assert!(dies(&mut lifecycle, &mut world, 3).contains(&hand_over(1, 4)));
    dies(&mut lifecycle, &mut world, 4);
    assert_eq!(takers(&world), [(1, None), (2, None)]);
    world.now += Settings::default().backoff_first;
    world.carry_out(lifecycle.apply(world.now, Event::Tick));
    let ready = world.event(Happening::Ready(0)).expect("a successor");
    world.carry_out(lifecycle.apply(world.now, ready));
    assert_eq!(takers(&world), [(1, Some(5)), (2, Some(5))]);
}

fn broke(giver: WorkerId, avoid: bool) -> Event {
    Event::HandoverBroken { giver, avoid }
}

/// The first giver's handover breaks off until it has no taker, each time after the pause.
fn breaks_off(lifecycle: &mut Lifecycle, world: &mut World, avoid: bool) -> Vec<WorkerId> {
    let mut takers = Vec::new();
    while let Some(taker) = world.handovers.givers[&1].taker {
        takers.push(taker);
        let broken = world.break_off(0).expect("a giver");
        world.carry_out(lifecycle.apply(world.now, broke(broken, avoid)));
        world.now += Settings::default().handover_pause;
        world.carry_out(lifecycle.apply(world.now, Event::Tick));
    }
    takers
}

#[test]
fn a_taker_that_is_not_to_blame_is_tried_again_before_others() {
    let (mut lifecycle, mut world) = reloaded_gateway(2, 2);
    assert_eq!(breaks_off(&mut lifecycle, &mut world, false), [3, 3, 3]);
}

#[test]
fn who_comes_after_all_tries_were_used_up_has_three_of_its_own_and_that_ends() {
    let (mut lifecycle, mut world) = reloaded_gateway(1, 1);
    for round in 0..3 {
        let taker = 2 + round;
        let tries = breaks_off(&mut lifecycle, &mut world, true);
        assert_eq!(tries, [taker; 3]);
        assert!(!lifecycle.hands_over(1));
        dies(&mut lifecycle, &mut world, taker);
        world.now = lifecycle.slots()[0].restart_at.expect("a restart");
        world.carry_out(lifecycle.apply(world.now, Event::Tick));
        let ready = world.event(Happening::Ready(0)).expect("a successor");
        world.carry_out(lifecycle.apply(world.now, ready));
    }
    assert_eq!(takers(&world), [(1, None)], "not for ever");
}

#[test]
fn who_has_no_taker_has_all_tries_again_when_the_operator_wants_it() {
    let (mut lifecycle, mut world) = reloaded_gateway(1, 1);
    for _ in 0..4 {
        assert_eq!(breaks_off(&mut lifecycle, &mut world, true), [2, 2, 2]);
        world.handovers.retry();
        world.carry_out(lifecycle.apply(world.now, Event::Retry));
    }
    assert_eq!(takers(&world), [(1, Some(2))]);
    world.handovers.retry();
    assert_eq!(lifecycle.apply(world.now, Event::Retry), []);
}

#[test]
fn a_handover_that_breaks_off_is_tried_again_after_a_second_and_with_another_one_if_there_is_one() {
    let (mut lifecycle, mut world) = reloaded_gateway(2, 2);
    for taker in [3, 4, 3] {
        assert_eq!(takers(&world)[0], (1, Some(taker)));
        let broken = world.break_off(0).expect("a giver");
        assert_eq!(lifecycle.apply(world.now, broke(broken, true)), []);
        let again = world.now + Duration::from_secs(1);
        let earliest = lifecycle.wake_at().filter(|at| *at <= again);
        // After the third there is no other try.
        assert_eq!(earliest.is_some(), world.handovers.givers[&1].tries < 3);
        world.now = again;
        world.carry_out(lifecycle.apply(world.now, Event::Tick));
    }
    assert_eq!(takers(&world)[0], (1, None));
    reload(&mut lifecycle, &mut world, 2, true);
    assert_eq!(takers(&world)[0], (1, Some(5)), "a commit begins anew");
}

#[test]
fn the_end_of_a_taker_of_which_its_giver_spoke_before_is_waited_for_no_longer() {
    let (mut lifecycle, mut world) = reloaded_gateway(2, 2);
    let broken = world.break_off(0).expect("a giver");
    world.carry_out(lifecycle.apply(world.now, broke(broken, true)));
    assert_eq!(takers(&world)[0], (1, None));
    dies(&mut lifecycle, &mut world, 3);
    assert_eq!(takers(&world)[0], (1, Some(4)));
}

#[test]
fn a_stop_hands_nothing_over() {
    let (mut lifecycle, mut world) = reloaded_gateway(2, 2);
    let stop = Happening::Stop {
        accept_for_ms: 0,
        grace_ms: 5_000,
    };
    let event = world.event(stop).expect("an event");
    world.carry_out(lifecycle.apply(world.now, event));
    assert!(!lifecycle.hands_over(1) && !lifecycle.hands_over(2));
    let actions = dies(&mut lifecycle, &mut world, 3);
    assert!(!actions.iter().any(hands));
}

fn hands(action: &Action) -> bool {
    matches!(action, Action::HandOver { .. })
}

#[test]
fn who_has_been_told_to_exit_gives_nothing_more() {
    let (mut lifecycle, mut world) = reloaded_gateway(1, 1);
    let empty = lifecycle.apply(world.now, Event::Empty(1));
    assert_eq!(empty, [Action::Dismiss(1)]);
    world.carry_out(empty);
    assert!(!lifecycle.hands_over(1));
    // It is slow in going.
    reload(&mut lifecycle, &mut world, 1, true);
    assert_eq!(takers(&world), [(2, Some(3))]);
}
