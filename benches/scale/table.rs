//! What was seen, as markdown.

use std::io;
use std::time::Duration;

use wsgate_load::histogram::{Histogram, Summary};
use wsgate_load::report::Report;

use crate::host::{hardware, said};
use crate::look::Look;
use crate::plan::{Plan, SIZE};
use crate::reload;

/// A list for the top.
pub(crate) fn head(plan: &Plan, version: &str) -> io::Result<String> {
    let date = said("date", &["-u", "+%F"])?;
    let Plan {
        tunnels,
        workers,
        processes,
    } = plan;
    Ok(format!(
        "- {date}\n- {}\n- {version}, {workers} workers\n- {} tunnels; processes with clients: {processes}, with servers: {processes}; messages of {SIZE} B\n\n",
        hardware()?,
        grouped(*tunnels),
    ))
}

/// A column for each look.
pub(crate) fn of_looks(looks: &[Look]) -> String {
    let mut text = row("", looks.iter().map(|look| look.title.to_owned()));
    text += &row("---", looks.iter().map(|_| "---:".to_owned()));
    let empty = looks.first().map_or(0, |look| look.memory);
    for (title, cell) in ROWS {
        text += &row(title, looks.iter().map(|look| cell(look, empty)));
    }
    text + "\n"
}

type Cell = fn(&Look, u64) -> String;

const ROWS: [(&str, Cell); 14] = [
    ("tunnels open, as clients count", |look, _| {
        grouped(look.open)
    }),
    ("tunnels open, `wsctl --json status`", |look, _| {
        grouped(look.status.totals.tunnels)
    }),
    ("of them in one worker: fewest, most", |look, _| {
        let busy = look.status.workers.iter().map(|it| it.tunnels);
        let busy = busy.filter(|tunnels| *tunnels > 0);
        let (least, most) = (busy.clone().min(), busy.max());
        least.zip(most).map_or_else(none, |(least, most)| {
            format!("{}, {}", grouped(least), grouped(most))
        })
    }),
    (
        "messages each way in one tunnel: fewest, most",
        |look, _| {
            let all = look.listing.tunnels.iter();
            let all = all.map(|it| it.messages_from_client);
            let (least, most) = (all.clone().min(), all.max());
            least
                .zip(most)
                .map_or_else(none, |(least, most)| format!("{least}, {most}"))
        },
    ),
    ("generations", |look, _| {
        look.status.generations.len().to_string()
    }),
    ("processes", |look, _| look.processes.to_string()),
    ("PSS of all processes, MiB", |look, _| mib(look.memory)),
    ("the same per tunnel, KiB", |look, _| {
        per_tunnel(look, look.memory)
    }),
    (
        "more than without tunnels, per tunnel, KiB",
        |look, empty| per_tunnel(look, look.memory.saturating_sub(empty)),
    ),
    ("PSS of the supervisor, MiB", |look, _| mib(look.supervisor)),
    ("`wsctl status`, ms", |look, _| millis(look.table)),
    ("`wsctl --json status`, ms", |look, _| millis(look.json)),
    ("`wsctl tunnels`: lines, ms", |look, _| {
        let lines = look.listing.lines as u64;
        format!("{}, {}", grouped(lines), millis(look.listing.table))
    }),
    ("`wsctl --json tunnels`: tunnels, ms", |look, _| {
        let tunnels = look.listing.tunnels.len() as u64;
        format!("{}, {}", grouped(tunnels), millis(look.listing.json))
    }),
];

/// What was done between the looks.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) opened: Report,
    pub(crate) echoed: Report,
    pub(crate) reload: reload::Seen,
    pub(crate) echoed_again: Report,
    pub(crate) closed: Report,
}

impl Work {
    /// A line for each piece of it. None of it had a fault, or there would be no table.
    pub(crate) fn table(&self) -> String {
        let Self { opened, closed, .. } = self;
        let handshakes = times("handshake", &opened.handshakes);
        let closed = grouped(closed.ends.values().sum());
        [
            row("", ["".to_owned()]),
            row("---", ["---".to_owned()]),
            row(
                "opening all",
                [format!("{}; {handshakes}", seconds(opened))],
            ),
            row("an echo in each", [echoes(&self.echoed)]),
            around(&self.reload),
            row(
                "an echo in each, after the reload",
                [echoes(&self.echoed_again)],
            ),
            row("closing all", [format!("{closed} ended politely")]),
        ]
        .concat()
    }
}

fn around(reload: &reload::Seen) -> String {
    let reload::Seen {
        reloaded,
        took,
        gone,
        steady,
        short,
    } = reload;
    let during = steady.phases.get(&reload::DURING);
    let during = during.map(Histogram::summary).unwrap_or_default();
    let told = |milliseconds: Option<f64>| {
        milliseconds.map_or_else(none, |milliseconds| format!("{milliseconds:.1} ms"))
    };
    let new = (
        grouped(reload.short_ones()),
        times("handshake", &short.handshakes),
    );
    let old = (
        grouped(steady.messages),
        times("round trip", &steady.round_trips),
    );
    let rows = [
        (
            "the reload, by its own account",
            format!("{:.1} ms", reloaded.milliseconds),
        ),
        (
            "tunnels that have moved, by its own account",
            grouped(reloaded.moved),
        ),
        (
            "the handover, from the commit to the last of them",
            told(reloaded.handover_milliseconds),
        ),
        (
            "the longest pause of one of them",
            told(reloaded.longest_pause_milliseconds),
        ),
        (
            "`wsctl reload`, from start to end",
            format!("{} ms", millis(*took)),
        ),
        (
            "until the old processes are gone",
            format!("{} ms", millis(*gone)),
        ),
        (
            "new connections before, at and after it",
            format!("{}, none failed; {}", new.0, new.1),
        ),
        (
            "echoes in old tunnels around it",
            format!("{}, none wrong; {}", old.0, old.1),
        ),
        (
            "those that were on their way while `wsctl reload` ran",
            format!(
                "{}; {}",
                grouped(during.count),
                times("round trip", &during)
            ),
        ),
    ];
    rows.map(|(title, cell)| row(title, [cell])).concat()
}

fn seconds(report: &Report) -> String {
    format!("{:.1} s", report.elapsed.as_secs_f64())
}

fn echoes(report: &Report) -> String {
    format!(
        "{}, none wrong; {}",
        grouped(report.messages),
        seconds(report)
    )
}

fn row(title: &str, cells: impl IntoIterator<Item = String>) -> String {
    let cells: Vec<String> = cells.into_iter().collect();
    format!("| {title} | {} |\n", cells.join(" | "))
}

fn times(what: &str, times: &Summary) -> String {
    let millis = |nanoseconds| millis(Duration::from_nanos(nanoseconds));
    format!(
        "{what} ms p50 {}, p99 {}, most {}",
        millis(times.p50),
        millis(times.p99),
        millis(times.max)
    )
}

fn per_tunnel(look: &Look, bytes: u64) -> String {
    match look.open {
        0 => none(),
        open => format!("{:.2}", bytes as f64 / 1024.0 / open as f64),
    }
}

fn none() -> String {
    "–".to_owned()
}

fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1_048_576.0)
}

fn millis(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1000.0)
}

/// 50000 as 50,000.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
