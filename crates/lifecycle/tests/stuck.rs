//! Workers that are stuck: who takes their sockets, and when they are ended.

use std::time::Duration;

use wsgate_lifecycle::{Action, Event, Lifecycle, Moment, Settings, Signs, State, WorkerId};

const TIMEOUT: Duration = Duration::from_secs(8);
const BEAT: Duration = Duration::from_secs(1);

/// A gateway whose workers answer, but for some.
struct Gateway {
    lifecycle: Lifecycle,
    now: Moment,
    frozen: Vec<WorkerId>,
    beats: u64,
}

impl Gateway {
    /// With one generation of so many workers, 1 and up, in slots 0 and up.
    fn start(slots: usize) -> Self {
        let mut gateway = Self {
            lifecycle: Lifecycle::new(Settings::default()),
            now: Duration::ZERO,
            frozen: Vec::new(),
            beats: 0,
        };
        gateway.reload(1, slots);
        gateway.beat();
        gateway
    }

    /// What follows, but for retired sockets, which are another matter.
    fn apply(&mut self, event: Event) -> Vec<Action> {
        let mut actions = self.lifecycle.apply(self.now, event);
        actions.retain(|action| !matches!(action, Action::Serve { .. } | Action::LetGo { .. }));
        actions
    }

    fn reload(&mut self, generation: u64, slots: usize) {
        let _ = self.apply(Event::Begin {
            generation,
            slots,
            grace: Duration::from_secs(600),
            handover: false,
        });
        let new = self.lifecycle.workers().iter();
        let new = new.filter(|(_, worker)| worker.generation == generation);
        for worker in new.map(|(id, _)| *id).collect::<Vec<_>>() {
            let _ = self.apply(Event::Ready(worker));
        }
        assert_eq!(self.lifecycle.active(), Some(generation));
    }

    /// One look of the supervisor; who is not frozen has answered the one before.
    fn beat(&mut self) -> Vec<Action> {
        self.now += BEAT;
        self.beats += 1;
        let signs = |id: &WorkerId| Signs {
            heard: if self.frozen.contains(id) {
                0
            } else {
                self.beats
            },
            ..Signs::default()
        };
        let workers = self.lifecycle.workers().keys();
        let signs = workers.map(|id| (*id, signs(id))).collect();
        self.apply(Event::Beat {
            timeout: TIMEOUT,
            signs,
        })
    }

    /// Beats until there is something to do, and says what.
    fn until_something_happens(&mut self) -> Vec<Action> {
        for _ in 0..20 {
            let actions = self.beat();
            if !actions.is_empty() {
                return actions;
            }
        }
        panic!("nothing happens: {:?}", self.lifecycle);
    }

    fn freeze(&mut self, worker: WorkerId) {
        self.frozen.push(worker);
        // What is seen of it changes once more, to 0.
        let _ = self.beat();
    }
}

/// Beats until a worker that is stuck is ended, and says which one. What is killed is gone; of the
/// workers that start, those of slot 0 die, and the others are ready as soon as that has become a habit.
fn next_abort(gateway: &mut Gateway) -> WorkerId {
    for _ in 0..60 {
        for action in gateway.beat() {
            if let Action::Abort { worker, .. } = action {
                return worker;
            }
        }
        for (id, worker) in gateway.lifecycle.workers().clone() {
            let event = match worker.state {
                State::Killed => Event::Exited(id),
                State::Starting { .. } if worker.slot == 0 => Event::Exited(id),
                State::Starting { .. } if gateway.lifecycle.is_crash_looping(0) => Event::Ready(id),
                _ => continue,
            };
            let _ = gateway.apply(event);
        }
    }
    panic!("nobody is ended: {:?}", gateway.lifecycle);
}

fn accept(worker: WorkerId, slot: usize) -> Action {
    Action::Accept { worker, slot }
}

#[test]
fn the_sockets_of_a_stuck_worker_go_to_another_one_before_it_is_ended() {
    let mut gateway = Gateway::start(2);
    gateway.freeze(1);
    let began = gateway.now;
    let actions = gateway.until_something_happens();
    assert_eq!(gateway.now - began, TIMEOUT);
    let abort = Action::Abort {
        worker: 1,
        silent: TIMEOUT,
    };
    assert_eq!(actions, [accept(2, 0), abort]);
}

#[test]
fn one_that_does_not_end_is_killed_after_two_seconds() {
    let mut gateway = Gateway::start(2);
    gateway.freeze(1);
    gateway.until_something_happens();
    let at = gateway.lifecycle.wake_at().expect("a time limit");
    assert_eq!(at - gateway.now, Duration::from_secs(2));
    gateway.now = at;
    let actions = gateway.apply(Event::Tick);
    assert!(matches!(actions[..], [Action::Kill { worker: 1, .. }]));
}

#[test]
fn the_only_worker_is_ended_after_its_successor_accepts() {
    let mut gateway = Gateway::start(1);
    gateway.freeze(1);
    let actions = gateway.until_something_happens();
    assert!(matches!(actions[..], [Action::Spawn { worker: 2, .. }]));
    assert_eq!(gateway.apply(Event::Ready(2)), []);
    let actions = gateway.until_something_happens();
    assert_eq!(actions[0], accept(2, 0));
    assert!(matches!(actions[1..], [Action::Abort { worker: 1, .. }]));
    assert_eq!(gateway.apply(Event::Exited(1)), [], "it has its successor");
}

#[test]
fn the_successor_of_one_that_ends_by_itself_accepts_at_once() {
    let mut gateway = Gateway::start(1);
    gateway.freeze(1);
    gateway.until_something_happens();
    assert_eq!(gateway.apply(Event::Ready(2)), []);
    assert_eq!(gateway.apply(Event::Exited(1)), [accept(2, 0)]);
}

#[test]
fn the_only_worker_that_answers_again_stays() {
    let mut gateway = Gateway::start(1);
    gateway.freeze(1);
    gateway.until_something_happens();
    gateway.frozen.clear();
    let actions = gateway.beat();
    assert!(matches!(actions[..], [Action::Kill { worker: 2, .. }]));
    assert_eq!(gateway.apply(Event::Exited(2)), []);
    assert_eq!(gateway.lifecycle.slots()[0].own, Some(1));
    for _ in 0..20 {
        assert_eq!(gateway.beat(), []);
    }
}

#[test]
fn a_reload_while_a_successor_is_awaited_leaves_nothing_behind() {
    let mut gateway = Gateway::start(1);
    gateway.freeze(1);
    gateway.until_something_happens();
    gateway.reload(2, 1);
    // No more beats: the new configuration has no watchdog.
    let _ = gateway.apply(Event::Exited(2));
    let _ = gateway.apply(Event::Exited(3));
    gateway.now = gateway.lifecycle.wake_at().expect("a restart");
    let actions = gateway.apply(Event::Tick);
    assert!(matches!(actions[..], [Action::Spawn { worker: 4, .. }]));
    assert_eq!(gateway.apply(Event::Ready(4)), [accept(4, 0)]);
}

#[test]
fn nothing_is_entrusted_to_one_that_does_not_move_either() {
    let mut gateway = Gateway::start(3);
    gateway.freeze(1);
    gateway.freeze(2);
    let actions = gateway.until_something_happens();
    assert_eq!(actions[0], accept(3, 0));
    let _ = gateway.apply(Event::Exited(1));
    for _ in 0..5 {
        assert!(
            !gateway.beat().iter().any(is_abort),
            "the first slot has no worker yet"
        );
    }
}

fn is_abort(action: &Action) -> bool {
    matches!(action, Action::Abort { .. })
}

#[test]
fn a_draining_worker_is_ended_and_has_no_successor() {
    let mut gateway = Gateway::start(1);
    gateway.reload(2, 1);
    gateway.freeze(1);
    let actions = gateway.until_something_happens();
    assert!(matches!(actions[..], [Action::Abort { worker: 1, .. }]));
    assert_eq!(gateway.apply(Event::Exited(1)), [Action::Gone(1)]);
}

#[test]
fn those_that_clients_wait_for_come_first() {
    let mut gateway = Gateway::start(1);
    gateway.reload(2, 2);
    gateway.frozen.push(2);
    gateway.freeze(1);
    let actions = gateway.until_something_happens();
    assert_eq!(actions[0], accept(3, 0));
    assert!(matches!(actions[1..], [Action::Abort { worker: 2, .. }]));
    assert_eq!(gateway.beat(), [], "one at a time");
}

#[test]
fn a_slot_whose_workers_crash_already_holds_up_no_other_replacement() {
    let mut gateway = Gateway::start(3);
    for worker in [2, 3] {
        let _ = gateway.apply(Event::Exited(worker));
    }
    gateway.freeze(1);
    assert_eq!(next_abort(&mut gateway), 1);
    assert!(
        gateway.lifecycle.is_crash_looping(0),
        "its successors died before it was ended"
    );
    let _ = gateway.apply(Event::Exited(1));
    let own = gateway.lifecycle.slots()[1].own.expect("a worker");
    gateway.freeze(own);
    assert_eq!(next_abort(&mut gateway), own);
    assert_eq!(gateway.lifecycle.slots()[0].own, None);
}

#[test]
fn a_stuck_worker_that_served_long_leaves_no_deaths_to_its_slot() {
    let mut gateway = Gateway::start(2);
    for _ in 0..10 {
        gateway.beat();
    }
    gateway.freeze(1);
    gateway.until_something_happens();
    let actions = gateway.apply(Event::Exited(1));
    let first = Action::Restarting {
        slot: 0,
        after: Duration::from_millis(100),
        crash_looping: false,
    };
    assert_eq!(actions, [first]);
    assert!(matches!(
        gateway.lifecycle.workers()[&2].state,
        State::Active { .. }
    ));
}

#[test]
fn old_generations_beyond_the_limit_are_named_oldest_first_and_once() {
    let mut gateway = Gateway::start(1);
    for generation in 2..=5 {
        gateway.reload(generation, 1);
    }
    let all = |_| true;
    assert_eq!(gateway.lifecycle.surplus(0, all), [0; 0], "no limit");
    assert_eq!(gateway.lifecycle.surplus(2, all), [1, 2]);
    let holds = |generation| generation != 3;
    assert_eq!(gateway.lifecycle.surplus(2, holds), [1]);
    let deadline = gateway.now + Duration::from_secs(3);
    let actions = gateway.apply(Event::Expire {
        generation: 1,
        deadline,
    });
    let workers = vec![1];
    assert_eq!(actions, [Action::Retire { workers, deadline }]);
    assert_eq!(gateway.lifecycle.surplus(2, all), [2]);
    let later = gateway.now + Duration::from_secs(6_000);
    let actions = gateway.apply(Event::Expire {
        generation: 2,
        deadline: later,
    });
    assert_eq!(actions, [], "a deadline never moves away");
}
