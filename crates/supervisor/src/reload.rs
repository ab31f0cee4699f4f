//! Reloads: from the request to the commit, or to the reason why there is none.
//!
//! One at a time. Requests that come meanwhile are answered by the next one, which
//! reads the files after they were made: each caller gets the generation that holds
//! its content. Whatever fails before the commit leaves nothing behind.

mod prepare;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;
use wsgate_config::{Config, Errors, Loaded, Sources};
use wsgate_lifecycle::{Failure, Generation, Phase};
use wsgate_os::systemd;
use wsgate_protocol::admin::{LastReload, ReloadOutcome, Reloaded, Unchanged};

pub(crate) use self::prepare::Fixed;
use self::prepare::{Refused, copy_numbers};
use crate::admin;
use crate::event::{Event, Read};
use crate::generation::Content;
use crate::sockets::Staged;
use crate::supervisor::{Running, Supervisor, level, notify_systemd, tenths};
use crate::{Error, adopt};

/// Until what a commit has changed is written down.
const SAVED_AFTER: Duration = Duration::from_millis(20);

/// Who asked for a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    Admin,
    Signal,
    Watch,
    /// A supervisor that has adopted workers.
    Start,
}

impl By {
    fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Signal => "signal",
            Self::Watch => "watch",
            Self::Start => "start",
        }
    }
}

/// Somebody who wants to know how it went.
struct Waiter {
    by: By,
    asked: Instant,
    asked_at: SystemTime,
    reply: Option<oneshot::Sender<ReloadOutcome>>,
}

impl Waiter {
    fn at_the_start() -> Self {
        Self {
            by: By::Start,
            asked: Instant::now(),
            asked_at: SystemTime::now(),
            reply: None,
        }
    }
}

/// Reloads asked for, under way and done.
#[derive(Default)]
pub(crate) struct Reloads {
    queued: Vec<Waiter>,
    stage: Stage,
    pub(crate) last: Option<LastReload>,
    /// What was read last, whether it could be used or not.
    last_read: Option<Arc<Sources>>,
    pub(crate) done: u64,
    pub(crate) failed: u64,
}

#[derive(Default)]
enum Stage {
    #[default]
    Idle,
    Reading(Vec<Waiter>),
    Starting(Box<Candidate>),
}

/// A generation on its way to the commit. Dropped, it lets go of its new sockets.
struct Candidate {
    generation: Generation,
    waiters: Vec<Waiter>,
    staged: Staged,
    http: Option<(SocketAddr, admin::HttpListener)>,
    content: Content,
    warnings: Vec<String>,
    /// Why this is not what the files say.
    fallback: Option<String>,
    committed: bool,
    failure: Option<String>,
}

impl Reloads {
    /// Whether these texts are others than those that were read last.
    pub(crate) fn is_news(&self, sources: &Sources) -> bool {
        // What could not be read before is news once it can be.
        self.last_read
            .as_ref()
            .is_none_or(|last| !last.same_content(sources))
    }

    /// The sockets that the candidate brings.
    pub(crate) fn staged(&self) -> Option<&Staged> {
        match &self.stage {
            Stage::Starting(candidate) => Some(&candidate.staged),
            _ => None,
        }
    }

    /// Something the operator should know about the reload under way.
    pub(crate) fn warn(&mut self, warning: String) {
        tracing::warn!("{warning}");
        if let Stage::Starting(candidate) = &mut self.stage {
            candidate.warnings.push(warning);
        }
    }
}

impl Supervisor {
    /// Begins the first generation, which nobody asked for. Where workers have been adopted, it is a reload:
    /// if it fails they go on.
    pub(crate) fn begin_first(
        &mut self,
        loaded: Loaded,
        read: Option<Sources>,
    ) -> Result<(), Error> {
        self.reloads.last_read = read.map(Arc::new);
        let adopted = self.running.is_some();
        match self.prepare(loaded) {
            Ok(mut candidate) => {
                candidate.waiters.extend(adopted.then(Waiter::at_the_start));
                candidate.fallback.clone_from(&self.fallback);
                self.launch(candidate);
            }
            Err(refused) if adopted => {
                let message = format!("the new generation cannot begin: {refused}");
                self.finish(vec![Waiter::at_the_start()], &failed(message));
            }
            Err(Refused::Sockets(error)) => {
                adopt::name_strangers();
                return Err(Error::Sockets(error));
            }
            Err(Refused::Other(message)) => return Err(Error::Start(message)),
        }
        Ok(())
    }

    /// Asks for a reload.
    pub(crate) fn request_reload(&mut self, by: By, reply: Option<oneshot::Sender<ReloadOutcome>>) {
        let waiter = Waiter {
            by,
            asked: Instant::now(),
            asked_at: SystemTime::now(),
            reply,
        };
        if self.lifecycle.phase() != Phase::Running {
            self.answer(vec![waiter], &failed("wsgate stops"));
            return;
        }
        self.reloads.queued.push(waiter);
        self.next_reload();
    }

    /// Reads the files for everybody who waits, unless a reload is under way.
    fn next_reload(&mut self) {
        if !matches!(self.reloads.stage, Stage::Idle) || self.reloads.queued.is_empty() {
            return;
        }
        self.reloads.stage = Stage::Reading(std::mem::take(&mut self.reloads.queued));
        notify_systemd(systemd::reloading());
        let (path, events) = (self.options.config.clone(), self.events.clone());
        tokio::task::spawn_blocking(move || {
            let read = Read::from_disk(&path);
            // Nobody listens only while the supervisor itself ends.
            drop(events.send(Event::Read(Box::new(read))));
        });
    }

    /// The files have been read.
    pub(crate) fn read(&mut self, read: Read) {
        let Stage::Reading(waiters) = std::mem::take(&mut self.reloads.stage) else {
            return;
        };
        self.reloads.last_read = read.sources.map(Arc::new);
        let loaded = match read.loaded {
            Ok(loaded) => loaded,
            Err(errors) => return self.refuse_errors(waiters, &errors),
        };
        if let Some(generation) = self.unchanged(&loaded) {
            // What runs is what the file says now.
            self.fallback = None;
            self.apply(wsgate_lifecycle::Event::Retry);
            let unchanged = self.unchanged_outcome(generation);
            return self.finish(waiters, &unchanged);
        }
        match self.prepare(loaded) {
            Ok(candidate) => self.launch(Candidate {
                waiters,
                ..candidate
            }),
            Err(refused) => self.finish(waiters, &failed(refused.to_string())),
        }
    }

    fn refuse_errors(&mut self, waiters: Vec<Waiter>, errors: &Errors) {
        log_mistakes(errors);
        let outcome = ReloadOutcome::Failed {
            message: mistakes_in_words(errors),
            errors: errors.rendered(),
        };
        self.finish(waiters, &outcome);
    }

    /// The active generation, if it runs this already. Comments and order of keys are no change.
    fn unchanged(&mut self, loaded: &Loaded) -> Option<Generation> {
        let generation = self.lifecycle.active()?;
        let running = self.running.as_mut()?;
        let mut wanted = loaded.config.clone();
        copy_numbers(&mut wanted, &running.config);
        if wanted != *running.config {
            return None;
        }
        let active_since = running.content.active_since;
        running.content = Content {
            active_since,
            ..Content::new(loaded.sources.clone())
        };
        let watch = running.config.reload.watch;
        self.rearm_watch(&loaded.sources, watch);
        Some(generation)
    }

    fn unchanged_outcome(&self, generation: Generation) -> ReloadOutcome {
        let draining = self.draining();
        let since = self
            .running
            .as_ref()
            .map(|running| running.content.active_since);
        ReloadOutcome::Unchanged(Unchanged {
            generation,
            active_since: admin::time_of_day(since.unwrap_or(self.started_at)),
            draining_tunnels: draining.tunnels,
            draining_generations: draining.generations,
            deadline_at: draining.deadline.map(admin::time_of_day_at),
        })
    }

    /// Starts the candidate's workers.
    fn launch(&mut self, candidate: Candidate) {
        let generation = candidate.generation;
        let Some(config) = self
            .generations
            .get(&generation)
            .map(|record| record.config.clone())
        else {
            return;
        };
        self.reloads.stage = Stage::Starting(Box::new(candidate));
        tracing::info!(generation, workers = config.workers, "generation starts");
        let (slots, grace) = (config.workers, config.drain.grace);
        self.apply(wsgate_lifecycle::Event::Begin {
            generation,
            slots,
            grace,
        });
    }

    /// The commit point: from here on the candidate runs, and nothing rolls back.
    pub(crate) fn commit(&mut self, generation: Generation) {
        let Stage::Starting(candidate) = &mut self.reloads.stage else {
            return;
        };
        let Some(record) = self.generations.get(&generation) else {
            return;
        };
        let config = record.config.clone();
        candidate.committed = true;
        candidate.content.active_since = SystemTime::now();
        let content = candidate.content.clone();
        let http = candidate.http.take();
        self.fallback = candidate.fallback.take();
        self.sockets
            .commit(&mut candidate.staged, &config, generation);
        self.states.keep_only(&config);
        if let Err(error) = self.log.set_level(level(&config)) {
            tracing::warn!(%error, "log level not changed");
        }
        self.switch_http(&config, http);
        self.rearm_watch(&content.sources, config.reload.watch);
        self.running = Some(Running { config, content });
        self.save_soon();
    }

    /// Not at once: new sockets listen by now, and writing may take long. Those who are to accept from them
    /// are told first.
    fn save_soon(&self) {
        let events = self.events.clone();
        tokio::spawn(async move {
            tokio::time::sleep(SAVED_AFTER).await;
            // Nobody listens only while the supervisor itself ends.
            drop(events.send(Event::Save));
        });
    }

    /// What the next supervisor has to know.
    pub(crate) fn save_all(&mut self) {
        let Some(running) = &self.running else { return };
        let sources = running.content.sources.clone();
        self.unsaved = false;
        let state = self.save_state();
        let last_good = self.save_last_good(&sources);
        if state.or(last_good).is_none() {
            tracing::debug!("state and configuration are saved");
        }
    }

    pub(crate) fn switch_http(
        &mut self,
        config: &Config,
        new: Option<(SocketAddr, admin::HttpListener)>,
    ) {
        let kept = config.admin.http.is_some() && new.is_none();
        if kept {
            return;
        }
        if let Some((_, task)) = self.http.take() {
            task.abort();
        }
        self.http = new.map(|(address, listener)| {
            (
                address,
                tokio::spawn(admin::serve_http(listener, self.events.clone())).abort_handle(),
            )
        });
    }

    /// The candidate has been given up.
    pub(crate) fn failed(&mut self, generation: Generation, failure: &Failure) {
        let why = self.describe(failure);
        match &mut self.reloads.stage {
            Stage::Starting(candidate) if candidate.generation == generation => {
                candidate.failure = Some(why)
            }
            _ => tracing::warn!(generation, why, "generation failed"),
        }
    }

    fn describe(&self, failure: &Failure) -> String {
        match failure {
            Failure::Died { worker, slot } => {
                let words = self
                    .last_words
                    .get(worker)
                    .map_or("it ended before it was ready", String::as_str);
                format!("the new worker of slot {slot} failed: {words}")
            }
            Failure::Late { slot } => {
                format!("the new worker of slot {slot} was not ready in time")
            }
            Failure::Stopping => "wsgate stops".to_owned(),
            Failure::Busy => "another generation is starting".to_owned(),
        }
    }

    /// Tells everybody how the reload went, once lifecycle has decided. Called after
    /// every batch of actions, so that the drain of the old generation is known.
    pub(crate) fn conclude_reload(&mut self) {
        let concluded = matches!(&self.reloads.stage, Stage::Starting(candidate) if candidate.committed || candidate.failure.is_some());
        if !concluded {
            return;
        }
        let Stage::Starting(candidate) = std::mem::take(&mut self.reloads.stage) else {
            return;
        };
        let Candidate {
            generation,
            waiters,
            warnings,
            failure,
            ..
        } = *candidate;
        match failure {
            // A stop before the first commit is a stop, and no failure.
            Some(_) if self.running.is_none() && self.lifecycle.phase() != Phase::Running => {}
            Some(why) if self.running.is_none() => {
                self.end = Some(Err(Error::FirstGeneration(why)))
            }
            Some(why) => self.finish(waiters, &failed(why)),
            None => self.finish_committed(generation, waiters, warnings),
        }
    }

    fn finish_committed(
        &mut self,
        generation: Generation,
        waiters: Vec<Waiter>,
        warnings: Vec<String>,
    ) {
        let first = waiters.is_empty();
        let draining = self.draining();
        let asked = waiters
            .iter()
            .map(|waiter| waiter.asked)
            .min()
            .unwrap_or(self.started);
        let reloaded = Reloaded {
            generation,
            milliseconds: asked.elapsed().as_secs_f64() * 1e3,
            draining_tunnels: draining.tunnels,
            draining_generations: draining.generations,
            deadline_at: draining.deadline.map(admin::time_of_day_at),
            warnings,
        };
        tracing::info!(
            generation,
            milliseconds = tenths(reloaded.milliseconds),
            draining_tunnels = reloaded.draining_tunnels,
            "generation is active"
        );
        if !first {
            self.reloads.done += 1;
        }
        self.finish(waiters, &ReloadOutcome::Reloaded(reloaded));
    }

    /// Answers, remembers, and goes on with whoever came meanwhile.
    fn finish(&mut self, waiters: Vec<Waiter>, outcome: &ReloadOutcome) {
        if let ReloadOutcome::Failed { message, .. } = outcome {
            self.reloads.failed += 1;
            tracing::error!(
                generation = self.lifecycle.active(),
                "reload failed, the active generation goes on: {message}"
            );
        }
        let status = format!(
            "generation {} is active",
            self.lifecycle.active().unwrap_or(0)
        );
        notify_systemd(systemd::ready(&status));
        self.answer(waiters, outcome);
        self.next_reload();
    }

    fn answer(&mut self, waiters: Vec<Waiter>, outcome: &ReloadOutcome) {
        if let Some(waiter) = waiters.first() {
            self.reloads.last = Some(LastReload {
                at: admin::time_of_day(waiter.asked_at),
                by: waiter.by.name().to_owned(),
                outcome: outcome.clone(),
            });
        }
        for reply in waiters.into_iter().filter_map(|waiter| waiter.reply) {
            // Whoever asked may have gone away.
            drop(reply.send(outcome.clone()));
        }
    }

    /// Nobody will read for those who wait.
    pub(crate) fn fail_queued_reloads(&mut self, why: &str) {
        let queued = std::mem::take(&mut self.reloads.queued);
        self.answer(queued, &failed(why));
    }
}

/// What is left of generations that are not active.
pub(crate) struct Draining {
    pub(crate) tunnels: u64,
    pub(crate) generations: u64,
    pub(crate) deadline: Option<Instant>,
}

impl Supervisor {
    fn draining(&self) -> Draining {
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
        Draining {
            tunnels: held.values().sum(),
            generations: held.len() as u64,
            deadline: deadline.max(),
        }
    }
}

/// A line for each mistake.
pub(crate) fn log_mistakes(errors: &Errors) {
    for error in errors.iter() {
        let at =
            |number: Option<usize>| number.map_or_else(String::new, |number| format!(":{number}"));
        let (line, column) = (at(error.line()), at(error.column()));
        let help = error.help.as_deref();
        tracing::error!(
            help,
            "{}{line}{column}: {}",
            error.path.display(),
            error.message
        );
    }
}

pub(crate) fn mistakes_in_words(errors: &Errors) -> String {
    match errors.len() {
        1 => "the configuration has 1 mistake".to_owned(),
        count => format!("the configuration has {count} mistakes"),
    }
}

fn failed(message: impl Into<String>) -> ReloadOutcome {
    ReloadOutcome::Failed {
        message: message.into(),
        errors: Vec::new(),
    }
}
