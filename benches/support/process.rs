//! Processes as /proc shows them.

#![allow(dead_code, reason = "each benchmark uses a part of it")]

use std::fs;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Between two looks at something that does not tell of itself.
const LOOK: Duration = Duration::from_millis(5);

/// A process and all below it.
pub(crate) fn family(root: u32) -> io::Result<Vec<u32>> {
    let all = all()?;
    let mut family = vec![root];
    let mut next = 0;
    while let Some(parent) = family.get(next).copied() {
        let children = all.iter().filter(|one| one.parent == parent);
        family.extend(children.map(|one| one.pid));
        next += 1;
    }
    Ok(family)
}

/// The others in the process group that a process leads: whoever adopted them meanwhile, they stay in it.
pub(crate) fn group(leader: u32) -> io::Result<Vec<u32>> {
    let mut all = all()?;
    all.retain(|one| one.group == leader && one.pid != leader);
    Ok(all.iter().map(|one| one.pid).collect())
}

struct Process {
    pid: u32,
    parent: u32,
    group: u32,
}

fn all() -> io::Result<Vec<Process>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok());
        all.extend(pid.and_then(process));
    }
    Ok(all)
}

/// `None` if it has ended, as a zombie too.
fn process(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before the parenthesis may hold anything (proc_pid_stat(5)).
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?;
    let process = Process {
        pid,
        parent: fields.next()?.parse().ok()?,
        group: fields.next()?.parse().ok()?,
    };
    (state != "Z").then_some(process)
}

pub(crate) fn lives(pid: u32) -> bool {
    process(pid).is_some()
}

/// A process that has ended gets nothing, which is no error.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        let _ = kill_process(pid, signal);
    }
}

/// The memory of some processes in bytes; what several share counts by its share (PSS).
pub(crate) fn memory(pids: &[u32]) -> io::Result<u64> {
    pids.iter().map(|pid| pss(*pid)).sum()
}

fn pss(pid: u32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map(|kib| kib * 1024)
        .ok_or_else(|| io::Error::other(format!("no Pss of process {pid}")))
}

/// CPU time of a process and of all below it, those included that have ended and whose parents have waited for them.
pub(crate) fn cpu(root: u32) -> io::Result<Duration> {
    let ticks: u64 = family(root)?.into_iter().filter_map(ticks).sum();
    Ok(Duration::from_millis(ticks * MILLISECONDS))
}

/// Of a tick in /proc: USER_HZ is 100 wherever this runs.
const MILLISECONDS: u64 = 10;

/// User and system time, of the process and of the children that it has waited for. `None` if it is gone.
fn ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let fields = fields.split_whitespace().skip(11).take(4);
    fields.map(|field| field.parse::<u64>().ok()).sum()
}

/// Waits until something is so.
pub(crate) fn eventually(
    what: &str,
    limit: Duration,
    mut is_so: impl FnMut() -> io::Result<bool>,
) -> io::Result<()> {
    let until = Instant::now() + limit;
    while !is_so()? {
        if Instant::now() > until {
            let problem = format!("{what}: not within {limit:?}");
            return Err(io::Error::new(io::ErrorKind::TimedOut, problem));
        }
        thread::park_timeout(LOOK);
    }
    Ok(())
}
