//! Live tunnels move from one worker to another: who moves them to whom, and how far they are.
//!
//! The two workers talk to each other; the supervisor only gives them a channel, and hears from both when nothing is
//! left to give. It never sees a tunnel, and nothing waits for ever: a pair that makes no progress for a while
//! is reported as late, and what it has not moved drains.

mod report;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use wsgate_config::Config;
use wsgate_lifecycle::{Event, Generation, State, WorkerId};
use wsgate_os::channel::Channel;
use wsgate_protocol::admin::{Fates, NotMoved, ServerState};
use wsgate_protocol::control::{FromWorker, Refusal, Staying, ToWorker};

use self::report::{Late, Report, Seen, Silent, Why};
use crate::actions::{REASON, owner_of_lost};
use crate::link::Link;
use crate::supervisor::{Supervisor, seconds};
use crate::totals::Figures;

/// How often the gauges of givers are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Handovers of the last commit, and what they have left behind.
pub(crate) struct Handovers {
    /// Given out by this supervisor.
    given_out: u64,
    report: Report,
    look_at: Option<Instant>,
    moving: watch::Sender<bool>,
    /// Time reserved for the closes of tunnels that lost their way: the owners.
    reserved: Vec<u64>,
    reservations: u64,
    /// When the last of these are closed that lost their way at the last commit.
    lost_until: Option<Instant>,
    /// And those that did at a commit before.
    lost_before_until: Option<Instant>,
}

impl Default for Handovers {
    fn default() -> Self {
        Self {
            given_out: 0,
            report: Report::default(),
            look_at: None,
            moving: watch::Sender::new(false),
            reserved: Vec::new(),
            reservations: 0,
            lost_until: None,
            lost_before_until: None,
        }
    }
}

impl Handovers {
    /// Whether what a worker holds is about to move.
    pub(crate) fn is_moving(&self, giver: WorkerId) -> bool {
        self.report.is_moving(giver)
    }

    /// Whether anything is under way that should be over soon.
    pub(crate) fn is_awaited(&self) -> bool {
        self.report.is_awaited()
    }

    /// A worker's process is gone.
    pub(crate) fn gone(&mut self, worker: WorkerId) {
        self.report.gone(worker);
    }

    /// When [`Supervisor::look_at_handovers`] is wanted.
    pub(crate) fn look_at(&self) -> Option<Instant> {
        self.look_at
    }

    /// Tells whether tunnels move.
    pub(crate) fn watch(&self) -> watch::Receiver<bool> {
        self.moving.subscribe()
    }

    /// What became of the tunnels that were taken over.
    pub(crate) fn fates(&self) -> Fates {
        self.report.fates.clone()
    }

    /// Tunnels that have moved, whether their new worker has said so or not.
    pub(crate) fn moved(&self) -> u64 {
        self.report.moved()
    }

    /// The longest time for which a tunnel was with no worker.
    pub(crate) fn note_pause(&mut self, handover: u64, longest_pause_us: u64) {
        self.report.note_pause(handover, longest_pause_us);
    }

    pub(crate) fn longest_pause(&self) -> Duration {
        Duration::from_micros(self.report.longest_pause_us)
    }

    /// The last deadline of those that lost their way, if it has not passed.
    pub(crate) fn lost_until(&self) -> Option<Instant> {
        let before = self.lost_before_until;
        let before = before.filter(|_| self.report.may_have_carried_on());
        let until = self.lost_until.max(before);
        until.filter(|at| *at > Instant::now())
    }
}

fn seen(figures: &Figures, link: &Link) -> Seen {
    Seen {
        holds: figures.held_by(link.block),
        given: figures.given_by(link.block),
    }
}

impl Supervisor {
    /// The commit: what was known of handovers is of the one before.
    pub(crate) fn begin_handovers(&mut self, config: &Config) {
        let deadline = self.now() + config.drain.grace;
        self.handovers.lost_before_until = self.handovers.lost_until();
        self.handovers.lost_until = None;
        self.handovers.report = Report::new(deadline);
    }

    /// Gives two workers a channel over which one gives its tunnels to the other.
    pub(crate) fn hand_over(&mut self, from: WorkerId, to: WorkerId) {
        let (Some(giver), Some(taker)) = (self.links.get(&from), self.links.get(&to)) else {
            return;
        };
        self.handovers.given_out += 1;
        // Never that of another supervisor, whose workers may be these.
        let handover = (self.instance << 32) + self.handovers.given_out;
        let seen = seen(&self.figures, giver);
        let holds = seen.holds;
        let now = Instant::now();
        self.handovers.look_at.get_or_insert(now + LOOK_EVERY);
        self.handovers.report.pair(handover, from, to, seen, now);
        // If it does not come to that, what stays is planned for when that is known. What stays already keeps its
        // time.
        if self.handovers.report.is_first_of(giver.generation) {
            self.closes.release(giver.generation);
        }
        let (one, other) = match Channel::pair_to_give() {
            Ok(ends) => ends,
            Err(error) => {
                tracing::error!(from = giver.pid, to = taker.pid, %error, "no channel for a handover");
                return self.say_broken(from, handover);
            }
        };
        tracing::debug!(
            handover,
            from = giver.pid,
            to = taker.pid,
            tunnels = holds,
            "handover"
        );
        let grace = self
            .handovers
            .report
            .deadline
            .saturating_sub(self.started.elapsed());
        let take = ToWorker::TakeOver {
            handover,
            from: giver.pid,
            grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
        };
        let give = ToWorker::HandOver {
            handover,
            to: taker.pid,
        };
        // Our own copies are closed as soon as they are sent.
        taker.send_with(take, vec![Arc::new(one)]);
        giver.send_with(give, vec![Arc::new(other)]);
    }

    /// As an event, not at once: lifecycle is in the middle of its actions.
    fn say_broken(&mut self, giver: WorkerId, handover: u64) {
        self.handovers.report.nobody_takes(handover);
        let message = FromWorker::HandedOver {
            handover,
            moved: 0,
            stays: Vec::new(),
            broken: Some(Refusal::NoDescriptors),
            longest_pause_us: 0,
        };
        drop(self.events.send(crate::event::Event::Said(giver, message)));
    }

    /// A giver has nothing to give at the moment, or nobody who takes it.
    pub(crate) fn handed_over(
        &mut self,
        giver: WorkerId,
        handover: u64,
        moved: u64,
        stays: Vec<Staying>,
        broken: Option<Refusal>,
    ) {
        tracing::debug!(
            worker = giver,
            handover,
            moved,
            ?stays,
            ?broken,
            "handed over"
        );
        let current = self.handovers.report.is_current(giver, handover);
        if !current {
            // Another one has taken its place, or it is of another commit or another supervisor.
            return;
        }
        let held: u64 = stays.iter().map(|staying| staying.tunnels).sum();
        if broken == Some(Refusal::Late) {
            self.handovers.report.unanswered(giver, Instant::now());
        }
        if let Some(why) = broken {
            self.log_broken(giver, why, held);
            if why.may_pass() {
                let avoid = why.is_the_takers();
                self.apply(Event::HandoverBroken { giver, avoid });
            }
        }
        let again = broken.is_some_and(Refusal::may_pass) && self.lifecycle.hands_over(giver);
        let changed = self
            .handovers
            .report
            .handed_over(giver, moved, stays, again);
        self.log_later(giver, moved, held, !again && changed);
        if changed && !again {
            self.plan_again(giver);
        }
        self.conclude_reload();
        self.settle_handovers();
    }

    /// What happens after the answer, which cannot say it.
    fn log_later(&self, giver: WorkerId, moved: u64, held: u64, stay: bool) {
        let Some(link) = self.links.get(&giver) else {
            return;
        };
        if self.reloads.is_handing_over() {
            return;
        }
        let (pid, generation) = (link.pid, link.generation);
        if moved > 0 {
            tracing::info!(
                pid,
                generation,
                tunnels = moved,
                "live tunnels have moved after the reload's answer"
            );
        }
        if stay && held > 0 {
            tracing::info!(
                pid,
                generation,
                tunnels = held,
                "live tunnels stay with their old worker, and drain"
            );
        }
    }

    fn log_broken(&self, giver: WorkerId, why: Refusal, tunnels: u64) {
        let Some(link) = self.links.get(&giver) else {
            return;
        };
        // The end of a worker has a line of its own.
        if why != Refusal::Gone {
            tracing::warn!(
                pid = link.pid,
                generation = link.generation,
                tunnels,
                "a handover broke off: {why}"
            );
        }
    }

    /// A taker has everything that was to be given at the moment.
    pub(crate) fn took_over(
        &mut self,
        taker: WorkerId,
        handover: u64,
        fates: Fates,
        longest_pause_us: u64,
    ) {
        tracing::debug!(
            worker = taker,
            handover,
            ?fates,
            longest_pause_us,
            "took over"
        );
        let report = &mut self.handovers.report;
        if !report.took_over(taker, handover, fates, longest_pause_us) {
            return;
        }
        self.conclude_reload();
        if !self.handovers.is_awaited() {
            self.plan_lost();
        }
        self.settle_handovers();
    }

    /// Looks how far the givers are, if it is time. Those that make no progress are told of.
    pub(crate) fn look_at_handovers(&mut self) {
        let now = Instant::now();
        if self.handovers.look_at.is_none_or(|at| at > now) {
            return;
        }
        let (links, figures) = (&self.links, &self.figures);
        let seen = |id| links.get(&id).map(|link| seen(figures, link));
        let seen = |id| seen(id).unwrap_or_default();
        let late = self.handovers.report.look(now, seen);
        let awaited = self.handovers.is_awaited();
        self.handovers.look_at = awaited.then_some(now + LOOK_EVERY);
        for late in late {
            self.warn_late(late);
            // Who has handed over has its plan.
            if late.silent == Silent::Giver {
                self.plan_again(late.giver);
            }
        }
    }

    /// What has not moved, most tunnels first.
    pub(crate) fn stays(&self) -> Vec<NotMoved> {
        let pid = |id: WorkerId| self.links.get(&id).map_or(0, |link| link.pid);
        let tunnels = |id| {
            let link = self.links.get(&id);
            link.map_or(0, |link| self.figures.tunnels_of(link.block))
        };
        let stays = self.handovers.report.stays(tunnels).into_iter();
        let stays = stays.map(|(why, tunnels)| NotMoved {
            reason: match why {
                Why::Said(reason) => reason.to_string(),
                Why::SilentGiver(id) => format!("the old worker {} has not answered yet", pid(id)),
                Why::SilentTaker(id) => format!("the new worker {} has not answered yet", pid(id)),
            },
            tunnels,
        });
        stays.collect()
    }

    /// Each silent worker is told of once.
    fn warn_late(&mut self, late: Late) {
        let silent = match late.silent {
            Silent::Giver => late.giver,
            Silent::Taker => late.taker,
        };
        let links = &self.links;
        let (Some(giver), Some(link)) = (links.get(&late.giver), links.get(&silent)) else {
            return;
        };
        if !self.handovers.report.is_to_be_warned_of(silent) {
            return;
        }
        let tunnels = self.figures.tunnels_of(giver.block);
        let holds = match late.silent {
            Silent::Giver => format!("it holds {tunnels} of them still"),
            Silent::Taker => format!("worker {} holds {tunnels} of them still", giver.pid),
        };
        let does = match late.silent {
            Silent::Giver => "hands its tunnels over",
            Silent::Taker => "takes tunnels over",
        };
        let warning = format!(
            "worker {} (slot {}, generation {}), which {does}, has not answered for {:.1?}: {holds}. {}",
            link.pid,
            link.slot,
            link.generation,
            report::PATIENCE,
            self.what_ends(link.pid),
        );
        self.reloads.warn(warning);
    }

    /// What becomes of a silent worker, and what may be done about it.
    fn what_ends(&self, pid: u32) -> String {
        let running = self.running.as_ref();
        match running.and_then(|running| running.config.watchdog.timeout) {
            Some(timeout) => format!(
                "If it stays silent, the watchdog ends it after {timeout:?} (watchdog.timeout), and its tunnels with it; if somebody has stopped it, `kill -CONT {pid}` lets it go on"
            ),
            None => format!(
                "The watchdog is off: nothing ends it before its deadline; if somebody has stopped it, `kill -CONT {pid}` lets it go on"
            ),
        }
    }

    /// What stays with a worker, and with the others of its generation, is closed by a plan for just that.
    fn plan_again(&mut self, giver: WorkerId) {
        let workers = self.lifecycle.workers();
        let Some((generation, deadline)) = workers
            .get(&giver)
            .and_then(|worker| Some((worker.generation, worker.deadline()?)))
        else {
            return;
        };
        let together = workers.iter().filter(|(_, worker)| {
            worker.generation == generation
                && matches!(worker.state, State::Draining { deadline: own, dismissed: false, .. } if own == deadline)
        });
        let together: Vec<WorkerId> = together.map(|(id, _)| *id).collect();
        self.retire(&together, deadline);
    }

    /// Those that lost their way at the last commit are closed by one plan, not faster than the rate.
    pub(crate) fn plan_lost(&mut self) {
        let lost = std::mem::take(&mut self.handovers.report.lost);
        let lost: Vec<(WorkerId, u64)> = lost
            .into_iter()
            .filter(|(taker, _)| self.links.contains_key(taker))
            .collect();
        if lost.is_empty() {
            return;
        }
        self.handovers.reservations += 1;
        let owner = owner_of_lost(self.handovers.reservations);
        let deadline = self.handovers.report.deadline;
        let shares: Vec<u64> = lost.iter().map(|(_, tunnels)| *tunnels).collect();
        let (plans, warning) = self.plan(owner, deadline, &shares, None, REASON);
        self.handovers.reserved.push(owner);
        if let Some(warning) = warning {
            self.reloads.warn(warning);
        }
        for ((taker, _), plan) in lost.iter().zip(plans) {
            if let Some(link) = self.links.get(taker) {
                link.send(ToWorker::DrainLost { plan });
            }
        }
        let at = self.started + deadline;
        self.handovers.lost_until = self.handovers.lost_until.max(Some(at));
        tracing::info!(
            tunnels = shares.iter().sum::<u64>(),
            deadline_in_seconds = seconds(deadline.saturating_sub(self.now())),
            "tunnels whose route or server is gone drain"
        );
    }

    /// Nobody needs the time any more that was reserved for tunnels that lost their way.
    pub(crate) fn give_up_closes(&mut self) {
        let active = self.lifecycle.active();
        if self.handovers.reserved.is_empty()
            || self.handovers.is_awaited()
            || active.is_some_and(|active| self.lost_in(active) > 0)
        {
            return;
        }
        for owner in std::mem::take(&mut self.handovers.reserved) {
            self.closes.release(owner);
        }
    }

    /// Tunnels of a generation that accepts which have a deadline although no operator drains their server.
    pub(crate) fn lost_in(&self, generation: Generation) -> u64 {
        let drained = |((upstream, server), number): (&(String, String), u32)| {
            let state = self.states.get(upstream, server);
            (state == ServerState::Drain).then_some(number)
        };
        let drained: BTreeSet<u32> = self.numbers.servers().filter_map(drained).collect();
        let servers: BTreeSet<u32> = self.numbers.server_numbers().collect();
        let servers: Vec<u32> = servers.difference(&drained).copied().collect();
        let links = self.links.values();
        let own = links.filter(|link| link.generation == generation);
        own.map(|link| {
            self.figures
                .draining_of(link.block, servers.iter().copied())
        })
        .sum()
    }

    /// Once nothing moves: what dead workers held is accounted for, and whoever waits for it is told.
    pub(crate) fn settle_handovers(&mut self) {
        let moving = self.handovers.is_awaited();
        self.handovers
            .moving
            .send_if_modified(|was| std::mem::replace(was, moving) != moving);
        if !moving {
            self.figures.settle();
        }
    }
}
