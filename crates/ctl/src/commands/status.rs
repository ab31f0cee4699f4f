//! `wsctl status`: the whole gateway on a screen or two.

use std::collections::BTreeMap;

use wsgate_protocol::admin::{
    GatewayState, GenerationState, GenerationStatus, LastReload, ReloadOutcome, ServerState,
    ServerStatus, Status, Totals, TunnelsBy, UpstreamStatus, VacantSlot, WorkerState, WorkerStatus,
};

use super::server;
use crate::client::Client;
use crate::console::Console;
use crate::error::CtlError;
use crate::table::{Grid, Text, Tone, figures, paint, words};
use crate::units;

/// Mistakes of the configuration that status shows.
const MISTAKES_SHOWN: usize = 5;

/// The file that `wsgate check` takes without being told.
const DEFAULT_CONFIG: &str = "/etc/wsgate/wsgate.toml";

/// Columns in the order in which a terminal that is too narrow even for their
/// longest words loses them.
const LEAST_FIRST: [&str; 7] = [
    "WEIGHT", "CPU", "MEMORY", "OPENED", "SOCKETS", "AGE", "DRAINING",
];

pub(crate) async fn status(
    client: &Client,
    json: bool,
    console: &mut Console<'_>,
) -> Result<(), CtlError> {
    let answer = client.get::<Status>("/v1/status").await?;
    if json {
        return console.json(&answer.json);
    }
    let text = render(&answer.value, console);
    Ok(console.out.write_all(text.as_bytes())?)
}

/// Sections with an empty line between them; those without a row are left out.
fn render(status: &Status, console: &Console<'_>) -> String {
    let mut tables = [
        generations(&status.generations),
        workers(&status.workers),
        vacant_slots(&status.vacant_slots),
        listeners(status),
        servers(&status.upstreams),
    ];
    for table in &mut tables {
        table.fit_wrapped(console.width, &LEAST_FIRST);
    }
    let mut sections = vec![headline(status, console)];
    sections.extend(
        tables
            .iter()
            .filter(|table| !table.is_empty())
            .map(|table| table.render(console)),
    );
    sections.push(totals(&status.totals) + &limits(status));
    sections.join("\n")
}

fn headline(status: &Status, console: &Console<'_>) -> String {
    let (word, tone) = match status.state {
        GatewayState::Starting => ("starting", Tone::Careful),
        GatewayState::Running => ("running", Tone::Good),
        GatewayState::Stopping => ("stopping", Tone::Careful),
    };
    let config = &status.config;
    let mut text = format!(
        "wsgate {} is {}: pid {}, up {}\nconfig {} ({}){}\n",
        status.version,
        paint(word, tone, console),
        status.pid,
        units::duration(status.uptime_seconds),
        config.file,
        config.sha256.get(..8).unwrap_or(&config.sha256),
        since(status, &config.active_since, ", active for ", ""),
    );
    if let Some(why) = &config.fallback {
        let warning = format!(
            "the last good configuration runs: {why}; run `{}`",
            check_command(status)
        );
        text += &format!("{}\n", paint(&warning, Tone::Bad, console));
    } else if config.file_differs {
        let advice = if status.held_reload.is_some() {
            "wsctl reload --dry-run".to_owned()
        } else if mistakes(status).is_empty() {
            "wsctl reload".to_owned()
        } else {
            check_command(status)
        };
        let differs = format!("the file on disk differs: run `{advice}`");
        text += &format!("{}\n", paint(&differs, Tone::Careful, console));
    }
    if let Some(held) = &status.held_reload {
        let when = since(status, &held.at, " (", " ago)");
        let message = format!("{}{when}", held.held.message());
        text += &format!("{}\n", paint(&message, Tone::Bad, console));
    }
    match &status.last_reload {
        Some(last) => text + &last_reload(status, last, console),
        None => text + "no reload so far\n",
    }
}

fn last_reload(status: &Status, last: &LastReload, console: &Console<'_>) -> String {
    let when = since(status, &last.at, " ", " ago");
    let asked = format!("last reload{when} by {}: ", last.by);
    match &last.outcome {
        ReloadOutcome::Reloaded(reloaded) => format!(
            "{asked}generation {} in {:.1} ms\n",
            reloaded.generation, reloaded.milliseconds
        ),
        ReloadOutcome::Unchanged(unchanged) => format!(
            "{asked}unchanged, generation {} runs this content\n",
            unchanged.generation
        ),
        ReloadOutcome::Held(_) => {
            let held = paint("held back", Tone::Bad, console);
            format!("{asked}{held}, `wsctl reload --force` does it all the same\n")
        }
        ReloadOutcome::DryRun(_) => format!("{asked}dry run\n"),
        ReloadOutcome::Failed { message, errors } => {
            let failed = paint("failed", Tone::Bad, console);
            let shown = errors.iter().take(MISTAKES_SHOWN);
            let mut text = format!("{asked}{failed}, {message}\n");
            text.extend(shown.map(|error| format!("  {}\n", mistake(error))));
            match errors.len().saturating_sub(MISTAKES_SHOWN) {
                0 => text,
                more => text + &format!("  and {more} more: run `{}`\n", check_command(status)),
            }
        }
    }
}

/// What the last reload did not like in the configuration.
fn mistakes(status: &Status) -> &[String] {
    match &status.last_reload {
        Some(LastReload {
            outcome: ReloadOutcome::Failed { errors, .. },
            ..
        }) => errors,
        _ => &[],
    }
}

/// A rendered mistake as one line, `FILE:LINE:COLUMN: MESSAGE`; the message alone where it has no place.
fn mistake(rendered: &str) -> String {
    let first = rendered.lines().next().unwrap_or_default();
    let message = first.strip_prefix("error: ").unwrap_or(first);
    let mut places = rendered.lines().skip(1);
    match places.find_map(|line| line.trim_start().strip_prefix("--> ")) {
        Some(place) => format!("{}: {message}", place.trim_end()),
        None => message.to_owned(),
    }
}

fn check_command(status: &Status) -> String {
    match status.config.file.as_str() {
        DEFAULT_CONFIG => "wsgate check".to_owned(),
        file => format!("wsgate check --config {file}"),
    }
}

/// By the supervisor's own clock, which is all that the answer knows.
fn since(status: &Status, at: &str, before: &str, after: &str) -> String {
    units::seconds_between(&status.started_at, at)
        .map(|began| units::duration(status.uptime_seconds - began))
        .map_or_else(String::new, |age| format!("{before}{age}{after}"))
}

fn generations(generations: &[GenerationStatus]) -> Grid {
    let mut grid = Grid::new([
        words("GENERATION"),
        words("STATE"),
        figures("AGE"),
        figures("DEADLINE IN"),
        figures("WORKERS"),
        figures("TUNNELS"),
    ]);
    for generation in generations {
        let state = match generation.state {
            GenerationState::Starting => Text::toned("starting", Tone::Careful),
            GenerationState::Active => Text::toned("active", Tone::Good),
            GenerationState::Draining => Text::toned("draining", Tone::Careful),
        };
        grid.row([
            Text::from(generation.generation),
            state,
            Text::from(units::duration(generation.age_seconds)),
            seconds_or_dash(generation.deadline_in_seconds),
            Text::from(generation.workers),
            Text::from(generation.tunnels),
        ]);
    }
    grid
}

fn workers(workers: &[WorkerStatus]) -> Grid {
    let mut grid = Grid::new([
        words("SLOT"),
        words("GEN"),
        words("WORKER PID"),
        words("STATE"),
        figures("TUNNELS"),
        figures("MEMORY"),
        figures("CPU"),
        words("ALSO SERVES"),
    ]);
    for worker in workers {
        let serves = worker
            .serves_slots
            .iter()
            .map(|slot| format!("slot {slot}"));
        grid.row([
            Text::from(worker.slot),
            Text::from(worker.generation),
            Text::from(worker.pid),
            worker_state(worker),
            Text::from(worker.tunnels),
            Text::from(units::bytes(worker.memory_bytes)),
            Text::from(units::duration(worker.cpu_seconds)),
            Text::from(serves.collect::<Vec<_>>().join(", ")),
        ]);
    }
    if workers.iter().all(|worker| worker.serves_slots.is_empty()) {
        grid.remove_column("ALSO SERVES");
    }
    grid
}

fn worker_state(worker: &WorkerStatus) -> Text {
    match (worker.state, worker.last_heard_seconds) {
        (WorkerState::Starting, _) => Text::toned("starting", Tone::Careful),
        (WorkerState::Ready, _) => Text::toned("ready", Tone::Careful),
        (WorkerState::Active, _) => Text::toned("active", Tone::Good),
        (WorkerState::Draining, _) => Text::toned("draining", Tone::Careful),
        (WorkerState::Unresponsive, Some(seconds)) => {
            let silent = units::duration(seconds);
            Text::toned(format!("unresponsive for {silent}"), Tone::Bad)
        }
        (WorkerState::Unresponsive, None) => Text::toned("unresponsive", Tone::Bad),
    }
}

fn vacant_slots(slots: &[VacantSlot]) -> Grid {
    let mut grid = Grid::new([
        words("VACANT SLOT"),
        figures("DEATHS IN A ROW"),
        figures("RESTART IN"),
        words("SERVED BY"),
    ]);
    for slot in slots {
        let restart = match slot.restart_in_seconds {
            Some(seconds) if slot.crash_looping => {
                let seconds = units::duration(seconds);
                Text::toned(format!("{seconds}, crashes again and again"), Tone::Bad)
            }
            Some(seconds) => Text::from(units::duration(seconds)),
            None => Text::toned("starting", Tone::Careful),
        };
        let served = match slot.served_by {
            Some(pid) => Text::from(format!("pid {pid}")),
            None => Text::toned("nobody", Tone::Bad),
        };
        grid.row([
            Text::from(slot.slot),
            Text::from(slot.deaths),
            restart,
            served,
        ]);
    }
    grid
}

fn listeners(status: &Status) -> Grid {
    let any_retired = status.listeners.iter().any(|of| of.retired_sockets > 0);
    let mut columns = vec![words("LISTENER"), words("BOUND"), figures("SOCKETS")];
    if any_retired {
        columns.push(figures("RETIRED"));
    }
    let mut grid = Grid::new(columns);
    for listener in &status.listeners {
        let mut row = vec![
            Text::from(&listener.address),
            Text::from(&listener.bound),
            Text::from(listener.sockets),
        ];
        if any_retired {
            row.push(Text::from(listener.retired_sockets));
        }
        grid.row(row);
    }
    grid
}

/// Named as `wsctl drain` takes them.
fn servers(upstreams: &[UpstreamStatus]) -> Grid {
    let mut grid = Grid::new([
        words("UPSTREAM/SERVER"),
        words("STATE"),
        figures("WEIGHT"),
        figures("TUNNELS"),
        figures("DRAINING"),
        figures("OPENED"),
        figures("CONNECT FAILURES"),
    ]);
    for upstream in upstreams {
        for server in &upstream.servers {
            let failures = match server.connect_failures {
                0 => Text::from(0),
                some => Text::toned(some.to_string(), Tone::Careful),
            };
            grid.row([
                Text::from(format!("{}/{}", upstream.name, server.address)),
                server_state(server),
                Text::from(server.weight),
                Text::from(server.tunnels),
                Text::from(server.draining_tunnels),
                Text::from(server.opened),
                failures,
            ]);
        }
    }
    grid
}

fn server_state(server: &ServerStatus) -> Text {
    let word = server::word(server.state);
    match (server.configured, server.state) {
        (false, _) => Text::toned(format!("{word}, not in config"), Tone::Careful),
        (true, ServerState::Ready) => Text::toned(word, Tone::Good),
        (true, ServerState::Drain | ServerState::Maint) => Text::toned(word, Tone::Careful),
    }
}

fn totals(totals: &Totals) -> String {
    let ended: u64 = totals.tunnels_ended.values().sum();
    let errors: u64 = totals.errors.values().sum();
    let stuck = match totals.workers_stuck {
        0 => String::new(),
        workers => format!(" ({workers} stuck)"),
    };
    let dropped = match totals.log_lines_dropped {
        0 => String::new(),
        lines => format!(", {} dropped", units::count(lines, "log line")),
    };
    let adopted = match totals.workers_adopted {
        0 => String::new(),
        workers => format!(", {} adopted", units::count(workers, "worker")),
    };
    let unsaved = match totals.state_write_failures {
        0 => String::new(),
        times => format!(", state not saved {}", units::count(times, "time")),
    };
    format!(
        "{}: {} opened, {ended} ended{}\n\
         from clients {} in {}, from servers {} in {}\n\
         {}, {}, {}{}\n\
         {} ({} failed), {}{stuck}{adopted}{unsaved}{dropped}\n",
        units::count(totals.tunnels, "tunnel"),
        totals.tunnels_opened,
        listed(&totals.tunnels_ended),
        units::bytes(totals.bytes_from_clients),
        units::count(totals.messages_from_clients, "message"),
        units::bytes(totals.bytes_from_servers),
        units::count(totals.messages_from_servers, "message"),
        units::count(totals.connections, "connection"),
        units::count(totals.requests, "plain request"),
        units::count(errors, "error"),
        listed(&totals.errors),
        units::count(totals.reloads, "reload"),
        totals.reloads_failed,
        units::count(totals.worker_restarts, "worker restart"),
    )
}

fn limits(status: &Status) -> String {
    let Some(limits) = &status.limits else {
        return String::new();
    };
    let by = match limits.tunnels_by {
        TunnelsBy::Config => "as configured",
        TunnelsBy::Descriptors => "by the file descriptors",
    };
    format!(
        "room for {} {by}, {} a worker\n",
        units::count(limits.tunnels, "tunnel"),
        units::count(limits.descriptors_per_worker, "descriptor"),
    )
}

/// ` (404: 3, 503: 1)`
fn listed(counts: &BTreeMap<String, u64>) -> String {
    let some = counts.iter().filter(|&(_, &count)| count > 0);
    let list: Vec<String> = some
        .map(|(name, count)| format!("{name}: {count}"))
        .collect();
    if list.is_empty() {
        String::new()
    } else {
        format!(" ({})", list.join(", "))
    }
}

fn seconds_or_dash(seconds: Option<f64>) -> Text {
    Text::from(seconds.map_or_else(|| "-".to_owned(), units::duration))
}
