//! `wsctl events`: what happens, a line each, until Ctrl-C or the supervisor's end.

use http_body_util::BodyExt;
use hyper::body::Incoming;
use wsgate_protocol::admin::{Event, EventKind, GenerationChange, ReloadOutcome, WorkerChange};

use super::reload;
use crate::client::Client;
use crate::console::Console;
use crate::error::CtlError;
use crate::units;

/// More than any event has: what sends more is no event stream.
const LONGEST: usize = 4 << 20;

pub(crate) async fn events(
    client: &Client,
    json: bool,
    console: &mut Console<'_>,
) -> Result<(), CtlError> {
    let response = client.stream("/v1/events").await?;
    // Until then nothing was told: now nothing will be missed.
    console.flush()?;
    let end = print(response.into_body(), json, console).await;
    let at = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    match end {
        Ok(()) | Err(CtlError::Broken(_)) => Err(CtlError::StreamEnded {
            at: units::moment(&at),
        }),
        Err(error) => Err(error),
    }
}

async fn print(mut body: Incoming, json: bool, console: &mut Console<'_>) -> Result<(), CtlError> {
    let mut lines = Lines::default();
    while let Some(frame) = body.frame().await {
        let Some(piece) = frame?.data_ref().cloned() else {
            continue;
        };
        lines.push(&piece);
        while let Some(line) = lines.next() {
            // Names and ids are in the JSON as well; the rest are comments.
            let Some(data) = line.strip_prefix("data: ") else {
                continue;
            };
            match json {
                true => console.line(data)?,
                false => console.line(shown(data))?,
            }
        }
        if lines.0.len() > LONGEST {
            return Ok(());
        }
        console.flush()?;
    }
    Ok(())
}

/// What has come and is no whole line yet.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn push(&mut self, piece: &[u8]) {
        self.0.extend_from_slice(piece);
    }

    fn next(&mut self) -> Option<String> {
        let end = self.0.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.0.drain(..=end).collect();
        Some(String::from_utf8_lossy(&line[..end]).into_owned())
    }
}

/// A kind of a later version is shown as it came.
fn shown(data: &str) -> String {
    match serde_json::from_str::<Event>(data) {
        Ok(event) => format!("{}  {}", units::moment(&event.at), words(&event.kind)),
        Err(_) => data.to_owned(),
    }
}

fn words(kind: &EventKind) -> String {
    match kind {
        EventKind::Reload { by, outcome } => format!("reload by {by}: {}", reloaded(outcome)),
        EventKind::ReloadHeld { by, held } => format!("reload by {by}: {}", held.message()),
        EventKind::Generation { generation, state } => {
            format!("generation {generation} {}", part_of_life(*state))
        }
        EventKind::Worker { .. } => worker(kind),
        EventKind::Server {
            upstream,
            server,
            was,
            state,
        } => format!("server {upstream}/{server} is {state}, was {was}"),
        EventKind::Handover { .. } => handover(kind),
        EventKind::Stop {
            tunnels,
            deadline_in_seconds,
        } => {
            let tunnels = units::count(*tunnels, "tunnel");
            let left = units::duration(*deadline_in_seconds);
            format!("wsgate stops: {tunnels} left, {left} at most")
        }
        EventKind::Lost { events } => {
            let events = units::count(*events, "event");
            format!("{events} lost: they were not read fast enough")
        }
    }
}

fn reloaded(outcome: &ReloadOutcome) -> String {
    match outcome {
        ReloadOutcome::Reloaded(reloaded) => super::reloaded::lines(reloaded).swap_remove(0),
        ReloadOutcome::Unchanged(unchanged) => reload::nothing_to_do(unchanged),
        ReloadOutcome::Failed { message, .. } => format!("failed: {message}"),
        ReloadOutcome::Held(held) => held.message(),
        ReloadOutcome::DryRun(_) => "dry run".to_owned(),
    }
}

const fn part_of_life(state: GenerationChange) -> &'static str {
    match state {
        GenerationChange::Starting => "starts",
        GenerationChange::Active => "is active",
        GenerationChange::Failed => "has failed",
        GenerationChange::Draining => "drains",
        GenerationChange::Gone => "is gone",
    }
}

fn worker(kind: &EventKind) -> String {
    let EventKind::Worker {
        state,
        pid,
        slot,
        generation,
        how,
        tunnels,
    } = kind
    else {
        return String::new();
    };
    let worker = format!("worker {pid} (slot {slot}, generation {generation})");
    match state {
        WorkerChange::Started => format!("{worker} starts"),
        WorkerChange::Stuck => format!("{worker} is stuck, and is ended"),
        WorkerChange::Ended => {
            let how = how.as_deref().unwrap_or("unknown");
            let lost = tunnels.filter(|tunnels| *tunnels > 0);
            let lost = lost.map(|tunnels| format!(", {} lost", units::count(tunnels, "tunnel")));
            format!("{worker} has ended: {how}{}", lost.unwrap_or_default())
        }
    }
}

fn handover(kind: &EventKind) -> String {
    let EventKind::Handover {
        generation,
        moved,
        fates,
        stays,
        milliseconds,
        longest_pause_milliseconds,
    } = kind
    else {
        return String::new();
    };
    let moved = units::count(*moved, "tunnel");
    let stay: u64 = stays.iter().map(|staying| staying.tunnels).sum();
    format!(
        "generation {generation} has taken over {moved} in {milliseconds:.1} ms, longest pause \
         {longest_pause_milliseconds:.1} ms; {} drained, {stay} not moved",
        fates.drained
    )
}
