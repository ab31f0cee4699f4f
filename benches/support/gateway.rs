//! A gateway to measure: the real program, with a configuration in a directory of its own, on
//! ports that the kernel picks.
//!
//! Nothing here looks into it but over its admin socket, and nothing waits by sleeping: the
//! gateway says when it serves, as it does to systemd, and its end shows as the end of its stdout.

#![allow(dead_code, reason = "each benchmark uses a part of it")]

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use wsgate_protocol::admin::Status;

/// From the start until clients are served.
const START_LIMIT: Duration = Duration::from_secs(10);

/// From the stop to the end of the last process: twice what a polite close takes with a
/// peer that says nothing, and some.
const STOP_LIMIT: Duration = Duration::from_secs(8);

/// For an answer of the admin socket.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Between two looks at whether a gateway that has not said that it serves still lives.
const LOOK: Duration = Duration::from_millis(100);

/// A running gateway. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Gateway {
    child: Child,
    dir: TempDir,
    /// Every process of the gateway holds the other end.
    stdout: UnixStream,
    address: SocketAddr,
    workers: Vec<u32>,
}

impl Gateway {
    /// Starts it and waits until clients are served. `{dir}` in the configuration stands for the
    /// gateway's directory; `[admin]` is added.
    ///
    /// # Errors
    /// Those of starting, and if it does not serve in time or ends before: with its log.
    pub(crate) fn start(config: &str) -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("wsgate-").tempdir()?;
        fs::write(dir.path().join("wsgate.toml"), complete(config, dir.path()))?;
        let notify = UnixDatagram::bind(dir.path().join("notify"))?;
        let (stdout, theirs) = UnixStream::pair()?;
        let mut gateway = Self {
            child: spawn(dir.path(), theirs)?,
            dir,
            stdout,
            address: SocketAddr::from(([0; 4], 0)),
            workers: Vec::new(),
        };
        gateway
            .wait_until_ready(&notify)
            .map_err(|error| io::Error::new(error.kind(), format!("{error}\n{}", gateway.log())))?;
        let status = gateway.status()?;
        gateway.workers = status.workers.iter().map(|worker| worker.pid).collect();
        let bound = status.listeners.first().map(|it| it.bound.parse());
        gateway.address = bound
            .and_then(Result::ok)
            .ok_or_else(|| io::Error::other("the first listener is not bound to an address"))?;
        Ok(gateway)
    }

    /// [`Self::start`] with one worker that passes everything on to one server.
    ///
    /// # Errors
    /// See there.
    pub(crate) fn before(server: SocketAddr) -> io::Result<Self> {
        Self::start(&format!(
            "workers = 1\n\
             [log]\naccess = false\n\
             [reload]\nwatch = false\n\
             [[listener]]\naddress = \"127.0.0.1:0\"\n\
             [[route]]\nupstream = \"echo\"\n\
             [upstream.echo]\nservers = [\"{server}\"]\n"
        ))
    }

    /// Where the first listener is bound.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The processes that relay, as they were at the start.
    pub(crate) fn workers(&self) -> &[u32] {
        &self.workers
    }

    /// `GET /v1/status`.
    ///
    /// # Errors
    /// Those of the socket, and if the answer is none.
    pub(crate) fn status(&self) -> io::Result<Status> {
        Ok(serde_json::from_slice(&self.call(
            "GET",
            "/v1/status",
            "",
        )?)?)
    }

    /// One call of the admin API; the body of the answer, which must be a success.
    fn call(&self, method: &str, path: &str, body: &str) -> io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        let length = body.len();
        // In HTTP/1.0 the answer ends with the connection (RFC 9112 section 6.3), and is not chunked.
        let head = format!("{method} {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all((head + body).as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let head = answer.windows(4).position(|four| four == b"\r\n\r\n");
        match head {
            Some(end) if answer.starts_with(b"HTTP/1.0 2") => Ok(answer.split_off(end + 4)),
            _ => {
                let answer = String::from_utf8_lossy(&answer);
                Err(io::Error::other(format!("{method} {path}: {answer}")))
            }
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("admin.sock")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("stderr.log")).unwrap_or_default()
    }

    /// Until `READY=1` (sd_notify(3)).
    fn wait_until_ready(&mut self, notify: &UnixDatagram) -> io::Result<()> {
        let until = Instant::now() + START_LIMIT;
        let mut message = [0; 4096];
        notify.set_read_timeout(Some(LOOK))?;
        while Instant::now() < until {
            match notify.recv(&mut message) {
                Ok(length) if is_ready(&message[..length]) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if let Some(status) = self.child.try_wait()? {
                        return Err(io::Error::other(format!("wsgate ended with {status}")));
                    }
                }
                Err(error) => return Err(error),
            }
        }
        let problem = format!("wsgate did not serve within {START_LIMIT:?}");
        Err(io::Error::new(ErrorKind::TimedOut, problem))
    }

    /// Asks it to stop, and waits until no process of it is left.
    fn stop(&mut self) -> io::Result<()> {
        if self.child.try_wait()?.is_none() {
            self.call("POST", "/v1/stop", r#"{"now":true}"#)?;
        }
        self.stdout.set_read_timeout(Some(STOP_LIMIT))?;
        match self.stdout.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(io::Error::other("wsgate printed something")),
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let stopped = self.stop();
        // Its workers see that it is gone, and drain.
        let killed = self.child.kill().and_then(|()| self.child.wait());
        if let Err(error) = stopped.and(killed)
            && !std::thread::panicking()
        {
            panic!("wsgate did not stop: {error}\n{}", self.log());
        }
    }
}

fn complete(config: &str, dir: &Path) -> String {
    let text = format!("{config}\n[admin]\nsocket = \"{{dir}}/admin.sock\"\n");
    text.replace("{dir}", &dir.to_string_lossy())
}

fn spawn(dir: &Path, stdout: UnixStream) -> io::Result<Child> {
    Command::new(env!("CARGO_BIN_EXE_wsgate"))
        .args(["run", "--config"])
        .arg(dir.join("wsgate.toml"))
        .env("NOTIFY_SOCKET", dir.join("notify"))
        .env_remove("WATCHDOG_USEC")
        .stdin(Stdio::null())
        .stdout(OwnedFd::from(stdout))
        .stderr(File::create(dir.join("stderr.log"))?)
        .spawn()
}

fn is_ready(message: &[u8]) -> bool {
    message
        .split(|byte| *byte == b'\n')
        .any(|line| line == b"READY=1")
}
