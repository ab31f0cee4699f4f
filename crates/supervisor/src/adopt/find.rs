//! Meets workers that another supervisor has left behind, and hears what they are.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use wsgate_config::Config;
use wsgate_os::channel::Channel;
use wsgate_os::process::{Process, Signal};
use wsgate_os::rendezvous::{self, Peer};
use wsgate_os::systemd;
use wsgate_protocol::control::{FromWorker, Hello, SocketSpec, VERSION};

use crate::Error;
use crate::runtime::{self, RuntimeDirectory};
use crate::supervisor::notify_systemd;

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

/// A worker without a supervisor.
pub(crate) struct Orphan {
    pub(super) hello: Hello,
    pub(crate) process: Process,
    pub(crate) channel: Channel,
    pub(super) config: OwnedFd,
    board: OwnedFd,
    pub(super) sockets: Vec<(SocketSpec, OwnedFd)>,
}

impl Orphan {
    /// The slots that it serves. A Unix socket belongs to no slot, so a worker that has nothing else serves its own.
    pub(super) fn accepts(&self) -> Vec<usize> {
        let slots = self.sockets.iter().filter_map(|(spec, _)| spec.slot);
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

    /// Closes its listening sockets here, and tells their listeners.
    pub(crate) fn let_go(&mut self) -> Vec<String> {
        let sockets = std::mem::take(&mut self.sockets).into_iter();
        sockets.map(|(spec, _)| spec.listener).collect()
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
}

/// Finds all of them. Those that are stuck are ended: nobody else could serve what waits in their queues.
pub(crate) async fn find(
    directory: &RuntimeDirectory,
    config: Option<&Config>,
) -> Result<Vec<Orphan>, Error> {
    let paths = directory
        .all_rendezvous()
        .map_err(Error::system("look for workers in the runtime directory"))?;
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    // As long as the watchdog would wait.
    let patience = config.and_then(|config| config.watchdog.timeout);
    let patience = patience.unwrap_or(PATIENCE);
    notify_systemd(systemd::extend_timeout(patience + ROOM_TO_START));
    let visits = paths.iter().map(|path| met(path, patience));
    let mut orphans = Vec::new();
    for met in join_all(visits).await {
        orphans.extend(met?);
    }
    Ok(orphans)
}

/// Who waits there, if it is one to be taken over.
async fn met(path: &Path, patience: Duration) -> Result<Option<Orphan>, Error> {
    match visit(path, patience).await {
        Ok(orphan) => return Ok(Some(orphan)),
        Err(Lost::Ended) => runtime::remove(path),
        Err(Lost::Stuck(process)) => {
            end_stuck(&process, patience).await;
            runtime::remove(path);
        }
        Err(Lost::Foreign { pid, why }) => return Err(Error::Foreign { pid, why }),
        Err(Lost::Unreachable(why)) => return Err(Error::Unreachable(why)),
    }
    Ok(None)
}

/// The introduction, with a word in the log if it takes long.
async fn hear_patiently(
    channel: &Channel,
    process: &Process,
    patience: Duration,
) -> Option<Result<Introduction, Unheard>> {
    let mut hearing = std::pin::pin!(hear(channel));
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

async fn visit(path: &Path, patience: Duration) -> Result<Orphan, Lost> {
    let (channel, peer) = rendezvous::meet(path)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Lost::Ended,
            _ => Lost::Unreachable(error.to_string()),
        })?;
    let named = |why: &str| Lost::Unreachable(format!("{}: {why}", path.display()));
    let Peer { pid: Some(pid), .. } = peer else {
        return Err(named("its process is in another PID namespace"));
    };
    if !peer.may_be_commanded() {
        return Err(named(&format!("process {pid} is of user {}", peer.uid)));
    }
    // It waits on its socket still: when it answers, the pid has been its own all the time.
    let process = Process::open(pid).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Lost::Ended,
        // It lives, whatever is lacking here.
        _ => named(&error.to_string()),
    })?;
    match hear_patiently(&channel, &process, patience).await {
        Some(Ok((hello, [config, board], sockets))) => Ok(Orphan {
            hello,
            process,
            channel,
            config,
            board,
            sockets,
        }),
        // It goes, or has hung up: then it serves on, and must not be taken for dead.
        Some(Err(Unheard::Ended)) => {
            match tokio::time::timeout(GONE_WITHIN, process.wait()).await {
                Ok(_) => Err(Lost::Ended),
                Err(_) => Err(named(&format!("process {pid} hangs up"))),
            }
        }
        Some(Err(Unheard::Unlike(why))) => Err(Lost::Foreign { pid, why }),
        None => Err(Lost::Stuck(process)),
    }
}

/// Why an introduction was not heard.
enum Unheard {
    Ended,
    Unlike(String),
}

type Introduction = (Hello, [OwnedFd; 2], Vec<(SocketSpec, OwnedFd)>);

async fn hear(channel: &Channel) -> Result<Introduction, Unheard> {
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
    let heirloom = <[OwnedFd; 2]>::try_from(fds)
        .map_err(|fds| Unheard::Unlike(format!("it says hello with {} descriptors", fds.len())))?;
    let mut found = Vec::new();
    while found.len() < hello.sockets {
        let (message, fds) = next(channel).await?;
        match message {
            FromWorker::Sockets { sockets } if sockets.len() == fds.len() => {
                found.extend(sockets.into_iter().zip(fds));
            }
            other => return Err(Unheard::Unlike(format!("it says {other:?}"))),
        }
    }
    Ok((hello, heirloom, found))
}

async fn next(channel: &Channel) -> Result<(FromWorker, Vec<OwnedFd>), Unheard> {
    match channel.recv().await {
        Ok(Some((bytes, fds))) => serde_json::from_slice(&bytes)
            .map(|message| (message, fds))
            .map_err(|error| Unheard::Unlike(error.to_string())),
        Ok(None) => Err(Unheard::Ended),
        Err(error) => Err(Unheard::Unlike(error.to_string())),
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

/// The board that they share; `None` if there are no orphans.
pub(crate) fn board(orphans: &[Orphan]) -> io::Result<Option<OwnedFd>> {
    let first = orphans.first();
    first.map(|orphan| orphan.board.try_clone()).transpose()
}
