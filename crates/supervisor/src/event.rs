//! Everything that can happen to the supervisor, in one closed list.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::{broadcast, mpsc, oneshot};
use wsgate_config::{Errors, Loaded, Sources};
use wsgate_lifecycle::WorkerId;
use wsgate_os::process::Exit;
use wsgate_os::signals::Received;
use wsgate_protocol::admin::{
    Event as Told, ReloadOutcome, ServerStateChanged, ServerStateRequest, Stopping,
};
use wsgate_protocol::control::FromWorker;

use crate::admin::{Refusal, Snapshot};
use crate::judge::Verdict;
use crate::reload::Curious;

/// What happened. Timers are no events: the loop looks at the clock by itself.
pub(crate) enum Event {
    /// A signal came.
    Signal(Received),
    /// A worker said something.
    Said(WorkerId, FromWorker),
    /// A worker's process is gone; `None` if it could not be started.
    Exited(WorkerId, Option<Exit>),
    /// The files of a reload have been read.
    Read(Box<Read>),
    /// A file changed, or may have.
    FilesChanged,
    /// A look at the files, to see whether a change went unnoticed.
    Looked(Option<Sources>),
    /// What a commit has changed is to be written down.
    Save,
    /// The admin socket wants something.
    Admin(Request),
    /// The files of a dry run have been read.
    DryRead(Box<Read>, Curious),
    /// The tunnels have been judged for a reload that may be held back.
    Judged(Box<std::io::Result<Verdict>>),
}

/// What reading the files has come to.
pub(crate) struct Read {
    /// The texts, if all of them could be read.
    pub(crate) sources: Option<Sources>,
    pub(crate) loaded: Result<Loaded, Errors>,
}

impl Read {
    /// Reads and parses. Blocks.
    pub(crate) fn from_disk(path: &Path) -> Self {
        match Sources::read(path) {
            Ok(sources) => Self {
                sources: Some(sources.clone()),
                loaded: wsgate_config::parse(sources),
            },
            // Once more, for the mistakes in what can be read.
            Err(_) => Self {
                sources: None,
                loaded: wsgate_config::load(path),
            },
        }
    }
}

/// What the admin socket asks for; each with where its answer goes.
pub(crate) enum Request {
    /// How things are.
    Snapshot(oneshot::Sender<Snapshot>),
    /// Reload.
    Reload {
        force: bool,
        reply: oneshot::Sender<ReloadOutcome>,
    },
    /// Say what a reload would do.
    DryRun(oneshot::Sender<ReloadOutcome>),
    /// All that happens from now on.
    Events(oneshot::Sender<broadcast::Receiver<Arc<Told>>>),
    /// Stop.
    Stop {
        now: bool,
        reply: oneshot::Sender<Stopping>,
    },
    /// The operator's word about a server.
    Server {
        upstream: String,
        server: String,
        change: ServerStateRequest,
        reply: oneshot::Sender<Result<ServerStateChanged, Refusal>>,
    },
}

/// Where events go. There is one receiver, and it lives as long as the supervisor.
pub(crate) type Events = mpsc::UnboundedSender<Event>;
