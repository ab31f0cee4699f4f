//! What a benchmark asks of the kernel: descriptors, cores, and the CPU clocks of others.

use std::fs;
use std::io;
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;

/// Raises the soft limit of open descriptors to the hard one, and returns it.
///
/// # Errors
/// Those of getrlimit(2) and setrlimit(2).
pub fn raise_nofile() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// Binds the calling thread, and what it starts from now on, to one core.
///
/// # Errors
/// Those of sched_setaffinity(2), as when there is no such core.
pub fn pin_here(core: usize) -> io::Result<()> {
    Ok(sched_setaffinity(Pid::from_raw(0), &only(core)?)?)
}

/// Binds all threads of a process to one core.
///
/// # Errors
/// Those of sched_setaffinity(2), and if there is no such process. A thread that ends
/// meanwhile is no error.
pub fn pin(pid: u32, core: usize) -> io::Result<()> {
    let set = only(core)?;
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let name = entry?.file_name();
        let Some(thread) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        match sched_setaffinity(Pid::from_raw(thread), &set) {
            Ok(()) | Err(nix::Error::ESRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn only(core: usize) -> io::Result<CpuSet> {
    let mut set = CpuSet::new();
    set.set(core)?;
    Ok(set)
}

/// Time since some moment before, the same for all processes of this machine (CLOCK_MONOTONIC). It stands still
/// if the kernel will not tell it, which clock_gettime(2) has no case of.
#[must_use]
pub fn now() -> Duration {
    ClockId::CLOCK_MONOTONIC
        .now()
        .map_or(Duration::ZERO, Duration::from)
}

/// The CPU clocks of some processes: user and system time of all their threads, exact to the
/// nanosecond where /proc has ticks of 10 ms. The time of children is not in it.
#[derive(Debug)]
pub struct Clocks(Vec<(u32, ClockId)>);

impl Clocks {
    /// # Errors
    /// If one of them is no process.
    pub fn of(pids: &[u32]) -> io::Result<Self> {
        let clocks = pids.iter().map(|pid| Ok((*pid, clock(*pid)?)));
        clocks.collect::<io::Result<_>>().map(Self)
    }

    /// The sum of all, in nanoseconds.
    ///
    /// # Errors
    /// If one of them is gone.
    pub fn read(&self) -> io::Result<u64> {
        self.0.iter().map(|(pid, clock)| read(*pid, *clock)).sum()
    }
}

fn clock(pid: u32) -> io::Result<ClockId> {
    let raw = i32::try_from(pid).map_err(io::Error::other)?;
    // The error is its return value, where nix looks into errno (clock_getcpuclockid(3)).
    clock_getcpuclockid(Pid::from_raw(raw)).map_err(|_| gone(pid))
}

/// A clock that was there is not there any more only if its process is not (clock_gettime(2)).
fn read(pid: u32, clock: ClockId) -> io::Result<u64> {
    let time = clock.now().map_err(|_| gone(pid))?;
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

fn gone(pid: u32) -> io::Error {
    let problem = format!("process {pid} has ended");
    io::Error::new(io::ErrorKind::NotFound, problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_counts_the_work_of_its_process() {
        let clocks = Clocks::of(&[std::process::id()]).unwrap();
        let before = clocks.read().unwrap();
        let mut word = 0;
        while clocks.read().unwrap() < before + 2_000_000 {
            word = crate::check::mix(word);
        }
        assert_ne!(word, 0);
    }

    #[test]
    fn the_clock_of_a_process_that_has_ended_is_an_error() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let clocks = Clocks::of(&[child.id()]).unwrap();
        assert!(clocks.read().is_ok());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(clocks.read().is_err());
    }

    #[test]
    fn a_process_that_is_not_there_has_no_clock() {
        // Beyond the highest pid that Linux gives.
        assert!(Clocks::of(&[1 << 23]).is_err());
    }
}
