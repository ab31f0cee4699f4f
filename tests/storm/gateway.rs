//! The gateway: started, asked, killed, started again, stopped. What is known of it comes over its admin socket, its
//! log and /proc.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use wsgate_protocol::admin::{
    GatewayState, GenerationState, ReloadOutcome, ServerState, Status, Tunnel, WorkerState,
};

use crate::config::{Shape, Site};
use crate::keeper::Keeper;
use crate::plan::Handover;
use crate::wait::until;

/// For an answer of the admin socket: a reload may take 10 s to fail.
const ANSWER: Duration = Duration::from_secs(20);

/// From a start until clients are served, and from a stop to the end of the last process, on a busy machine.
const START: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(30);

/// In the directory of the configuration: what debug builds of wsgate are to do wrong.
const HOOKS: &str = "hooks";

/// For a gateway to settle after a fault.
pub(crate) const SETTLE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Gateway {
    program: PathBuf,
    /// The configuration and the log. (The runtime directory is another: its disk may be full.)
    dir: PathBuf,
    pub(crate) site: Site,
    pub(crate) shape: Shape,
    supervisor: Child,
    pub(crate) keeper: Keeper,
    /// The operator's word about the first of the steady servers.
    pub(crate) server: ServerState,
}

/// An answer: status and body.
pub(crate) struct Answer(pub(crate) u16, Vec<u8>);

impl Gateway {
    /// Starts it and waits until clients are served.
    ///
    /// # Errors
    /// If it does not, with its log.
    pub(crate) fn start(program: &Path, dir: &Path, site: Site, slots: u32) -> io::Result<Self> {
        let shape = Shape {
            slots,
            guests: false,
            serial: 0,
        };
        let keeper = Keeper::spawn()?;
        fs::write(dir.join("wsgate.toml"), site.text(&shape))?;
        let gateway = Self {
            supervisor: spawn(program, dir, keeper.group())?,
            program: program.to_owned(),
            dir: dir.to_owned(),
            site,
            shape,
            keeper,
            server: ServerState::Ready,
        };
        gateway.wait_until_running()?;
        Ok(gateway)
    }

    fn wait_until_running(&self) -> io::Result<()> {
        until("the gateway runs", START, || match self.status() {
            Ok(status) if status.state == GatewayState::Running && status.pid == self.pid() => None,
            Ok(status) => Some(format!("{:?}, pid {}", status.state, status.pid)),
            Err(error) => Some(format!("{error}; {}", self.last_line())),
        })
        .map(drop)
    }

    /// The supervisor.
    pub(crate) fn pid(&self) -> u32 {
        self.supervisor.id()
    }

    /// SIGKILL for the supervisor, and its end.
    pub(crate) fn kill_supervisor(&mut self) -> io::Result<()> {
        self.supervisor.kill()?;
        self.supervisor.wait().map(drop)
    }

    /// Starts another supervisor on what is there.
    ///
    /// # Errors
    /// If it does not serve; it is ended then.
    pub(crate) fn start_again(&mut self) -> io::Result<()> {
        self.supervisor = spawn(&self.program, &self.dir, self.keeper.group())?;
        let running = until("the gateway runs again", START, || {
            if let Ok(Some(status)) = self.supervisor.try_wait() {
                return Some(format!("ended with {status}: {}", self.last_line()));
            }
            match self.status() {
                Ok(status) if status.state == GatewayState::Running && status.pid == self.pid() => {
                    None
                }
                Ok(status) => Some(format!("{:?}, pid {}", status.state, status.pid)),
                Err(error) => Some(error.to_string()),
            }
        });
        if running.is_err() {
            // One that has ended is not killed, which is no error.
            self.supervisor.kill()?;
            self.supervisor.wait()?;
        }
        running.map(drop)
    }

    /// One call of the admin API.
    pub(crate) fn call(&self, method: &str, path: &str, body: &str) -> io::Result<Answer> {
        call(&self.site.run, method, path, body)
    }

    pub(crate) fn status(&self) -> io::Result<Status> {
        self.call("GET", "/v1/status", "")?.json()
    }

    /// The steady tunnels that a worker holds.
    pub(crate) fn tunnels(&self, worker: u32) -> io::Result<Vec<Tunnel>> {
        let query = format!("/v1/tunnels?worker={worker}&upstream=steady");
        self.call("GET", &query, "")?.json()
    }

    /// All tunnels.
    pub(crate) fn all_tunnels(&self) -> io::Result<Vec<Tunnel>> {
        self.call("GET", "/v1/tunnels", "")?.json()
    }

    /// Closes a tunnel, as the operator does.
    pub(crate) fn close(&self, tunnel: &str) -> io::Result<()> {
        self.call("DELETE", &format!("/v1/tunnels/{tunnel}"), "")?
            .expect(200)
    }

    /// Asks for a reload; the answer whatever it is.
    pub(crate) fn reload(&self) -> io::Result<Answer> {
        self.call("POST", "/v1/reload", "")
    }

    /// Asks for a reload in a thread of its own; the answer, or that there is none.
    pub(crate) fn reload_aside(&self) -> JoinHandle<io::Result<Answer>> {
        let run = self.site.run.clone();
        thread::spawn(move || call(&run, "POST", "/v1/reload", ""))
    }

    /// Writes the file and asks for a reload, which must go well.
    pub(crate) fn take(&mut self, shape: Shape) -> io::Result<()> {
        self.write(shape)?;
        match self.reload()?.json()? {
            ReloadOutcome::Reloaded(_) | ReloadOutcome::Unchanged(_) => Ok(()),
            ReloadOutcome::Failed { message, .. } => Err(io::Error::other(message)),
            other => Err(io::Error::other(format!("{other:?}"))),
        }
    }

    /// The shape with another serial: a configuration that is not the one that runs.
    pub(crate) fn next_shape(&self) -> Shape {
        Shape {
            serial: self.shape.serial + 1,
            ..self.shape.clone()
        }
    }

    /// Writes the file as an editor does.
    pub(crate) fn write(&mut self, shape: Shape) -> io::Result<()> {
        self.write_text(&self.site.text(&shape))?;
        self.shape = shape;
        Ok(())
    }

    /// Writes any text in place of the configuration.
    pub(crate) fn write_text(&self, text: &str) -> io::Result<()> {
        let new = self.dir.join("wsgate.toml.new");
        fs::write(&new, text)?;
        fs::rename(new, self.dir.join("wsgate.toml"))
    }

    /// Whether it is a debug build, as far as is known: of this build.
    pub(crate) fn has_hooks(&self) -> bool {
        cfg!(debug_assertions) && self.program == Path::new(env!("CARGO_BIN_EXE_wsgate"))
    }

    /// Tells workers of a debug build what to do wrong from now on.
    pub(crate) fn hook(&self, text: &str) -> io::Result<()> {
        fs::write(self.dir.join(HOOKS), text)
    }

    /// Takes the first steady server out or puts it in again. Its tunnels may stay for longer than any storm.
    pub(crate) fn set_server(&mut self, state: ServerState) -> io::Result<()> {
        let body = match state {
            ServerState::Drain => r#"{"state":"drain","grace_seconds":36000}"#,
            _ => r#"{"state":"ready"}"#,
        };
        let path = format!("/v1/upstreams/steady/servers/{}", self.site.steady[0]);
        let answer = self.call("PUT", &path, body)?;
        self.server = state;
        answer.expect(200)
    }

    /// What keeps the gateway from being as the storm wants it, with so many steady tunnels.
    pub(crate) fn amiss(&self, steady: u32) -> Option<String> {
        let text: io::Result<serde_json::Value> =
            self.call("GET", "/v1/status", "").and_then(|it| it.json());
        let status = text.and_then(|text| Ok((retiring(&text), serde_json::from_value(text)?)));
        match status {
            Ok((false, status)) => self.amiss_in(&status, steady),
            Ok((true, _)) => Some("sockets are being retired".to_owned()),
            Err(error) => Some(error.to_string()),
        }
    }

    fn amiss_in(&self, status: &Status, steady: u32) -> Option<String> {
        let slots = u64::from(self.shape.slots);
        let of = |state| {
            status
                .generations
                .iter()
                .filter(move |it| it.state == state)
        };
        let active = of(GenerationState::Active)
            .next()
            .map_or(0, |it| it.generation);
        let own = status
            .workers
            .iter()
            .filter(|it| it.generation == active && it.state == WorkerState::Active);
        let (own, starting) = (own.count() as u64, of(GenerationState::Starting).count());
        let mute = status
            .workers
            .iter()
            .filter(|it| it.state == WorkerState::Unresponsive)
            .count();
        let listeners = if self.shape.guests { 5 } else { 2 };
        let servers = || {
            status
                .upstreams
                .iter()
                .filter(|it| it.name == "steady")
                .flat_map(|it| &it.servers)
        };
        let tunnels: u64 = servers().map(|it| it.tunnels).sum();
        let server = servers().next().map(|it| it.state);
        let old = status.generations.len().saturating_sub(1 + starting);
        let problems = [
            (self.site.handover == Handover::On && old > 0)
                .then(|| format!("{old} old generations are left")),
            (status.state != GatewayState::Running).then(|| format!("{:?}", status.state)),
            (own != slots).then(|| format!("{own} of {slots} workers are active")),
            (starting > 0).then(|| "a generation is starting".to_owned()),
            (mute > 0).then(|| format!("{mute} workers do not answer")),
            (!status.vacant_slots.is_empty())
                .then(|| format!("vacant slots: {:?}", status.vacant_slots)),
            (status.listeners.len() != listeners)
                .then(|| format!("{} listeners", status.listeners.len())),
            (tunnels != u64::from(steady))
                .then(|| format!("{tunnels} of {steady} tunnels are open")),
            (server != Some(self.server))
                .then(|| format!("the server is {server:?}, not {:?}", self.server)),
            status
                .config
                .file_differs
                .then(|| "the file says something else".to_owned()),
        ];
        problems.into_iter().flatten().next()
    }

    /// Waits until it is as the storm wants it; `false` if it will not be, after `crashes`, because of a slot whose
    /// workers have crashed so often that it is tried seldom.
    pub(crate) fn settle(&self, steady: u32, crashes: Duration) -> io::Result<bool> {
        let began = Instant::now();
        let mut given_up = false;
        until("the gateway settles", SETTLE, || {
            let amiss = self.amiss(steady)?;
            given_up = crashes < SETTLE && began.elapsed() > crashes && self.crash_loops();
            (!given_up).then_some(amiss)
        })?;
        Ok(!given_up)
    }

    fn crash_loops(&self) -> bool {
        let status: io::Result<serde_json::Value> =
            self.call("GET", "/v1/status", "").and_then(|it| it.json());
        status.is_ok_and(|status| {
            let slots = status["vacant_slots"].as_array();
            let slots = slots.into_iter().flatten();
            slots.into_iter().any(|slot| slot["crash_looping"] == true)
        })
    }

    /// Until old generations are gone, and there is nothing but what one generation needs.
    pub(crate) fn settle_alone(&self) -> io::Result<Duration> {
        until("old generations are gone", SETTLE, || {
            let status = self.status().ok()?;
            let processes = self.keeper.processes().map_or(0, |all| all.len());
            let wanted = 1 + self.shape.slots as usize;
            (status.generations.len() != 1 || processes != wanted).then(|| {
                format!(
                    "{} generations, {processes} processes, {wanted} wanted",
                    status.generations.len()
                )
            })
        })
    }

    /// A graceful stop; what is left of its processes then.
    pub(crate) fn stop(&mut self) -> io::Result<Vec<u32>> {
        self.call("POST", "/v1/stop", "")?.expect(202)?;
        until("the supervisor ends", STOP, || {
            match self.supervisor.try_wait() {
                Ok(Some(status)) if status.success() => None,
                other => Some(format!("{other:?}")),
            }
        })?;
        self.keeper.processes()
    }

    /// Everything logged so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    fn last_line(&self) -> String {
        self.log()
            .lines()
            .next_back()
            .unwrap_or_default()
            .to_owned()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // The keeper ends whoever is left; the supervisor would stay a zombie.
        drop(self.supervisor.kill());
        drop(self.supervisor.wait());
    }
}

/// One call of the admin API of the gateway with this runtime directory.
fn call(run: &Path, method: &str, path: &str, body: &str) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(run.join("admin.sock"))?;
    stream.set_read_timeout(Some(ANSWER))?;
    let length = body.len();
    // In HTTP/1.0 the answer ends with the connection (RFC 9112 section 6.3), and is not chunked.
    let head = format!("{method} {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all((head + body).as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let status = wsgate_load::handshake::Head(&answer).status();
    match (status, end) {
        (Some(status), Some(end)) => Ok(Answer(status, answer.split_off(end + 4))),
        _ => Err(io::Error::other(format!("{method} {path}: no answer"))),
    }
}

/// Whether sockets are served that no slot or listener has any more. A version that has no such state has no such field.
fn retiring(status: &serde_json::Value) -> bool {
    let listeners = status["listeners"].as_array().into_iter().flatten();
    listeners.into_iter().any(|listener| {
        listener["retired_sockets"].as_u64().unwrap_or(0) > 0
            || listener["retired"].as_bool().unwrap_or(false)
    })
}

fn spawn(program: &Path, dir: &Path, group: u32) -> io::Result<Child> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(dir.join("log"))?;
    Command::new(program)
        .args(["run", "--config"])
        .arg(dir.join("wsgate.toml"))
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_USEC")
        .env("WSGATE_TEST_HOOKS", dir.join(HOOKS))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(group.cast_signed())
        .spawn()
}

impl Answer {
    /// The body, of a success.
    pub(crate) fn json<T: DeserializeOwned>(&self) -> io::Result<T> {
        match self.0 {
            200..=299 => Ok(serde_json::from_slice(&self.1)?),
            _ => Err(self.problem()),
        }
    }

    /// That it is this status.
    pub(crate) fn expect(&self, status: u16) -> io::Result<()> {
        (self.0 == status)
            .then_some(())
            .ok_or_else(|| self.problem())
    }

    fn problem(&self) -> io::Error {
        let text = String::from_utf8_lossy(&self.1);
        io::Error::other(format!("status {}: {text}", self.0))
    }
}
