//! Meets workers that another supervisor has left behind, and hears what they are.
//!
//! Many of them have the same sockets, configurations and board. What comes again is closed as it comes: each
//! worker takes no more descriptors than one that is started.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use wsgate_config::Config;
use wsgate_os::channel::{self, Channel};
use wsgate_os::limits::is_shortage;
use wsgate_os::process::{self, Process, Signal};
use wsgate_os::rendezvous::{self, Peer};
use wsgate_os::systemd;
use wsgate_protocol::control::{FromWorker, Hello, SocketSpec, VERSION};

use crate::runtime::{self, RuntimeDirectory};
use crate::sockets::Returned;
use crate::supervisor::notify_systemd;
use crate::{Error, descriptors};

/// What the first argument of every worker begins with.
pub(super) const WORKER: &str = "wsgate: worker ";

/// How long a worker may take to answer where no watchdog says when it is stuck.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a stuck worker may take to write its core dump, and then to end.
const DUMPED_WITHIN: Duration = Duration::from_secs(2);

/// What a stopped worker gets to answer in, once it goes on.
const CONTINUED_WITHIN: Duration = Duration::from_secs(2);

/// What a worker that has hung up may take to end.
const GONE_WITHIN: Duration = Duration::from_secs(1);

/// What systemd is asked for besides: ends of stuck workers, and the start of others.
const ROOM_TO_START: Duration = Duration::from_secs(30);

/// All that another supervisor has left behind.
#[derive(Default)]
pub(crate) struct LeftBehind {
    pub(crate) workers: Vec<Orphan>,
    /// What any of them accepts from.
    pub(crate) sockets: Returned,
    /// The one that they share.
    pub(crate) board: Option<OwnedFd>,
}

/// What orphans have in common, as far as they have been heard.
#[derive(Default)]
struct Shared {
    sockets: Returned,
    board: Option<OwnedFd>,
    /// By inode.
    configs: BTreeMap<u64, Arc<OwnedFd>>,
}

impl Shared {
    fn config(&mut self, config: OwnedFd) -> io::Result<Arc<OwnedFd>> {
        let inode = channel::inode(config.as_fd())?;
        let shared = self.configs.entry(inode);
        Ok(Arc::clone(shared.or_insert_with(|| Arc::new(config))))
    }
}

/// A worker without a supervisor.
pub(crate) struct Orphan {
    pub(super) hello: Hello,
    pub(crate) process: Process,
    pub(crate) channel: Channel,
    pub(super) config: Arc<OwnedFd>,
    /// What it accepts from.
    pub(crate) sockets: Vec<SocketSpec>,
}

impl Orphan {
    /// The slots that it serves. A Unix socket belongs to no slot, so a worker that has nothing else serves its own.
    pub(super) fn accepts(&self) -> Vec<usize> {
        let slots = self.sockets.iter().filter_map(|spec| spec.slot);
        let own = (!self.sockets.is_empty()).then_some(self.hello.slot);
        let all: BTreeSet<usize> = slots.chain(own).collect();
        all.into_iter().collect()
    }

    pub(super) fn drains_for(&self) -> Option<Duration> {
        self.hello.drains_for_ms.map(Duration::from_millis)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub(crate) fn block(&self) -> usize {
        self.hello.block
    }
}

/// Why one that has a rendezvous is not adopted.
enum Lost {
    /// Its process has ended.
    Ended,
    /// It lives, and does not answer, not even after SIGCONT.
    Stuck(Process),
    /// It lives, and does not understand.
    Foreign { pid: u32, why: String },
    /// It may serve, and cannot be reached.
    Unreachable(String),
    /// No descriptor is left to take it over with.
    Shortage(io::Error),
}

impl Lost {
    /// What else an error may be, a shortage is none of the worker's faults.
    fn by(error: io::Error, other: impl FnOnce(String) -> Self) -> Self {
        if is_shortage(&error) {
            Self::Shortage(error)
        } else {
            other(error.to_string())
        }
    }
}

/// Finds all of them. Those that are stuck are ended: nobody else could serve what waits in their queues.
pub(crate) async fn find(
    directory: &RuntimeDirectory,
    config: Option<&Config>,
) -> Result<LeftBehind, Error> {
    let all = directory
        .all_rendezvous()
        .map_err(Error::system("look for workers in the runtime directory"))?;
    if all.is_empty() {
        return Ok(LeftBehind::default());
    }
    // As long as the watchdog would wait.
    let patience = config.and_then(|config| config.watchdog.timeout);
    let patience = patience.unwrap_or(PATIENCE);
    notify_systemd(systemd::extend_timeout(patience + ROOM_TO_START));
    let shared = RefCell::default();
    let visits = all
        .iter()
        .map(|(pid, path)| met(*pid, path, patience, &shared));
    let mut workers = Vec::new();
    for met in join_all(visits).await {
        workers.extend(met?);
    }
    if workers.is_empty() {
        // What those had that ended meanwhile is of no use without one that counts on the board.
        return Ok(LeftBehind::default());
    }
    let Shared { sockets, board, .. } = shared.into_inner();
    Ok(LeftBehind {
        workers,
        sockets,
        board,
    })
}

/// Who waits there, if it is one to be taken over.
async fn met(
    pid: u32,
    path: &Path,
    patience: Duration,
    shared: &RefCell<Shared>,
) -> Result<Option<Orphan>, Error> {
    match visit(pid, path, patience, shared).await {
        Ok(orphan) => return Ok(Some(orphan)),
        Err(Lost::Ended) => runtime::remove(path),
        Err(Lost::Stuck(process)) => {
            end_stuck(&process, patience).await;
            runtime::remove(path);
        }
        Err(Lost::Foreign { pid, why }) => return Err(Error::Foreign { pid, why }),
        Err(Lost::Unreachable(why)) => return Err(Error::Unreachable(why)),
        Err(Lost::Shortage(error)) => {
            let advice = descriptors::ADVICE;
            let what = format!(
                "take-over of the workers that serve here without a supervisor (raise {advice})"
            );
            return Err(Error::system(what)(error));
        }
    }
    Ok(None)
}

/// The introduction, with a word in the log if it takes long.
async fn hear_patiently(
    channel: &Channel,
    process: &Process,
    patience: Duration,
    shared: &RefCell<Shared>,
) -> Option<Result<Introduction, Unheard>> {
    let mut hearing = std::pin::pin!(hear(channel, shared));
    let soon = patience.min(Duration::from_secs(1));
    if let Ok(heard) = tokio::time::timeout(soon, &mut hearing).await {
        return Some(heard);
    }
    let pid = process.pid();
    tracing::warn!(
        pid,
        ?patience,
        "a worker without a supervisor does not answer yet"
    );
    let rest = patience.saturating_sub(soon);
    if let Ok(heard) = tokio::time::timeout(rest, &mut hearing).await {
        return Some(heard);
    }
    // Nobody else has its sockets: one that is merely stopped is worth more than its core dump.
    if let Err(error) = process.signal(Signal::SIGCONT) {
        tracing::debug!(pid, %error, "worker not continued");
    }
    tokio::time::timeout(CONTINUED_WITHIN, hearing).await.ok()
}

async fn visit(
    pid: u32,
    path: &Path,
    patience: Duration,
    shared: &RefCell<Shared>,
) -> Result<Orphan, Lost> {
    // As long as the worker lives it holds the socket, so who is refused knows that it is gone.
    let (channel, peer) = rendezvous::meet(path)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Lost::Ended,
            _ => Lost::by(error, Lost::Unreachable),
        })?;
    let named = |why: String| Lost::Unreachable(format!("{}: {why}", path.display()));
    let Peer { pid: Some(by), .. } = peer else {
        return Err(named("its process is in another PID namespace".to_owned()));
    };
    if !peer.may_be_commanded() {
        return Err(named(format!("process {by} is of user {}", peer.uid)));
    }
    // Before the worker has come so far as to wait, the kernel names the supervisor that bound the socket.
    if by != pid && !process::named(WORKER).contains(&pid) {
        return Err(named(format!("process {by} answers there")));
    }
    // It holds its socket still: when it answers, the pid has been its own all the time.
    let process = Process::open(pid).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Lost::Ended,
        // It lives, whatever is lacking here.
        _ => Lost::by(error, named),
    })?;
    match hear_patiently(&channel, &process, patience, shared).await {
        Some(Ok((hello, config, sockets))) => Ok(Orphan {
            hello,
            process,
            channel,
            config,
            sockets,
        }),
        // It goes, or has hung up: then it serves on, and must not be taken for dead.
        Some(Err(Unheard::Ended)) => {
            match tokio::time::timeout(GONE_WITHIN, process.wait()).await {
                Ok(_) => Err(Lost::Ended),
                Err(_) => Err(named(format!("process {pid} hangs up"))),
            }
        }
        Some(Err(Unheard::Unlike(why))) => Err(Lost::Foreign { pid, why }),
        Some(Err(Unheard::Broken(error))) => Err(Lost::by(error, |why| Lost::Foreign { pid, why })),
        None => Err(Lost::Stuck(process)),
    }
}

/// Why an introduction was not heard.
enum Unheard {
    Ended,
    Unlike(String),
    Broken(io::Error),
}

/// Who it is, its configuration, and what it accepts from.
type Introduction = (Hello, Arc<OwnedFd>, Vec<SocketSpec>);

async fn hear(channel: &Channel, shared: &RefCell<Shared>) -> Result<Introduction, Unheard> {
    let (message, fds) = next(channel).await?;
    let FromWorker::Hello(hello) = message else {
        return Err(Unheard::Unlike(format!("it says {message:?}")));
    };
    if hello.version != VERSION {
        let theirs = hello.version;
        return Err(Unheard::Unlike(format!(
            "it speaks version {theirs} of the control channel, not {VERSION}"
        )));
    }
    let [config, board] = <[OwnedFd; 2]>::try_from(fds)
        .map_err(|fds| Unheard::Unlike(format!("it says hello with {} descriptors", fds.len())))?;
    shared.borrow_mut().board.get_or_insert(board);
    let config = shared
        .borrow_mut()
        .config(config)
        .map_err(Unheard::Broken)?;
    let mut found = Vec::new();
    while found.len() < hello.sockets {
        let (message, fds) = next(channel).await?;
        match message {
            FromWorker::Sockets { sockets } if sockets.len() == fds.len() => {
                for (spec, fd) in sockets.into_iter().zip(fds) {
                    shared.borrow_mut().sockets.push(spec.clone(), fd);
                    found.push(spec);
                }
            }
            other => return Err(Unheard::Unlike(format!("it says {other:?}"))),
        }
    }
    Ok((hello, config, found))
}

async fn next(channel: &Channel) -> Result<(FromWorker, Vec<OwnedFd>), Unheard> {
    match channel.recv().await {
        Ok(Some((bytes, fds))) => serde_json::from_slice(&bytes)
            .map(|message| (message, fds))
            .map_err(|error| Unheard::Unlike(error.to_string())),
        Ok(None) => Err(Unheard::Ended),
        Err(error) => Err(Unheard::Broken(error)),
    }
}

/// A stopped process keeps SIGABRT pending until it goes on (signal(7)).
async fn end_stuck(process: &Process, patience: Duration) {
    let pid = process.pid();
    tracing::error!(
        pid,
        "a worker without a supervisor does not answer within {patience:?}: it is ended, and its tunnels with it"
    );
    let signal = |signal| {
        if let Err(error) = process.signal(signal) {
            tracing::debug!(pid, %error, "worker not signalled");
        }
    };
    signal(Signal::SIGABRT);
    signal(Signal::SIGCONT);
    let gone = || tokio::time::timeout(DUMPED_WITHIN, process.wait());
    if gone().await.is_err() {
        signal(Signal::SIGKILL);
        if gone().await.is_err() {
            tracing::error!(
                pid,
                "it does not even end by SIGKILL (state D in ps(1)?), and is left alone"
            );
        }
    }
}
