//! The plan `moves`: tunnels that ping, idle and stream, every byte of them counted, while one reload after the other moves
//! them to new workers; and the same tunnels for the same time without a reload, to compare with.
//!
//! Nothing dies here and nobody closes anything, so nothing may break: there is no fault to lay it to.

mod figures;
mod traffic;

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use wsgate_load::stream::Streams;
use wsgate_protocol::admin::{ReloadOutcome, Reloaded, Tunnel};

use crate::census::{Census, MORE_MEMORY};
use crate::crowd::Seen;
use crate::gateway::Gateway;
use crate::judge::{Leave, judge};
use crate::moves::figures::{BETWEEN, CALM, DURING, Level, Round, Times, slope};
use crate::moves::traffic::{Counts, Traffic};
use crate::plan::{Handover, Plan};
use crate::process::lives;
use crate::report::Report;
use crate::wait::{pass, until};

pub(crate) use crate::moves::figures::Figures;
pub(crate) use crate::moves::traffic::streams;

/// From the opening of all tunnels until anything is measured: slow readers have fallen behind by then.
const WARM_UP: Duration = Duration::from_secs(1);

/// From one reload to the next, where there are many of them and where there are few.
const INTERVALS: [Duration; 2] = [Duration::from_millis(1200), Duration::from_millis(700)];

/// The old processes must be gone so soon after a reload was asked for.
const GONE: Duration = Duration::from_secs(2);

/// They are looked for for so long.
const PATIENCE: Duration = Duration::from_secs(10);

/// So many rounds tell something of trends and times; fewer are a look at whether it works.
const MANY: usize = 20;

/// By how much round trips during reloads may be slower than without: of one in a hundred, and of the slowest.
const SLOWER: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(50)];

/// Runs it on a gateway that has just started.
pub(crate) fn blow(
    plan: &Plan,
    gateway: &mut Gateway,
    streams: Streams,
    report: &mut Report,
) -> io::Result<Census> {
    if plan.handover == Handover::Off {
        return Err(io::Error::other("no tunnel moves with --handover off"));
    }
    let shape = gateway.next_shape();
    gateway.take(shape)?;
    gateway.settle_alone()?;
    let before = Census::take(gateway)?;
    let counts = Counts::of(plan);
    let mut traffic = Traffic::start(counts, &gateway.site, streams)?;
    pass(WARM_UP);
    let began = Instant::now();
    let mut figures = Figures::default();
    let done = measure(plan, gateway, &mut traffic, &mut figures, report);
    report.took = began.elapsed();
    let seen = traffic.finish()?;
    tell(counts, &seen, &mut figures, report);
    if plan.steps.len() >= MANY && done.is_ok() {
        check(&figures, report);
    }
    report.moves = Some(figures);
    done.map(|()| before)
}

/// The time without reloads, and then with them.
fn measure(
    plan: &Plan,
    gateway: &mut Gateway,
    traffic: &mut Traffic,
    figures: &mut Figures,
    report: &mut Report,
) -> io::Result<()> {
    let tunnels = gateway.all_tunnels()?;
    if tunnels.len() != plan.tunnels as usize {
        let problem = format!("{} of {} tunnels are open", tunnels.len(), plan.tunnels);
        return Err(io::Error::other(problem));
    }
    figures.before = level(gateway)?;
    traffic.phase(CALM)?;
    let [many, few] = INTERVALS;
    let interval = if plan.steps.len() < MANY { few } else { many };
    pass(interval * plan.steps.len() as u32);
    traffic.phase(BETWEEN)?;
    for number in 0..plan.steps.len() {
        let due = Instant::now() + interval;
        traffic.phase(DURING)?;
        let mut round = reload(gateway)
            .map_err(|error| io::Error::other(format!("reload {}: {error}", number + 1)))?;
        traffic.phase(BETWEEN)?;
        pass(due.saturating_duration_since(Instant::now()));
        round.level = level_again(gateway, &figures.before)?;
        figures.rounds.push(round);
    }
    let moves = figures.rounds.len() as u64;
    same(&tunnels, &gateway.all_tunnels()?, moves, report);
    told(plan, figures, report);
    Ok(())
}

/// Reloads, and waits until nothing is left of the old generation.
fn reload(gateway: &mut Gateway) -> io::Result<Round> {
    let workers = gateway.status()?.workers;
    let shape = gateway.next_shape();
    gateway.write(shape)?;
    let began = Instant::now();
    let reloaded = match gateway.reload()?.json()? {
        ReloadOutcome::Reloaded(reloaded) => reloaded,
        other => return Err(io::Error::other(format!("{other:?}"))),
    };
    let answered = began.elapsed();
    let left = || workers.iter().filter(|it| lives(it.pid)).count();
    while left() > 0 {
        if began.elapsed() > PATIENCE {
            let problem = format!(
                "{} of {} old processes live on after {PATIENCE:?}: {reloaded:?}",
                left(),
                workers.len()
            );
            return Err(io::Error::other(problem));
        }
        pass(Duration::from_millis(1));
    }
    let gone = began.elapsed();
    let Reloaded {
        moved,
        handover_milliseconds: handover,
        longest_pause_milliseconds: pause,
        warnings,
        ..
    } = reloaded;
    Ok(Round {
        answered,
        gone,
        moved,
        handover,
        pause,
        warnings,
        level: Level::default(),
    })
}

fn level(gateway: &Gateway) -> io::Result<Level> {
    let census = Census::take(gateway)?;
    Ok(Level {
        descriptors: [census.descriptors, census.worker_descriptors],
        memory: [census.memory, census.all_workers_memory],
    })
}

/// Descriptors must be back at their level, as soon as what asked for them is gone.
fn level_again(gateway: &Gateway, before: &Level) -> io::Result<Level> {
    let mut found = Level::default();
    until("descriptors are back at their level", GONE, || {
        match level(gateway) {
            Ok(level) => found = level,
            Err(error) => return Some(error.to_string()),
        }
        let more = found.more_than(before);
        (!more.is_empty()).then(|| more.join(", "))
    })?;
    Ok(found)
}

impl Level {
    fn more_than(&self, before: &Self) -> Vec<String> {
        let pairs = self.descriptors.iter().zip(&before.descriptors);
        let mut all = Vec::new();
        for ((now, then), whose) in pairs.zip(["supervisor", "workers"]) {
            let more = now
                .iter()
                .filter(|(kind, count)| **count > then.get(*kind).copied().unwrap_or(0));
            all.extend(more.map(|(kind, count)| format!("{whose}: {count} × {kind}")));
        }
        all
    }
}

/// Each tunnel is there still, under its name, and has been counted each time that it moved.
fn same(before: &[Tunnel], after: &[Tunnel], moves: u64, report: &mut Report) {
    let after_that: BTreeMap<&str, &Tunnel> = after.iter().map(|it| (it.id.as_str(), it)).collect();
    let is_the_same = |it: &&Tunnel| {
        let found = after_that.get(it.id.as_str());
        found.is_some_and(|found| {
            found.client == it.client && found.handovers == it.handovers + moves
        })
    };
    let kept = before.iter().filter(is_the_same).count();
    if kept != before.len() || after.len() != before.len() {
        report.failures.push(format!(
            "{kept} of {} tunnels have kept their id and counted {moves} moves; there are {}",
            before.len(),
            after.len()
        ));
    }
}

/// By the gateway's own account every tunnel has moved each time, and there was nothing to be warned of.
fn told(plan: &Plan, figures: &Figures, report: &mut Report) {
    for (number, round) in figures.rounds.iter().enumerate() {
        if round.moved != u64::from(plan.tunnels) || !round.warnings.is_empty() {
            report.failures.push(format!(
                "reload {}: {} of {} tunnels moved, warnings: {:?}",
                number + 1,
                round.moved,
                plan.tunnels,
                round.warnings
            ));
        }
    }
}

/// What clients and servers saw.
fn tell(counts: Counts, seen: &traffic::Seen, figures: &mut Figures, report: &mut Report) {
    let streaming = &seen.streaming;
    figures.pinging = Times::of(&seen.pinging.phases);
    figures.idle = Times::of(&seen.idle.phases);
    figures.streaming = Times::of(&streaming.delays);
    figures.bytes = streaming.received.iter().sum();
    (figures.held_up, figures.slow) = (streaming.held_up, streaming.slow);
    let mut failures = Vec::new();
    failures.extend(streaming.sound().err().map(|it| format!("streams: {it}")));
    if streaming.held_up < streaming.slow {
        failures.push("not every slow reader had bytes waiting for it all the time".to_owned());
    }
    let open = [
        ("ping-pong", seen.pinging.open, counts.pinging),
        ("idle", seen.idle.open, counts.idle),
        ("answering idle", seen.answered, counts.idle),
    ];
    for (what, found, wanted) in open {
        if found != u64::from(wanted) {
            failures.push(format!("{found} of {wanted} {what} tunnels at the end"));
        }
    }
    report.failures.append(&mut failures);
    let mut all = Seen {
        steady: seen.pinging.clone(),
        ..Seen::default()
    };
    all.steady.add(&seen.idle);
    report.seen(&all);
    let none = Leave {
        closes: false,
        overlap: false,
    };
    report.judged(judge(&all, &[], none));
}

/// What takes many rounds to tell. Times only of a release build.
fn check(figures: &Figures, report: &mut Report) {
    let slowest = figures.rounds.iter().map(|it| it.gone).max();
    if slowest.is_some_and(|slowest| slowest > GONE) {
        report
            .failures
            .push(format!("old processes were gone after {slowest:?} only"));
    }
    for (whose, what) in ["supervisor", "workers"].into_iter().enumerate() {
        let memory = figures.memory(whose);
        let grown = slope(&memory) * memory.len() as f64;
        if grown > MORE_MEMORY[whose] as f64 {
            report.failures.push(format!(
                "memory of the {what} grows: by {:.0} KiB over {} reloads",
                grown / 1024.0,
                memory.len()
            ));
        }
    }
    if cfg!(debug_assertions) {
        return;
    }
    for (what, times) in [
        ("ping-pong", figures.pinging),
        ("streams", figures.streaming),
    ] {
        let p99 = ("p99", times.calm.p99, times.during.p99);
        let longest = ("longest", times.calm.max, times.during.max);
        for ((which, calm, during), slower) in [p99, longest].into_iter().zip(SLOWER) {
            compare(&format!("{what}, {which}"), [calm, during], slower, report);
        }
    }
}

/// Nanoseconds without reloads and during them. Where the first alone are more than what is to be told from them, the machine has too much
/// else to do: that is said, and proves nothing.
fn compare(what: &str, [calm, during]: [u64; 2], slower: Duration, report: &mut Report) {
    let [calm, during] = [calm, during].map(Duration::from_nanos);
    if calm > slower {
        report.notes.push(format!(
            "{what}: not compared, for it is {calm:.1?} without reloads already: too much else goes on here"
        ));
    } else if during > calm + slower {
        report.failures.push(format!(
            "{what}: {during:.1?} during reloads, {calm:.1?} without"
        ));
    }
}
