//! `wsctl reload`: asks for a new generation, and with `--wait-drained` waits until
//! all older ones are gone, and all tunnels that a reload drains. With `--dry-run` nothing changes.

use http::Method;
use tokio::time::{MissedTickBehavior, interval};
use wsgate_protocol::admin::{
    DryRun, GenerationState, NO_HANDOVER, ReloadOutcome, ReloadRequest, Status, Unchanged,
};

use super::reloaded;
use crate::args::ReloadArgs;
use crate::client::{Answer, Client};
use crate::console::Console;
use crate::error::CtlError;
use crate::progress::{Left, POLL, Progress};
use crate::units;

pub(crate) async fn reload(
    client: &Client,
    args: ReloadArgs,
    json: bool,
    console: &mut Console<'_>,
) -> Result<(), CtlError> {
    let answer = ask(client, args).await?;
    if json {
        console.json(&answer.json)?;
    }
    let generation = match answer.value {
        ReloadOutcome::Reloaded(reloaded) => {
            if !json {
                for line in reloaded::lines(&reloaded) {
                    console.line(line)?;
                }
            }
            for warning in &reloaded.warnings {
                console.warn(warning);
            }
            reloaded.generation
        }
        ReloadOutcome::Unchanged(unchanged) => {
            if !json {
                console.line(nothing_to_do(&unchanged))?;
            }
            unchanged.generation
        }
        ReloadOutcome::Failed { message, errors } => {
            return Err(CtlError::ReloadFailed { message, errors });
        }
        ReloadOutcome::DryRun(dry_run) => return tried(dry_run, json, console),
        // As an answer it is a refusal.
        ReloadOutcome::Held(held) => {
            return Err(CtlError::ReloadFailed {
                message: held.message(),
                errors: held.reasons(),
            });
        }
    };
    console.flush()?;
    if args.wait_drained {
        wait_until_drained(client, generation, json, console).await?;
    }
    Ok(())
}

async fn ask(client: &Client, args: ReloadArgs) -> Result<Answer<ReloadOutcome>, CtlError> {
    let ReloadArgs { dry_run, force, .. } = args;
    if !dry_run && !force {
        return client.post("/v1/reload").await;
    }
    let request = ReloadRequest { dry_run, force };
    client.send_json(Method::POST, "/v1/reload", &request).await
}

/// What a reload would do: the sums first, then a line for each reason.
fn tried(dry_run: DryRun, json: bool, console: &mut Console<'_>) -> Result<(), CtlError> {
    if !json {
        console.line(sums(&dry_run))?;
        for reason in dry_run.fates.reasons() {
            console.line(reason)?;
        }
    }
    for warning in &dry_run.warnings {
        console.warn(warning);
    }
    console.flush()?;
    match dry_run.unresponsive_workers {
        workers if workers.is_empty() => Ok(()),
        workers => Err(CtlError::Unjudged { workers }),
    }
}

fn sums(dry_run: &DryRun) -> String {
    let fates = &dry_run.fates;
    let all = units::count(fates.tunnels(), "tunnel");
    if dry_run.unchanged {
        return format!("dry run: unchanged, this content runs; {all} not touched");
    }
    let mut text = format!(
        "dry run: {all}: {} kept, {} drained, {} draining already",
        fates.kept, fates.drained, fates.draining
    );
    if fates.ending > 0 {
        let ending = fates.ending;
        text +=
            &format!("\n{ending} of those kept end at once: by a lower idle_timeout or max_age");
    }
    if !dry_run.handover {
        text += &format!("\n{NO_HANDOVER}");
    }
    if dry_run.held {
        text += "\nheld back: the watch does not load this; wsctl reload --force does";
    }
    text
}

pub(super) fn nothing_to_do(unchanged: &Unchanged) -> String {
    let runs = format!(
        "unchanged: generation {} (active since {}) runs this content",
        unchanged.generation,
        units::moment(&unchanged.active_since)
    );
    match unchanged.draining_tunnels {
        0 => runs,
        tunnels if unchanged.draining_generations == 0 => {
            let drain = if tunnels == 1 { "drains" } else { "drain" };
            let until = until(unchanged.deadline_at.as_deref());
            format!("{runs}; {} {drain}{until}", units::count(tunnels, "tunnel"))
        }
        tunnels => format!(
            "{runs}; {}",
            held(tunnels, unchanged.deadline_at.as_deref())
        ),
    }
}

pub(super) fn held(tunnels: u64, deadline_at: Option<&str>) -> String {
    let held = format!("older generations hold {}", units::count(tunnels, "tunnel"));
    format!("{held}{}", until(deadline_at))
}

fn until(deadline_at: Option<&str>) -> String {
    deadline_at.map_or_else(String::new, |at| {
        format!(" until {} at the latest", units::moment(at))
    })
}

async fn wait_until_drained(
    client: &Client,
    generation: u64,
    json: bool,
    console: &mut Console<'_>,
) -> Result<(), CtlError> {
    let mut progress = Progress::new(console);
    let mut ticks = interval(POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let status = match client.get::<Status>("/v1/status").await {
            Ok(answer) => answer.value,
            // It may be about to end: the next look tells.
            Err(CtlError::Broken(_)) => continue,
            Err(error) => return Err(error),
        };
        match older(&status, generation) {
            Some(left) => progress.show(left, console),
            None => break,
        }
    }
    let took = units::duration(progress.finish().as_secs_f64());
    if !json {
        console.line(format_args!("all older generations are gone after {took}"))?;
    }
    Ok(())
}

/// What a reload has left with a deadline: all that older generations hold, and tunnels whose route or server is gone.
/// `None` when there is nothing.
fn older(status: &Status, than: u64) -> Option<Left> {
    let older = || {
        status
            .generations
            .iter()
            .filter(|older| older.generation < than)
    };
    let active = status
        .generations
        .iter()
        .filter(|it| it.generation >= than && it.state == GenerationState::Active);
    let drained: u64 = active.map(|active| active.draining_tunnels).sum();
    if older().next().is_none() && drained == 0 {
        return None;
    }
    Some(Left {
        tunnels: older().map(|generation| generation.tunnels).sum::<u64>() + drained,
        workers: older().map(|generation| generation.workers).sum(),
        deadline_in: older()
            .filter_map(|generation| generation.deadline_in_seconds)
            .reduce(f64::max),
    })
}
