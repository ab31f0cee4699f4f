//! Faults in the midst of a reload that moves tunnels.
//!
//! What may break: where a worker of the old generation is hit, the tunnels that it held when the reload began; where one of the
//! new generation is, those of the old worker of its slot, which gives its tunnels to it. Nothing else, and nothing at all
//! where no worker dies.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use wsgate_load::machine::now;
use wsgate_protocol::admin::{ReloadOutcome, WorkerStatus};

use super::Faults;
use super::workers::{END, ended};
use crate::gateway::{Answer, SETTLE};
use crate::judge::Break;
use crate::process::{lives, signal};
use crate::random::Numbers;
use crate::wait::{pass, until};

/// The fault comes within so many milliseconds after the new workers have been started.
const WITHIN: u64 = 50;

/// For the new workers to be started.
const STARTED: Duration = Duration::from_secs(10);

/// A worker that is stopped before it is ready fails the reload, after 10 s.
const STOPPED: Duration = Duration::from_secs(25);

/// No supervisor for so many milliseconds at most.
const ABSENT: u64 = 2_000;

/// A step of a handover is crashed at in one of the first so many batches.
const BATCHES: u64 = 4;

/// Tunnels of a batch, as `crates/worker/src/handover.rs` has it.
const BATCH: usize = 32;

/// Crashes of debug builds, see `crates/worker/src/hooks.rs`: the worker that gives, before and behind the sending of a batch; the
/// one that takes, before and behind its acknowledgement.
const CRASHES: [Crash; 4] = [Crash::Give, Crash::Given, Crash::Take, Crash::Taken];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Crash {
    Give,
    Given,
    Take,
    Taken,
}

impl Crash {
    const fn hook(self) -> &'static str {
        match self {
            Self::Give => "give-crash",
            Self::Given => "given-crash",
            Self::Take => "take-crash",
            Self::Taken => "taken-crash",
        }
    }

    /// Tunnels that may break by it in batch `batch`, of those that the giver had. What it had given lives on; but its batches may be of
    /// other tunnels too.
    const fn most(self, batch: u64) -> usize {
        match self {
            Self::Give | Self::Given => usize::MAX,
            Self::Take => (batch as usize - 1) * BATCH,
            Self::Taken => batch as usize * BATCH,
        }
    }
}

/// Whom a fault hits, and what that may break.
struct Victim {
    pid: u32,
    moving: Vec<SocketAddr>,
}

/// A reload under way.
struct Reload {
    answer: JoinHandle<io::Result<Answer>>,
    /// The workers before it, with the tunnels of each.
    old: Vec<(WorkerStatus, Vec<SocketAddr>)>,
    /// Just after they were listed.
    listed: Duration,
}

impl Faults<'_> {
    /// SIGKILL or SIGSTOP. Whether the worker was there still: one that has given everything away ends by itself.
    pub(super) fn hit_mid_handover(
        &mut self,
        numbers: &mut Numbers,
        with: Signal,
    ) -> io::Result<bool> {
        let reload = self.begin_reload()?;
        let new = self.started(&reload)?;
        pass(Duration::from_millis(numbers.below(WITHIN + 1)));
        let victim = reload.victim(&new, numbers);
        let (from, lived) = (now(), lives(victim.pid));
        signal(victim.pid, with);
        ended(victim.pid, if with == Signal::KILL { END } else { STOPPED })?;
        self.may_break(&reload, victim.moving, from, usize::MAX);
        reload.answered()?;
        self.forgotten(victim.pid)?;
        self.reload()?;
        Ok(lived)
    }

    /// By the hooks of a debug build. Whether there are any, and so many batches that a worker did crash.
    pub(super) fn crash_mid_handover(&mut self, numbers: &mut Numbers) -> io::Result<bool> {
        if !self.gateway.has_hooks() {
            return Ok(false);
        }
        let slot = numbers.below(self.gateway.shape.slots.into());
        let crash = numbers.one_of(&CRASHES);
        let batch = numbers.between(1, BATCHES);
        let (hook, before) = (crash.hook(), self.crashes());
        self.gateway
            .hook(&format!("{hook}={batch} slot={slot}\n"))?;
        let from = now();
        let reload = self.begin_reload()?;
        let new = self.started(&reload)?;
        let of_slot = new.iter().filter(|(_, it)| *it == slot);
        let mut watched: Vec<u32> = of_slot.map(|(pid, _)| *pid).collect();
        let giver = reload.old.iter().find(|(worker, _)| worker.slot == slot);
        watched.extend(giver.map(|(worker, _)| worker.pid));
        let moving = giver.map_or_else(Vec::new, |(_, tunnels)| tunnels.clone());
        // One crash is enough: those that take its place are to live.
        until("a worker has ended, or the reload is over", END, || {
            let ended = watched.iter().any(|pid| !lives(*pid));
            (!ended && !reload.answer.is_finished()).then(|| format!("{watched:?} live"))
        })?;
        self.gateway.hook("")?;
        self.may_break(&reload, moving, from, crash.most(batch));
        reload.answered()?;
        self.reload()?;
        Ok(self.crashes() > before)
    }

    /// Workers that have crashed so far, by the log.
    fn crashes(&self) -> usize {
        self.gateway.log().matches("(SIGABRT)").count()
    }

    /// The second comes while the first is under way, or just over. Both must go well.
    pub(super) fn reload_twice(&mut self, numbers: &mut Numbers) -> io::Result<()> {
        let mut reloads = Vec::new();
        for _ in 0..2 {
            self.gateway.write(self.gateway.next_shape())?;
            reloads.push(self.gateway.reload_aside());
            pass(Duration::from_millis(numbers.below(WITHIN + 1)));
        }
        for reload in reloads {
            match join(reload)?.json()? {
                ReloadOutcome::Reloaded(_) | ReloadOutcome::Unchanged(_) => {}
                ReloadOutcome::Failed { message, .. } => return Err(io::Error::other(message)),
                other => return Err(io::Error::other(format!("{other:?}"))),
            }
        }
        Ok(())
    }

    /// No tunnel may break, whichever side of the handover it is on.
    pub(super) fn kill_supervisor_mid_handover(&mut self, numbers: &mut Numbers) -> io::Result<()> {
        let reload = self.begin_reload()?;
        self.started(&reload)?;
        pass(Duration::from_millis(numbers.below(WITHIN + 1)));
        self.gateway.kill_supervisor()?;
        // It was answered before, or never is.
        drop(join(reload.answer));
        pass(Duration::from_millis(numbers.below(ABSENT + 1)));
        let started = self.gateway.start_again();
        if started.is_err() {
            self.gateway.start_again()?;
        }
        self.reload()?;
        started
    }

    fn begin_reload(&mut self) -> io::Result<Reload> {
        let mut old = Vec::new();
        for worker in self.gateway.status()?.workers {
            let tunnels = self.gateway.tunnels(worker.pid)?;
            let clients = tunnels.iter().map(|tunnel| tunnel.client.parse());
            let clients = clients.collect::<Result<Vec<_>, _>>();
            old.push((worker, clients.map_err(io::Error::other)?));
        }
        let listed = now();
        self.gateway.write(self.gateway.next_shape())?;
        Ok(Reload {
            answer: self.gateway.reload_aside(),
            old,
            listed,
        })
    }

    /// The new workers and their slots, as soon as all of them are there; those that are, if the reload is over before that.
    fn started(&self, reload: &Reload) -> io::Result<Vec<(u32, u64)>> {
        let wanted = self.gateway.shape.slots as usize;
        let began = Instant::now();
        loop {
            let over = reload.answer.is_finished();
            let mut new = self.gateway.keeper.processes()?;
            new.retain(|pid| !reload.old.iter().any(|(old, _)| old.pid == *pid));
            let new: Vec<(u32, u64)> = new
                .into_iter()
                .filter_map(|pid| Some((pid, slot(pid)?)))
                .collect();
            if new.len() >= wanted || over {
                return Ok(new);
            }
            if began.elapsed() > STARTED {
                return Err(io::Error::other("no new workers after a reload has begun"));
            }
            pass(Duration::from_millis(1));
        }
    }

    /// A worker has ended, by now.
    fn may_break(&mut self, reload: &Reload, moving: Vec<SocketAddr>, from: Duration, most: usize) {
        self.breaks.push(Break {
            fault: self.number,
            listed: reload.listed,
            from,
            gone: now(),
            tunnels: Vec::new(),
            moving,
            most,
            close: None,
        });
    }
}

impl Reload {
    fn victim(&self, new: &[(u32, u64)], numbers: &mut Numbers) -> Victim {
        let old = self.old.iter().map(|(worker, _)| (worker.pid, worker.slot));
        let all: Vec<(u32, u64)> = old.chain(new.iter().copied()).collect();
        let (pid, slot) = all[numbers.below(all.len() as u64) as usize];
        let of_slot = self.old.iter().filter(|(worker, _)| worker.slot == slot);
        Victim {
            pid,
            moving: of_slot.flat_map(|(_, tunnels)| tunnels).copied().collect(),
        }
    }

    /// A reload may fail by the fault, for that its generation cannot start; but it is answered.
    fn answered(self) -> io::Result<()> {
        let answer = join(self.answer)?;
        let done = answer.expect(200).or_else(|_| answer.expect(409));
        done.map_err(|error| {
            io::Error::other(format!("a reload with a fault in its midst: {error}"))
        })
    }
}

fn join(reload: JoinHandle<io::Result<Answer>>) -> io::Result<Answer> {
    until("the reload is answered", SETTLE, || {
        (!reload.is_finished()).then(|| "it is not".to_owned())
    })?;
    let joined = reload.join();
    joined.unwrap_or_else(|_| Err(io::Error::other("a thread has panicked")))
}

/// The slot of a worker by its name, as `wsgate w0 g3`. `None` if it is none, or not yet.
fn slot(pid: u32) -> Option<u64> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    let words = name.trim().strip_prefix("wsgate w")?;
    words.split_once(" g")?.0.parse().ok()
}
