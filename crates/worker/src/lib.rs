//! A worker process: it gets everything over its control channel, runs the data
//! path, and answers the supervisor.
//!
//! It opens no configuration file, binds no address and heeds no signal. Its one
//! runtime thread does all the work, so nothing here may block.

mod boot;
mod control;
mod handover;
mod hooks;
mod judge;
mod ledger;
mod listing;
mod memory;
mod orphan;

use std::ffi::OsStr;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use wsgate_os::channel::Channel;

use crate::boot::Booted;
use crate::control::Control;
use crate::ledger::BoardLedger;

/// Signs of life within the watchdog's timeout.
const BEATS: u32 = 8;

/// Why a worker cannot do what it is for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Standard input is no control channel: somebody started a worker by hand.
    #[error("standard input is no control channel (workers are started by `wsgate run`): {0}")]
    NoChannel(#[source] io::Error),
    /// The control channel broke or ended before the worker was ready.
    #[error("the control channel ended before the worker was ready")]
    ChannelEnded,
    /// The control channel failed.
    #[error("control channel: {0}")]
    Channel(#[source] io::Error),
    /// A message that is not understood.
    #[error("a message of the supervisor is not understood: {0}")]
    Message(String),
    /// The kernel refused something.
    #[error("{what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Whether a process with this first argument is a worker: the supervisor starts one as
/// `wsgate: worker SLOT gen GENERATION`.
#[must_use]
pub fn is_worker(name: Option<&OsStr>) -> bool {
    name.is_some_and(|name| name.as_encoded_bytes().starts_with(b"wsgate: worker "))
}

/// Runs a worker whose control channel is standard input, until its supervisor, or the one
/// that adopts it when that is gone, dismisses it.
#[must_use]
pub fn run() -> ExitCode {
    if let Err(source) = wsgate_os::signals::ignore(wsgate_os::signals::IGNORED_BY_WORKERS) {
        return complain(&Error::System {
            what: "ignoring of signals",
            source,
        });
    }
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            return complain(&Error::System {
                what: "start of the runtime",
                source: error,
            });
        }
    };
    let outcome = runtime.block_on(serve());
    // A look-up of a name that hangs must not hold up the end.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error),
    }
}

async fn serve() -> Result<(), Error> {
    let stdin = wsgate_os::process::take_stdin().map_err(Error::NoChannel)?;
    let channel = Channel::from_fd(stdin).map_err(Error::NoChannel)?;
    let booted = match Booted::receive(&channel).await {
        Ok(booted) => booted,
        Err(error) => {
            control::report_failure(&channel, &error).await;
            return Err(error);
        }
    };
    let ledger = Arc::clone(&booted.ledger);
    let counted = Arc::clone(&ledger);
    let memory = tokio::spawn(memory::give_back_when_quiet(move || {
        counted.comings_and_goings()
    }));
    let beats = tokio::spawn(beat(
        Arc::clone(&ledger),
        booted.config.watchdog.timeout,
        booted.boot.slot,
    ));
    let ended = Control::new(channel, booted).run().await;
    memory.abort();
    beats.abort();
    ended
}

/// Shows on the board that the runtime turns, several times within the watchdog's timeout.
async fn beat(ledger: Arc<BoardLedger>, timeout: Option<Duration>, slot: usize) {
    let Some(timeout) = timeout else { return };
    let mut ticks = tokio::time::interval(timeout / BEATS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        ledger.beat();
        hooks::at_beat(slot);
    }
}

/// Says on standard error what went wrong: the log may not be there yet.
fn complain(error: &Error) -> ExitCode {
    use std::io::Write;
    tracing::error!(%error, "worker ends");
    // Nobody is left to tell when standard error is gone as well.
    drop(writeln!(io::stderr(), "wsgate worker: {error}"));
    ExitCode::FAILURE
}
