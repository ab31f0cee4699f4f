//! A look at the gateway while nothing moves: what it holds, what it takes, how fast it answers.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use wsgate_protocol::admin::{Status, WorkerState};

use crate::gateway::Gateway;
use crate::listing::Listing;
use crate::process::{eventually, memory};
use crate::progress;

/// Memory that has changed by less than this for so long has settled; allocators give back what is free with some delay.
const LITTLE: u64 = 64 * 1024;
const SETTLED: Duration = Duration::from_secs(3);
const LIMIT: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(100);

/// Of so many answers the median's time is taken.
const ANSWERS: usize = 5;

#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) title: &'static str,
    /// Tunnels that the clients have open.
    pub(crate) open: u64,
    pub(crate) processes: usize,
    /// PSS of all processes, and of the supervisor alone, in bytes.
    pub(crate) memory: u64,
    pub(crate) supervisor: u64,
    pub(crate) status: Status,
    /// How long `wsctl status` and `wsctl --json status` took.
    pub(crate) table: Duration,
    pub(crate) json: Duration,
    pub(crate) listing: Listing,
}

impl Look {
    /// With so many tunnels open, as their clients say, and so many echoes in each at least.
    ///
    /// # Errors
    /// If the gateway sees it otherwise, or if anything is wrong with it.
    pub(crate) fn at(
        gateway: &Gateway,
        title: &'static str,
        open: u64,
        echoes: u64,
    ) -> io::Result<Self> {
        progress(&format!("looking: {title}"));
        // What a client has seen end ends in the gateway as well, a moment later.
        eventually("it holds what the clients hold", LIMIT, || {
            let status = gateway.status()?;
            let is_alone = gateway.processes()?.len() == 1 + status.workers.len();
            Ok(is_alone && status.totals.tunnels == open)
        })?;
        let memory = settled(gateway)?;
        let status = gateway.status()?;
        check(&status, open).map_err(io::Error::other)?;
        Ok(Self {
            title,
            open,
            processes: gateway.processes()?.len(),
            memory,
            supervisor: self::memory(&[status.pid])?,
            table: median(gateway, &["status"])?,
            json: median(gateway, &["--json", "status"])?,
            listing: Listing::of(gateway, open, echoes)?,
            status,
        })
    }
}

/// The memory of all processes in bytes, once it does not change any more.
fn settled(gateway: &Gateway) -> io::Result<u64> {
    let began = Instant::now();
    let mut last = (Instant::now(), 0);
    loop {
        let now = memory(&gateway.processes()?)?;
        if now.abs_diff(last.1) >= LITTLE {
            last = (Instant::now(), now);
        }
        if last.0.elapsed() >= SETTLED || began.elapsed() >= LIMIT {
            return Ok(now);
        }
        thread::park_timeout(LOOK);
    }
}

fn median(gateway: &Gateway, words: &[&str]) -> io::Result<Duration> {
    let mut times = (0..ANSWERS)
        .map(|_| gateway.ctl(words).map(|said| said.took))
        .collect::<io::Result<Vec<_>>>()?;
    times.sort();
    Ok(times[ANSWERS / 2])
}

/// That its figures agree with each other and with the clients', and that nothing has gone wrong so far.
fn check(status: &Status, open: u64) -> Result<(), String> {
    let workers = status.workers.iter().map(|it| it.tunnels).sum();
    let servers = status.upstreams.iter().flat_map(|it| &it.servers);
    let servers = servers.map(|it| it.tunnels).sum();
    let counts: [u64; 3] = [status.totals.tunnels, workers, servers];
    if counts.iter().any(|count| *count != open) {
        return Err(format!(
            "in all, in workers and to servers there are {counts:?} tunnels, of {open}"
        ));
    }
    let is_late = |state| state == WorkerState::Unresponsive;
    let totals = &status.totals;
    let is_well = status.vacant_slots.is_empty()
        && !status.workers.iter().any(|it| is_late(it.state))
        && totals.errors.values().all(|count| *count == 0)
        && totals.worker_restarts + totals.reloads_failed + totals.log_lines_dropped == 0;
    match is_well {
        true => Ok(()),
        false => Err(format!("something is wrong: {status:?}")),
    }
}
