//! Reloads: from the request to the commit, or to the reason why there is none.
//!
//! One at a time. Requests that come meanwhile are answered by the next one, which
//! reads the files after they were made: each caller gets the generation that holds
//! its content. Whatever fails before the commit leaves nothing behind.

mod dry_run;
mod handing_over;
mod held;
mod prepare;
mod words;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;
use wsgate_config::{Config, Errors, Loaded, Sources};
use wsgate_lifecycle::{Failure, Generation, Phase};
use wsgate_os::systemd;
use wsgate_protocol::admin::{EventKind, GenerationChange, LastReload, ReloadOutcome, Unchanged};

pub(crate) use self::dry_run::Curious;
use self::handing_over::Committed;
use self::held::Judging;
pub(crate) use self::held::{HELP as HELD_HELP, HeldBack};
pub(crate) use self::prepare::Fixed;
use self::prepare::Refused;
use crate::admin;
use crate::event::{Event, Read};
use crate::generation::Content;
use crate::servers::Renamed;
use crate::sockets::Staged;
use crate::supervisor::{Running, Supervisor, level, notify_systemd};
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
    /// Also what is held back.
    force: bool,
    reply: Option<oneshot::Sender<ReloadOutcome>>,
}

impl Waiter {
    fn at_the_start() -> Self {
        Self {
            by: By::Start,
            asked: Instant::now(),
            asked_at: SystemTime::now(),
            force: false,
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
    /// What would drain too many tunnels, and waits for a word.
    pub(crate) held: Option<HeldBack>,
    /// The digest of what was held back when the last supervisor died.
    held_before: Option<String>,
    /// Servers whose drain is to be planned anew once the tunnels have moved.
    renamed: Vec<Renamed>,
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
    Judging(Box<Judging>),
    Starting(Box<Candidate>),
    /// The commit is behind it; live tunnels move.
    HandingOver(Box<Committed>),
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
    /// `held_before`: what the last supervisor held back.
    pub(crate) fn after(held_before: Option<String>) -> Self {
        Self {
            held_before,
            ..Self::default()
        }
    }

    /// Whether this was held back when the last supervisor died.
    pub(crate) fn was_held(&self, read: Option<&Sources>) -> bool {
        let digest = read.map(crate::generation::digest);
        digest.is_some() && digest == self.held_before
    }

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

    /// Whether live tunnels move, and the answer waits for it.
    pub(crate) fn is_handing_over(&self) -> bool {
        matches!(self.stage, Stage::HandingOver(_))
    }

    /// Something the operator should know about the reload under way.
    pub(crate) fn warn(&mut self, warning: String) {
        tracing::warn!("{warning}");
        match &mut self.stage {
            Stage::Starting(candidate) => candidate.warnings.push(warning),
            Stage::HandingOver(committed) => committed.warnings.push(warning),
            _ => {}
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
    pub(crate) fn request_reload(
        &mut self,
        by: By,
        force: bool,
        reply: Option<oneshot::Sender<ReloadOutcome>>,
    ) {
        let waiter = Waiter {
            by,
            asked: Instant::now(),
            asked_at: SystemTime::now(),
            force,
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
            Err(errors) => {
                let last = self.reloads.last_read.clone();
                self.forget_held_unless(last.as_deref());
                return self.refuse_errors(waiters, &errors);
            }
        };
        self.forget_held_unless(Some(&loaded.sources));
        if let Some(generation) = self.unchanged(&loaded) {
            // What runs is what the file says now.
            self.fallback = None;
            self.apply(wsgate_lifecycle::Event::Retry);
            let unchanged = self.unchanged_outcome(generation);
            tracing::info!(
                generation,
                by = waiters.first().map(|waiter| waiter.by.name()),
                "unchanged: the files say what runs already"
            );
            return self.finish(waiters, &unchanged);
        }
        if self.may_be_held(&waiters) {
            return self.judge_first(waiters, loaded);
        }
        self.begin(waiters, loaded);
    }

    fn begin(&mut self, waiters: Vec<Waiter>, loaded: Loaded) {
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
        if !self.runs(&loaded.config) {
            return None;
        }
        let running = self.running.as_mut()?;
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
        self.news
            .tell_generation(generation, GenerationChange::Starting);
        let (slots, grace) = (config.workers, config.drain.grace);
        self.apply(wsgate_lifecycle::Event::Begin {
            generation,
            slots,
            grace,
            handover: config.drain.handover,
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
        self.reloads.held = None;
        self.sockets
            .commit(&mut candidate.staged, &config, generation);
        if let Err(error) = self.log.set_level(level(&config)) {
            tracing::warn!(%error, "log level not changed");
        }
        self.switch_http(&config, http);
        self.rearm_watch(&content.sources, config.reload.watch);
        // New workers know it before they accept, and before a tunnel comes.
        self.follow_states(&config, generation);
        self.begin_handovers(&config);
        self.running = Some(Running { config, content });
        self.news
            .tell_generation(generation, GenerationChange::Active);
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
        self.news
            .tell_generation(generation, GenerationChange::Failed);
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
        self.conclude_handover();
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
            None => self.committed(generation, waiters, warnings),
        }
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
            // That one has an event of its own.
            if !matches!(outcome, ReloadOutcome::Held(_)) {
                let (by, outcome) = (waiter.by.name().to_owned(), outcome.clone());
                self.news.tell(EventKind::Reload { by, outcome });
            }
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
