//! The supervisor's loop: one event at a time, one owner of all state.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use wsgate_config::{Config, Errors, Loaded, LogFormat, LogLevel, Sources};
use wsgate_lifecycle::{Closes, Generation, Lifecycle, Moment, Phase, Settings, WorkerId};
use wsgate_os::board::Board;
use wsgate_os::lock::Lock;
use wsgate_os::log::{self, LogHandle, LogSettings};
use wsgate_os::signals::{self, Received};
use wsgate_os::socket::steer;
use wsgate_os::{limits, systemd};
use wsgate_protocol::control::{FromWorker, ToWorker, VERSION};

use crate::adopt::LeftBehind;
use crate::event::{Event, Events, Request};
use crate::generation::{Content, Record};
use crate::handover::Handovers;
use crate::link::Link;
use crate::numbers::Numbers;
use crate::reload::{By, Fixed, Reloads, log_mistakes, mistakes_in_words};
use crate::runtime::RuntimeDirectory;
use crate::servers::ServerStates;
use crate::sockets::Sockets;
use crate::state::State;
use crate::totals::Figures;
use crate::watch::{self, Watch};
use crate::watchdog::Watchdog;
use crate::{Error, Options, admin, adopt, state};

/// Signals that are heard. Those without a meaning here are logged and change nothing.
const HEARD: &[i32] = &[
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGWINCH,
];

/// All state of the gateway that is not in a worker.
pub(crate) struct Supervisor {
    pub(crate) options: Options,
    pub(crate) events: Events,
    pub(crate) started: Instant,
    pub(crate) started_at: SystemTime,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) closes: Closes,
    pub(crate) links: BTreeMap<WorkerId, Link>,
    pub(crate) generations: BTreeMap<Generation, Record>,
    pub(crate) last_generation: Generation,
    pub(crate) sockets: Sockets,
    pub(crate) numbers: Numbers,
    pub(crate) figures: Figures,
    pub(crate) board: Arc<OwnedFd>,
    pub(crate) states: ServerStates,
    pub(crate) directory: RuntimeDirectory,
    pub(crate) fixed: Fixed,
    /// Begins the ids of requests and tunnels: higher than that of any supervisor before.
    pub(crate) instance: u64,
    pub(crate) reloads: Reloads,
    pub(crate) news: admin::News,
    pub(crate) restarts: u64,
    pub(crate) adoptions: u64,
    pub(crate) state_write_failures: u64,
    /// What is on disk for the next supervisor is older than what is known.
    pub(crate) unsaved: bool,
    /// Why the last good configuration runs in place of what the file says.
    pub(crate) fallback: Option<String>,
    /// RLIMIT_NOFILE, of this process and of every worker.
    pub(crate) descriptors: u64,
    pub(crate) watchdog: Watchdog,
    pub(crate) handovers: Handovers,
    /// Why workers ended, as they said themselves.
    pub(crate) last_words: HashMap<WorkerId, String>,
    /// What runs; `None` until the first commit.
    pub(crate) running: Option<Running>,
    pub(crate) http: Option<(SocketAddr, AbortHandle)>,
    pub(crate) log: LogHandle,
    pub(crate) end: Option<Result<(), Error>>,
    pub(crate) stop_deadline: Option<Instant>,
    interrupts: u32,
    watch: Option<Watch>,
    /// When files are looked at after they seem to have changed.
    look_at: Option<Instant>,
    looking: bool,
}

/// The active generation's configuration.
pub(crate) struct Running {
    pub(crate) config: Arc<Config>,
    pub(crate) content: Content,
}

/// Runs the gateway until it has stopped.
pub(crate) async fn run(options: &Options) -> Result<(), Error> {
    let Beginning {
        loaded,
        read,
        mistakes,
        directory,
        _lock,
    } = Beginning::find(&options.config)?;
    let socket = loaded.config.admin.socket.clone();
    let log =
        log::init(log_settings(&loaded.config)).map_err(Error::system("opening of the log"))?;
    let descriptors = limits::raise_nofile().map_err(Error::system("raise of RLIMIT_NOFILE"))?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        pid = std::process::id(),
        config = %options.config.display(),
        "wsgate starts"
    );
    // Before anything that may take its time: signals and requests wait then, and are heard.
    let (events, mut incoming) = mpsc::unbounded_channel();
    hear_signals(&events)?;
    let listener = admin::listen(&socket)?;
    tokio::spawn(admin::serve(listener, events.clone()));
    let outcome = async {
        let mut left = adopt::find(&directory, Some(&loaded.config)).await?;
        let own = Own {
            fixed: Fixed::of(&loaded.config),
            directory,
            events,
            log,
            descriptors,
        };
        let mut supervisor = Supervisor::new(options.clone(), own, left.board.take())?;
        supervisor.start(loaded, read, mistakes, left)?;
        supervisor.turn(&mut incoming).await
    };
    let outcome = outcome.await;
    admin::remove(&socket);
    outcome
}

/// What a supervisor begins with.
struct Beginning {
    loaded: Loaded,
    /// What the files say, if they could be read.
    read: Option<Sources>,
    /// Why `loaded` is not what the files say, but what ran last.
    mistakes: Option<Errors>,
    directory: RuntimeDirectory,
    _lock: Lock,
}

impl Beginning {
    /// The configuration; if it has mistakes, and the last supervisor died, the one that ran then.
    fn find(config: &std::path::Path) -> Result<Self, Error> {
        match wsgate_config::load(config) {
            Ok(loaded) => {
                let directory = RuntimeDirectory::of(&loaded.config.admin.socket);
                Ok(Self {
                    _lock: directory.lock()?,
                    read: Some(loaded.sources.clone()),
                    mistakes: None,
                    loaded,
                    directory,
                })
            }
            Err(mistakes) => {
                let Some((directory, loaded)) = state::what_ran_last(config) else {
                    return Err(Error::Config(mistakes));
                };
                Ok(Self {
                    _lock: directory.lock()?,
                    loaded,
                    read: Sources::read(config).ok(),
                    mistakes: Some(mistakes),
                    directory,
                })
            }
        }
    }
}

fn hear_signals(events: &Events) -> Result<(), Error> {
    let mut signals = signals::listen(HEARD).map_err(Error::system("handling of signals"))?;
    let events = events.clone();
    tokio::spawn(async move {
        while let Some(received) = signals.recv().await {
            if events.send(Event::Signal(received)).is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// What a supervisor has opened for itself.
struct Own {
    directory: RuntimeDirectory,
    events: Events,
    log: LogHandle,
    /// RLIMIT_NOFILE.
    descriptors: u64,
    fixed: Fixed,
}

impl Supervisor {
    /// `board`: that of workers that are to be adopted.
    fn new(options: Options, own: Own, board: Option<OwnedFd>) -> Result<Self, Error> {
        let Own {
            directory,
            events,
            log,
            descriptors,
            fixed,
        } = own;
        let (board, fd) = match board {
            None => Board::create(),
            Some(fd) => fd
                .try_clone()
                .and_then(Board::open)
                .map(|board| (board, fd)),
        }
        .map_err(Error::system("creation of the board"))?;
        let state = State::load(&directory);
        let since = SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Ok(Self {
            instance: since.unwrap_or_default().as_secs().max(state.instance + 1),
            directory,
            fixed,
            adoptions: 0,
            state_write_failures: 0,
            unsaved: false,
            fallback: None,
            options,
            events,
            started: Instant::now(),
            started_at: SystemTime::now(),
            lifecycle: Lifecycle::new(settings()),
            closes: Closes::default(),
            links: BTreeMap::new(),
            generations: BTreeMap::new(),
            last_generation: state.generation,
            sockets: Sockets::default(),
            numbers: Numbers::default(),
            figures: Figures::new(board),
            board: Arc::new(fd),
            states: ServerStates::restored(state.servers),
            reloads: Reloads::after(state.held),
            news: admin::News::default(),
            restarts: 0,
            descriptors,
            watchdog: Watchdog::default(),
            handovers: Handovers::default(),
            last_words: HashMap::new(),
            running: None,
            http: None,
            log,
            end: None,
            stop_deadline: None,
            interrupts: 0,
            watch: None,
            look_at: None,
            looking: false,
        })
    }

    /// Begins the first generation of this supervisor's own.
    fn start(
        &mut self,
        loaded: Loaded,
        read: Option<Sources>,
        mistakes: Option<Errors>,
        left: LeftBehind,
    ) -> Result<(), Error> {
        log_migration();
        for (upstream, server, state) in self.states.all() {
            tracing::info!(upstream, server, %state, "server state, as it was set before the start");
        }
        self.adoptions = left.workers.len() as u64;
        if let Some(mistakes) = &mistakes {
            log_mistakes(mistakes);
            let why = mistakes_in_words(mistakes);
            tracing::error!(
                "{why}: the last good configuration runs. Mend it, then `wsctl reload`"
            );
            self.fallback = Some(why);
        } else if self.reloads.was_held(read.as_ref()) {
            tracing::warn!(
                "the file that was held back (reload.max_drained) when the last supervisor died is loaded now"
            );
        }
        if !left.workers.is_empty() {
            // What they run is what ran last, unless that could not be written down.
            let last = state::last_good(&self.directory, &self.options.config);
            let nothing = || Sources::from_text(self.options.config.clone(), "");
            let sources = last.map_or_else(nothing, |last| last.sources);
            self.adopt(left, Content::new(sources))
                .map_err(Error::system("adoption of workers that were left behind"))?;
        }
        self.begin_first(loaded, read)
    }

    /// Takes events until the end has come.
    async fn turn(&mut self, incoming: &mut mpsc::UnboundedReceiver<Event>) -> Result<(), Error> {
        let mut look = tokio::time::interval(watch::LOOK_EVERY);
        let watchdog = systemd::watchdog_interval().unwrap_or(Duration::from_secs(3600));
        let mut alive = tokio::time::interval((watchdog / 2).max(Duration::from_millis(100)));
        loop {
            if let Some(end) = self.end.take() {
                return end;
            }
            let wake_at = self.wake_at();
            tokio::select! {
                Some(event) = incoming.recv() => self.handle(event),
                () = sleep_until(wake_at) => self.timers(),
                _ = look.tick() => {
                    self.look();
                    self.save_again();
                    self.give_up_closes();
                    // What a long list or a large configuration has needed.
                    wsgate_os::memory::give_back();
                }
                _ = alive.tick() => self.tell_systemd_alive(),
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Signal(received) => self.signal(received),
            Event::Said(worker, message) => self.said(worker, message),
            Event::Exited(worker, exit) => self.exited(worker, exit),
            Event::Read(read) => self.read(*read),
            Event::FilesChanged => {
                self.look_at
                    .get_or_insert_with(|| Instant::now() + watch::SETTLE);
            }
            Event::Looked(sources) => self.looked(sources),
            Event::Save => self.save_all(),
            Event::Admin(request) => self.admin(request),
            Event::DryRead(read, curious) => self.dry_read(*read, curious),
            Event::Judged(verdict) => self.judged(*verdict),
        }
    }

    fn said(&mut self, worker: WorkerId, message: FromWorker) {
        match message {
            FromWorker::Ready { version: VERSION } => {
                self.apply(wsgate_lifecycle::Event::Ready(worker));
            }
            // The two come from one image, so this is a fault, and not one to go on with.
            FromWorker::Ready { version } => {
                let words =
                    format!("it speaks version {version} of the control channel, not {VERSION}");
                self.last_words.insert(worker, words);
                if let Some(link) = self.links.get(&worker) {
                    link.kill();
                }
            }
            FromWorker::Released => self.apply(wsgate_lifecycle::Event::Released(worker)),
            FromWorker::LetGo { retired } => {
                self.apply(wsgate_lifecycle::Event::LetGo { worker, retired });
            }
            FromWorker::Empty => self.apply(wsgate_lifecycle::Event::Empty(worker)),
            FromWorker::Failed { reason } => {
                self.last_words.insert(worker, reason);
            }
            FromWorker::HandedOver {
                handover,
                moved,
                stays,
                broken,
                longest_pause_us,
            } => {
                self.handovers.note_pause(handover, longest_pause_us);
                self.handed_over(worker, handover, moved, stays, broken);
            }
            FromWorker::TookOver {
                handover,
                fates,
                longest_pause_us,
                over: _,
            } => self.took_over(worker, handover, fates, longest_pause_us),
            // The link keeps these to itself.
            FromWorker::Pong { .. } => {}
            FromWorker::Hello(_) | FromWorker::Sockets { .. } => {
                tracing::error!(worker, "a worker introduces itself to whom it knows");
            }
        }
    }

    fn admin(&mut self, request: Request) {
        // Whoever asked may be gone by the time of the answer.
        match request {
            Request::Snapshot(reply) => drop(reply.send(self.snapshot())),
            Request::Reload { force, reply } => self.request_reload(By::Admin, force, Some(reply)),
            Request::DryRun(reply) => self.request_dry_run(reply),
            Request::Events(reply) => drop(reply.send(self.news.listen())),
            Request::Stop { now, reply } => drop(reply.send(self.request_stop(now))),
            Request::Server {
                upstream,
                server,
                change,
                reply,
            } => {
                drop(reply.send(self.change_server(&upstream, &server, &change)));
            }
        }
    }

    fn signal(&mut self, received: Received) {
        let Received { signal, pid, uid } = received;
        let name = signals::name(signal);
        match signal {
            libc::SIGHUP => {
                tracing::info!(signal = name, pid, uid, "reload asked for");
                self.request_reload(By::Signal, false, None);
            }
            libc::SIGTERM | libc::SIGQUIT | libc::SIGINT => {
                tracing::info!(signal = name, pid, uid, "stop asked for");
                self.interrupts += u32::from(signal == libc::SIGINT);
                let now = self.interrupts > u32::from(!self.options.stop_at_first_interrupt);
                let stopping = self.request_stop(now);
                if signal == libc::SIGINT && !now && stopping.tunnels > 0 {
                    tracing::info!(tunnels = stopping.tunnels, "another Ctrl-C closes them now");
                }
            }
            libc::SIGUSR1 => self.reopen_logs(),
            _ => tracing::info!(signal = name, pid, uid, "signal ignored"),
        }
    }

    fn reopen_logs(&self) {
        match self.log.reopen() {
            Ok(()) => tracing::info!("log files reopened"),
            Err(error) => tracing::error!(%error, "log file not reopened; lines go to the old one"),
        }
        self.send_to_all(&ToWorker::ReopenLogs);
    }

    /// The time as lifecycle counts it.
    pub(crate) fn now(&self) -> Moment {
        self.started.elapsed()
    }

    pub(crate) fn send_to_all(&self, message: &ToWorker) {
        for link in self.links.values() {
            link.send(message.clone());
        }
    }

    fn wake_at(&self) -> Option<Instant> {
        let lifecycle = self.lifecycle.wake_at().map(|moment| self.started + moment);
        let handovers = self.handovers.look_at();
        let times = [lifecycle, self.look_at, self.beat_at(), handovers];
        times.into_iter().flatten().min()
    }

    fn timers(&mut self) {
        if self.look_at.is_some_and(|at| at <= Instant::now()) {
            self.look_at = None;
            self.look();
        }
        self.beat_if_due();
        self.look_at_handovers();
        self.apply(wsgate_lifecycle::Event::Tick);
    }

    /// Watches what runs, or nothing.
    pub(crate) fn rearm_watch(&mut self, sources: &Sources, wanted: bool) {
        self.watch = None;
        if !wanted {
            return;
        }
        match Watch::start(&self.options.config, sources, &self.events) {
            Ok(watch) => self.watch = Some(watch),
            Err(error) => {
                tracing::warn!(%error, every = ?watch::LOOK_EVERY, "no change notifications: files are only looked at")
            }
        }
    }

    /// Reads the files, away from the loop, to see whether they say something new.
    fn look(&mut self) {
        let watched = self
            .running
            .as_ref()
            .is_some_and(|running| running.config.reload.watch);
        if self.looking || !watched || self.lifecycle.phase() != Phase::Running {
            return;
        }
        self.looking = true;
        let (path, events) = (self.options.config.clone(), self.events.clone());
        tokio::task::spawn_blocking(move || {
            let sources = Sources::read(&path).ok();
            drop(events.send(Event::Looked(sources)));
        });
    }

    fn looked(&mut self, sources: Option<Sources>) {
        self.looking = false;
        // A file that cannot be read right now is on its way, or its absence is told at the next reload.
        let Some(sources) = sources else { return };
        if self.reloads.is_news(&sources) {
            tracing::info!("the configuration has changed on disk");
            self.request_reload(By::Watch, false, None);
        } else if self.is_held_by_silence(&sources) {
            self.request_reload(By::Watch, false, None);
        }
    }

    fn tell_systemd_alive(&self) {
        if systemd::watchdog_interval().is_some() {
            notify_systemd(systemd::watchdog());
        }
        if let Some(at) = self.stop_deadline {
            let left = at.saturating_duration_since(Instant::now());
            notify_systemd(systemd::extend_timeout(left + Duration::from_secs(10)));
        }
    }

    /// The configuration file's path, as text.
    pub(crate) fn config_file(&self) -> String {
        let path: &PathBuf = &self.options.config;
        path.display().to_string()
    }
}

/// It makes closing a socket safer, and nothing here needs it.
fn log_migration() {
    match steer::migrates() {
        Ok(on) => {
            tracing::debug!(on, "net.ipv4.tcp_migrate_req");
        }
        Err(error) => tracing::debug!(%error, "net.ipv4.tcp_migrate_req cannot be read"),
    }
}

/// systemd is told, not asked: what it misses is logged.
pub(crate) fn notify_systemd(told: std::io::Result<()>) {
    if let Err(error) = told {
        tracing::warn!(%error, "systemd not notified");
    }
}

/// A duration as the log shows it: seconds, to a tenth.
pub(crate) fn seconds(duration: Duration) -> f64 {
    tenths(duration.as_secs_f64())
}

/// A figure that nobody reads beyond its first decimal.
pub(crate) fn tenths(figure: f64) -> f64 {
    (figure * 10.0).round() / 10.0
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

fn settings() -> Settings {
    let mut settings = Settings::default();
    let wanted = std::env::var("WSGATE_TEST_READY_WITHIN_MS")
        .ok()
        .filter(|_| cfg!(debug_assertions));
    if let Some(ms) = wanted.and_then(|text| text.parse().ok()) {
        settings.ready_within = Duration::from_millis(ms);
    }
    settings
}

pub(crate) fn level(config: &Config) -> tracing::Level {
    match config.log.level {
        LogLevel::Error => tracing::Level::ERROR,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Trace => tracing::Level::TRACE,
    }
}

fn log_settings(config: &Config) -> LogSettings {
    LogSettings {
        level: level(config),
        json: config.log.format == LogFormat::Json,
        access: config.log.access,
        file: config.log.file.clone(),
        process: "supervisor".to_owned(),
    }
}
