//! What reloads under moving tunnels took, and whether anything grows with them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;
use wsgate_load::histogram::{Histogram, Summary};

/// What is known of one reload.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Round {
    /// From the request to the answer, and until the last process of the old generation was gone.
    pub(super) answered: Duration,
    pub(super) gone: Duration,
    /// By the gateway's own account: tunnels, milliseconds of the handover, the longest pause of a tunnel.
    pub(super) moved: u64,
    pub(super) handover: Option<f64>,
    pub(super) pause: Option<f64>,
    pub(super) warnings: Vec<String>,
    /// Before the next one.
    pub(super) level: Level,
}

/// What the processes have.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Level {
    /// Of the supervisor and of all workers, by kind.
    pub(super) descriptors: [BTreeMap<String, usize>; 2],
    /// Anonymous memory of the supervisor and of all workers, in bytes.
    pub(super) memory: [u64; 2],
}

/// Times of one sort of tunnels: in the time without reloads, in all of the time with them, and of that during them.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Times {
    pub(super) calm: Summary,
    pub(super) with: Summary,
    pub(super) during: Summary,
}

/// The phases that fleets are told of. One that is under way in two of them counts in the higher.
pub(super) const BETWEEN: u8 = 0;
pub(super) const CALM: u8 = 1;
pub(super) const DURING: u8 = 2;

impl Times {
    pub(super) fn of(phases: &BTreeMap<u8, Histogram>) -> Self {
        let of = |wanted: &[u8]| {
            let mut sum = Histogram::default();
            let found = wanted.iter().filter_map(|phase| phases.get(phase));
            found.for_each(|times| sum.add(times));
            sum.summary()
        };
        Self {
            calm: of(&[CALM]),
            with: of(&[BETWEEN, DURING]),
            during: of(&[DURING]),
        }
    }
}

/// All of it.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Figures {
    pub(super) rounds: Vec<Round>,
    pub(super) before: Level,
    /// Round trips of tunnels that ping and of those that idle, and bytes one way in streams.
    pub(super) pinging: Times,
    pub(super) idle: Times,
    pub(super) streaming: Times,
    /// Payload bytes of streams, both ways; and directions with slow readers, in which all was full up to the sender.
    pub(super) bytes: u64,
    pub(super) held_up: u64,
    pub(super) slow: u64,
}

/// Least squares: by how much a figure grows from each round to the next.
pub(super) fn slope(figures: &[f64]) -> f64 {
    let count = figures.len() as f64;
    let middle = (count - 1.0) / 2.0;
    let mean = figures.iter().sum::<f64>() / count;
    let (mut with, mut of) = (0.0, 0.0);
    for (round, figure) in figures.iter().enumerate() {
        let from = round as f64 - middle;
        with += from * (figure - mean);
        of += from * from;
    }
    if of > 0.0 { with / of } else { 0.0 }
}

impl Figures {
    /// The memory of the supervisor (0) or of all workers (1) after each round, in bytes. Allocators settle in the first
    /// tenth of the rounds.
    pub(super) fn memory(&self, whose: usize) -> Vec<f64> {
        let settled = self.rounds.iter().skip(self.rounds.len() / 10);
        settled
            .map(|round| round.level.memory[whose] as f64)
            .collect()
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Median and greatest.
fn spread(figures: impl Iterator<Item = f64>) -> String {
    let mut all: Vec<f64> = figures.collect();
    all.sort_by(f64::total_cmp);
    match (all.get(all.len() / 2), all.last()) {
        (Some(median), Some(most)) => format!("{median:.1}, at most {most:.1} ms"),
        _ => "not told".to_owned(),
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = || self.rounds.iter();
        writeln!(
            f,
            "  reloads           {}; answered after {}; old processes gone after {}",
            self.rounds.len(),
            spread(rounds().map(|it| millis(it.answered))),
            spread(rounds().map(|it| millis(it.gone))),
        )?;
        writeln!(
            f,
            "  by its own count  {} tunnels moved; in {}; longest pause {}",
            rounds().map(|it| it.moved).sum::<u64>(),
            spread(rounds().filter_map(|it| it.handover)),
            spread(rounds().filter_map(|it| it.pause)),
        )?;
        writeln!(
            f,
            "  streams           {:.1} MB; {} of {} directions with a slow reader were full up to the sender",
            self.bytes as f64 / 1e6,
            self.held_up,
            self.slow
        )?;
        for (what, times) in [
            ("ping-pong", &self.pinging),
            ("probes of idle", &self.idle),
            ("streams, one way", &self.streaming),
        ] {
            writeln!(f, "  {what:<18}{times}")?;
        }
        for (whose, what) in ["supervisor", "all workers"].into_iter().enumerate() {
            let memory = self.memory(whose);
            let (first, last) = (memory.first(), memory.last());
            let mib = |bytes: Option<&f64>| bytes.unwrap_or(&0.0) / f64::from(1 << 20);
            writeln!(
                f,
                "  memory            {what}: {:.2} MiB, at the end {:.2}; {:+.2} KiB with each reload (least squares)",
                mib(first),
                mib(last),
                slope(&memory) / 1024.0
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ms p50 / p99 / longest")?;
        for (what, times) in [
            ("without reloads", &self.calm),
            ("with them", &self.with),
            ("during them", &self.during),
        ] {
            let ms = |nanoseconds: u64| nanoseconds as f64 / 1e6;
            write!(
                f,
                "; {what} {:.2} / {:.2} / {:.2}",
                ms(times.p50),
                ms(times.p99),
                ms(times.max)
            )?;
        }
        Ok(())
    }
}
