//! Ends workers that serve on although their supervisor is gone and no other one is to come.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use wsgate_config::Config;
use wsgate_lifecycle::Closes;
use wsgate_os::board::Board;
use wsgate_os::limits;
use wsgate_os::lock::LockError;
use wsgate_os::process::Signal;
use wsgate_protocol::control::{ClosePlan, FromWorker, ToWorker};

use crate::adopt::{self, LeftBehind, Orphan};
use crate::runtime::{self, RuntimeDirectory};
use crate::totals::Figures;
use crate::{Error, actions, state};

/// What the Close frames say.
const REASON: &str = "service restart";

/// What a worker gets beyond the deadline, for polite closes.
const OVERTIME: Duration = Duration::from_secs(5);

/// What ending them has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// The runtime directory in which they were looked for.
    pub directory: PathBuf,
    /// Workers that were there.
    pub workers: usize,
    /// Tunnels that they held.
    pub tunnels: u64,
    /// Workers that had to be killed.
    pub killed: usize,
}

/// Stops all of them as a stop would: they accept what waits in their queues and nothing more, and close their tunnels within
/// `stop.grace`, or at once if `now`.
pub(crate) async fn end_all(config: &Path, now: bool) -> Result<Ended, Error> {
    let (directory, running) = find(config)?;
    let _lock = directory.lock().map_err(not_ours)?;
    limits::raise_nofile().map_err(Error::system("raise of RLIMIT_NOFILE"))?;
    let LeftBehind {
        workers: orphans,
        sockets,
        board,
    } = adopt::find(&directory, running.as_ref()).await?;
    // Nothing may be held here that nobody accepts from.
    drop(sockets);
    let listeners = orphans.iter().flat_map(|orphan| &orphan.sockets);
    let listeners: BTreeSet<&str> = listeners.map(|spec| spec.listener.as_str()).collect();
    let (grace, rate, code) = running.map_or((Duration::from_secs(30), 100, 1012), |config| {
        (
            config.stop.grace,
            config.drain.close_rate,
            config.drain.close_code,
        )
    });
    let grace = if now { Duration::ZERO } else { grace };
    let shares = shares(&orphans, board)?;
    let tunnels = shares.iter().sum();
    let spans = match grace.is_zero() {
        true => vec![Vec::new(); orphans.len()],
        false => Closes::default()
            .reserve(0, Duration::ZERO, grace, tunnels, rate)
            .split(&shares),
    };
    let plan = |spans: Vec<_>| ClosePlan {
        code,
        reason: REASON.to_owned(),
        windows: spans
            .into_iter()
            .map(|span| actions::window(span, Duration::ZERO))
            .collect(),
    };
    let workers = orphans.len();
    let ends = orphans.iter().zip(spans);
    let killed = join_all(ends.map(|(orphan, spans)| end(orphan, plan(spans), grace))).await;
    orphans
        .iter()
        .for_each(|orphan| directory.forget(orphan.pid()));
    for path in listeners
        .iter()
        .filter_map(|name| name.strip_prefix("unix:"))
    {
        // Whoever listens there by now is not of them.
        if let Err(error) = wsgate_os::socket::remove_stale(Path::new(path)) {
            tracing::warn!(path, %error, "socket file not removed");
        }
    }
    // As after any other stop.
    runtime::remove(&directory.last_good());
    Ok(Ended {
        directory: directory.path().to_owned(),
        workers,
        tunnels,
        killed: killed.into_iter().filter(|killed| *killed).count(),
    })
}

/// The directory, and what runs there: what the file says, or what ran last.
fn find(config: &Path) -> Result<(RuntimeDirectory, Option<Config>), Error> {
    if let Ok(loaded) = wsgate_config::load(config) {
        let directory = RuntimeDirectory::of(&loaded.config.admin.socket);
        return Ok((directory, Some(loaded.config)));
    }
    if let Some((directory, loaded)) = state::what_ran_last(config) {
        return Ok((directory, Some(loaded.config)));
    }
    // With mistakes it may still say where they are; what is not there says nothing.
    File::open(config).map_err(Error::system(format!(
        "{} does not tell where the workers are: name the file that wsgate ran with, by --config",
        config.display()
    )))?;
    let socket = wsgate_config::admin_socket(config);
    Ok((RuntimeDirectory::of(&socket), None))
}

/// The same errors as at a start, with other ways out.
fn not_ours(error: Error) -> Error {
    match error {
        Error::Locked(LockError::Held { pid, path }) => {
            let who = pid.map_or_else(
                || format!("somebody holds {}", path.display()),
                |pid| format!("a supervisor lives (process {pid})"),
            );
            Error::Start(format!(
                "{who}, so its workers are no orphans: `wsctl stop` ends it and them"
            ))
        }
        Error::Locked(LockError::Io { path, source }) => Error::Start(format!(
            "cannot lock {}: {source} (be the user that ran wsgate, by sudo -u USER, or root)",
            path.display()
        )),
        other => other,
    }
}

fn shares(orphans: &[Orphan], board: Option<OwnedFd>) -> Result<Vec<u64>, Error> {
    let Some(board) = board else {
        return Ok(Vec::new());
    };
    let board = Board::open(board).map_err(Error::system("map of the board"))?;
    let figures = Figures::new(board);
    let held = orphans
        .iter()
        .map(|orphan| figures.tunnels_of(orphan.block()));
    Ok(held.collect())
}

/// Whether it had to be killed.
async fn end(orphan: &Orphan, plan: ClosePlan, grace: Duration) -> bool {
    let ended = tokio::time::timeout(grace + OVERTIME, async {
        // Nobody accepts after them.
        let retire = ToWorker::Retire {
            for_good: true,
            plan,
        };
        tell(orphan, &retire).await;
        while let Ok(Some((bytes, _))) = orphan.channel.recv().await {
            if matches!(serde_json::from_slice(&bytes), Ok(FromWorker::Empty)) {
                tell(orphan, &ToWorker::Exit).await;
            }
        }
        orphan.process.wait().await
    });
    let late = ended.await.is_err();
    if late && let Err(error) = orphan.process.signal(Signal::SIGKILL) {
        tracing::debug!(pid = orphan.pid(), %error, "worker not killed");
    }
    late
}

/// One that cannot be told is about to end.
async fn tell(orphan: &Orphan, message: &ToWorker) {
    let sent = match serde_json::to_vec(message) {
        Ok(bytes) => orphan.channel.send(&bytes, &[]).await,
        Err(error) => Err(error.into()),
    };
    if let Err(error) = sent {
        tracing::debug!(pid = orphan.pid(), %error, "worker not told");
    }
}
