//! Processes, by pidfd and /proc.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, getrlimit, kill_process, pidfd_open,
    pidfd_send_signal, prlimit, setrlimit,
};

/// A process, held by a pidfd: its number is not another one's later.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    fd: OwnedFd,
}

impl Process {
    /// `None` if it is gone already.
    pub(crate) fn open(pid: u32) -> Option<Self> {
        let fd = pidfd_open(to_pid(pid), PidfdFlags::empty()).ok()?;
        Some(Self { pid, fd })
    }

    /// A process that has ended sends nothing, which is no error here.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.fd, signal);
    }

    /// Whether it has ended within `limit`. (A zombie has.)
    pub(crate) fn ended_within(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).unwrap();
            let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(count) => return count > 0,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => panic!("poll on a pidfd: {error}"),
            }
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended_within(Duration::ZERO)
    }
}

/// Sends a signal to a process of that number.
pub(crate) fn signal(pid: u32, signal: Signal) {
    kill_process(to_pid(pid), signal).unwrap_or_else(|error| panic!("signal to {pid}: {error}"));
}

/// The processes whose parent is `parent`, by pid.
pub(crate) fn children(parent: u32) -> BTreeMap<u32, Process> {
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| parent_of(*pid) == Some(parent))
        .filter_map(|pid| Some((pid, Process::open(pid)?)))
        .collect()
}

/// The command line of a process, arguments separated by blanks; how `ps` names it.
pub(crate) fn title(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&line).replace('\0', " ");
    text.trim().to_owned()
}

/// Bytes of memory of its own that a process has written to: what it allocated, without
/// the pages of its program. Counted page by page (`/proc/PID/smaps_rollup`); the
/// figures in `/proc/PID/status` are sums that may be late by hundreds of pages.
pub(crate) fn memory(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Anonymous:"))
        .unwrap();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib * 1024
}

/// Lets this process open as many descriptors as it may.
pub(crate) fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// Lets a process open so many descriptors more, or as many as it may.
pub(crate) fn leave_descriptors(pid: u32, free: Option<u64>) {
    let names = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let open: BTreeSet<u64> = names
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    // A new descriptor is the lowest number that is free, and has to be below the limit.
    let lowest = |free: u64| {
        (0..)
            .filter(|number| !open.contains(number))
            .nth(free as usize)
    };
    // It inherited ours, and has raised it.
    let most = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: free.map_or(most, lowest),
        maximum: most,
    };
    prlimit(Some(to_pid(pid)), Resource::Nofile, limit).unwrap();
}

/// Processor time of a process, by its main thread (`/proc/PID/schedstat`), exact to the nanosecond.
pub(crate) fn cpu_time(pid: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

fn parent_of(pid: u32) -> Option<u32> {
    stat(pid)?.get(1)?.parse().ok()
}

/// The fields of /proc/PID/stat from the state on: what comes before may hold blanks and
/// parentheses (proc_pid_stat(5)).
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

fn to_pid(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed()).unwrap()
}
