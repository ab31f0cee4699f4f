//! A gateway that runs, with its configuration in a directory that is gone afterwards.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::args::Args;
use crate::peers::{Peer, Setup, Site};
use crate::process::{self, eventually};

/// From the start until clients are served.
const START_LIMIT: Duration = Duration::from_secs(10);
/// From the stop to the end of the last process, before they are killed.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// For one answer while it starts.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// A running gateway. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) peer: Peer,
    child: Child,
    dir: TempDir,
    address: SocketAddr,
    servers: Vec<SocketAddr>,
    setup: Setup,
    program: PathBuf,
    /// All processes as they were when it was ready.
    family: Vec<u32>,
}

impl Gateway {
    /// Starts one and waits until clients are served.
    ///
    /// # Errors
    /// If it does not start, with its log.
    pub(crate) fn start(
        args: &Args,
        peer: Peer,
        servers: &[SocketAddr],
        setup: &Setup,
    ) -> io::Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("wsgate-compare-")
            .tempdir()?;
        let address = free_address()?;
        let (program, words) = peer.command(args, dir.path());
        let site = Site {
            dir: dir.path(),
            listen: address,
            servers,
            setup,
        };
        fs::write(dir.path().join("config"), peer.config(&site))?;
        let mut gateway = Self {
            peer,
            child: spawn(&program, &words, dir.path())?,
            dir,
            address,
            servers: servers.to_vec(),
            setup: *setup,
            program,
            family: Vec::new(),
        };
        gateway.wait_until_ready().map_err(|error| {
            io::Error::other(format!("{peer} does not start: {error}\n{}", gateway.log()))
        })?;
        gateway.family = gateway.processes()?;
        Ok(gateway)
    }

    fn wait_until_ready(&mut self) -> io::Result<()> {
        let address = self.address;
        eventually("it serves", START_LIMIT, || {
            match self.child.try_wait()? {
                Some(status) => Err(io::Error::other(format!("it ended with {status}"))),
                None => Ok(answers(address).unwrap_or(false)),
            }
        })
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// All its processes.
    pub(crate) fn processes(&self) -> io::Result<Vec<u32>> {
        process::family(self.child.id())
    }

    /// The process that was started.
    pub(crate) fn main(&self) -> u32 {
        self.child.id()
    }

    /// CPU time of all its processes, those that have ended included.
    pub(crate) fn cpu(&self) -> io::Result<Duration> {
        process::cpu(self.child.id())
    }

    /// All its processes on one core.
    pub(crate) fn pin(&self, core: usize) -> io::Result<()> {
        let mut family = self.family.iter();
        family.try_for_each(|pid| wsgate_load::machine::pin(*pid, core))
    }

    /// That every process lives that lived at the start.
    ///
    /// # Errors
    /// If one is gone.
    pub(crate) fn check(&self) -> io::Result<()> {
        self.family.iter().try_for_each(|pid| check(*pid))
    }

    /// Reads its configuration again; the `times`-th time.
    ///
    /// # Errors
    /// If it does not do it.
    pub(crate) fn reload(&self, times: u32) -> io::Result<()> {
        self.peer
            .reload(self.child.id(), &self.program, &self.site(), times)
    }

    fn site(&self) -> Site<'_> {
        Site {
            dir: self.dir.path(),
            listen: self.address,
            servers: &self.servers,
            setup: &self.setup,
        }
    }

    /// That the process that was started lives: others come and go with reloads.
    ///
    /// # Errors
    /// If it does not.
    pub(crate) fn check_main(&self) -> io::Result<()> {
        check(self.child.id())
    }

    /// The end of what it logged.
    pub(crate) fn log(&self) -> String {
        let read = |name| fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
        let text = read("log") + &read("error.log");
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn stop(&mut self) -> io::Result<()> {
        let family = self.processes()?;
        process::signal(self.child.id(), Signal::TERM);
        let ended = eventually("it stops", STOP_LIMIT, || {
            let ended = self.child.try_wait()?.is_some();
            Ok(ended && !family.iter().any(|pid| process::lives(*pid)))
        });
        if ended.is_err() {
            for pid in family.iter().filter(|pid| process::lives(**pid)) {
                process::signal(*pid, Signal::KILL);
            }
            self.child.wait()?;
        }
        Ok(())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            crate::progress(&format!("{}: cannot be stopped: {error}", self.peer));
        }
    }
}

fn spawn(program: &Path, words: &[OsString], dir: &Path) -> io::Result<Child> {
    let log = File::create(dir.join("log"))?;
    Command::new(program)
        .args(words)
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
}

fn check(pid: u32) -> io::Result<()> {
    match process::lives(pid) {
        true => Ok(()),
        false => Err(io::Error::other(format!("process {pid} has ended"))),
    }
}

/// One that was free a moment ago: not all of them can be told to take any.
fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

/// Whether a plain request gets through to a server.
fn answers(address: SocketAddr) -> io::Result<bool> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.starts_with("HTTP/1.1 200"))
}
