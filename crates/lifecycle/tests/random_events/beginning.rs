//! A world that does not begin with nothing: workers that another supervisor has left behind.

use std::time::Duration;

use proptest::prelude::*;
use wsgate_lifecycle::{Found, Lifecycle, Settings};

use crate::{Happening, Process, World};

/// What another supervisor has left behind.
#[derive(Clone, Debug)]
pub(crate) struct Left {
    /// By slot of generation 2: whether its worker lives.
    alive: Vec<bool>,
    /// Workers of generation 1: how long they drain yet, in milliseconds.
    drains: Vec<u64>,
}

/// Nothing, as often as not.
pub(crate) fn left() -> impl Strategy<Value = Option<Left>> {
    let alive = proptest::collection::vec(any::<bool>(), 1..4);
    let drains = proptest::collection::vec(0u64..20_000, 0..3);
    proptest::option::of((alive, drains).prop_map(|(alive, drains)| Left { alive, drains }))
}

impl World {
    pub(crate) fn beginning(settings: &Settings, left: Option<Left>) -> (Lifecycle, Self) {
        let mut lifecycle = Lifecycle::new(settings.clone());
        let mut world = Self {
            next_generation: 2,
            ..Self::default()
        };
        let Some(left) = left else {
            return (lifecycle, world);
        };
        let found = left.found();
        let slots = left.alive.len();
        let active = left.alive.contains(&true).then_some(2);
        let grace = Duration::from_secs(5);
        let names = lifecycle.adopt(world.now, active.map(|it| (it, slots, grace)), &found);
        if active.is_some() {
            world.committed.push(2);
            world.slots_of.insert(2, slots);
            world.sockets.extend((0..slots).map(|slot| (slot, None)));
        }
        for (name, found) in names.into_iter().zip(found) {
            let process = Process {
                generation: found.generation,
                slot: found.slot,
                said_ready: true,
                accepts: found.accepts.into_iter().collect(),
                released: found.deadline.is_some(),
                deadline: found.deadline,
                ..Process::default()
            };
            world.processes.insert(name, process);
        }
        (lifecycle, world)
    }
}

impl Left {
    fn found(&self) -> Vec<Found> {
        let alive = self.alive.iter().enumerate().filter(|(_, alive)| **alive);
        let alive = alive.map(|(slot, _)| Found {
            slot,
            generation: 2,
            accepts: vec![slot],
            deadline: None,
        });
        let drains = self.drains.iter().enumerate().map(|(slot, ms)| Found {
            slot,
            generation: 1,
            accepts: Vec::new(),
            deadline: Some(Duration::from_millis(*ms)),
        });
        alive.chain(drains).collect()
    }
}

/// While a stop is announced slots get workers still, but whoever is stuck is not kept for that.
#[test]
fn after_the_word_of_a_stop_no_replacement_waits_for_a_worker() {
    let settings = Settings::default();
    let left = Left {
        alive: vec![false, true, true],
        drains: vec![8_441],
    };
    let (mut lifecycle, mut world) = World::beginning(&settings, Some(left));
    let stop = Happening::Stop {
        accept_for_ms: 736,
        grace_ms: 0,
    };
    let happenings = [
        Happening::TimePasses { ms: 0 },
        Happening::Beats { n: 1, ms: 100 },
        Happening::Freeze(3_686_239_434_014_540_696),
        Happening::Ready(0),
        Happening::Freeze(3_006_294_502_733_101_487),
        Happening::Freeze(224_281_568_776_246_214),
        Happening::Beats { n: 9, ms: 1_401 },
        stop,
        Happening::Thaw(290_194_048_284_984_602),
        Happening::Beats { n: 3, ms: 244 },
        Happening::Crash(5_463_434_705_951_937_461),
        Happening::Beats { n: 1, ms: 100 },
    ];
    for happening in happenings {
        if let Happening::Beats { n, ms } = happening {
            world.beats(&mut lifecycle, &settings, n, ms);
            continue;
        }
        let Some(event) = world.event(happening) else {
            continue;
        };
        let actions = lifecycle.apply(world.now, event);
        world.carry_out(actions);
        world.check(&lifecycle, &settings);
        world.reap(&mut lifecycle);
    }
}
