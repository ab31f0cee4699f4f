//! Retired sockets in the world of random events: served until their time is over, then closed, by nobody twice.

use super::*;
use crate::by_hand::ready_gateway;

impl World {
    /// As the supervisor's sockets do: what is wanted is in use, and what was in use until now is retired.
    pub(super) fn commit_sockets(&mut self, generation: u64) {
        let slots = self.slots_of[&generation];
        for slot in 0..slots {
            self.sockets.insert(slot, None);
        }
        for (_, retired) in self.sockets.range_mut(slots..) {
            retired.get_or_insert(generation);
        }
        self.committed_at.insert(generation, self.now);
    }

    fn of(&self, retired: u64) -> BTreeSet<usize> {
        let of_it = self.sockets.iter().filter(|(_, by)| **by == Some(retired));
        of_it.map(|(slot, _)| *slot).collect()
    }

    pub(super) fn serve(&mut self, worker: WorkerId, retired: u64) {
        let (sockets, newest) = (self.of(retired), self.committed.last().copied());
        let process = self.processes.get_mut(&worker).expect("a live worker");
        assert_eq!(Some(process.generation), newest, "an old one serves");
        assert!(process.said_ready && !process.killed && process.deadline.is_none());
        process.accepts.extend(sockets);
        self.free.remove(&retired);
    }

    pub(super) fn let_go(&mut self, worker: WorkerId, retired: u64) {
        let age = self.now - self.committed_at[&retired];
        assert!(age >= Settings::default().retired_for, "too early: {age:?}");
        assert!(self.letting_go.is_none(), "one after the other");
        let sockets = self.of(retired);
        let newest = self.committed.last().copied();
        for (id, process) in &mut self.processes {
            if *id == worker {
                assert!(process.accepts.is_superset(&sockets));
                process.accepts.retain(|slot| !sockets.contains(slot));
            }
            let active = Some(process.generation) == newest;
            assert!(active || process.released, "it holds them: {process:?}");
        }
        self.letting_go = Some((worker, retired));
    }

    pub(super) fn close(&mut self, retired: u64) {
        assert!(self.free.remove(&retired), "nobody let go of it");
        let newest = self.committed.last().copied();
        let mut starting = self.processes.values();
        assert!(
            !starting.any(|process| Some(process.generation) > newest && !process.killed),
            "a candidate may want them"
        );
        for slot in self.of(retired) {
            self.sockets.remove(&slot);
        }
        let prefix = self.sockets.keys().copied().eq(0..self.sockets.len());
        assert!(
            prefix,
            "closing goes from the last slot down: {:?}",
            self.sockets
        );
    }

    /// A retired socket is served as long as anybody accepts at all, but for the moment in which
    /// its worker lets go of it.
    pub(super) fn check_retired(&self, lifecycle: &Lifecycle) {
        let mut processes = self.processes.values();
        if lifecycle.phase() == Phase::Stopping || processes.all(|p| p.accepts.is_empty()) {
            return;
        }
        for (slot, by) in self.sockets.iter().filter(|(_, by)| by.is_some()) {
            let mut processes = self.processes.values();
            let leaving = self.letting_go.is_some_and(|(_, of)| Some(of) == *by);
            assert!(
                leaving || processes.any(|process| process.accepts.contains(slot)),
                "nobody serves retired slot {slot}"
            );
            let listed = lifecycle
                .retired()
                .iter()
                .any(|lot| Some(lot.generation) == *by);
            assert!(listed, "slot {slot} is never closed");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn retired_slots_are_closed_once_all_workers_answer(
        happenings in proptest::collection::vec(happening(), 1..80),
    ) {
        let settings = Settings::default();
        let mut lifecycle = Lifecycle::new(settings.clone());
        let mut world = World::default();
        for happening in happenings {
            if matches!(happening, Happening::Stop { .. }) {
                continue;
            }
            let Some(event) = world.event(happening) else { continue };
            world.carry_out(lifecycle.apply(world.now, event));
            world.reap(&mut lifecycle);
        }
        // Everybody does what was asked, and there is no further reload.
        for _ in 0..200 {
            while let Some(event) = world.event(Happening::Ready(0)).or_else(|| world.event(Happening::Releases(0))) {
                world.carry_out(lifecycle.apply(world.now, event));
                world.reap(&mut lifecycle);
            }
            if let Some(event) = world.event(Happening::LetsGo) {
                world.carry_out(lifecycle.apply(world.now, event));
            }
            world.now += Duration::from_millis(100);
            world.carry_out(lifecycle.apply(world.now, Event::Tick));
            world.reap(&mut lifecycle);
        }
        prop_assert_eq!(lifecycle.retired(), &[]);
        let beyond = world.sockets.values().filter(|by| by.is_some()).count();
        prop_assert_eq!(beyond, 0);
    }
}

/// A gateway of two slots whose second has just been retired; worker 3 is the new one.
fn shrunk_gateway() -> (Lifecycle, World) {
    let (mut lifecycle, mut world) = ready_gateway(2);
    for happening in [
        Happening::Reload {
            slots: 1,
            grace_ms: 60_000,
            handover: false,
        },
        Happening::Ready(0),
    ] {
        let event = world.event(happening).expect("an event");
        world.carry_out(lifecycle.apply(world.now, event));
    }
    assert_eq!(world.processes[&3].accepts, BTreeSet::from([0, 1]));
    (lifecycle, world)
}

#[test]
fn a_retired_slot_is_closed_after_4_s_and_when_nobody_else_holds_it() {
    let (mut lifecycle, mut world) = shrunk_gateway();
    for expected in [None, Some(world.now + Settings::default().retired_for)] {
        assert_eq!(lifecycle.wake_at().filter(|at| at.as_secs() < 60), expected);
        if let Some(event) = world.event(Happening::Releases(0)) {
            world.carry_out(lifecycle.apply(world.now, event));
        }
        if let Some(event) = world.event(Happening::Releases(0)) {
            world.carry_out(lifecycle.apply(world.now, event));
        }
    }
    world.now = Duration::from_secs(4);
    // The lots of both commits; that of the first holds nothing.
    let let_go = |retired| Action::LetGo { worker: 3, retired };
    let gone = |retired| Event::LetGo { worker: 3, retired };
    assert_eq!(lifecycle.apply(world.now, Event::Tick), [let_go(1)]);
    assert_eq!(
        lifecycle.apply(world.now, gone(1)),
        [Action::CloseRetired(1), let_go(2)]
    );
    assert_eq!(
        lifecycle.apply(world.now, gone(2)),
        [Action::CloseRetired(2)]
    );
    assert_eq!(lifecycle.retired(), []);
}

#[test]
fn when_the_worker_that_serves_a_retired_slot_dies_another_goes_on_at_once() {
    let (mut lifecycle, mut world) = ready_gateway(3);
    let reload = Happening::Reload {
        slots: 2,
        grace_ms: 60_000,
        handover: false,
    };
    for happening in [reload, Happening::Ready(0), Happening::Ready(0)] {
        let event = world.event(happening).expect("an event");
        world.carry_out(lifecycle.apply(world.now, event));
    }
    let serves = |(id, process): (&WorkerId, &Process)| process.accepts.contains(&2).then_some(*id);
    let first = world.processes.iter().find_map(serves).expect("a worker");
    world.lose(first);
    world.carry_out(lifecycle.apply(world.now, Event::Exited(first)));
    let second = world
        .processes
        .iter()
        .find_map(serves)
        .expect("another one");
    assert_ne!(first, second);
}

#[test]
fn a_slot_that_comes_back_is_taken_back_with_its_sockets() {
    let (mut lifecycle, mut world) = shrunk_gateway();
    world.now = Duration::from_secs(1);
    let reload = Happening::Reload {
        slots: 2,
        grace_ms: 60_000,
        handover: false,
    };
    for happening in [reload, Happening::Ready(0), Happening::Ready(0)] {
        let event = world.event(happening).expect("an event");
        world.carry_out(lifecycle.apply(world.now, event));
    }
    assert_eq!(world.sockets, BTreeMap::from([(0, None), (1, None)]));
    assert!(world.processes[&5].accepts.contains(&1));
    assert!(world.processes[&3].accepts.is_empty());
}
