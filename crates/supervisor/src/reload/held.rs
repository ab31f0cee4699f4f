//! Reloads that come by themselves and would drain or end too many tunnels.
//!
//! Such a one is judged before its candidate begins, by the limit of the configuration that runs: a truncated file may
//! have lost it. What is held back waits until the files say something else, or until an operator forces it; and what is held
//! back only because workers did not answer, until they do.

use std::sync::Arc;
use std::time::SystemTime;

use wsgate_config::{Loaded, Share, Sources};
use wsgate_protocol::admin::{EventKind, Held, HeldReload, ReloadOutcome};

use super::{By, Stage, Waiter, failed};
use crate::admin;
use crate::event::Event;
use crate::generation::digest;
use crate::judge::{Verdict, judge};
use crate::supervisor::Supervisor;

/// What to do about it.
pub(crate) const HELP: &str = "`wsctl reload --dry-run` shows what would become of the tunnels, `wsctl reload --force` reloads all the same; \
     a file that is changed again is judged anew";

/// A reload while its tunnels are judged.
pub(super) struct Judging {
    waiters: Vec<Waiter>,
    loaded: Loaded,
}

/// What is held back.
pub(crate) struct HeldBack {
    sources: Arc<Sources>,
    pub(crate) report: HeldReload,
}

impl HeldBack {
    /// For the state file.
    pub(crate) fn digest(&self) -> String {
        digest(&self.sources)
    }
}

impl Supervisor {
    /// Whether the tunnels are to be judged before this begins: nobody but the watch wants it, or it is held back, and nobody forces it.
    pub(super) fn may_be_held(&self, waiters: &[Waiter]) -> bool {
        let by_itself = waiters.iter().all(|waiter| waiter.by == By::Watch);
        let forced = waiters.iter().any(|waiter| waiter.force);
        let limited = self.max_drained() < Share::ALL;
        limited && !forced && (by_itself || self.reloads.held.is_some())
    }

    pub(super) fn max_drained(&self) -> Share {
        let running = self.running.as_ref();
        running.map_or(Share::ALL, |running| running.config.reload.max_drained)
    }

    /// The files say something else than what is held back.
    pub(super) fn forget_held_unless(&mut self, sources: Option<&Sources>) {
        let Some(sources) = sources else { return };
        let held = self.reloads.held.as_ref();
        if held.is_some_and(|held| !held.sources.same_content(sources)) {
            self.reloads.held = None;
        }
    }

    /// Asks the workers, unless the reload fails anyway.
    pub(super) fn judge_first(&mut self, waiters: Vec<Waiter>, loaded: Loaded) {
        if let Err(refused) = self.try_prepare(&loaded.config) {
            return self.finish(waiters, &failed(refused.to_string()));
        }
        let (holders, events) = (self.holders(), self.events.clone());
        let config = loaded.config.clone();
        self.reloads.stage = Stage::Judging(Box::new(Judging { waiters, loaded }));
        tokio::spawn(async move {
            let verdict = judge(holders, &config).await;
            // Nobody listens only while the supervisor itself ends.
            drop(events.send(Event::Judged(Box::new(verdict))));
        });
    }

    /// They have answered, or have not.
    pub(crate) fn judged(&mut self, verdict: std::io::Result<Verdict>) {
        let judging = match std::mem::take(&mut self.reloads.stage) {
            Stage::Judging(judging) => *judging,
            other => return self.reloads.stage = other,
        };
        let Judging { waiters, loaded } = judging;
        match verdict {
            Ok(verdict) => match self.weigh(verdict, loaded.config.drain.handover) {
                Some(held) => self.hold(waiters, &loaded, held),
                None => self.begin(waiters, loaded),
            },
            Err(error) => {
                let message = format!("the tunnels cannot be judged: {error}");
                self.finish(waiters, &failed(message));
            }
        }
    }

    /// `Some` if too many tunnels would be drained.
    fn weigh(&self, verdict: Verdict, handover: bool) -> Option<Held> {
        let limit = self.max_drained();
        let verdict = verdict.with_handover(handover);
        let share = verdict.exceeds(limit)?;
        Some(Held {
            handover,
            fates: verdict.fates,
            unresponsive_workers: verdict.unresponsive,
            share,
            max_drained: limit.as_fraction(),
        })
    }

    /// Whether this content is held back.
    pub(super) fn holds_back(&self, sources: &Sources) -> bool {
        let held = self.reloads.held.as_ref();
        held.is_some_and(|held| held.sources.same_content(sources))
    }

    /// Whether this content is held back only because workers did not answer: they may by now.
    pub(crate) fn is_held_by_silence(&self, sources: &Sources) -> bool {
        let limit = self.max_drained();
        let held = self.reloads.held.as_ref();
        held.is_some_and(|held| {
            let Held { fates, .. } = &held.report.held;
            let all = fates.tunnels() + held.report.held.unjudged();
            held.sources.same_content(sources)
                && !limit.is_exceeded(fates.drained + fates.ending, all)
        })
    }

    fn hold(&mut self, waiters: Vec<Waiter>, loaded: &Loaded, held: Held) {
        let before = self.reloads.held.take().map(|held| held.report);
        let by = waiters.first().map(|waiter| waiter.by);
        // The watch judges silent workers again and again: that nothing has changed is no news.
        let is_news = by != Some(By::Watch)
            || before
                .as_ref()
                .is_none_or(|before| before.held.message() != held.message());
        let report = HeldReload {
            at: before.map_or_else(|| admin::time_of_day(SystemTime::now()), |held| held.at),
            held: held.clone(),
        };
        self.reloads.held = Some(HeldBack {
            sources: Arc::new(loaded.sources.clone()),
            report,
        });
        if let Some(by) = by.filter(|_| is_news) {
            warn_of(&held);
            let (by, held) = (by.name().to_owned(), held.clone());
            self.news.tell(EventKind::ReloadHeld { by, held });
            self.save_soon();
        }
        self.finish(waiters, &ReloadOutcome::Held(held));
    }
}

fn warn_of(held: &Held) {
    let reasons = held.reasons();
    tracing::warn!(
        why = reasons.first(),
        more_reasons = reasons.len().saturating_sub(1),
        "{}: {HELP}",
        held.message()
    );
}
