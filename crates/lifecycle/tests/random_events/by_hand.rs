//! Orders of events that were chosen, in the same world as the random ones.

use std::time::Duration;

use wsgate_lifecycle::{Action, Event, Lifecycle, Settings};

use crate::{Happening, World};

pub(crate) fn ready_gateway(slots: usize) -> (Lifecycle, World) {
    let mut lifecycle = Lifecycle::new(Settings::default());
    let mut world = World::default();
    let event = world
        .event(Happening::Reload {
            slots,
            grace_ms: 1_000,
            handover: false,
        })
        .expect("an event");
    world.carry_out(lifecycle.apply(world.now, event));
    for _ in 0..slots {
        let event = world
            .event(Happening::Ready(0))
            .expect("a worker that starts");
        world.carry_out(lifecycle.apply(world.now, event));
    }
    (lifecycle, world)
}

#[test]
fn restarts_in_a_slot_come_after_100_ms_that_double_up_to_10_s() {
    assert_eq!(
        pauses_of_slot_0(1),
        [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000],
        "nobody else serves"
    );
}

#[test]
fn after_five_crashes_in_a_row_a_slot_that_others_serve_waits_for_a_minute() {
    assert_eq!(
        pauses_of_slot_0(2),
        [100, 200, 400, 800, 60_000, 60_000, 60_000, 60_000, 60_000]
    );
}

/// How long the slot waits after each of nine deaths.
fn pauses_of_slot_0(slots: usize) -> Vec<u128> {
    let (mut lifecycle, mut world) = ready_gateway(slots);
    let mut pauses = Vec::new();
    for _ in 0..9 {
        let dying = lifecycle.slots()[0].own.expect("a worker in slot 0");
        world.processes.remove(&dying);
        let actions = lifecycle.apply(world.now, Event::Exited(dying));
        pauses.extend(actions.iter().find_map(|action| match action {
            Action::Restarting { slot: 0, after, .. } => Some(after.as_millis()),
            _ => None,
        }));
        world.carry_out(actions);
        world.now = lifecycle.slots()[0].restart_at.expect("a restart");
        let actions = lifecycle.apply(world.now, Event::Tick);
        world.carry_out(actions);
    }
    pauses
}

#[test]
fn a_slot_without_a_worker_for_500_ms_is_served_by_another_until_it_has_one() {
    let (mut lifecycle, mut world) = ready_gateway(2);
    world.processes.remove(&1);
    world.carry_out(lifecycle.apply(world.now, Event::Exited(1)));
    world.now = Duration::from_millis(499);
    world.carry_out(lifecycle.apply(world.now, Event::Tick));
    assert!(!world.processes[&2].accepts.contains(&0));
    world.now = Duration::from_millis(500);
    assert_eq!(lifecycle.wake_at(), Some(world.now));
    world.carry_out(lifecycle.apply(world.now, Event::Tick));
    assert!(world.processes[&2].accepts.contains(&0));
    let event = world.event(Happening::Ready(0)).expect("the successor");
    world.carry_out(lifecycle.apply(world.now, event));
    assert!(
        world.processes[&2].accepts.contains(&0),
        "the successor has to prove itself"
    );
    world.now += Duration::from_secs(1);
    assert_eq!(lifecycle.wake_at(), Some(world.now));
    world.carry_out(lifecycle.apply(world.now, Event::Tick));
    assert!(!world.processes[&2].accepts.contains(&0));
    assert!(world.processes[&3].accepts.contains(&0));
}

#[test]
fn a_successor_takes_the_slot_at_once_when_its_stand_in_dies() {
    let (mut lifecycle, mut world) = ready_gateway(2);
    world.processes.remove(&1);
    world.carry_out(lifecycle.apply(world.now, Event::Exited(1)));
    world.now = Duration::from_millis(500);
    world.carry_out(lifecycle.apply(world.now, Event::Tick));
    let event = world.event(Happening::Ready(0)).expect("the successor");
    world.carry_out(lifecycle.apply(world.now, event));
    world.processes.remove(&2);
    world.carry_out(lifecycle.apply(world.now, Event::Exited(2)));
    assert!(world.processes[&3].accepts.contains(&0));
}

#[test]
fn a_worker_that_dies_as_soon_as_it_accepts_does_not_end_a_vacancy() {
    let (mut lifecycle, mut world) = ready_gateway(2);
    let mut dying = 1;
    for (death_ms, restart_ms) in [(0, 100), (101, 301)] {
        world.now = Duration::from_millis(death_ms);
        world.processes.remove(&dying);
        world.carry_out(lifecycle.apply(world.now, Event::Exited(dying)));
        world.now = Duration::from_millis(restart_ms);
        world.carry_out(lifecycle.apply(world.now, Event::Tick));
        dying = lifecycle.slots()[0].own.expect("the successor");
        world
            .processes
            .get_mut(&dying)
            .expect("a process")
            .said_ready = true;
        world.carry_out(lifecycle.apply(world.now, Event::Ready(dying)));
    }
    world.processes.remove(&dying);
    world.carry_out(lifecycle.apply(world.now, Event::Exited(dying)));
    assert_eq!(lifecycle.wake_at(), Some(Duration::from_millis(500)));
}

#[test]
fn the_last_tunnels_end_ends_the_worker() {
    let (mut lifecycle, mut world) = ready_gateway(1);
    let reload = world
        .event(Happening::Reload {
            slots: 1,
            grace_ms: 60_000,
            handover: false,
        })
        .expect("an event");
    world.carry_out(lifecycle.apply(world.now, reload));
    let event = world
        .event(Happening::Ready(0))
        .expect("a worker that starts");
    world.carry_out(lifecycle.apply(world.now, event));
    assert_eq!(
        lifecycle.apply(world.now, Event::Empty(1)),
        [Action::Dismiss(1)]
    );
    assert_eq!(
        lifecycle.apply(world.now, Event::Exited(1)),
        [Action::Gone(1)]
    );
}

#[test]
fn a_worker_that_is_never_ready_ends_its_generation_only() {
    let (mut lifecycle, mut world) = ready_gateway(1);
    let reload = world
        .event(Happening::Reload {
            slots: 1,
            grace_ms: 60_000,
            handover: false,
        })
        .expect("an event");
    world.carry_out(lifecycle.apply(world.now, reload));
    world.now = lifecycle.wake_at().expect("a time limit");
    world.carry_out(lifecycle.apply(world.now, Event::Tick));
    assert!(world.failed.contains(&2));
    assert_eq!(lifecycle.active(), Some(1));
    assert!(world.processes[&1].accepts.contains(&0));
}
