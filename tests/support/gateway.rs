//! A gateway of its own for each test: the real program with a configuration in a
//! directory of its own, on ports that the kernel picks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use http::Method;
use rustix::process::Signal;
use tempfile::TempDir;
use wsgate_protocol::admin::{
    GatewayState, GenerationState, ListenerStatus, ReloadOutcome, Reloaded, Status, Totals, Tunnel,
    WorkerStatus,
};

use super::admin::{self, Answer};
use super::process::{self, Process};
use super::wait::{SOON, eventually};

/// Longest time from a stop to the end of the last process: a polite close takes 2 s
/// with a peer that says nothing, and there are two of them.
const STOP_LIMIT: Duration = Duration::from_secs(8);

/// What a gateway is started with.
#[derive(Debug)]
pub(crate) struct Launch {
    dir: TempDir,
    text: String,
    env: Vec<(String, String)>,
    /// Another one than in the directory.
    socket: Option<PathBuf>,
    /// RLIMIT_NOFILE, where it is to be another one than the test's.
    descriptors: Option<u32>,
}

impl Launch {
    /// `{dir}` in the configuration stands for the gateway's directory. Without an
    /// `[admin]` table it gets one.
    pub(crate) fn new(text: &str) -> Self {
        Self {
            dir: tempfile::Builder::new()
                .prefix("wsgate-")
                .tempdir()
                .unwrap(),
            text: text.to_owned(),
            env: Vec::new(),
            socket: None,
            descriptors: None,
        }
    }

    /// All processes of the gateway may open so many descriptors each.
    pub(crate) fn descriptors(mut self, limit: u32) -> Self {
        self.descriptors = Some(limit);
        self
    }

    /// The admin socket is there, as the configuration says.
    pub(crate) fn socket(mut self, path: &Path) -> Self {
        self.socket = Some(path.to_owned());
        self
    }

    /// Another file in the directory.
    pub(crate) fn file(self, name: &str, text: &str) -> Self {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    /// The configuration is a link into a mounted volume, as Kubernetes makes it:
    /// `wsgate.toml -> mount/..data/wsgate.toml`, `..data -> ..v1`.
    pub(crate) fn mounted(self) -> Self {
        let dir = self.dir.path().to_owned();
        fs::create_dir_all(dir.join("mount/..v1")).unwrap();
        symlink("..v1", dir.join("mount/..data")).unwrap();
        symlink("mount/..data/wsgate.toml", dir.join("wsgate.toml")).unwrap();
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it and waits until clients are served.
    pub(crate) async fn start(self) -> Gateway {
        let mut gateway = self.spawn();
        let status = eventually("the gateway runs", SOON, async || {
            if let Some(status) = gateway.exit_status() {
                panic!("wsgate ended at its start with {status}");
            }
            let status = gateway.try_status().await.ok()?;
            (status.state == GatewayState::Running).then_some(status)
        })
        .await;
        gateway.listeners = status.listeners;
        gateway
    }

    /// Starts it and does not wait.
    pub(crate) fn spawn(self) -> Gateway {
        let path = self.dir.path().to_owned();
        let config = path.join("wsgate.toml");
        if !path.join("hooks").exists() {
            fs::write(path.join("hooks"), "").unwrap();
        }
        fs::write(&config, complete(&self.text, &path)).unwrap();
        let log = log_of(&path);
        let child = run_in(&path, &self.env, self.descriptors, log);
        Gateway {
            pid: child.id(),
            child: Mutex::new(child),
            socket: self.socket.unwrap_or_else(|| path.join("admin.sock")),
            dir: self.dir,
            env: self.env,
            descriptors: self.descriptors,
            listeners: Vec::new(),
        }
    }
}

/// Where several supervisors and their workers write, each behind what the others have written.
fn log_of(dir: &Path) -> File {
    let path = dir.join("stderr.log");
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .unwrap()
}

/// Starts `wsgate run` on the configuration of this directory.
fn run_in(dir: &Path, env: &[(String, String)], descriptors: Option<u32>, log: File) -> Child {
    let mut command = match descriptors {
        None => Command::new(env!("CARGO_BIN_EXE_wsgate")),
        Some(limit) => {
            let mut shell = Command::new("sh");
            let script = format!("ulimit -n {limit}; exec \"$0\" \"$@\"");
            shell.args(["-c", &script, env!("CARGO_BIN_EXE_wsgate")]);
            shell
        }
    };
    command
        .args(["run", "--config"])
        .arg(dir.join("wsgate.toml"))
        .env("WSGATE_TEST_HOOKS", dir.join("hooks"))
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WSGATE_SOCKET")
        .envs(env.iter().cloned())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// The configuration as it is written to the file.
fn complete(text: &str, dir: &Path) -> String {
    let mut text = text.to_owned();
    if !text.contains("[admin]") {
        text.push_str("\n[admin]\nsocket = \"{dir}/admin.sock\"\n");
    }
    text.replace("{dir}", dir.to_str().unwrap())
}

/// A running gateway. Dropping it stops it, and checks that no process of it is left.
#[derive(Debug)]
pub(crate) struct Gateway {
    /// The supervisor.
    pub(crate) pid: u32,
    child: Mutex<Child>,
    socket: PathBuf,
    dir: TempDir,
    env: Vec<(String, String)>,
    descriptors: Option<u32>,
    listeners: Vec<ListenerStatus>,
}

impl Gateway {
    /// [`Launch::start`] with nothing but a configuration.
    pub(crate) async fn start(text: &str) -> Self {
        Launch::new(text).start().await
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir().join("wsgate.toml")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.socket.clone()
    }

    /// Where the listener of this place in the configuration is bound, as `127.0.0.1:40000`.
    pub(crate) fn bound(&self, listener: usize) -> &str {
        &self.listeners[listener].bound
    }

    /// The first listener's address.
    pub(crate) fn address(&self) -> &str {
        self.bound(0)
    }

    /// A WebSocket URL at the first listener; `path` begins with `/`.
    pub(crate) fn ws_url(&self, path: &str) -> String {
        format!("ws://{}{path}", self.address())
    }

    /// One call of the admin API.
    pub(crate) async fn call(&self, method: Method, path: &str, body: &str) -> Answer {
        admin::over_unix(&self.socket(), method, path, body)
            .await
            .unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, "").await
    }

    pub(crate) async fn status(&self) -> Status {
        self.get("/v1/status").await.json()
    }

    /// Waits until the figures are so: a worker counts what it has done, so its clients may
    /// know of it first.
    pub(crate) async fn counted(&self, what: &str, is_so: impl Fn(&Totals) -> bool) -> Status {
        eventually(what, SOON, async || {
            let status = self.status().await;
            is_so(&status.totals).then_some(status)
        })
        .await
    }

    /// Waits until so many tunnels live.
    pub(crate) async fn holds(&self, tunnels: u64) {
        let what = format!("{tunnels} tunnels live");
        self.counted(&what, |totals| totals.tunnels == tunnels)
            .await;
    }

    pub(crate) async fn try_status(&self) -> Result<Status, String> {
        let answer = admin::over_unix(&self.socket(), Method::GET, "/v1/status", "").await?;
        Ok(answer.json())
    }

    /// The live tunnels of every generation.
    pub(crate) async fn tunnels(&self) -> Vec<Tunnel> {
        self.tunnels_where("").await
    }

    /// Those that match a query, as `state=draining`.
    pub(crate) async fn tunnels_where(&self, query: &str) -> Vec<Tunnel> {
        let answer = self.get(&format!("/v1/tunnels?{query}")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// The workers of the active generation, by slot.
    pub(crate) async fn active_workers(&self) -> Vec<WorkerStatus> {
        let status = self.status().await;
        let active = active_generation(&status);
        let mut workers = status.workers;
        workers.retain(|worker| worker.generation == active);
        workers
    }

    pub(crate) async fn reload(&self) -> Answer {
        self.call(Method::POST, "/v1/reload", "").await
    }

    /// A reload that must make a new generation.
    pub(crate) async fn reloaded(&self) -> Reloaded {
        let answer = self.reload().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        match answer.json() {
            ReloadOutcome::Reloaded(reloaded) => reloaded,
            other => panic!("no new generation: {other:?}"),
        }
    }

    /// Writes the configuration anew, in place: the file is empty for a moment.
    pub(crate) fn edit(&self, text: &str) {
        fs::write(self.config(), complete(text, self.dir())).unwrap();
    }

    /// Writes another file and renames it over the configuration, as editors do.
    pub(crate) fn rename_over(&self, text: &str) {
        let new = self.dir().join("wsgate.toml.new");
        fs::write(&new, complete(text, self.dir())).unwrap();
        fs::rename(new, self.config()).unwrap();
    }

    /// Swaps the volume's link, as Kubernetes does: a new directory with the new file,
    /// a new link renamed over `..data`, and the old directory removed.
    pub(crate) fn swap_mount(&self, version: &str, text: &str) {
        let mount = self.dir().join("mount");
        let old = fs::read_link(mount.join("..data")).unwrap();
        let new = format!("..{version}");
        fs::create_dir(mount.join(&new)).unwrap();
        fs::write(
            mount.join(&new).join("wsgate.toml"),
            complete(text, self.dir()),
        )
        .unwrap();
        symlink(&new, mount.join("..data_tmp")).unwrap();
        fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
        fs::remove_dir_all(mount.join(old)).unwrap();
    }

    /// Writes another file of the directory.
    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.dir().join(name), text).unwrap();
    }

    /// What workers that start from now on do, as `crash-at-start slot=0`.
    pub(crate) fn hooks(&self, hooks: &str) {
        self.write("hooks", hooks);
    }

    /// Waits until the active generation has this number at least.
    pub(crate) async fn generation(&self, at_least: u64) -> Status {
        let what = format!("generation {at_least} is active");
        eventually(&what, SOON, async || {
            let status = self.status().await;
            (active_generation(&status) >= at_least).then_some(status)
        })
        .await
    }

    /// `wsctl` with `--socket`.
    pub(crate) async fn ctl(&self, args: &[&str]) -> Output {
        let socket = self.socket();
        let mut all = vec!["--socket", socket.to_str().unwrap()];
        all.extend(args);
        ctl(&all).await
    }

    pub(crate) fn signal(&self, signal: Signal) {
        process::signal(self.pid, signal);
    }

    /// Everything logged so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir().join("stderr.log")).unwrap_or_default()
    }

    /// Waits for the log line that has all of these words.
    pub(crate) async fn logged(&self, words: &[&str]) -> String {
        eventually(&format!("a log line with {words:?}"), SOON, async || {
            let log = self.log();
            log.lines()
                .find(|line| words.iter().all(|word| line.contains(word)))
                .map(str::to_owned)
        })
        .await
    }

    /// How the supervisor ended, if it has.
    pub(crate) fn exit_status(&self) -> Option<ExitStatus> {
        self.child.lock().unwrap().try_wait().unwrap()
    }

    /// Waits for the supervisor's end.
    pub(crate) async fn exited(&self, limit: Duration) -> ExitStatus {
        eventually("the supervisor ends", limit, async || self.exit_status()).await
    }

    /// Kills the supervisor alone (SIGKILL) and waits for its end.
    pub(crate) async fn kill_supervisor(&self) {
        self.signal(Signal::KILL);
        self.exited(SOON).await;
    }

    /// Starts a supervisor in place of one that was killed, and does not wait.
    pub(crate) fn restart(&mut self) {
        assert!(self.exit_status().is_some(), "it runs still");
        let log = log_of(self.dir());
        let child = run_in(self.dir(), &self.env, self.descriptors, log);
        self.pid = child.id();
        self.child = Mutex::new(child);
    }

    /// The same, and waits until a generation of its own is active: one newer than `last`.
    pub(crate) async fn revive(&mut self, last: u64) -> Status {
        self.restart();
        eventually(
            "the next supervisor's generation is active",
            SOON,
            async || {
                if let Some(status) = self.exit_status() {
                    panic!("wsgate ended at its start with {status}");
                }
                let status = self.try_status().await.ok()?;
                (active_generation(&status) > last).then_some(status)
            },
        )
        .await
    }

    /// Rendezvous sockets, by the pids of their workers.
    pub(crate) fn rendezvous(&self) -> BTreeSet<u32> {
        let directory = self.socket.parent().unwrap().to_owned();
        let names = fs::read_dir(directory).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names
            .filter_map(|name| {
                name.strip_prefix("worker-")?
                    .strip_suffix(".sock")?
                    .parse()
                    .ok()
            })
            .collect()
    }

    /// All workers that live: the supervisor's own, and those of one before it.
    pub(crate) fn workers(&self) -> BTreeMap<u32, Process> {
        let mut workers = process::children(self.pid);
        for pid in self.rendezvous() {
            if let Some(worker) = Process::open(pid) {
                workers.entry(pid).or_insert(worker);
            }
        }
        workers
    }

    fn stop(&self) -> Result<(), String> {
        let workers = self.workers();
        for worker in workers.values() {
            worker.signal(Signal::CONT);
        }
        if self.exit_status().is_none() {
            let supervisor = Process::open(self.pid).ok_or("the supervisor is no process")?;
            ask_to_stop(&self.socket());
            let stopped = supervisor.ended_within(STOP_LIMIT);
            supervisor.signal(Signal::KILL);
            self.child.lock().unwrap().wait().unwrap();
            if !stopped {
                workers
                    .values()
                    .for_each(|worker| worker.signal(Signal::KILL));
                return Err(format!("wsgate did not stop within {STOP_LIMIT:?}"));
            }
        }
        let left: Vec<u32> = workers
            .into_values()
            .filter(|worker| !worker.ended_within(Duration::from_secs(1)))
            .map(|worker| {
                worker.signal(Signal::KILL);
                worker.pid
            })
            .collect();
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("workers left without a supervisor: {left:?}"))
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let stopped = self.stop();
        let log = self.log();
        let problem = stopped.err().or_else(|| {
            log.contains("panicked at")
                .then(|| "wsgate panicked".to_owned())
        });
        if std::thread::panicking() || problem.is_some() {
            show(&log);
        }
        if let Some(problem) = problem
            && !std::thread::panicking()
        {
            panic!("{problem}");
        }
    }
}

#[expect(clippy::print_stderr, reason = "shown with the test that failed")]
fn show(log: &str) {
    eprintln!("--- the gateway's log\n{log}--- end of the log");
}

/// `POST /v1/stop` from where nothing may be awaited. What goes wrong shows by the
/// supervisor that does not end.
fn ask_to_stop(socket: &Path) {
    let Ok(mut stream) = UnixStream::connect(socket) else {
        return;
    };
    let body = r#"{"now":true}"#;
    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
    let _ = write!(
        stream,
        "POST /v1/stop HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.read_to_end(&mut Vec::new());
}

/// The number of the active generation.
pub(crate) fn active_generation(status: &Status) -> u64 {
    status
        .generations
        .iter()
        .find(|generation| generation.state == GenerationState::Active)
        .map_or(0, |generation| generation.generation)
}

/// Runs `wsctl` with these arguments and no others.
pub(crate) async fn ctl(args: &[&str]) -> Output {
    run(env!("CARGO_BIN_EXE_wsctl"), args).await
}

/// Runs `wsgate` with these arguments until its end.
pub(crate) async fn wsgate(args: &[&str]) -> Output {
    run(env!("CARGO_BIN_EXE_wsgate"), args).await
}

async fn run(program: &str, args: &[&str]) -> Output {
    let command = tokio::process::Command::new(program)
        .args(args)
        .env_remove("WSGATE_SOCKET")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    tokio::time::timeout(Duration::from_secs(60), command)
        .await
        .unwrap_or_else(|_| panic!("{program} {args:?} did not end"))
        .unwrap()
}

/// What a program printed on stdout.
pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a program printed on stderr.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
