//! What is known of the handovers of one commit: pure, so that every order of reports can be tried.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use wsgate_lifecycle::{Generation, Moment, WorkerId};
use wsgate_protocol::admin::Fates;
use wsgate_protocol::control::{Staying, Stays};

/// A pair that makes no progress for so long is not waited for any more.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// The handovers that follow one commit.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Of tunnels that lost their way by it.
    pub(super) deadline: Moment,
    pub(super) fates: Fates,
    pub(super) longest_pause_us: u64,
    /// Tunnels that lost their way and are in no plan yet, by taker.
    pub(super) lost: BTreeMap<WorkerId, u64>,
    /// By number of the handover.
    pairs: BTreeMap<u64, Pair>,
    givers: BTreeMap<WorkerId, Giver>,
    /// Silent ones that were warned of.
    warned: BTreeSet<WorkerId>,
    /// Generations of which a worker was paired.
    generations: BTreeSet<Generation>,
}

#[derive(Debug)]
struct Giver {
    /// Its last handover.
    handover: u64,
    stays: Vec<Staying>,
}

#[derive(Debug)]
struct Pair {
    giver: WorkerId,
    taker: WorkerId,
    /// What the giver held, and its handshakes, when it was last looked at.
    holds: u64,
    /// It held something at some time.
    matters: bool,
    /// The giver has no more to give, or is gone, or gives to another one.
    handed: bool,
    /// The taker has said what came of it, or is gone.
    took: bool,
    progress_at: Instant,
    /// A look has seen that the giver has no more to give: from then on it is the taker's turn.
    seen_handed: bool,
    /// The giver had no answer: the silent one is the taker.
    unanswered: bool,
    late: bool,
    /// What the giver had given to anybody before.
    given_before: u64,
    /// What it has given since then, as far as it was seen.
    given: u64,
    /// What it says that it has given.
    gave: Option<u64>,
    /// What the taker says that it has taken.
    taken: u64,
}

/// What is seen of a giver.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// Tunnels and handshakes.
    pub(super) holds: u64,
    /// Tunnels that others have taken, ever.
    pub(super) given: u64,
}

/// Why tunnels have not moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// In the giver's words.
    Said(Stays),
    SilentGiver(WorkerId),
    SilentTaker(WorkerId),
}

/// Who keeps a pair waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Silent {
    Giver,
    Taker,
}

/// A pair that is not waited for any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Late {
    pub(super) giver: WorkerId,
    pub(super) taker: WorkerId,
    pub(super) silent: Silent,
}

impl Pair {
    /// Tunnels that are the taker's: as it says, or else as the giver does.
    fn moved(&self) -> u64 {
        self.taken.max(self.gave.unwrap_or(self.given))
    }

    fn silent(&self) -> Silent {
        if self.handed || self.unanswered {
            Silent::Taker
        } else {
            Silent::Giver
        }
    }

    /// A giver that drains loses tunnels whether they move or not: what it holds says nothing once it has handed over.
    fn look(&mut self, now: Instant, seen: Seen) {
        let held = seen.holds;
        let given = seen.given.saturating_sub(self.given_before);
        self.given = self.given.max(given);
        self.matters |= held > 0;
        let changed = !self.handed && held != self.holds;
        let turned = self.handed && !std::mem::replace(&mut self.seen_handed, self.handed);
        if changed || turned {
            self.progress_at = now;
        }
        self.holds = held;
    }

    fn is_settled(&self) -> bool {
        // Who holds nothing keeps nobody waiting.
        self.late || !self.matters || self.handed && self.took
    }
}

impl Report {
    /// Nothing has been given yet.
    pub(super) fn new(deadline: Moment) -> Self {
        Self {
            deadline,
            ..Self::default()
        }
    }

    /// A handover begins, in place of the giver's last one. `seen`: what there is to give.
    pub(super) fn pair(
        &mut self,
        handover: u64,
        giver: WorkerId,
        taker: WorkerId,
        seen: Seen,
        now: Instant,
    ) {
        let last = self.givers.get(&giver).map(|giver| giver.handover);
        let mut progress_at = now;
        let mut unanswered = false;
        if let Some(last) = last.and_then(|last| self.pairs.get_mut(&last)) {
            last.handed = true;
            // The same one once more: that alone is no progress.
            if last.unanswered && last.taker == taker {
                (progress_at, unanswered) = (last.progress_at, true);
            }
        }
        let stays = Vec::new();
        self.givers.insert(giver, Giver { handover, stays });
        self.pairs.insert(
            handover,
            Pair {
                giver,
                taker,
                holds: seen.holds,
                matters: seen.holds > 0,
                handed: false,
                took: false,
                progress_at,
                seen_handed: false,
                unanswered,
                late: false,
                given_before: seen.given,
                given: 0,
                gave: None,
                taken: 0,
            },
        );
    }

    /// Whether this is the first pair of which a worker of a generation gives.
    pub(super) fn is_first_of(&mut self, generation: Generation) -> bool {
        self.generations.insert(generation)
    }

    /// Whether tunnels that drained before the commit may be with the new workers.
    pub(super) fn may_have_carried_on(&self) -> bool {
        let unknown = |pair: &Pair| pair.matters && !pair.took;
        self.fates.draining > 0 || self.pairs.values().any(unknown)
    }

    /// Whether a handover is the last one of a giver.
    pub(super) fn is_current(&self, giver: WorkerId, handover: u64) -> bool {
        let last = self.givers.get(&giver).map(|giver| giver.handover);
        last == Some(handover)
    }

    /// The channel could not be made: the taker has never heard of it.
    pub(super) fn nobody_takes(&mut self, handover: u64) {
        if let Some(pair) = self.pairs.get_mut(&handover) {
            pair.took = true;
        }
    }

    /// The giver had no answer from the taker of its last handover, for which nobody waits any more: it may say later
    /// what came of it.
    pub(super) fn unanswered(&mut self, giver: WorkerId, now: Instant) {
        let last = self.givers.get(&giver).map(|giver| giver.handover);
        if let Some(pair) = last.and_then(|last| self.pairs.get_mut(&last)) {
            // The giver has moved.
            if !pair.unanswered {
                pair.progress_at = now;
            }
            pair.unanswered = true;
            pair.took = true;
        }
    }

    /// The report of a giver about its last handover. `again`: it will have another one. Whether there is anything to
    /// plan anew: something stays, and it is not what stayed before.
    pub(super) fn handed_over(
        &mut self,
        giver: WorkerId,
        moved: u64,
        stays: Vec<Staying>,
        again: bool,
    ) -> bool {
        let Some(it) = self.givers.get_mut(&giver) else {
            return false;
        };
        let Some(pair) = self.pairs.get_mut(&it.handover) else {
            return false;
        };
        let first = !pair.handed || pair.late;
        pair.handed |= !again;
        *pair.gave.get_or_insert(0) += moved;
        pair.late = false;
        let changed = it.stays != stays;
        it.stays = stays;
        !it.stays.is_empty() && (first || changed)
    }

    /// For how long a tunnel was with no worker that stays with its giver.
    pub(super) fn note_pause(&mut self, handover: u64, longest_pause_us: u64) {
        if self.pairs.contains_key(&handover) {
            self.longest_pause_us = self.longest_pause_us.max(longest_pause_us);
        }
    }

    /// The report of a taker; `false` if it is about nothing that is known here.
    pub(super) fn took_over(
        &mut self,
        taker: WorkerId,
        handover: u64,
        fates: Fates,
        longest_pause_us: u64,
    ) -> bool {
        let pair = self.pairs.get_mut(&handover);
        let Some(pair) = pair.filter(|pair| pair.taker == taker) else {
            return false;
        };
        pair.took = true;
        pair.taken += fates.tunnels();
        if fates.drained > 0 {
            *self.lost.entry(taker).or_default() += fates.drained;
        }
        self.fates.add(fates);
        self.longest_pause_us = self.longest_pause_us.max(longest_pause_us);
        true
    }

    /// A worker is gone: it gives and takes nothing more.
    pub(super) fn gone(&mut self, worker: WorkerId) {
        self.givers.remove(&worker);
        self.lost.remove(&worker);
        for pair in self.pairs.values_mut() {
            pair.handed |= pair.giver == worker;
            pair.took |= pair.taker == worker;
        }
    }

    /// Looks at what givers hold now. Those who have become late by it, with their takers.
    pub(super) fn look(&mut self, now: Instant, seen: impl Fn(WorkerId) -> Seen) -> Vec<Late> {
        let mut late = Vec::new();
        for pair in self
            .pairs
            .values_mut()
            .filter(|pair| !pair.handed || !pair.took)
        {
            pair.look(now, seen(pair.giver));
            if !pair.is_settled() && pair.progress_at + PATIENCE <= now {
                pair.late = true;
                let (giver, taker) = (pair.giver, pair.taker);
                let silent = pair.silent();
                late.push(Late {
                    giver,
                    taker,
                    silent,
                });
            }
        }
        late
    }

    /// Whether any pair should be through soon.
    pub(super) fn is_awaited(&self) -> bool {
        self.pairs.values().any(|pair| !pair.is_settled())
    }

    /// Whether what a worker holds is about to move.
    pub(super) fn is_moving(&self, giver: WorkerId) -> bool {
        let pair = |giver: &Giver| self.pairs.get(&giver.handover);
        let pair = self.givers.get(&giver).and_then(pair);
        pair.is_some_and(|pair| !pair.handed && !pair.late)
    }

    /// Whether a silent worker has not been warned of.
    pub(super) fn is_to_be_warned_of(&mut self, silent: WorkerId) -> bool {
        self.warned.insert(silent)
    }

    /// Tunnels that have moved.
    pub(super) fn moved(&self) -> u64 {
        self.pairs.values().map(Pair::moved).sum()
    }

    /// What stays, by the reason, most tunnels first. `tunnels`: what a worker holds of which nobody has said what stays.
    pub(super) fn stays(&self, tunnels: impl Fn(WorkerId) -> u64) -> Vec<(Why, u64)> {
        let mut said: BTreeMap<Stays, u64> = BTreeMap::new();
        let mut all = Vec::new();
        for (id, giver) in &self.givers {
            match self.pairs.get(&giver.handover) {
                Some(pair) if pair.late && !pair.handed => {
                    let why = match pair.silent() {
                        Silent::Giver => Why::SilentGiver(*id),
                        Silent::Taker => Why::SilentTaker(pair.taker),
                    };
                    all.push((why, tunnels(*id)));
                }
                _ => {
                    for staying in &giver.stays {
                        *said.entry(staying.reason).or_default() += staying.tunnels;
                    }
                }
            }
        }
        let said = said.into_iter();
        all.extend(said.map(|(reason, tunnels)| (Why::Said(reason), tunnels)));
        all.retain(|(_, tunnels)| *tunnels > 0);
        all.sort_by_key(|(_, tunnels)| std::cmp::Reverse(*tunnels));
        all
    }
}

#[cfg(test)]
mod tests;
