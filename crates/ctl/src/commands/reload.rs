//! `wsctl reload`: asks for a new generation, and with `--wait-drained` waits until
//! all older ones are gone.

use tokio::time::{MissedTickBehavior, interval};
use wsgate_protocol::admin::{ReloadOutcome, Reloaded, Status, Unchanged};

use crate::client::Client;
use crate::console::Console;
use crate::error::CtlError;
use crate::progress::{Left, POLL, Progress};
use crate::units;

pub(crate) async fn reload(
    client: &Client,
    wait_drained: bool,
    json: bool,
    console: &mut Console<'_>,
) -> Result<(), CtlError> {
    let answer = client.post::<ReloadOutcome>("/v1/reload").await?;
    if json {
        console.json(&answer.json)?;
    }
    let generation = match answer.value {
        ReloadOutcome::Reloaded(reloaded) => {
            if !json {
                console.line(outcome(&reloaded))?;
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
    };
    console.flush()?;
    if wait_drained {
        wait_until_drained(client, generation, json, console).await?;
    }
    Ok(())
}

fn outcome(reloaded: &Reloaded) -> String {
    let active = format!(
        "generation {} is active after {:.1} ms",
        reloaded.generation, reloaded.milliseconds
    );
    match (reloaded.draining_generations, reloaded.draining_tunnels) {
        (0, _) => format!("{active}; no older generation is left"),
        (_, 0) => format!("{active}; older generations hold no tunnels"),
        (_, tunnels) => format!(
            "{active}; {}",
            held(tunnels, reloaded.deadline_at.as_deref())
        ),
    }
}

fn nothing_to_do(unchanged: &Unchanged) -> String {
    let runs = format!(
        "unchanged: generation {} (active since {}) runs this content",
        unchanged.generation,
        units::moment(&unchanged.active_since)
    );
    match unchanged.draining_tunnels {
        0 => runs,
        tunnels => format!(
            "{runs}; {}",
            held(tunnels, unchanged.deadline_at.as_deref())
        ),
    }
}

fn held(tunnels: u64, deadline_at: Option<&str>) -> String {
    let held = format!("older generations hold {}", units::count(tunnels, "tunnel"));
    match deadline_at {
        Some(at) => format!("{held} until {} at the latest", units::moment(at)),
        None => held,
    }
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

/// What generations older than this one still hold; `None` when there are none.
fn older(status: &Status, than: u64) -> Option<Left> {
    let older = || {
        status
            .generations
            .iter()
            .filter(|older| older.generation < than)
    };
    older().next()?;
    Some(Left {
        tunnels: older().map(|generation| generation.tunnels).sum(),
        workers: older().map(|generation| generation.workers).sum(),
        deadline_in: older()
            .filter_map(|generation| generation.deadline_in_seconds)
            .reduce(f64::max),
    })
}
