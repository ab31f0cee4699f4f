//! Looks at the workers in regular beats, and ends those that lifecycle finds stuck.
//!
//! Nothing is decided here: what is seen is handed to lifecycle, which knows when a look came
//! too late to blame anybody.

use std::time::{Duration, Instant};

use wsgate_lifecycle::{Event, Signs, WorkerId};
use wsgate_os::process;
use wsgate_protocol::admin::WorkerChange;

use crate::link::Link;
use crate::supervisor::{Supervisor, seconds};

/// Looks within the timeout. A worker is asked as often, so that a lost look is no lost worker.
const BEATS: u32 = 8;

/// The watchdog's clock and figures.
#[derive(Default)]
pub(crate) struct Watchdog {
    next: Option<Instant>,
    /// Workers that were ended because they were stuck.
    pub(crate) stuck: u64,
}

impl Supervisor {
    /// When the workers are looked at next; `None` while the watchdog is off.
    pub(crate) fn beat_at(&self) -> Option<Instant> {
        self.timeout()?;
        // The first look comes at once.
        Some(self.watchdog.next.unwrap_or(self.started))
    }

    fn timeout(&self) -> Option<Duration> {
        self.running.as_ref()?.config.watchdog.timeout
    }

    /// Looks at all workers, if it is time.
    pub(crate) fn beat_if_due(&mut self) {
        let (Some(timeout), Some(at)) = (self.timeout(), self.beat_at()) else {
            return;
        };
        let now = Instant::now();
        if now < at {
            return;
        }
        self.watchdog.next = Some(now + timeout / BEATS);
        let links = self.links.values();
        let signs = links.map(|link| (link.id, self.signs(link))).collect();
        self.apply(Event::Beat { timeout, signs });
    }

    fn signs(&self, link: &Link) -> Signs {
        // Where the kernel does not say, all time counts against the worker.
        let cpu = process::cpu_time(link.pid).unwrap_or_default();
        Signs {
            heard: link.heartbeat(),
            counted: self.figures.counted_by(link.block),
            ran: cpu.ran,
            waited: cpu.waited,
            wants_cpu: cpu.wanted,
        }
    }

    /// Ends a worker whose sockets others accept from by now.
    pub(crate) fn abort(&mut self, worker: WorkerId, silent: Duration) {
        let Some(link) = self.links.get(&worker) else {
            return;
        };
        self.watchdog.stuck += 1;
        self.news.tell_worker(link, WorkerChange::Stuck);
        tracing::error!(
            pid = link.pid,
            slot = link.slot,
            generation = link.generation,
            silent_seconds = seconds(silent),
            tunnels = self.figures.tunnels_of(link.block),
            "worker is stuck: it is ended with SIGABRT; look at its core dump (coredumpctl, or where kernel.core_pattern says)"
        );
        self.last_words
            .insert(worker, format!("it was stuck for {silent:.1?}"));
        link.abort();
    }
}
