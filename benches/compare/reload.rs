//! Reloads under load: what becomes of tunnels, messages, new connections and processes.
//!
//! 500 tunnels with 10 messages a second each, 10 of them renewed each second, and 200 short tunnels a
//! second, while the gateway is reloaded every 2 s. Nothing is bound to a core here, and each gateway has two
//! workers. A tunnel that breaks is opened again.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use wsgate_load::job::{Open, Run, Until, Work};
use wsgate_load::report::Report;
use wsgate_load::role::FleetProcess;

use crate::args::Args;
use crate::cases::open;
use crate::figures::number;
use crate::gateway::Gateway;
use crate::peers::{Peer, Setup};
use crate::{echo, process, progress};

const TUNNELS: usize = 500;
const STEADY: Work = Work::Rate {
    per_second: 10.0,
    renewals: 10.0,
};
const STORM: Work = Work::Arrivals {
    per_second: 200.0,
    echoes: 1,
};

const LEAD: Duration = Duration::from_secs(1);
const BETWEEN: Duration = Duration::from_secs(2);
/// From the last reload until processes are counted: longer than any shutdown limit here.
const AFTER: Duration = Duration::from_secs(7);
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);
pub(crate) const WORKERS: usize = 2;

/// Tunnels of the storm have numbers from here on.
pub(crate) const STORM_FIRST: u32 = 1 << 24;

const HEAD: &str = "\
| reloads | tunnels broken | messages lost | new connections failed | round trip ms, p99 / max | handshake ms, max | processes | PSS MiB |
| --- | --- | --- | --- | --- | --- | --- | --- |
";

/// A table with a line for each gateway, without and with a limit for old workers.
pub(crate) fn compare(args: &Args) -> io::Result<String> {
    let mut text = String::from(HEAD);
    for (peer, handover) in CANDIDATES {
        for limit in [None, Some(SHUTDOWN_LIMIT)] {
            if args.peers.contains(&peer) {
                text += &one(args, peer, handover, limit)?;
            }
        }
    }
    Ok(text)
}

/// Who is compared: wsgate with tunnels that move and with tunnels that stay.
pub(crate) const CANDIDATES: [(Peer, bool); 4] = [
    (Peer::Wsgate, true),
    (Peer::Wsgate, false),
    (Peer::Nginx, false),
    (Peer::Haproxy, false),
];

/// What a line is called.
pub(crate) fn name(peer: Peer, setup: &Setup) -> String {
    let mut name = peer.to_string();
    if peer == Peer::Wsgate && !setup.handover {
        name += ", handover = false";
    }
    match setup.shutdown_limit {
        Some(limit) => format!("{name}, {limit:?} limit"),
        None => name,
    }
}

fn one(args: &Args, peer: Peer, handover: bool, limit: Option<Duration>) -> io::Result<String> {
    let setup = Setup {
        workers: WORKERS,
        shutdown_limit: limit,
        handover,
    };
    let name = name(peer, &setup);
    progress(&format!("reload: {name}"));
    let echo = echo(None)?;
    let gateway = Gateway::start(args, peer, echo.addresses(), &setup)?;
    let seen = under_load(args, &gateway)
        .map_err(|error| io::Error::other(format!("{name}: {error}\n{}", gateway.log())))?;
    Ok(seen.line(&name))
}

/// Processes of a gateway, and their memory in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) processes: usize,
    pub(crate) memory: u64,
}

impl Size {
    /// A process that ends meanwhile makes it look again.
    pub(crate) fn of(gateway: &Gateway) -> io::Result<Self> {
        let mut size = None;
        process::eventually("processes are counted", AFTER, || {
            let family = gateway.processes()?;
            size = process::memory(&family).ok().map(|memory| Self {
                processes: family.len(),
                memory,
            });
            Ok(size.is_some())
        })?;
        size.ok_or_else(|| io::Error::other("no processes"))
    }
}

struct Seen {
    reloads: u32,
    steady: Report,
    storm: Report,
    before: Size,
    after: Size,
}

fn under_load(args: &Args, gateway: &Gateway) -> io::Result<Seen> {
    let reloads = args.reloads();
    let time = LEAD + BETWEEN * (reloads - 1) + AFTER + LEAD;
    let mut steady = fleet(&open(gateway, TUNNELS))?;
    let mut storm = fleet(&Open {
        first: STORM_FIRST,
        ..open(gateway, 0)
    })?;
    let before = Size::of(gateway)?;
    let began = Instant::now();
    steady.start(&run(STEADY, time))?;
    storm.start(&run(STORM, time))?;
    for times in 1..=reloads {
        wait_until(began + LEAD + BETWEEN * (times - 1));
        gateway.reload(times)?;
    }
    wait_until(began + LEAD + BETWEEN * (reloads - 1) + AFTER);
    let after = Size::of(gateway)?;
    let seen = Seen {
        reloads,
        steady: steady.finish()?,
        storm: storm.finish()?,
        before,
        after,
    };
    gateway.check_main()?;
    seen.sound().map(|()| seen)
}

pub(crate) fn fleet(open: &Open) -> io::Result<FleetProcess> {
    let mut fleet = FleetProcess::spawn(None)?;
    crate::cases::sound("opening", &fleet.open(open)?)?;
    Ok(fleet)
}

pub(crate) fn run(work: Work, time: Duration) -> Run {
    Run {
        work,
        until: Until::Elapsed(time),
        ..Run::default()
    }
}

/// A reload comes when it is time for it, whatever has become of the last.
pub(crate) fn wait_until(time: Instant) {
    while let Some(left) = time.checked_duration_since(Instant::now()) {
        thread::park_timeout(left);
    }
}

impl Seen {
    /// Tunnels may break and messages be lost here; wrong bytes may never come.
    fn sound(&self) -> io::Result<()> {
        right(&self.steady).and_then(|()| right(&self.storm))
    }

    fn line(&self, name: &str) -> String {
        let Self {
            steady,
            storm,
            before,
            after,
            ..
        } = self;
        let millis = |nanoseconds: u64| number(nanoseconds as f64 / 1e6);
        let mib = |size: &Size| number(size.memory as f64 / 1048576.0);
        format!(
            "| {name}, {} | {} | {} of {} | {} | {} / {} | {} | {} → {} | {} → {} |\n",
            self.reloads,
            broken(steady),
            lost(steady) + lost(storm),
            steady.messages + storm.messages,
            broken(storm),
            millis(steady.round_trips.p99),
            millis(steady.round_trips.max),
            millis(storm.handshakes.max),
            before.processes,
            after.processes,
            mib(before),
            mib(after),
        )
    }
}

/// That no echo was wrong; some may be missing.
pub(crate) fn right(report: &Report) -> io::Result<()> {
    let faults = report.faults;
    match faults.doubled + faults.reordered + faults.corrupted {
        0 => Ok(()),
        _ => Err(io::Error::other(format!("wrong echoes: {faults:?}"))),
    }
}

pub(crate) fn lost(report: &Report) -> u64 {
    report.faults.lost + report.unanswered + report.stuck
}

/// How many ended otherwise than by the fleet's own Close, and how.
pub(crate) fn broken(report: &Report) -> String {
    let all = report.ends.values().sum::<u64>() + report.open;
    let others = report.ends.iter().filter(|(end, _)| *end != "polite");
    let count: u64 = others.clone().map(|(_, count)| count).sum();
    let how: Vec<String> = others
        .map(|(end, count)| format!("{count} × {end}"))
        .collect();
    match how.is_empty() {
        true => format!("0 of {all}"),
        false => format!("{count} of {all}: {}", how.join(", ")),
    }
}
