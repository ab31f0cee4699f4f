//! `GET /v1/status`: the snapshot, and what only workers, the kernel and the disk can tell.

use futures_util::future::join_all;
use wsgate_config::Sources;
use wsgate_protocol::admin::{Status, WorkerState, WorkerStatus};

use super::Snapshot;
use crate::link::{Link, Unanswered};

/// Asks every worker for a sign of life, and looks at the file. Takes as long as the
/// slowest answer, at most a second.
pub(crate) async fn complete(snapshot: Snapshot) -> Status {
    let Snapshot {
        mut status,
        links,
        content,
        config_file,
        ..
    } = snapshot;
    let look = tokio::task::spawn_blocking(move || {
        let running = content?.sources;
        // A file that cannot be read is not what runs.
        Some(!Sources::read(&config_file).is_ok_and(|sources| sources.same_content(&running)))
    });
    let answers = join_all(
        links
            .iter()
            .map(|link| async move { (link, link.ping().await) }),
    )
    .await;
    for (link, answered) in answers {
        if let Some(worker) = status
            .workers
            .iter_mut()
            .find(|worker| worker.pid == link.pid)
        {
            look_closer(worker, link, answered);
        }
    }
    status.config.file_differs = look.await.ok().flatten().unwrap_or(false);
    status
}

fn look_closer(worker: &mut WorkerStatus, link: &Link, answered: Result<(), Unanswered>) {
    // One that has not read its first message yet is starting, not stuck.
    if answered == Err(Unanswered::Late) && worker.state != WorkerState::Starting {
        worker.state = WorkerState::Unresponsive;
    }
    if let Some(usage) = wsgate_os::process::usage(link.pid) {
        worker.memory_bytes = usage.memory_bytes;
        worker.cpu_seconds = usage.cpu.as_secs_f64();
    }
    worker.last_heard_seconds = link.last_heard().map(|at| at.elapsed().as_secs_f64());
}
