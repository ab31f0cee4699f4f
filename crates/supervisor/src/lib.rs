//! The supervisor: owns the listening sockets, starts workers, and carries out what
//! `lifecycle` decides.
//!
//! One task owns all state and takes one `event::Event` at a time; everything that
//! waits (the admin socket, signals, files, workers) is a task of its own that
//! sends events. The supervisor never reads a client's byte, and uses no TLS and no HTTP client.

mod actions;
mod admin;
mod adopt;
mod descriptors;
mod event;
mod generation;
mod handover;
mod judge;
mod link;
mod numbers;
mod orphans;
mod reload;
mod runtime;
mod servers;
mod sockets;
mod state;
mod stop;
mod supervisor;
mod totals;
mod watch;
mod watchdog;

use std::io;
use std::path::PathBuf;

pub use orphans::Ended;
pub use wsgate_os::log::LogHandle;

/// How the supervisor is to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// Ends the gateway at once at the first SIGINT, for the demo.
    pub stop_at_first_interrupt: bool,
}

/// Why the supervisor could not start, or had to give up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration has mistakes.
    #[error("{0}")]
    Config(wsgate_config::Errors),
    /// Another supervisor holds the runtime directory.
    #[error("{0}")]
    Locked(#[from] wsgate_os::lock::LockError),
    /// A listener's address cannot be had.
    #[error(transparent)]
    Sockets(#[from] sockets::Error),
    /// Something else that the configuration asks for cannot be had.
    #[error("{0}")]
    Start(String),
    /// The first generation failed.
    #[error("the workers did not start: {0}")]
    FirstGeneration(String),
    /// A worker serves here that another version of wsgate has started.
    #[error(
        "worker {pid} serves here without a supervisor, and is of another version ({why}): start wsgate with the program that started it, \
         or end it first, and its tunnels with it, by `kill -9 {pid}`"
    )]
    Foreign {
        /// The worker.
        pid: u32,
        /// What it said.
        why: String,
    },
    /// A worker may serve here that cannot be reached.
    #[error(
        "a worker serves here without a supervisor, and cannot be taken over or ended by this user ({0}): use the user that started it (sudo -u USER), or root"
    )]
    Unreachable(String),
    /// The kernel refused something.
    #[error("{what}: {source}")]
    System {
        /// What was attempted, and what to do.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System {
            what: what.into(),
            source,
        }
    }
}

/// Runs the gateway until it has been told to stop and has stopped.
///
/// # Errors
///
/// If it cannot start. Nothing that happens later ends it.
pub fn run(options: &Options) -> Result<(), Error> {
    block_on(supervisor::run(options))
}

/// Ends workers that serve on although their supervisor is gone: within `stop.grace`, or at once if `now`.
/// `config` tells where they are; it may have mistakes.
///
/// # Errors
///
/// [`Error::Locked`] if a supervisor lives: it is the one to be asked.
pub fn end_orphans(config: &std::path::Path, now: bool) -> Result<Ended, Error> {
    block_on(orphans::end_all(config, now))
}

fn block_on<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::system("start of the runtime"))?;
    let outcome = runtime.block_on(work);
    // A look at a file that hangs must not hold up the end.
    runtime.shutdown_background();
    outcome
}
