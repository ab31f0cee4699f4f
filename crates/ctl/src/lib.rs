//! wsctl's commands: one call to the admin socket each, shown as tables for
//! people or as the API's own JSON for programs.
//!
//! This crate knows the gateway only by `wsgate_protocol::admin`. It must never
//! see the configuration, another process's memory, or a tunnel's bytes.

mod args;
mod client;
mod commands;
mod console;
mod elements;
mod error;
mod orphans;
mod progress;
mod table;
#[cfg(test)]
mod tests;
mod units;

use std::future::Future;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use console::Console;
use error::CtlError;

pub use args::{CloseArgs, Command, CtlArgs, DrainArgs, ReloadArgs, Target, TunnelsArgs, Wsctl};

/// Runs one command against the supervisor and prints what came of it.
///
/// The exit code: 0 done, 1 refused or failed, 3 no supervisor, 4 `--timeout`
/// ran out, 130 interrupted. (2, wrong usage, is clap's.) It builds a runtime of
/// its own, so it must not be called from within one.
pub fn run(args: CtlArgs) -> ExitCode {
    let (stdout, stderr) = (io::stdout(), io::stderr());
    let (width, colour) = if stdout.is_terminal() {
        (console::terminal_width(), console::wants_colour())
    } else {
        (None, false)
    };
    let bar = stderr.is_terminal();
    let (mut out, mut err) = (stdout.lock(), stderr);
    let mut console = Console {
        out: &mut out,
        err: &mut err,
        width,
        colour,
        bar,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let code = match runtime {
        Ok(runtime) => runtime.block_on(execute(&args, &mut console, interrupted())),
        Err(source) => error::report(&CtlError::Runtime(source), &args, &mut console),
    };
    ExitCode::from(code)
}

/// One command until its end, the time limit or an interrupt, whichever is first.
async fn execute(
    args: &CtlArgs,
    console: &mut Console<'_>,
    interrupt: impl Future<Output = ()>,
) -> u8 {
    let result = tokio::select! {
        biased;
        result = commands::dispatch(args, console) => result,
        () = interrupt => match args.command {
            // There is no other way to end it.
            Command::Events => Ok(()),
            _ => Err(CtlError::Interrupted),
        },
        limit = time_limit(args.timeout) => Err(CtlError::TimedOut(limit)),
    };
    match result.and_then(|()| console.flush()) {
        Ok(()) => 0,
        Err(error) => error::report(&error, args, console),
    }
}

/// Ends at the first SIGINT; never, if it cannot be listened for.
async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn time_limit(limit: Option<Duration>) -> Duration {
    match limit {
        Some(limit) => {
            tokio::time::sleep(limit).await;
            limit
        }
        None => std::future::pending().await,
    }
}
