//! `wsctl stop`: asks for the stop, then waits until the supervisor is gone.

use std::time::Duration;

use http::Method;
use tokio::time::{MissedTickBehavior, interval};
use wsgate_protocol::admin::{Status, StopRequest, Stopping};

use crate::client::Client;
use crate::console::Console;
use crate::error::CtlError;
use crate::progress::{Left, POLL, Progress};
use crate::units;

/// How often a process is looked at that is about to end.
const PROCESS_POLL: Duration = Duration::from_millis(20);

pub(crate) async fn stop(
    client: &Client,
    now: bool,
    json: bool,
    console: &mut Console<'_>,
) -> Result<(), CtlError> {
    let peer = client.peer_pid().await?;
    let answer = client
        .send_json::<Stopping>(Method::POST, "/v1/stop", &StopRequest { now })
        .await?;
    let stopping = answer.value;
    if json {
        console.json(&answer.json)?;
    } else {
        console.line(begun(&stopping))?;
    }
    console.flush()?;
    let mut progress = Progress::new(console);
    wait_for_socket(client, stopping.pid, &mut progress, console).await?;
    // Seen from another pid namespace, the supervisor's own pid means another process or none.
    if peer == Some(stopping.pid) {
        wait_for_process(stopping.pid).await;
    }
    let took = units::duration(progress.finish().as_secs_f64());
    if !json {
        console.line(format_args!("wsgate has stopped after {took}"))?;
    }
    Ok(())
}

fn begun(stopping: &Stopping) -> String {
    let text = format!("wsgate (pid {}) is stopping", stopping.pid);
    if stopping.tunnels == 0 {
        return text;
    }
    format!(
        "{text}: {} left, for {} at the latest",
        units::count(stopping.tunnels, "tunnel"),
        units::duration(stopping.deadline_in_seconds)
    )
}

/// Until nothing answers, or a supervisor that is another process.
async fn wait_for_socket(
    client: &Client,
    pid: u32,
    progress: &mut Progress,
    console: &mut Console<'_>,
) -> Result<(), CtlError> {
    let mut ticks = interval(POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match client.get::<Status>("/v1/status").await {
            Ok(answer) if answer.value.pid == pid => progress.show(left(&answer.value), console),
            Ok(_) | Err(CtlError::NoSupervisor { .. }) => return Ok(()),
            // It ends in the middle of an answer, or is too far gone to give one: the next look tells.
            Err(CtlError::Broken(_) | CtlError::Refused { .. } | CtlError::NoErrorBody { .. }) => {}
            Err(error) => return Err(error),
        }
    }
}

fn left(status: &Status) -> Left {
    Left {
        tunnels: status.totals.tunnels,
        workers: status.workers.len() as u64,
        deadline_in: status
            .generations
            .iter()
            .filter_map(|generation| generation.deadline_in_seconds)
            .reduce(f64::max),
    }
}

/// The socket closes before the process ends, but only the end frees its ports and
/// locks for the next one.
async fn wait_for_process(pid: u32) {
    let mut ticks = interval(PROCESS_POLL);
    while pid != std::process::id() && lives(pid) {
        ticks.tick().await;
    }
}

/// By the state in proc_pid_stat(5): a zombie has ended, whenever its parent looks.
fn lives(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    !matches!(state, Some('Z' | 'X') | None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zombie_has_ended() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        assert!(lives(std::process::id()));
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while lives(child.id()) {
            assert!(
                std::time::Instant::now() < deadline,
                "the child never ended"
            );
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!lives(child.id()));
    }
}
