//! The case that was reported from production: 136 reloads in ten minutes, 2,000 tunnels, 200 new connections a second.
//!
//! How many generations live at one time, for how long, and what that takes. Nothing is bound to a core, each gateway has two
//! workers, and a tunnel that breaks is opened again.

use std::io;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use wsgate_load::job::{Open, Work};
use wsgate_load::report::Report;

use crate::args::Args;
use crate::cases::open;
use crate::figures::number;
use crate::gateway::Gateway;
use crate::peers::{Peer, Setup};
use crate::reload::{
    CANDIDATES, STORM_FIRST, Size, WORKERS, broken, fleet, lost, name, right, run, wait_until,
};
use crate::{echo, process, progress};

const TUNNELS: usize = 2_000;
const STEADY: Work = Work::Rate {
    per_second: 2.0,
    renewals: 5.0,
};
const STORM: Work = Work::Arrivals {
    per_second: 200.0,
    echoes: 1,
};

/// 136 reloads in ten minutes.
const BETWEEN: Duration = Duration::from_millis(600_000 / 136);

/// Before the first reload, and after the last one.
const LEAD: Duration = Duration::from_secs(2);

/// Between two looks at which processes there are.
const LOOK: Duration = Duration::from_millis(50);

const HEAD: &str = "\
| gateway, reloads | tunnels broken | messages lost | new connections failed | round trip ms, p50 / p99 / max | most generations at a time | most processes | more than one generation: of the time, longest | PSS MiB | CPU s |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
";

/// A table with a line for each gateway.
pub(crate) fn compare(args: &Args, minutes: f64) -> io::Result<String> {
    let mut text = String::from(HEAD);
    let limit = args.limit.map(Duration::from_secs);
    let limits = [None].into_iter().chain(limit.map(Some));
    for limit in limits {
        for (peer, handover) in CANDIDATES {
            if args.peers.contains(&peer) && !(handover && limit.is_some()) {
                text += &one(
                    args,
                    minutes,
                    peer,
                    Setup {
                        workers: WORKERS,
                        shutdown_limit: limit,
                        handover,
                    },
                )?;
            }
        }
    }
    Ok(text)
}

fn one(args: &Args, minutes: f64, peer: Peer, setup: Setup) -> io::Result<String> {
    let name = name(peer, &setup);
    progress(&format!("production: {name}, {minutes} minutes"));
    let echo = echo(None)?;
    let gateway = Gateway::start(args, peer, echo.addresses(), &setup)?;
    let reloads = (minutes * 60.0 / BETWEEN.as_secs_f64()).round().max(1.0) as u32;
    let seen = under_load(&gateway, &setup, reloads)
        .map_err(|error| io::Error::other(format!("{name}: {error}\n{}", gateway.log())))?;
    Ok(seen.line(&format!("{name}, {reloads}")))
}

struct Seen {
    steady: Report,
    storm: Report,
    crowd: Crowd,
    before: Size,
    after: Size,
    cpu: Duration,
}

fn under_load(gateway: &Gateway, setup: &Setup, reloads: u32) -> io::Result<Seen> {
    let time = LEAD + BETWEEN * reloads + LEAD;
    let mut steady = fleet(&open(gateway, TUNNELS))?;
    let mut storm = fleet(&Open {
        first: STORM_FIRST,
        ..open(gateway, 0)
    })?;
    let before = Size::of(gateway)?;
    let (began, cpu) = (Instant::now(), gateway.cpu()?);
    steady.start(&run(STEADY, time))?;
    storm.start(&run(STORM, time))?;
    let watch = Watch::start(gateway.main(), gateway.peer.processes(setup));
    for times in 1..=reloads {
        wait_until(began + LEAD + BETWEEN * (times - 1));
        gateway.reload(times)?;
    }
    wait_until(began + LEAD + BETWEEN * reloads);
    let crowd = watch.end()?;
    let seen = Seen {
        after: Size::of(gateway)?,
        cpu: gateway.cpu()?.saturating_sub(cpu),
        steady: steady.finish()?,
        storm: storm.finish()?,
        crowd,
        before,
    };
    gateway.check_main()?;
    right(&seen.steady).and_then(|()| right(&seen.storm))?;
    Ok(seen)
}

/// How many processes there were.
#[derive(Clone, Copy, Debug, Default)]
struct Crowd {
    generations: usize,
    processes: usize,
    /// With more than one generation: in all, and at a stretch.
    crowded: Duration,
    longest: Duration,
    watched: Duration,
}

/// Looks at processes in a thread.
struct Watch {
    goes_on: Sender<()>,
    thread: JoinHandle<io::Result<Crowd>>,
}

impl Watch {
    fn start(main: u32, each: usize) -> Self {
        let (goes_on, over) = channel();
        let thread = thread::spawn(move || {
            let (mut crowd, mut since) = (Crowd::default(), None);
            let began = Instant::now();
            let mut last = began;
            while over.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                let processes = process::family(main)?.len();
                let now = Instant::now();
                crowd.count(processes, each, now - last, now, &mut since);
                last = now;
            }
            crowd.watched = began.elapsed();
            Ok(crowd)
        });
        Self { goes_on, thread }
    }

    fn end(self) -> io::Result<Crowd> {
        drop(self.goes_on);
        let ended = self.thread.join();
        ended.unwrap_or_else(|_| Err(io::Error::other("a thread has panicked")))
    }
}

impl Crowd {
    fn count(
        &mut self,
        processes: usize,
        each: usize,
        look: Duration,
        now: Instant,
        since: &mut Option<Instant>,
    ) {
        let generations = processes.saturating_sub(1).div_ceil(each);
        self.generations = self.generations.max(generations);
        self.processes = self.processes.max(processes);
        if generations < 2 {
            *since = None;
            return;
        }
        let from = *since.get_or_insert(now - look);
        self.crowded += look;
        self.longest = self.longest.max(now - from);
    }
}

impl Seen {
    fn line(&self, name: &str) -> String {
        let Self {
            steady,
            storm,
            crowd,
            before,
            after,
            cpu,
        } = self;
        let millis = |nanoseconds: u64| number(nanoseconds as f64 / 1e6);
        let mib = |size: &Size| number(size.memory as f64 / 1048576.0);
        let share = 100.0 * crowd.crowded.as_secs_f64() / crowd.watched.as_secs_f64();
        let trips = &steady.round_trips;
        format!(
            "| {name} | {} | {} of {} | {} | {} / {} / {} | {} | {} | {share:.0} %, {:.1} s | {} → {} | {:.1} |\n",
            broken(steady),
            lost(steady) + lost(storm),
            steady.messages + storm.messages,
            broken(storm),
            millis(trips.p50),
            millis(trips.p99),
            millis(trips.max),
            crowd.generations,
            crowd.processes,
            crowd.longest.as_secs_f64(),
            mib(before),
            mib(after),
            cpu.as_secs_f64(),
        )
    }
}
