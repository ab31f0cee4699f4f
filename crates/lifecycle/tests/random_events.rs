//! Random orders of events, against a world that carries the actions out and keeps
//! book of what must always hold.

#[path = "random_events/watch.rs"]
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use wsgate_lifecycle::{Action, Event, Lifecycle, Moment, Phase, Settings, WorkerId};

#[path = "random_events/beginning.rs"]
mod beginning;
#[path = "random_events/by_hand.rs"]
mod by_hand;
#[path = "random_events/handover.rs"]
mod handover;
#[path = "random_events/retired.rs"]
mod retired;

/// The watchdog's.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Something that happens to the gateway; numbers pick among what exists at that moment.
#[derive(Clone, Debug)]
enum Happening {
    Reload {
        slots: usize,
        grace_ms: u64,
        handover: bool,
    },
    /// A giver says that its taker takes nothing any more.
    HandoverBreaks {
        n: usize,
        avoid: bool,
    },
    Ready(usize),
    Crash(usize),
    LastTunnelEnds(usize),
    Releases(usize),
    LetsGo,
    Stop {
        accept_for_ms: u64,
        grace_ms: u64,
    },
    TimePasses {
        ms: u64,
    },
    Freeze(usize),
    Thaw(usize),
    /// Several looks of the watchdog in a row, as far apart as this.
    Beats {
        n: usize,
        ms: u64,
    },
    Expire(usize),
    Retry,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        3 => (1usize..5, 0u64..20_000, any::<bool>())
            .prop_map(|(slots, grace_ms, handover)| Happening::Reload { slots, grace_ms, handover }),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(n, avoid)| Happening::HandoverBreaks { n, avoid }),
        9 => any::<usize>().prop_map(Happening::Ready),
        4 => any::<usize>().prop_map(Happening::Crash),
        4 => any::<usize>().prop_map(Happening::LastTunnelEnds),
        5 => any::<usize>().prop_map(Happening::Releases),
        4 => Just(Happening::LetsGo),
        1 => (0u64..2_000, 0u64..5_000)
            .prop_map(|(accept_for_ms, grace_ms)| Happening::Stop { accept_for_ms, grace_ms }),
        6 => (0u64..3_000).prop_map(|ms| Happening::TimePasses { ms }),
        3 => any::<usize>().prop_map(Happening::Freeze),
        1 => any::<usize>().prop_map(Happening::Thaw),
        8 => (1usize..12, 100u64..2_500).prop_map(|(n, ms)| Happening::Beats { n, ms }),
        1 => (0usize..3).prop_map(Happening::Expire),
        1 => Just(Happening::Retry),
    ]
}

/// A process, as the world sees it.
#[derive(Debug, Default)]
struct Process {
    generation: u64,
    slot: usize,
    said_ready: bool,
    accepts: BTreeSet<usize>,
    /// It has closed its listening sockets.
    released: bool,
    deadline: Option<Moment>,
    dismissed: bool,
    killed: bool,
    /// It does nothing any more, until it is thawed.
    frozen: bool,
    /// When it was told to abort.
    aborted: Option<Moment>,
    answers: u64,
    /// When the supervisor last saw it move, or began to look.
    moved: Option<Moment>,
}

#[derive(Default)]
struct World {
    last_beat: Option<Moment>,
    /// The slot whose stuck worker was ended last, until it has another one.
    replacing: Option<usize>,
    /// A stop was asked for: from then on nobody is waited for.
    stop_asked: bool,
    /// Slots whose workers crash so often that nobody waits for the next one.
    crash_looping: BTreeSet<usize>,
    now: Moment,
    processes: BTreeMap<WorkerId, Process>,
    committed: Vec<u64>,
    failed: BTreeSet<u64>,
    gone: BTreeSet<u64>,
    next_generation: u64,
    finished: bool,
    slots_ever: usize,
    slots_of: BTreeMap<u64, usize>,
    /// The sockets, by slot, and whose commit retired them.
    sockets: BTreeMap<usize, Option<u64>>,
    /// When commits were.
    committed_at: BTreeMap<u64, Moment>,
    /// A worker that has been told to let go of retired sockets and has not answered.
    letting_go: Option<(WorkerId, u64)>,
    /// Whose retired sockets were let go and may be closed.
    free: BTreeSet<u64>,
    handovers: handover::Book,
}

impl World {
    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            let refusal = matches!(action, Action::Failed { .. } | Action::CloseSockets);
            assert!(
                !self.finished || refusal,
                "nothing follows the end: {action:?}"
            );
            self.carry_out_one(action);
        }
        self.check_givers_drain();
    }

    fn carry_out_one(&mut self, action: Action) {
        match action {
            Action::Spawn {
                worker,
                slot,
                generation,
            } => {
                let process = Process {
                    generation,
                    slot,
                    ..Process::default()
                };
                assert!(
                    self.processes.insert(worker, process).is_none(),
                    "an id is used once"
                );
            }
            Action::Commit(generation) => {
                let mut own = self
                    .processes
                    .values()
                    .filter(|process| process.generation == generation && !process.killed);
                assert!(
                    own.all(|process| process.said_ready),
                    "a commit waits for every worker"
                );
                assert!(
                    !self.failed.contains(&generation),
                    "what failed never commits"
                );
                self.committed.push(generation);
                self.commit_sockets(generation);
                self.replacing = None;
                self.crash_looping.clear();
                self.handovers.commit(generation);
            }
            Action::HandOver { from, to } => self.hand_over(from, to),
            Action::Serve { worker, retired } => self.serve(worker, retired),
            Action::LetGo { worker, retired } => self.let_go(worker, retired),
            Action::CloseRetired(retired) => self.close(retired),
            Action::Accept { worker, slot } => {
                assert_eq!(self.sockets.get(&slot), Some(&None), "it is retired");
                let newest = *self
                    .committed
                    .last()
                    .expect("accepting comes after a commit");
                let process = self.processes.get_mut(&worker).expect("a live worker");
                assert_eq!(
                    process.generation, newest,
                    "only the active generation accepts anew"
                );
                assert!(process.said_ready && !process.killed && process.deadline.is_none());
                assert!(process.aborted.is_none());
                process.accepts.insert(slot);
                if process.slot == slot && self.replacing == Some(slot) {
                    self.replacing = None;
                }
                self.slots_ever = self.slots_ever.max(slot + 1);
            }
            Action::Abort { worker, silent } => self.abort(worker, silent),
            Action::TakeBack { worker, slot } => {
                let served = self
                    .processes
                    .iter()
                    .any(|(id, process)| *id != worker && process.accepts.contains(&slot));
                assert!(
                    served,
                    "a slot is taken back only when its own worker accepts"
                );
                let process = self.processes.get_mut(&worker).expect("a live worker");
                assert!(process.slot != slot && process.accepts.remove(&slot));
            }
            Action::Retire { workers, deadline } => {
                for worker in workers {
                    let process = self.processes.get_mut(&worker).expect("a live worker");
                    assert!(
                        process.deadline.is_none_or(|before| deadline < before),
                        "a deadline never moves away"
                    );
                    process.deadline = Some(deadline);
                    process.accepts.clear();
                    self.letting_go.take_if(|(of, _)| *of == worker);
                }
            }
            Action::Dismiss(worker) => {
                let process = self.processes.get_mut(&worker).expect("a live worker");
                assert!(process.deadline.is_some() && !process.dismissed);
                process.dismissed = true;
            }
            Action::Kill { worker, .. } => {
                let process = self.processes.get_mut(&worker).expect("a live worker");
                assert!(
                    process.accepts.is_empty(),
                    "a worker that accepts is never killed: {process:?}"
                );
                assert!(!process.killed);
                let patience = Settings::default().abort_within;
                assert!(
                    process.aborted.is_none_or(|at| at + patience <= self.now),
                    "a core dump gets its time"
                );
                process.killed = true;
            }
            Action::Failed { generation, .. } => {
                assert!(
                    !self.committed.contains(&generation),
                    "what was committed never rolls back"
                );
                assert!(self.failed.insert(generation));
            }
            Action::Gone(generation) => {
                assert!(self.gone.insert(generation), "a generation goes once");
                assert!(
                    self.processes
                        .values()
                        .all(|process| process.generation != generation)
                );
            }
            Action::Finished => {
                assert!(self.processes.is_empty());
                self.finished = true;
            }
            Action::CloseSockets => {
                let accepting = self
                    .processes
                    .values()
                    .any(|process| !process.accepts.is_empty());
                assert!(!accepting, "somebody accepts still");
                self.sockets.clear();
                self.handovers.stop();
                // No slot gets another worker.
                self.replacing = None;
            }
            Action::Restarting {
                slot,
                crash_looping,
                ..
            } => {
                if crash_looping {
                    self.crash_looping.insert(slot);
                    self.replacing.take_if(|replacing| *replacing == slot);
                } else {
                    self.crash_looping.remove(&slot);
                }
            }
        }
    }

    fn pick(&self, n: usize, which: impl Fn(&Process) -> bool) -> Option<WorkerId> {
        let matching: Vec<_> = self
            .processes
            .iter()
            .filter(|(_, process)| which(process))
            .map(|(id, _)| *id)
            .collect();
        matching.get(n.checked_rem(matching.len())?).copied()
    }

    fn event(&mut self, happening: Happening) -> Option<Event> {
        Some(match happening {
            Happening::Reload {
                slots,
                grace_ms,
                handover,
            } => {
                self.next_generation += 1;
                self.slots_of.insert(self.next_generation, slots);
                self.handovers.begin(self.next_generation, handover);
                Event::Begin {
                    generation: self.next_generation,
                    slots,
                    grace: Duration::from_millis(grace_ms),
                    handover,
                }
            }
            Happening::HandoverBreaks { n, avoid } => Event::HandoverBroken {
                giver: self.break_off(n)?,
                avoid,
            },
            Happening::Ready(n) => {
                let able = |process: &Process| !process.said_ready && !process.killed;
                let worker = self.pick(n, |process| able(process) && !process.frozen)?;
                self.processes.get_mut(&worker)?.said_ready = true;
                Event::Ready(worker)
            }
            Happening::Crash(n) => {
                let worker = self.pick(n, |_| true)?;
                self.lose(worker);
                Event::Exited(worker)
            }
            Happening::Releases(n) => {
                let worker =
                    self.pick(n, |process| process.deadline.is_some() && !process.released)?;
                self.processes.get_mut(&worker)?.released = true;
                Event::Released(worker)
            }
            Happening::LetsGo => {
                let (worker, retired) = self.letting_go.take()?;
                self.free.insert(retired);
                Event::LetGo { worker, retired }
            }
            Happening::LastTunnelEnds(n) => {
                let able = |process: &Process| process.deadline.is_some() && !process.frozen;
                Event::Empty(self.pick(n, able)?)
            }
            Happening::Stop {
                accept_for_ms,
                grace_ms,
            } => {
                self.replacing = None;
                self.stop_asked = true;
                Event::Stop {
                    accept_for: Duration::from_millis(accept_for_ms),
                    grace: Duration::from_millis(grace_ms),
                }
            }
            Happening::Freeze(n) => {
                let worker = self.pick(n, |process| !process.frozen)?;
                self.processes.get_mut(&worker)?.frozen = true;
                return None;
            }
            Happening::Thaw(n) => {
                let worker = self.pick(n, |process| process.frozen)?;
                self.processes.get_mut(&worker)?.frozen = false;
                return None;
            }
            Happening::Expire(back) => Event::Expire {
                generation: *self.committed.iter().rev().nth(back)?,
                deadline: self.now + Duration::from_millis(500),
            },
            Happening::Retry => {
                self.handovers.retry();
                Event::Retry
            }
            Happening::Beats { .. } => return None,
            Happening::TimePasses { ms } => {
                self.now += Duration::from_millis(ms);
                Event::Tick
            }
        })
    }

    fn lose(&mut self, worker: WorkerId) {
        self.processes.remove(&worker);
        self.handovers.lose(worker);
        self.letting_go.take_if(|(of, _)| *of == worker);
    }

    /// What was told to go goes: killed processes die, dismissed ones exit.
    fn reap(&mut self, lifecycle: &mut Lifecycle) {
        // One that is stopped takes no SIGABRT before its SIGCONT, which is sent with it; one that
        // loops with the signal blocked, or dumps its core for long, does not end by itself.
        let goes = |process: &Process| {
            let obeys = process.dismissed || process.aborted.is_some();
            process.killed || (obeys && !process.frozen)
        };
        while let Some(worker) = self.pick(0, goes) {
            self.lose(worker);
            let actions = lifecycle.apply(self.now, Event::Exited(worker));
            self.carry_out(actions);
        }
    }

    fn check(&self, lifecycle: &Lifecycle, settings: &Settings) {
        let accepting: BTreeSet<u64> = self
            .processes
            .values()
            .filter(|process| !process.accepts.is_empty())
            .map(|process| process.generation)
            .collect();
        assert!(
            accepting.len() <= 1,
            "two active generations: {accepting:?}"
        );
        if let Some(generation) = lifecycle.active() {
            assert_eq!(self.committed.last(), Some(&generation));
        }
        for process in self.processes.values() {
            let over = process
                .deadline
                .is_some_and(|deadline| deadline + settings.overtime <= self.now);
            assert!(
                !over || process.killed || process.dismissed || process.aborted.is_some(),
                "a drain outlived its deadline: {process:?}"
            );
        }
        for slot in 0..self.slots_ever {
            let servers = self
                .processes
                .values()
                .filter(|process| process.accepts.contains(&slot))
                .count();
            assert!(servers <= 1, "slot {slot} is served {servers} times");
        }
        self.check_vacancies(lifecycle, settings);
        self.check_retired(lifecycle);
        self.check_handovers(lifecycle, settings);
        for process in self.processes.values() {
            let over = process
                .aborted
                .is_some_and(|at| at + settings.abort_within <= self.now);
            assert!(
                !over || process.killed,
                "one that is stuck outlives its end: {process:?}"
            );
        }
        if let Some(at) = lifecycle.wake_at() {
            assert!(at > self.now, "a timer that has come was not acted upon");
        }
    }

    fn check_vacancies(&self, lifecycle: &Lifecycle, settings: &Settings) {
        let anybody = self
            .processes
            .values()
            .any(|process| !process.accepts.is_empty());
        if lifecycle.phase() == Phase::Stopping || !anybody {
            return;
        }
        for (number, slot) in lifecycle.slots().iter().enumerate() {
            let served = self
                .processes
                .values()
                .any(|process| process.accepts.contains(&number));
            let waited = slot
                .vacant_since
                .map(|since| self.now.saturating_sub(since));
            assert!(
                served || waited.is_some_and(|waited| waited < settings.vacant_for),
                "slot {number} waits: {slot:?}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_promises_hold(
        left in beginning::left(),
        happenings in proptest::collection::vec(happening(), 1..120),
    ) {
        let settings = Settings::default();
        let (mut lifecycle, mut world) = World::beginning(&settings, left);
        for happening in happenings {
            if let Happening::Beats { n, ms } = happening {
                world.beats(&mut lifecycle, &settings, n, ms);
                continue;
            }
            let Some(event) = world.event(happening) else { continue };
            let before: Vec<_> = world.processes.values().filter(|process| !process.accepts.is_empty()).map(|process| process.slot).collect();
            let failed = world.failed.len();
            let crash = matches!(event, Event::Exited(_));
            let actions = lifecycle.apply(world.now, event);
            world.carry_out(actions);
            if world.failed.len() > failed && lifecycle.phase() == Phase::Running && !crash {
                let after = world.processes.values().filter(|process| !process.accepts.is_empty()).count();
                prop_assert!(after >= before.len(), "a failed candidate took workers from the active generation");
            }
            world.check(&lifecycle, &settings);
            world.reap(&mut lifecycle);
            world.check(&lifecycle, &settings);
        }
    }

    #[test]
    fn after_a_stop_everything_ends_by_the_deadline(
        left in beginning::left(),
        happenings in proptest::collection::vec(happening(), 1..60),
        grace_ms in 0u64..5_000,
    ) {
        let settings = Settings::default();
        let (mut lifecycle, mut world) = World::beginning(&settings, left);
        for happening in happenings {
            if let Happening::Beats { n, ms } = happening {
                world.beats(&mut lifecycle, &settings, n, ms);
                continue;
            }
            let Some(event) = world.event(happening) else { continue };
            let actions = lifecycle.apply(world.now, event);
            world.carry_out(actions);
            world.reap(&mut lifecycle);
        }
        if !world.finished {
            let stop = Event::Stop { accept_for: Duration::ZERO, grace: Duration::from_millis(grace_ms) };
            let actions = lifecycle.apply(world.now, stop);
            world.carry_out(actions);
            world.now += Duration::from_millis(grace_ms) + settings.overtime;
            let actions = lifecycle.apply(world.now, Event::Tick);
            world.carry_out(actions);
            world.reap(&mut lifecycle);
        }
        // What was dismissed and does not go is stuck.
        for _ in 0..400 {
            if world.finished {
                break;
            }
            world.beats(&mut lifecycle, &settings, 1, 500);
        }
        prop_assert!(world.finished, "left over: {:?}", world.processes);
    }
}
