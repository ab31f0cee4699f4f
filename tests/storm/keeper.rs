//! The leader of the process group that all processes of the gateway are in. When the storm ends, however that may be,
//! it ends them, so that none is left of a storm that was interrupted; and while it lives, orphans can be counted.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};

use rustix::process::Signal;

use crate::process::{group, signal};

const KEEP: &str = "--wsgate-storm-keep";

/// Dropping it kills whatever is left of its group.
#[derive(Debug)]
pub(crate) struct Keeper(Child);

impl Keeper {
    pub(crate) fn spawn() -> io::Result<Self> {
        Command::new(std::env::current_exe()?)
            .arg(KEEP)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .map(Self)
    }

    /// The number of the group.
    pub(crate) fn group(&self) -> u32 {
        self.0.id()
    }

    /// All that live of the group, but for the keeper.
    pub(crate) fn processes(&self) -> io::Result<Vec<u32>> {
        group(self.group())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        drop(self.0.wait());
    }
}

/// To be called first by `main`: if this process was started as a keeper it does its part.
pub(crate) fn run_if_child() -> Option<ExitCode> {
    if std::env::args().nth(1)? != KEEP {
        return None;
    }
    // Nothing is ever sent; an error is an end as well.
    drop(io::copy(&mut io::stdin().lock(), &mut io::sink()));
    // One that is being started meanwhile is found at the second look.
    for _ in 0..2 {
        for pid in group(std::process::id()).unwrap_or_default() {
            signal(pid, Signal::KILL);
        }
    }
    Some(ExitCode::SUCCESS)
}
