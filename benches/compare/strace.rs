//! System calls per message, counted by strace. Under it everything is slow, so nothing else is measured.

use std::fs;
use std::io;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;
use wsgate_load::job::{Run, Until, Work};
use wsgate_load::role::FleetProcess;

use crate::args::Args;
use crate::cases::{open, sound};
use crate::figures::Figures;
use crate::gateway::Gateway;
use crate::process::{eventually, signal};
use crate::progress;

const TUNNELS: usize = 256;
const ECHOES: u64 = 10_000;
const LIMIT: Duration = Duration::from_secs(5);

pub(crate) fn measure(args: &Args, gateway: &mut Gateway, figures: &mut Figures) -> io::Result<()> {
    if Command::new("strace").arg("-V").output().is_err() {
        progress("no strace: no system calls are counted (Debian: apt-get install strace)");
        return Ok(());
    }
    let mut fleet = FleetProcess::spawn(Some(args.load_core))?;
    sound("opening", &fleet.open(&open(gateway, TUNNELS))?)?;
    let run = Run {
        work: Work::Messages { window: 1 },
        until: Until::Total(ECHOES),
        ..Run::default()
    };
    sound("warming up", &fleet.run(&run)?)?;
    let strace = Strace::attach(&gateway.processes()?)?;
    sound("under strace", &fleet.run(&run)?)?;
    let calls = strace.finish()?;
    let each = |is_one: Kind| {
        let calls = calls.iter().filter(|(name, _)| is_one(name));
        calls.map(|(_, count)| *count).sum::<u64>() as f64 / (2 * ECHOES) as f64
    };
    for (title, is_one) in KINDS {
        figures.add(
            &format!("system calls per message, 64 B, 256 tunnels: {title}"),
            gateway.peer,
            each(is_one),
        );
    }
    sound("closing", &fleet.close()?)
}

/// Whether a call's name is of a kind. Which of several names it has depends on the C library.
type Kind = fn(&str) -> bool;

const KINDS: [(&str, Kind); 5] = [
    ("recv", is_receive),
    ("send", is_send),
    ("epoll_wait", is_wait),
    ("others", |name| {
        !is_receive(name) && !is_send(name) && !is_wait(name)
    }),
    ("all", |_| true),
];

fn is_receive(name: &str) -> bool {
    matches!(name, "recvfrom" | "recvmsg" | "recv" | "read" | "readv")
}

fn is_send(name: &str) -> bool {
    matches!(name, "sendto" | "sendmsg" | "send" | "write" | "writev")
}

fn is_wait(name: &str) -> bool {
    matches!(name, "epoll_wait" | "epoll_pwait" | "epoll_pwait2")
}

struct Strace {
    child: Child,
    dir: TempDir,
}

impl Strace {
    /// Attaches to these and waits until it has.
    fn attach(pids: &[u32]) -> io::Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut command = Command::new("strace");
        command
            .args(["-c", "-f", "-o"])
            .arg(dir.path().join("counts"));
        for pid in pids {
            command.arg("-p").arg(pid.to_string());
        }
        let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let strace = Self { child, dir };
        eventually("strace attaches", LIMIT, || {
            pids.iter()
                .try_fold(true, |all, pid| Ok(all && is_traced(*pid)?))
        })?;
        Ok(strace)
    }

    /// Calls by name.
    fn finish(mut self) -> io::Result<Vec<(String, u64)>> {
        signal(self.child.id(), Signal::INT);
        self.child.wait()?;
        let text = fs::read_to_string(self.dir.path().join("counts"))?;
        Ok(text.lines().filter_map(line).collect())
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        // Where it did not come to the end; else it has ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn is_traced(pid: u32) -> io::Result<bool> {
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(entry?.path().join("status"))?;
        if status.lines().any(|line| line == "TracerPid:\t0") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// `% time, seconds, usecs/call, calls, errors if any, name`
fn line(line: &str) -> Option<(String, u64)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let name = words.last().filter(|name| **name != "total")?;
    let calls = words.get(3)?.parse().ok()?;
    words[0].parse::<f64>().ok()?;
    Some(((*name).to_owned(), calls))
}
