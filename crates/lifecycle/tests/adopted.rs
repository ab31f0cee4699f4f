//! What becomes of workers that another supervisor has left behind.

use std::time::Duration;

use wsgate_lifecycle::{Action, Event, Found, Lifecycle, Moment, Settings, Signs};

const GRACE: Duration = Duration::from_secs(60);

const fn at(ms: u64) -> Moment {
    Duration::from_millis(ms)
}

fn accepting(slot: usize, generation: u64, accepts: &[usize]) -> Found {
    Found {
        slot,
        generation,
        accepts: accepts.to_vec(),
        deadline: None,
    }
}

fn begin(generation: u64) -> Event {
    Event::Begin {
        generation,
        slots: 2,
        grace: GRACE,
        handover: false,
    }
}

/// The workers that these actions start.
fn started(actions: &[Action]) -> Vec<(u64, usize)> {
    let started = actions.iter().filter_map(|action| match action {
        Action::Spawn { worker, slot, .. } => Some((*worker, *slot)),
        _ => None,
    });
    started.collect()
}

#[test]
fn they_are_replaced_as_by_a_reload_and_drains_keep_their_deadlines() {
    let mut lifecycle = Lifecycle::new(Settings::default());
    let draining = Found {
        deadline: Some(at(5_000)),
        accepts: Vec::new(),
        ..accepting(0, 3, &[])
    };
    let found = [accepting(0, 4, &[0]), accepting(1, 4, &[1]), draining];
    let names = lifecycle.adopt(at(0), Some((4, 2, GRACE)), &found);
    assert_eq!(lifecycle.active(), Some(4));
    assert_eq!(lifecycle.workers().len(), 3);

    let actions = lifecycle.apply(at(1), begin(5));
    let own = started(&actions);
    assert_eq!(
        own.iter().map(|(_, slot)| *slot).collect::<Vec<_>>(),
        [0, 1]
    );
    assert!(own.iter().all(|(worker, _)| !names.contains(worker)));
    assert_eq!(lifecycle.apply(at(2), Event::Ready(own[0].0)), []);
    let actions = lifecycle.apply(at(3), Event::Ready(own[1].0));
    let retired = Action::Retire {
        workers: vec![names[0], names[1]],
        deadline: at(3) + GRACE,
    };
    assert!(actions.contains(&retired), "{actions:?}");
    // The one that drained already does so by the deadline that it had.
    assert_eq!(lifecycle.workers()[&names[2]].deadline(), Some(at(5_000)));
}

#[test]
fn if_the_new_generation_fails_they_go_on() {
    let mut lifecycle = Lifecycle::new(Settings::default());
    let found = [accepting(0, 4, &[0]), accepting(1, 4, &[1])];
    let names = lifecycle.adopt(at(0), Some((4, 2, GRACE)), &found);
    let own = started(&lifecycle.apply(at(1), begin(5)));
    let actions = lifecycle.apply(at(2), Event::Exited(own[0].0));
    assert!(
        actions
            .iter()
            .any(|action| matches!(action, Action::Failed { generation: 5, .. }))
    );
    assert_eq!(lifecycle.active(), Some(4));
    assert!(
        names
            .iter()
            .all(|name| lifecycle.workers()[name].is_active())
    );
}

#[test]
fn a_slot_whose_worker_died_meanwhile_gets_another_one() {
    let mut lifecycle = Lifecycle::new(Settings::default());
    lifecycle.adopt(at(0), Some((4, 2, GRACE)), &[accepting(0, 4, &[0])]);
    let restart = lifecycle.wake_at().expect("a restart is due");
    assert_eq!(started(&lifecycle.apply(restart, Event::Tick)), [(2, 1)]);
}

#[test]
fn a_slot_that_another_worker_serves_stays_with_it_until_it_has_one_of_its_own() {
    let mut lifecycle = Lifecycle::new(Settings::default());
    let names = lifecycle.adopt(at(0), Some((4, 2, GRACE)), &[accepting(0, 4, &[0, 1])]);
    assert_eq!(lifecycle.slots()[1].served_by, Some(names[0]));
    let own = started(&lifecycle.apply(at(200), Event::Tick))[0].0;
    assert_eq!(lifecycle.apply(at(201), Event::Ready(own)), []);
    let actions = lifecycle.apply(at(2_000), Event::Tick);
    let take_back = Action::TakeBack {
        worker: names[0],
        slot: 1,
    };
    assert!(actions.contains(&take_back), "{actions:?}");
}

#[test]
fn only_drains_were_left_behind() {
    let mut lifecycle = Lifecycle::new(Settings::default());
    let draining = Found {
        deadline: Some(at(5_000)),
        accepts: Vec::new(),
        ..accepting(0, 3, &[])
    };
    let names = lifecycle.adopt(at(0), None, &[draining]);
    assert_eq!(lifecycle.active(), None);
    assert_eq!(
        lifecycle.apply(at(1), Event::Empty(names[0])),
        [Action::Dismiss(names[0])]
    );
    assert_eq!(
        lifecycle.apply(at(2), Event::Exited(names[0])),
        [Action::Gone(3)]
    );
}

#[test]
fn a_stuck_worker_of_a_slot_that_there_is_no_more_is_ended() {
    let mut lifecycle = Lifecycle::new(Settings::default());
    // Its supervisor died between the commit of fewer slots and what the old workers were to be told.
    let found = [accepting(0, 4, &[0]), accepting(3, 3, &[3])];
    let names = lifecycle.adopt(at(0), Some((4, 1, GRACE)), &found);
    let mut aborted = Vec::new();
    for second in 0..40 {
        let moves = Signs {
            heard: second,
            ..Signs::default()
        };
        let beat = Event::Beat {
            timeout: at(10_000),
            signs: vec![(names[0], moves), (names[1], Signs::default())],
        };
        let actions = lifecycle.apply(at(second * 1_000), beat);
        aborted.extend(actions.into_iter().filter_map(|action| match action {
            Action::Abort { worker, .. } => Some(worker),
            _ => None,
        }));
    }
    assert_eq!(aborted, [names[1]]);
}
