//! Carries out what lifecycle decides. Each action is thin: the decision was made elsewhere.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use wsgate_lifecycle::{Action, Event, Generation, Moment, Phase, Plan, Span, WorkerId};
use wsgate_os::process::Exit;
use wsgate_os::rendezvous;
use wsgate_protocol::admin::{GenerationChange, WorkerChange};
use wsgate_protocol::control::{
    Boot, ClosePlan, FromWorker, SocketSpec, ToWorker, VERSION, Window,
};

use crate::link::Link;
use crate::sockets::Sockets;
use crate::supervisor::{Supervisor, seconds};

/// Sockets in one message: the kernel takes at most 253 descriptors.
const SOCKETS_AT_ONCE: usize = 200;

/// What the closes of a generation that ends early get beyond the time that the rate needs: for
/// handshakes under way, and so that the plan, which is made a moment later, still fits.
const HASTE: Duration = Duration::from_millis(500);

/// What the Close frames of a drained generation say.
pub(crate) const REASON: &str = "service restart";

impl Supervisor {
    /// Gives an event to lifecycle and carries out what follows.
    pub(crate) fn apply(&mut self, event: Event) {
        for action in self.lifecycle.apply(self.started.elapsed(), event) {
            self.carry_out(action);
        }
        self.expire_surplus();
        self.conclude_reload();
        self.settle_handovers();
    }

    /// Old generations beyond those that may stay are closed as soon as the rate allows.
    fn expire_surplus(&mut self) {
        let Some(running) = &self.running else { return };
        let (most, rate) = (
            running.config.drain.generations,
            running.config.drain.close_rate,
        );
        for generation in self.lifecycle.surplus(most, |it| self.stays_in(it) > 0) {
            let now = self.now();
            let tunnels = self.held_by(generation);
            let soonest = self.closes.soonest(generation, now, tunnels, rate);
            tracing::info!(
                generation,
                most,
                "more old generations than may stay (drain.generations): the oldest one ends now"
            );
            let event = Event::Expire {
                generation,
                deadline: soonest + HASTE,
            };
            for action in self.lifecycle.apply(now, event) {
                self.carry_out(action);
            }
        }
    }

    /// The same without those that are about to move.
    fn stays_in(&self, generation: Generation) -> u64 {
        let links = self.links.values();
        let own = links.filter(|link| link.generation == generation);
        let staying = own.filter(|link| !self.handovers.is_moving(link.id));
        staying.map(|link| self.figures.held_by(link.block)).sum()
    }

    /// Tunnels of a generation, those that are about to open included.
    fn held_by(&self, generation: Generation) -> u64 {
        let links = self.links.values();
        let own = links.filter(|link| link.generation == generation);
        own.map(|link| self.figures.held_by(link.block)).sum()
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Spawn {
                worker,
                slot,
                generation,
            } => self.spawn(worker, slot, generation),
            Action::Commit(generation) => self.commit(generation),
            Action::Accept { worker, slot } => self.accept(worker, slot),
            Action::TakeBack { worker, slot } => {
                let (sockets, _) = unzip(self.of_another_slot(slot));
                self.tell(worker, ToWorker::Return { sockets });
            }
            Action::Serve { worker, retired } => self.serve_retired(worker, retired),
            Action::LetGo { worker, retired } => self.let_go(worker, retired),
            Action::CloseRetired(retired) => self.sockets.close(retired),
            Action::HandOver { from, to } => self.hand_over(from, to),
            Action::Retire { workers, deadline } => self.retire(&workers, deadline),
            Action::Dismiss(worker) => self.tell(worker, ToWorker::Exit),
            Action::Kill { worker, why } => self.kill(worker, why),
            Action::Abort { worker, silent } => self.abort(worker, silent),
            Action::Restarting {
                slot,
                after,
                crash_looping,
            } => self.restarting(slot, after, crash_looping),
            Action::Failed {
                generation,
                failure,
            } => self.failed(generation, &failure),
            Action::CloseSockets => self.sockets = Sockets::default(),
            Action::Gone(generation) => self.gone(generation),
            Action::Finished => {
                tracing::info!("wsgate has stopped");
                self.forget_last_good();
                // A start that failed has its own word for the end.
                self.end.get_or_insert(Ok(()));
            }
        }
    }

    fn tell(&self, worker: WorkerId, message: ToWorker) {
        if let Some(link) = self.links.get(&worker) {
            link.send(message);
        }
    }

    fn spawn(&mut self, worker: WorkerId, slot: usize, generation: Generation) {
        if let Err(error) = self.try_spawn(worker, slot, generation) {
            tracing::error!(slot, generation, %error, "worker not started");
            self.last_words.insert(worker, error.to_string());
            // As an event, not at once: lifecycle is in the middle of its actions.
            drop(self.events.send(crate::event::Event::Exited(worker, None)));
        }
    }

    fn try_spawn(
        &mut self,
        worker: WorkerId,
        slot: usize,
        generation: Generation,
    ) -> std::io::Result<()> {
        let record = self.generations.get(&generation);
        let record = record.ok_or_else(|| std::io::Error::other("its generation is gone"))?;
        let (config, memfd) = (record.config.clone(), record.memfd.clone());
        let block = self.figures.claim();
        let block = block
            .ok_or_else(|| std::io::Error::other("as many workers live as the board has blocks"))?;
        let link = match Link::spawn(worker, slot, generation, block, &self.events) {
            Ok(link) => link,
            Err(error) => {
                self.figures.release(block, &self.numbers);
                return Err(error);
            }
        };
        tracing::debug!(pid = link.pid, slot, generation, "worker started");
        self.news.tell_worker(&link, WorkerChange::Started);
        let mut heirloom = vec![memfd, self.board.clone()];
        match rendezvous::bind(&self.directory.rendezvous(link.pid)) {
            Ok(rendezvous) => heirloom.push(Arc::new(rendezvous)),
            // Clients come first.
            Err(error) => tracing::error!(
                pid = link.pid,
                %error,
                "no rendezvous: if this supervisor dies, the next one will not find the worker, which will drain"
            ),
        }
        let boot = Boot {
            version: VERSION,
            worker,
            instance: self.instance,
            slot,
            generation,
            active: self.lifecycle.active() == Some(generation),
            block,
            states: self.states.by_number(&self.numbers),
        };
        link.send_with(ToWorker::Boot(boot), heirloom);
        send_sockets(
            &link,
            self.sockets.of_slot(self.reloads.staged(), &config, slot),
        );
        link.send(ToWorker::Prepare);
        self.links.insert(worker, link);
        Ok(())
    }

    fn accept(&mut self, worker: WorkerId, slot: usize) {
        let (Some(link), Some(running)) = (self.links.get(&worker), &self.running) else {
            return;
        };
        let sockets = if link.slot == slot {
            if self.reloads.staged().is_none() {
                tracing::info!(
                    slot,
                    pid = link.pid,
                    "the slot has a worker of its own again"
                );
            }
            let sockets = self.sockets.of_slot(None, &running.config, slot);
            // Those of slots that have no worker: it may not have got them with its own.
            let further = sockets.iter();
            let further = further.filter(|(spec, _)| spec.slot.is_some_and(|of| of != slot));
            send_sockets(link, further.cloned().collect());
            sockets
        } else {
            tracing::info!(
                slot,
                pid = link.pid,
                by = link.slot,
                "slot is served by another worker"
            );
            let sockets = self.of_another_slot(slot);
            send_sockets(link, sockets.clone());
            sockets
        };
        let (sockets, _) = unzip(sockets);
        link.send(ToWorker::Accept { sockets });
    }

    /// What a worker needs for a slot that is not its own. It has the Unix sockets already: they
    /// belong to no slot.
    fn of_another_slot(&self, slot: usize) -> Vec<(SocketSpec, Arc<OwnedFd>)> {
        let Some(running) = &self.running else {
            return Vec::new();
        };
        let mut sockets = self.sockets.of_slot(None, &running.config, slot);
        sockets.retain(|(spec, _)| spec.slot.is_some());
        sockets
    }

    fn serve_retired(&self, worker: WorkerId, retired: Generation) {
        let sockets = self.sockets.retired_by(retired);
        let Some(link) = self.links.get(&worker).filter(|_| !sockets.is_empty()) else {
            return;
        };
        tracing::info!(
            sockets = sockets.len(),
            since_generation = retired,
            pid = link.pid,
            "retired sockets are served until their time is over"
        );
        send_sockets(link, sockets.clone());
        let (sockets, _) = unzip(sockets);
        link.send(ToWorker::Accept { sockets });
    }

    fn let_go(&mut self, worker: WorkerId, retired: Generation) {
        self.sockets.shut(retired);
        let (sockets, _) = unzip(self.sockets.retired_by(retired));
        if sockets.is_empty() {
            // As an event, not at once: lifecycle is in the middle of its actions.
            let message = FromWorker::LetGo { retired };
            drop(self.events.send(crate::event::Event::Said(worker, message)));
        } else {
            tracing::debug!(
                since_generation = retired,
                ?sockets,
                "retired sockets are closed"
            );
            self.tell(worker, ToWorker::LetGo { sockets, retired });
        }
    }

    fn restarting(&mut self, slot: usize, after: Duration, crash_looping: bool) {
        self.restarts += 1;
        let after_seconds = seconds(after);
        let workers = self.lifecycle.workers().values();
        let served = workers.filter(|worker| worker.is_active()).count() > 0;
        match (crash_looping, served) {
            (false, _) => {
                tracing::warn!(slot, after_seconds, "the slot's next worker starts later")
            }
            (true, true) => tracing::error!(
                slot,
                after_seconds,
                "the slot's workers crash again and again: it is tried seldom from now on, other workers serve its sockets; a reload tries it at once"
            ),
            (true, false) => tracing::error!(
                slot,
                after_seconds,
                "NOBODY SERVES: the workers of every slot crash again and again"
            ),
        }
    }

    fn kill(&mut self, worker: WorkerId, why: &'static str) {
        let Some(link) = self.links.get(&worker) else {
            return;
        };
        tracing::warn!(
            pid = link.pid,
            slot = link.slot,
            generation = link.generation,
            "worker killed: {why}"
        );
        self.last_words
            .entry(worker)
            .or_insert_with(|| why.to_owned());
        link.kill();
    }

    /// A worker's process is gone.
    pub(crate) fn exited(&mut self, worker: WorkerId, exit: Option<Exit>) {
        if let Some(link) = self.links.remove(&worker) {
            let expected = self
                .lifecycle
                .workers()
                .get(&worker)
                .is_some_and(|worker| worker.is_draining());
            let tunnels = self.figures.tunnels_of(link.block);
            let how = exit.map_or_else(|| "never started".to_owned(), |exit| exit.to_string());
            let (pid, slot, generation) = (link.pid, link.slot, link.generation);
            self.directory.forget(pid);
            self.news.tell_end(&link, &how, tunnels);
            // Of an adopted one only its parent would be told.
            let well = exit == Some(Exit::Code(0)) || link.adopted && exit == Some(Exit::Unknown);
            if expected && well && tunnels == 0 {
                tracing::debug!(pid, slot, generation, "worker has ended");
            } else {
                tracing::warn!(pid, slot, generation, tunnels, "worker ended: {how}");
                let words = self.last_words.remove(&worker);
                let words = words.map_or_else(|| how.clone(), |words| format!("{how}: {words}"));
                self.last_words.insert(worker, words);
            }
            self.figures.release(link.block, &self.numbers);
        }
        self.handovers.gone(worker);
        self.apply(Event::Exited(worker));
        self.last_words.remove(&worker);
    }

    fn gone(&mut self, generation: Generation) {
        self.closes.release(generation);
        if self.generations.remove(&generation).is_some() {
            tracing::info!(generation, "generation is gone");
            self.news
                .tell_generation(generation, GenerationChange::Gone);
        }
    }

    /// Lets workers drain until the deadline, each generation by a plan of its own.
    pub(crate) fn retire(&mut self, workers: &[WorkerId], deadline: Moment) {
        let mut by_generation: BTreeMap<Generation, Vec<WorkerId>> = BTreeMap::new();
        for worker in workers {
            let Some(link) = self.links.get(worker) else {
                continue;
            };
            by_generation
                .entry(link.generation)
                .or_default()
                .push(*worker);
        }
        // Else a worker of the next generation goes on with every queue.
        let for_good = self.lifecycle.phase() == Phase::Stopping;
        for (generation, workers) in by_generation {
            // Tunnels that are about to move need no time for their closes. A stop hands nothing over.
            let moving = |id: &WorkerId| !for_good && self.handovers.is_moving(*id);
            let held = |id: &WorkerId| match self.links.get(id) {
                Some(link) if !moving(id) => self.figures.tunnels_of(link.block),
                _ => 0,
            };
            let shares: Vec<u64> = workers.iter().map(held).collect();
            let (plans, warning) = self.plan(generation, deadline, &shares, None, REASON);
            if let Some(warning) = warning {
                self.reloads.warn(warning);
            }
            for (worker, plan) in workers.iter().zip(plans) {
                self.tell(*worker, ToWorker::Retire { for_good, plan });
            }
            let at = self.started + deadline;
            if let Some(record) = self.generations.get_mut(&generation)
                && record.deadline.replace(at).is_none()
            {
                self.news
                    .tell_generation(generation, GenerationChange::Draining);
            }
            let links = workers.iter().filter_map(|id| self.links.get(id));
            let tunnels: u64 = links.map(|link| self.figures.tunnels_of(link.block)).sum();
            let moving = !for_good && workers.iter().any(|id| self.handovers.is_moving(*id));
            tracing::info!(
                generation,
                tunnels,
                deadline_in_seconds = seconds(deadline.saturating_sub(self.now())),
                "generation {}",
                if moving { "hands over" } else { "drains" }
            );
        }
    }

    /// When each of several workers closes what it holds, and a warning if that is
    /// faster than the rate. `owner` names the drain.
    pub(crate) fn plan(
        &mut self,
        owner: u64,
        deadline: Moment,
        shares: &[u64],
        rate: Option<u32>,
        reason: &str,
    ) -> (Vec<ClosePlan>, Option<String>) {
        let now = self.now();
        let running = self.running.as_ref().map(|running| &running.config);
        // Workers that were adopted while they drained: nothing runs yet.
        let newest = || self.generations.values().next_back();
        let config = running.or_else(|| newest().map(|record| &record.config));
        let (code, default_rate) = config.map_or((1012, 100), |config| {
            (config.drain.close_code, config.drain.close_rate)
        });
        let rate = rate.unwrap_or(default_rate);
        let tunnels = shares.iter().sum();
        let reserved = if deadline <= now {
            Plan {
                spans: Vec::new(),
                too_short: false,
            }
        } else {
            self.closes.reserve(owner, now, deadline, tunnels, rate)
        };
        let warning = reserved.too_short.then(|| {
            let grace = deadline.saturating_sub(now);
            format!("{tunnels} tunnels cannot be closed at {rate} a second (close_rate) within {grace:.1?}: they are closed faster")
        });
        let windows = |spans: Vec<Span>| spans.into_iter().map(|span| window(span, now)).collect();
        let plan = |spans| ClosePlan {
            code,
            reason: reason.to_owned(),
            windows: windows(spans),
        };
        (
            reserved.split(shares).into_iter().map(plan).collect(),
            warning,
        )
    }
}

pub(crate) fn window(span: Span, now: Moment) -> Window {
    let ms = |at: Moment| u64::try_from(at.saturating_sub(now).as_millis()).unwrap_or(u64::MAX);
    Window {
        from_ms: ms(span.from),
        to_ms: ms(span.to).max(ms(span.from)),
    }
}

fn send_sockets(link: &Link, sockets: Vec<(SocketSpec, Arc<OwnedFd>)>) {
    for part in sockets.chunks(SOCKETS_AT_ONCE) {
        let (sockets, fds) = unzip(part.to_vec());
        link.send_with(ToWorker::Sockets { sockets }, fds);
    }
}

fn unzip(sockets: Vec<(SocketSpec, Arc<OwnedFd>)>) -> (Vec<SocketSpec>, Vec<Arc<OwnedFd>>) {
    sockets.into_iter().unzip()
}

/// Owner of the closes of a drained server; generations count from 1 and never get there.
pub(crate) fn owner_of_server(server: u32) -> u64 {
    (1 << 63) | u64::from(server)
}

/// Owner of the closes of tunnels that a reload left no way; the `n`th such reservation.
pub(crate) fn owner_of_lost(n: u64) -> u64 {
    (1 << 62) | n
}

/// A grace as the API gives it, in seconds.
pub(crate) fn grace(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds).ok()
}
