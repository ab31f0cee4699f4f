//! One storm from its start to its end: the gateway, the crowd, the faults, and what is counted.

use std::collections::BTreeMap;
use std::io;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use wsgate_load::stream::Streams;

use crate::args::Args;
use crate::census::{self, Census};
use crate::config::Site;
use crate::crowd::{Crowd, Seen, Servers};
use crate::faults::Faults;
use crate::gateway::Gateway;
use crate::judge::{Leave, judge};
use crate::moves;
use crate::plan::{Handover, Kind, Name, Plan};
use crate::report::{Report, Row};
use crate::room::Room;
use crate::wait::pass;

/// Where faults overlap the next one comes within so many milliseconds.
const OVERLAP: u64 = 1_000;

/// Before the next fault there is load and nothing else for so many milliseconds.
const CALM: (u64, u64) = (200, 1_000);

/// Runs a storm. What keeps it from being run is a failure of it.
pub(crate) fn run(args: &Args, plan: Plan) -> Report {
    let mut report = Report::new(&plan, &args.wsgate);
    let dir = tempfile::Builder::new().prefix("wsgate-storm-").tempdir();
    let done = dir.and_then(|dir| {
        let done = blow(args, &plan, &dir, &mut report);
        if args.keep {
            report
                .notes
                .push(format!("the log is in {}", dir.keep().display()));
        }
        done
    });
    report.failures.extend(
        done.err()
            .map(|error| format!("the storm broke off: {error}")),
    );
    report
}

fn blow(args: &Args, plan: &Plan, dir: &TempDir, report: &mut Report) -> io::Result<()> {
    let run = dir.path().join("run");
    std::fs::create_dir(&run)?;
    let room = Room::mount(&run);
    if plan.has(Kind::FullDisk) && room.is_none() {
        report
            .notes
            .push("left out: a full disk, which takes a mount namespace".to_owned());
    }
    let servers = Servers::start()?;
    let mut site = Site::new(&run, plan, servers.addresses());
    let streams = (plan.name == Name::Moves).then(moves::streams);
    let streams = streams.transpose()?;
    site.stream = streams.as_ref().map(Streams::address);
    let site = known(args, dir, site, report)?;
    let mut gateway = Gateway::start(&args.wsgate, dir.path(), site, plan.slots)?;
    report.version = gateway.status()?.version;
    let blown = match streams {
        None => blow_at(plan, &mut gateway, room.as_ref(), report),
        Some(streams) => moves::blow(plan, &mut gateway, streams, report)
            .and_then(|before| count(&mut gateway, before, report)),
    };
    let log = gateway.log();
    if let Some(line) = log.lines().find(|line| line.contains("panicked")) {
        report.failures.push(format!("wsgate panicked: {line}"));
    }
    if blown.is_err() {
        let last: Vec<&str> = log.lines().rev().take(5).collect();
        report
            .notes
            .extend(last.into_iter().rev().map(|line| format!("log: {line}")));
    }
    blown
}

/// Leaves out keys that this wsgate does not know. That is a failure, since the plan needs them.
fn known(args: &Args, dir: &TempDir, mut site: Site, report: &mut Report) -> io::Result<Site> {
    let file = dir.path().join("check.toml");
    let shape = crate::config::Shape {
        slots: 1,
        guests: false,
        serial: 0,
    };
    for key in ["watchdog", "generations"] {
        std::fs::write(&file, site.text(&shape))?;
        let checked = Command::new(&args.wsgate)
            .args(["check", "--config"])
            .arg(&file)
            .output()?;
        let text =
            String::from_utf8_lossy(&checked.stderr) + String::from_utf8_lossy(&checked.stdout);
        if checked.status.success() || !text.contains(&format!("`{key}`")) {
            continue;
        }
        report.failures.push(format!("this wsgate has no `{key}`"));
        match key {
            "watchdog" => site.watchdog = None,
            _ => site.generations = None,
        }
    }
    Ok(site)
}

fn blow_at(
    plan: &Plan,
    gateway: &mut Gateway,
    room: Option<&Room>,
    report: &mut Report,
) -> io::Result<()> {
    // Once around, so that the census is not of a gateway that has never reloaded.
    let shape = gateway.next_shape();
    gateway.take(shape)?;
    gateway.settle_alone()?;
    let before = Census::take(gateway)?;
    let crowd = Crowd::start(plan, &gateway.site)?;
    let began = Instant::now();
    let mut faults = Faults::new(gateway, room, plan);
    let blown = all_faults(plan, &mut faults, report);
    report.took = began.elapsed();
    let put_back = blown.and_then(|()| faults.put_back());
    let breaks = std::mem::take(&mut faults.breaks);
    report.notes.append(&mut faults.notes);
    let seen = crowd.finish()?;
    tell(plan, report, &seen);
    let leave = Leave {
        // Where tunnels move no old generation holds any.
        closes: plan.generations.is_some() && plan.handover == Handover::Off,
        overlap: plan.overlap,
    };
    report.judged(judge(&seen, &breaks, leave));
    put_back?;
    count(gateway, before, report)
}

/// Every fault of the plan. One that goes wrong is told, and the next one comes if the gateway settles.
fn all_faults(plan: &Plan, faults: &mut Faults<'_>, report: &mut Report) -> io::Result<()> {
    faults.settle()?;
    let began = Instant::now();
    for (number, step) in plan.steps.iter().enumerate() {
        if plan.limit.is_some_and(|limit| began.elapsed() >= limit) {
            report
                .notes
                .push(format!("the time was over after {number} faults"));
            break;
        }
        if let Some(spread) = plan.spread {
            let due = spread * number as u32 / plan.steps.len() as u32;
            pass(due.saturating_sub(began.elapsed()));
        }
        let row = report.rows.entry(step.kind).or_default();
        match faults.strike(number, step) {
            Ok(done) => row.done += u64::from(done),
            Err(error) => report
                .failures
                .push(format!("fault {number}, {}: {error}", step.kind.name())),
        }
        report.by_fault.insert(number, step.kind);
        if plan.overlap {
            pass(Duration::from_millis(step.numbers.clone().below(OVERLAP)));
        }
        // Faults that are spread come when they are due.
        if plan.overlap || plan.spread.is_some() {
            continue;
        }
        row.slowest = row.slowest.max(faults.settle()?);
        let (least, most) = CALM;
        pass(Duration::from_millis(
            step.numbers.clone().between(least, most),
        ));
    }
    if let Some(spread) = plan.spread {
        pass(spread.saturating_sub(began.elapsed()));
    }
    faults.settle()?;
    Ok(())
}

fn tell(plan: &Plan, report: &mut Report, seen: &Seen) {
    report.seen(seen);
    let due = plan.rate * report.took.as_secs_f64();
    let came = seen.short.ends.values().sum::<u64>() as f64;
    if came < 0.8 * due {
        report.failures.push(format!(
            "{came} new connections came of the {due:.0} that were due"
        ));
    }
    if plan.name != Name::Reloads && seen.steady.open != u64::from(plan.tunnels) {
        report.failures.push(format!(
            "{} of {} tunnels were open at the end",
            seen.steady.open, plan.tunnels
        ));
    }
}

/// What is left of the storm when nobody is there any more, and of the gateway when it has stopped.
fn count(gateway: &mut Gateway, before: Census, report: &mut Report) -> io::Result<()> {
    gateway.settle_alone()?;
    let after = settled_memory(gateway)?;
    report.left_over(after.left_over(&before));
    report.census = Some((before, after));
    let left = gateway.stop()?;
    if !left.is_empty() {
        report
            .failures
            .push(format!("processes left after the stop: {left:?}"));
    }
    let sockets = census::sockets(&gateway.site.run)?;
    if !sockets.is_empty() {
        report
            .failures
            .push(format!("sockets left after the stop: {sockets:?}"));
    }
    Ok(())
}

/// Allocators give back what is free with some delay: counted when nothing becomes less any more, or after a while.
fn settled_memory(gateway: &Gateway) -> io::Result<Census> {
    let mut census = Census::take(gateway)?;
    for _ in 0..10 {
        thread::park_timeout(Duration::from_millis(500));
        let next = Census::take(gateway)?;
        let less = next.memory < census.memory
            || next.worker_memory < census.worker_memory
            || Census::sum(&next.worker_descriptors) < Census::sum(&census.worker_descriptors)
            || Census::sum(&next.descriptors) < Census::sum(&census.descriptors);
        census = next;
        if !less {
            break;
        }
    }
    Ok(census)
}

/// Counts by kind of fault.
pub(crate) type Rows = BTreeMap<Kind, Row>;
