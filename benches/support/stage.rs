//! What the criterion benches measure: a fleet in this thread, a gateway with one worker, an echo
//! server behind it. The worker has a core of its own; the load shares another one, so the wall clock
//! tells what all three reach together, and the worker's CPU clock what the gateway had to do with it.

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use wsgate_load::fleet::Fleet;
use wsgate_load::job::{Open, Run};
use wsgate_load::machine;
use wsgate_load::report::Report;
use wsgate_load::role::EchoProcess;

use crate::gateway::Gateway;

/// A gateway before an echo server.
#[derive(Debug)]
pub(crate) struct Stage {
    // Dropped first: its server outlives it.
    gateway: Gateway,
    _echo: EchoProcess,
}

impl Stage {
    /// Starts both, and puts each on its core if there are two.
    ///
    /// # Errors
    /// Those of starting and of pinning.
    pub(crate) fn set() -> io::Result<Self> {
        machine::raise_nofile()?;
        let cores = cores()?;
        let load = cores.first().copied().filter(|_| cores.len() > 1);
        if let Some(load) = load {
            machine::pin_here(load)?;
        }
        let echo = EchoProcess::spawn(&[SocketAddr::from((Ipv4Addr::LOCALHOST, 0))], load)?;
        let gateway = Gateway::before(echo.addresses()[0])?;
        if let Some(core) = cores.get(1) {
            for worker in gateway.workers() {
                machine::pin(*worker, *core)?;
            }
        }
        Ok(Self {
            gateway,
            _echo: echo,
        })
    }

    /// Opens a fleet through the gateway.
    ///
    /// # Errors
    /// Those of the fleet, and if not every tunnel opened.
    pub(crate) fn open(&self, open: Open) -> io::Result<Fleet> {
        Fleet::open(Open {
            targets: vec![self.gateway.address()],
            ..open
        })
    }

    /// Has a fleet do a job that nothing may go wrong with.
    ///
    /// # Errors
    /// Those of the fleet, and what went wrong.
    pub(crate) fn run(&self, fleet: &mut Fleet, run: Run, bill: &mut Bill) -> io::Result<Duration> {
        let report = fleet.run(&Run {
            clocks: self.gateway.workers().to_vec(),
            ..run
        })?;
        report.sound().map_err(io::Error::other)?;
        bill.add(&report);
        Ok(report.elapsed)
    }
}

/// Whatever fails ends the benchmark: criterion knows no errors.
///
/// # Panics
/// With the error in words.
#[track_caller]
pub(crate) fn must<T>(done: io::Result<T>) -> T {
    match done {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}

/// What the worker's CPU did in all runs of a benchmark.
#[derive(Debug, Default)]
pub(crate) struct Bill {
    cpu: Duration,
    elapsed: Duration,
    done: u64,
}

impl Bill {
    fn add(&mut self, report: &Report) {
        self.cpu += Duration::from_nanos(report.cpu);
        self.elapsed += report.elapsed;
        self.done += report.messages + report.lives;
    }

    /// Prints it, below what criterion has printed. Nothing if nothing was run.
    ///
    /// # Errors
    /// Those of stdout.
    pub(crate) fn print(&self, unit: &str) -> io::Result<()> {
        if self.done == 0 {
            return Ok(());
        }
        let each = self.cpu.as_secs_f64() * 1e6 / self.done as f64;
        let busy = 100.0 * self.cpu.as_secs_f64() / self.elapsed.as_secs_f64();
        let indent = "";
        writeln!(
            io::stdout().lock(),
            "{indent:24}worker: {each:.2} µs of CPU per {unit}, busy for {busy:.0} % of the time"
        )
    }
}

/// The cores that this process may use (proc_pid_status(5)).
fn cores() -> io::Result<Vec<usize>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .unwrap_or_default();
    list.trim()
        .split(',')
        .try_fold(Vec::new(), |mut all, part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let core = |text: &str| text.parse::<usize>().map_err(io::Error::other);
            all.extend(core(first)?..=core(last)?);
            Ok(all)
        })
}
