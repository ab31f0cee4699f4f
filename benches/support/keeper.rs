//! A process between a benchmark and the gateway that it measures, which ends the gateway when the
//! benchmark ends, however that may be: by a signal as well.
//!
//! It leads a process group of its own, so that what a terminal or a time limit sends to the benchmark's group does
//! not reach it, and all processes of the gateway can be found even when their parents are gone. It tells its end from
//! that of its standard input, and must never write anything but to where the gateway logs.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::process::{eventually, group, lives, signal};

/// The argument in front of what a keeper needs.
const KEEP: &str = "--wsgate-bench-keep";

/// What the gateway logs goes there.
const LOG: &str = "log";

/// From SIGTERM until what is left of the gateway is killed.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// Between two looks at whether the gateway has ended by itself.
const LOOK: Duration = Duration::from_millis(100);

/// A program in a directory of its own. Dropping it ends the program with all of its processes, and removes the directory.
#[derive(Debug)]
pub(crate) struct Kept {
    keeper: Child,
    dir: PathBuf,
}

impl Kept {
    /// Starts a program.
    ///
    /// # Errors
    /// Those of starting the keeper. Whether the program starts shows elsewhere.
    pub(crate) fn spawn(dir: TempDir, program: &Path, args: &[OsString]) -> io::Result<Self> {
        let log = File::create(dir.path().join(LOG))?;
        let keeper = Command::new(std::env::current_exe()?)
            .arg(KEEP)
            .args([dir.path(), program])
            .args(args)
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        let dir = dir.keep();
        Ok(Self { keeper, dir })
    }

    /// Where the program's files are.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the program has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.join(LOG)).unwrap_or_default()
    }

    /// All processes of the program.
    ///
    /// # Errors
    /// Those of reading /proc.
    pub(crate) fn processes(&self) -> io::Result<Vec<u32>> {
        group(self.keeper.id())
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        // It ends within its limit; and nothing can be done about it if it does not.
        drop(self.keeper.wait());
    }
}

/// To be called first by `main`: if this process was started as a keeper it does its part, and
/// `main` has to return this code.
#[must_use]
pub(crate) fn run_if_child() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != KEEP {
        return None;
    }
    let (dir, program) = (args.next()?, args.next()?);
    let kept = keep(&program, args);
    let removed = fs::remove_dir_all(dir);
    Some(match kept.and(removed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    })
}

fn keep(program: &OsString, args: impl Iterator<Item = OsString>) -> io::Result<()> {
    let benchmark = end_of_input();
    let kept = run(program, args, &benchmark);
    if let Err(error) = &kept {
        writeln!(io::stderr().lock(), "{}: {error}", program.display())?;
    }
    // A program that ended by itself has left its log, which the benchmark has yet to read.
    let _ = benchmark.recv();
    kept
}

/// Runs the program until it ends by itself or the benchmark has ended.
fn run(
    program: &OsString,
    args: impl Iterator<Item = OsString>,
    benchmark: &Receiver<()>,
) -> io::Result<()> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .spawn()?;
    let goes_on = || benchmark.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout);
    while child.try_wait()?.is_none() && goes_on() {}
    end(&mut child)
}

/// Ends when the input does: nothing is ever sent.
fn end_of_input() -> Receiver<()> {
    let (alive, ended) = channel();
    thread::spawn(move || {
        // An error is an end as well.
        drop(io::copy(&mut io::stdin().lock(), &mut io::sink()));
        drop(alive);
    });
    ended
}

/// Ends the gateway, and whoever of it does not end by itself.
fn end(child: &mut Child) -> io::Result<()> {
    let own = std::process::id();
    if child.try_wait()?.is_none() {
        signal(child.id(), Signal::TERM);
    }
    let ended = eventually("it stops", STOP_LIMIT, || {
        Ok(child.try_wait()?.is_some() && group(own)?.is_empty())
    });
    match ended {
        Err(error) if error.kind() == ErrorKind::TimedOut => {
            for pid in group(own)?.into_iter().filter(|pid| lives(*pid)) {
                signal(pid, Signal::KILL);
            }
            child.wait().map(drop)
        }
        ended => ended,
    }
}
