//! What a storm saw: one table for people, one line for machines. Every number in it was counted.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use crate::census::Census;
use crate::crowd::Seen;
use crate::judge::Verdict;
use crate::moves::Figures;
use crate::plan::{Kind, Plan};
use crate::storm::Rows;

/// One kind of fault.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Row {
    pub(crate) done: u64,
    /// Tunnels that broke by it.
    pub(crate) broken: u64,
    /// Until the gateway was settled again.
    pub(crate) slowest: Duration,
}

#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) plan: String,
    pub(crate) seed: u64,
    pub(crate) version: String,
    /// Of wsgate.
    build: &'static str,
    pub(crate) took: Duration,
    pub(crate) rows: Rows,
    pub(crate) by_fault: BTreeMap<usize, Kind>,
    steady: wsgate_load::report::Report,
    short: wsgate_load::report::Report,
    verdict: Verdict,
    /// At the beginning and at the end.
    pub(crate) census: Option<(Census, Census)>,
    /// Of the plan `moves`.
    pub(crate) moves: Option<Figures>,
    pub(crate) notes: Vec<String>,
    /// Why the storm has failed.
    pub(crate) failures: Vec<String>,
}

impl Report {
    pub(crate) fn new(plan: &Plan, program: &Path) -> Self {
        let build = match (program.to_str(), cfg!(debug_assertions)) {
            (Some(env!("CARGO_BIN_EXE_wsgate")), true) => "debug",
            (Some(env!("CARGO_BIN_EXE_wsgate")), false) => "release",
            _ => "another program than this build's",
        };
        Self {
            plan: plan.to_string(),
            seed: plan.seed,
            version: String::new(),
            build,
            took: Duration::ZERO,
            rows: Rows::new(),
            by_fault: BTreeMap::new(),
            steady: wsgate_load::report::Report::default(),
            short: wsgate_load::report::Report::default(),
            verdict: Verdict::default(),
            census: None,
            moves: None,
            notes: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// What the fleets saw; messages that came back wrong are failures.
    pub(crate) fn seen(&mut self, seen: &Seen) {
        (self.steady, self.short) = (seen.steady.clone(), seen.short.clone());
        for (what, report) in [("tunnels", &seen.steady), ("new connections", &seen.short)] {
            if report.faults.any() {
                self.failures
                    .push(format!("messages of {what}: {:?}", report.faults));
            }
            if report.stuck > 0 {
                self.failures.push(format!(
                    "messages of {what} that never came back: {}",
                    report.stuck
                ));
            }
        }
    }

    /// What was laid to faults; everything else is a failure.
    pub(crate) fn judged(&mut self, mut verdict: Verdict) {
        for (fault, broken) in &verdict.by_fault {
            if let Some(row) = self
                .by_fault
                .get(fault)
                .and_then(|kind| self.rows.get_mut(kind))
            {
                row.broken += broken;
            }
        }
        for (what, (count, first)) in std::mem::take(&mut verdict.unexplained) {
            let failure = format!("unexplained: {count} × {what}; the first {first}");
            self.failures.push(failure);
        }
        self.verdict = verdict;
    }

    pub(crate) fn left_over(&mut self, left: Vec<String>) {
        self.failures
            .extend(left.into_iter().map(|one| format!("left over: {one}")));
    }

    /// One line for the summary of all tests.
    pub(crate) fn summary(&self) -> String {
        let faults: u64 = self.rows.values().map(|row| row.done).sum();
        format!(
            "{faults} faults, {} messages, {} tunnels broken by them, {} failures",
            self.steady.messages + self.short.messages,
            self.verdict.broken + self.verdict.broken_moving,
            self.failures.len()
        )
    }

    /// One line for machines.
    pub(crate) fn json(&self) -> String {
        let rows: BTreeMap<String, &Row> = self
            .rows
            .iter()
            .map(|(kind, row)| (kind.name(), row))
            .collect();
        let fleet = |report: &wsgate_load::report::Report| {
            json!({
                "messages": report.messages, "faults": report.faults, "stuck": report.stuck,
                "unanswered": report.unanswered, "ends": report.ends, "open": report.open,
                "handshakes": report.handshakes, "round_trips": report.round_trips,
            })
        };
        let verdict = &self.verdict;
        json!({
            "plan": self.plan, "seed": self.seed, "version": self.version, "build": self.build,
            "seconds": self.took.as_secs_f64(), "faults": rows,
            "tunnels": fleet(&self.steady), "new_connections": fleet(&self.short),
            "named": verdict.named, "broken": verdict.broken, "unnamed": verdict.unnamed,
            "moving": verdict.moving, "broken_moving": verdict.broken_moving,
            "cut_with_a_worker": verdict.short, "closed": verdict.closed,
            "census": self.census, "moves": self.moves, "notes": self.notes, "failures": self.failures,
        })
        .to_string()
    }

    fn faults(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  {:<26}{:>6}{:>16}{:>18}",
            "fault", "done", "tunnels broken", "slowest to settle"
        )?;
        for (kind, row) in &self.rows {
            let slowest = format!("{:.2} s", row.slowest.as_secs_f64());
            writeln!(
                f,
                "  {:<26}{:>6}{:>16}{slowest:>18}",
                kind.name(),
                row.done,
                row.broken
            )?;
        }
        Ok(())
    }

    fn load(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (steady, short, verdict) = (&self.steady, &self.short, &self.verdict);
        let faults = &steady.faults;
        writeln!(
            f,
            "  messages          {} echoed; {} lost, {} doubled, {} reordered, {} corrupted",
            steady.messages + short.messages,
            faults.lost + short.faults.lost,
            faults.doubled + short.faults.doubled,
            faults.reordered + short.faults.reordered,
            faults.corrupted + short.faults.corrupted,
        )?;
        writeln!(
            f,
            "  tunnels           {} named by faults, {} broke; {} on their way when a worker died, {} broke; {} messages in flight on them; {} closed with 1012 ({} in flight)",
            verdict.named,
            verdict.broken,
            verdict.moving,
            verdict.broken_moving,
            verdict.unanswered,
            verdict.closed,
            verdict.unanswered_closed
        )?;
        writeln!(f, "  tunnels' ends     {}", ends(&steady.ends))?;
        let millis = |nanos: u64| nanos as f64 / 1e6;
        writeln!(
            f,
            "  new connections   {}; {} of them in the hands of a killed worker; slowest handshake {:.0} ms",
            ends(&short.ends),
            verdict.short,
            millis(short.handshakes.max)
        )
    }

    fn census(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((before, after)) = &self.census else {
            return writeln!(f, "  left over         not counted");
        };
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(
            f,
            "  before and after  processes {} {}; descriptors: supervisor {} {}, workers {} {}; files {} {}",
            before.processes,
            after.processes,
            Census::sum(&before.descriptors),
            Census::sum(&after.descriptors),
            Census::sum(&before.worker_descriptors),
            Census::sum(&after.worker_descriptors),
            Census::sum(&before.files),
            Census::sum(&after.files),
        )?;
        writeln!(
            f,
            "  memory, MiB       supervisor {:.1} {:.1}; largest worker {:.1} {:.1}",
            mib(before.memory),
            mib(after.memory),
            mib(before.worker_memory),
            mib(after.worker_memory)
        )
    }
}

fn ends(ends: &BTreeMap<String, u64>) -> String {
    let all: Vec<String> = ends
        .iter()
        .map(|(end, count)| format!("{count} {end}"))
        .collect();
    match all.is_empty() {
        true => "none".to_owned(),
        false => all.join(", "),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let build = self.build;
        writeln!(
            f,
            "storm {}: {:.0} s, wsgate {} ({build})",
            self.plan,
            self.took.as_secs_f64(),
            self.version
        )?;
        self.faults(f)?;
        self.load(f)?;
        if let Some(moves) = &self.moves {
            moves.fmt(f)?;
        }
        self.census(f)?;
        for note in &self.notes {
            writeln!(f, "  note              {note}")?;
        }
        for failure in &self.failures {
            writeln!(f, "  FAILED            {failure}")?;
        }
        f.write_str(match self.failures.is_empty() {
            true => "  Nothing was lost that no fault took.",
            false => "  The storm has failed.",
        })
    }
}
