//! From the commit to the answer: live tunnels move to the new workers meanwhile.

use std::collections::BTreeMap;
use std::time::Instant;

use wsgate_lifecycle::{Generation, Phase};
use wsgate_protocol::admin::{EventKind, Fates, ReloadOutcome, Reloaded};

use super::{Stage, Waiter};
use crate::admin;
use crate::supervisor::{Supervisor, tenths};

/// A reload whose generation is active.
pub(super) struct Committed {
    generation: Generation,
    waiters: Vec<Waiter>,
    pub(super) warnings: Vec<String>,
    /// From the request to the commit.
    milliseconds: f64,
    at: Instant,
}

impl Supervisor {
    /// The commit was just now. Everybody is answered as soon as the live tunnels have moved.
    pub(super) fn committed(
        &mut self,
        generation: Generation,
        waiters: Vec<Waiter>,
        warnings: Vec<String>,
    ) {
        let asked = waiters.iter().map(|waiter| waiter.asked).min();
        let milliseconds = asked.unwrap_or(self.started).elapsed().as_secs_f64() * 1e3;
        tracing::info!(
            generation,
            milliseconds = tenths(milliseconds),
            draining_tunnels = self.draining().tunnels,
            "generation is active"
        );
        if !waiters.is_empty() {
            self.reloads.done += 1;
        }
        self.reloads.stage = Stage::HandingOver(Box::new(Committed {
            generation,
            waiters,
            warnings,
            milliseconds,
            at: Instant::now(),
        }));
        self.conclude_handover();
    }

    /// Tells everybody how the reload went, unless tunnels are on their way still.
    pub(super) fn conclude_handover(&mut self) {
        let awaited = self.handovers.is_awaited() && self.lifecycle.phase() != Phase::Stopping;
        if awaited || !matches!(self.reloads.stage, Stage::HandingOver(_)) {
            return;
        }
        // They may have warnings.
        self.plan_lost();
        self.redo_renamed_drains();
        let Stage::HandingOver(committed) = std::mem::take(&mut self.reloads.stage) else {
            return;
        };
        let reloaded = self.reloaded(&committed);
        log_moved(&reloaded);
        self.tell_moved(&reloaded);
        let outcome = ReloadOutcome::Reloaded(Reloaded {
            warnings: committed.warnings,
            ..reloaded
        });
        self.finish(committed.waiters, &outcome);
    }

    fn tell_moved(&mut self, reloaded: &Reloaded) {
        let pause = reloaded.longest_pause_milliseconds;
        let Some((milliseconds, longest_pause_milliseconds)) =
            reloaded.handover_milliseconds.zip(pause)
        else {
            return;
        };
        if reloaded.moved > 0 || !reloaded.stays.is_empty() {
            self.news.tell(EventKind::Handover {
                generation: reloaded.generation,
                moved: reloaded.moved,
                fates: reloaded.fates.clone(),
                stays: reloaded.stays.clone(),
                milliseconds,
                longest_pause_milliseconds,
            });
        }
    }

    fn reloaded(&self, committed: &Committed) -> Reloaded {
        let draining = self.draining();
        let wanted = self.running.as_ref();
        let handover = wanted.is_some_and(|running| running.config.drain.handover);
        let milliseconds = || committed.at.elapsed().as_secs_f64() * 1e3;
        let pause = || self.handovers.longest_pause().as_secs_f64() * 1e3;
        let fates = self.handovers.fates();
        Reloaded {
            generation: committed.generation,
            milliseconds: committed.milliseconds,
            draining_tunnels: draining.tunnels,
            draining_generations: draining.generations,
            deadline_at: draining.deadline.map(admin::time_of_day_at),
            warnings: Vec::new(),
            moved: self.handovers.moved(),
            fates,
            stays: self.stays(),
            handover_milliseconds: handover.then(milliseconds),
            longest_pause_milliseconds: handover.then(pause),
        }
    }
}

fn log_moved(reloaded: &Reloaded) {
    let Some(milliseconds) = reloaded.handover_milliseconds else {
        return;
    };
    let Fates {
        kept,
        ending,
        drained,
        draining,
        ..
    } = reloaded.fates;
    if reloaded.moved == 0 && reloaded.stays.is_empty() {
        return tracing::debug!(
            generation = reloaded.generation,
            "no live tunnel had to move"
        );
    }
    tracing::info!(
        generation = reloaded.generation,
        moved = reloaded.moved,
        kept,
        ending,
        drained,
        draining,
        milliseconds = tenths(milliseconds),
        longest_pause_milliseconds = reloaded.longest_pause_milliseconds.map(tenths),
        "live tunnels have moved"
    );
    for line in reloaded.fates.reasons() {
        tracing::info!("drains: {line}");
    }
    for stays in &reloaded.stays {
        tracing::info!(tunnels = stays.tunnels, "not moved: {}", stays.reason);
    }
}

/// Tunnels with a deadline.
pub(super) struct Draining {
    /// What generations that are not active hold, and what has lost its way in the active one.
    pub(super) tunnels: u64,
    /// Generations that are not active.
    pub(super) generations: u64,
    pub(super) deadline: Option<Instant>,
}

impl Supervisor {
    pub(super) fn draining(&self) -> Draining {
        let active = self.lifecycle.active();
        let old = self
            .links
            .values()
            .filter(|link| Some(link.generation) != active);
        let mut held: BTreeMap<Generation, u64> = BTreeMap::new();
        for link in old {
            *held.entry(link.generation).or_default() += self.figures.tunnels_of(link.block);
        }
        // One that holds nothing is about to go, whatever its deadline says.
        let hold = held.iter().filter(|(_, tunnels)| **tunnels > 0);
        let deadline = hold.filter_map(|(number, _)| self.generations.get(number)?.deadline);
        let lost = active.map_or(0, |active| self.lost_in(active));
        let lost_until = self.handovers.lost_until().filter(|_| lost > 0);
        Draining {
            tunnels: held.values().sum::<u64>() + lost,
            generations: held.len() as u64,
            deadline: deadline.max().max(lost_until),
        }
    }
}
