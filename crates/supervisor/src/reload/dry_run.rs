//! A reload that is only tried: what it would say, and what would become of the tunnels.
//!
//! It leaves nothing behind, and does not disturb a reload that is under way: what that has bound is left alone, and
//! what it has read is not read again for it.

use std::time::Instant;

use tokio::sync::oneshot;
use wsgate_config::{Config, Loaded};
use wsgate_lifecycle::Phase;
use wsgate_os::socket;
use wsgate_protocol::admin::{DryRun, Fates, ReloadOutcome};

use super::prepare::{Refused, copy_numbers};
use super::{Stage, failed, mistakes_in_words};
use crate::descriptors;
use crate::event::{Event, Read};
use crate::judge::judge;
use crate::supervisor::Supervisor;

/// Somebody who wants to know what a reload would do.
pub(crate) struct Curious {
    asked: Instant,
    reply: oneshot::Sender<ReloadOutcome>,
}

impl Supervisor {
    /// Reads the files for a dry run.
    pub(crate) fn request_dry_run(&self, reply: oneshot::Sender<ReloadOutcome>) {
        let curious = Curious {
            asked: Instant::now(),
            reply,
        };
        let (path, events) = (self.options.config.clone(), self.events.clone());
        tokio::task::spawn_blocking(move || {
            let read = Read::from_disk(&path);
            // Nobody listens only while the supervisor itself ends.
            drop(events.send(Event::DryRead(Box::new(read), curious)));
        });
    }

    /// They have been read.
    pub(crate) fn dry_read(&self, read: Read, curious: Curious) {
        let outcome = match self.try_all(read) {
            Ok(tried) if !tried.unchanged => return self.judge_dry(tried, curious),
            Ok(tried) => self.nothing_to_judge(tried, &curious),
            Err(outcome) => *outcome,
        };
        // Whoever asked may have gone away.
        drop(curious.reply.send(outcome));
    }

    /// Every tunnel stays as it is.
    fn nothing_to_judge(&self, tried: Tried, curious: &Curious) -> ReloadOutcome {
        let servers = self.numbers.servers();
        let draining = servers
            .map(|(_, number)| self.figures.server(number).draining)
            .sum();
        ReloadOutcome::DryRun(DryRun {
            unchanged: true,
            handover: true,
            held: false,
            fates: Fates {
                kept: self.figures.tunnels().saturating_sub(draining),
                draining,
                ..Fates::default()
            },
            unresponsive_workers: Vec::new(),
            milliseconds: curious.asked.elapsed().as_secs_f64() * 1e3,
            warnings: tried.warnings,
        })
    }

    /// Everything that can fail without a process.
    fn try_all(&self, read: Read) -> Result<Tried, Box<ReloadOutcome>> {
        if self.lifecycle.phase() != Phase::Running {
            return Err(Box::new(failed("wsgate stops")));
        }
        let Loaded {
            config,
            warnings,
            sources,
            ..
        } = read.loaded.map_err(|errors| ReloadOutcome::Failed {
            message: mistakes_in_words(&errors),
            errors: errors.rendered(),
        })?;
        let unchanged = self.runs(&config);
        let mut tried = Tried {
            unchanged,
            held: self.holds_back(&sources),
            config,
            warnings,
        };
        if !unchanged {
            let refused = self.try_prepare(&tried.config);
            refused.map_err(|refused| failed(refused.to_string()))?;
            let warning = descriptors::warning(&tried.config, self.descriptors);
            tried.warnings.extend(warning);
        }
        Ok(tried)
    }

    fn judge_dry(&self, tried: Tried, Curious { asked, reply }: Curious) {
        let holders = self.holders();
        let running = self.running.as_ref();
        let watch = running.is_some_and(|running| running.config.reload.watch);
        let limit = self.max_drained();
        tokio::spawn(async move {
            let outcome = match judge(holders, &tried.config).await {
                Ok(verdict) => {
                    let handover = tried.config.drain.handover;
                    let verdict = verdict.with_handover(handover);
                    let too_many = verdict.exceeds(limit).is_some();
                    ReloadOutcome::DryRun(DryRun {
                        unchanged: false,
                        handover,
                        held: tried.held || (watch && too_many),
                        fates: verdict.fates,
                        unresponsive_workers: verdict.unresponsive,
                        milliseconds: asked.elapsed().as_secs_f64() * 1e3,
                        warnings: tried.warnings,
                    })
                }
                Err(error) => failed(format!("the tunnels cannot be judged: {error}")),
            };
            // Whoever asked may have gone away.
            drop(reply.send(outcome));
        });
    }

    /// Whether the active generation runs this already. Comments and order of keys are no change.
    pub(super) fn runs(&self, config: &Config) -> bool {
        let Some(running) = &self.running else {
            return false;
        };
        let mut wanted = config.clone();
        copy_numbers(&mut wanted, &running.config);
        wanted == *running.config
    }

    /// As `prepare`, but nothing stays of it.
    pub(super) fn try_prepare(&self, config: &Config) -> Result<(), Refused> {
        self.check_fixed(config)?;
        self.check_descriptors(config).map_err(Refused::Other)?;
        self.sockets.try_stage(config, self.reloads.staged())?;
        self.try_http(config)?;
        let living = self.generations.values().map(|record| &*record.config);
        let mut numbers = self.numbers.clone();
        numbers
            .assign(&mut config.clone(), living, &self.figures)
            .map_err(|full| Refused::Other(full.to_string()))
    }

    /// Bound for a moment, and not listened on.
    fn try_http(&self, config: &Config) -> Result<(), Refused> {
        let ours = self.http.as_ref().map(|(address, _)| *address);
        let coming = match &self.reloads.stage {
            Stage::Starting(candidate) => candidate.http.as_ref().map(|(address, _)| *address),
            _ => None,
        };
        let new = config.admin.http;
        match new.filter(|address| ours != Some(*address) && coming != Some(*address)) {
            None => Ok(()),
            Some(address) => socket::probe(address).map_err(|error| {
                let error = crate::sockets::Error::new(address, error);
                Refused::Other(format!("[admin] http: {error}"))
            }),
        }
    }
}

/// What could begin.
struct Tried {
    unchanged: bool,
    /// It is held back.
    held: bool,
    config: Config,
    warnings: Vec<String>,
}
