//! The JSON of the admin API, version 1.
//!
//! Times of day are RFC 3339 in UTC with milliseconds (`…_at`), durations are
//! seconds with a fraction (`…_seconds`), sizes are bytes. New fields may be
//! added within a version; readers ignore what they do not know.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use crate::errors::{ApiError, ErrorBody};
pub use crate::events::{Event, EventKind, GenerationChange, WorkerChange};
pub use crate::fates::{
    DryRun, Fates, Held, HeldReload, Loss, LossReason, NO_HANDOVER, UnjudgedWorker,
};
pub use crate::requests::{
    CLOSE_CODE, CLOSE_REASON, CloseRequest, LONGEST_REASON, ReloadRequest, ServerStateChanged,
    ServerStateRequest, StopRequest, Stopping, is_close_code,
};

/// Where the admin socket is unless the configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/wsgate/admin.sock";

/// `GET /v1/status`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// wsgate's version.
    pub version: String,
    /// The supervisor's process.
    pub pid: u32,
    /// `running` or `stopping`.
    pub state: GatewayState,
    /// When the supervisor started.
    pub started_at: String,
    /// Since then.
    pub uptime_seconds: f64,
    /// What runs.
    pub config: ConfigStatus,
    /// The last reload, if there was one.
    pub last_reload: Option<LastReload>,
    /// A reload that would drain more tunnels than `reload.max_drained` allows, and waits for a word.
    #[serde(default)]
    pub held_reload: Option<HeldReload>,
    /// Oldest first; the active one is last, but for one that is starting.
    pub generations: Vec<GenerationStatus>,
    /// By generation, then by slot.
    pub workers: Vec<WorkerStatus>,
    /// Slots that have no worker of their own right now.
    pub vacant_slots: Vec<VacantSlot>,
    /// In the order of the configuration.
    pub listeners: Vec<ListenerStatus>,
    /// By name.
    pub upstreams: Vec<UpstreamStatus>,
    /// What the gateway can hold at once; `None` until a generation is active.
    #[serde(default)]
    pub limits: Option<LimitsStatus>,
    /// Over all generations, dead workers included.
    pub totals: Totals,
}

/// What the gateway can hold at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsStatus {
    /// Tunnels over all workers of the active generation.
    pub tunnels: u64,
    /// What this follows from.
    pub tunnels_by: TunnelsBy,
    /// File descriptors that each worker may open (RLIMIT_NOFILE).
    pub descriptors_per_worker: u64,
}

/// What limits the number of tunnels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelsBy {
    /// `limits.tunnels`.
    Config,
    /// The file descriptors of the workers: `limits.tunnels` is `auto`, or more than fits.
    Descriptors,
}

/// What the gateway as a whole is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GatewayState {
    /// The first generation is not active yet.
    Starting,
    /// Clients are served.
    Running,
    /// No new clients; tunnels may stay until their deadline.
    Stopping,
}

/// The configuration that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// The file given with `--config`.
    pub file: String,
    /// SHA-256 of what runs (the file and what it includes), as 64 hex digits.
    pub sha256: String,
    /// When it became active.
    pub active_since: String,
    /// Whether the file on disk says something else now.
    pub file_differs: bool,
    /// Why the last good configuration runs although the file says something else: it had mistakes
    /// when a supervisor started in place of one that had died.
    #[serde(default)]
    pub fallback: Option<String>,
}

/// How the last reload went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastReload {
    /// When it was asked for.
    pub at: String,
    /// Who asked: `admin`, `signal` or `watch`; `start` if it was the start of a supervisor that has adopted workers.
    pub by: String,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: ReloadOutcome,
}

/// What came of a reload. `result` is `reloaded`, `unchanged`, `failed`, `held` or `dry_run`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum ReloadOutcome {
    /// A new generation is active.
    Reloaded(Reloaded),
    /// The files say what runs already.
    Unchanged(Unchanged),
    /// The old generation goes on, untouched.
    Failed {
        /// One line.
        message: String,
        /// Each mistake of the configuration, rendered for a terminal (several lines, no colours).
        errors: Vec<String>,
    },
    /// It would drain too many tunnels, and waits for a word. Nothing has changed.
    Held(Held),
    /// Nothing was to change.
    DryRun(DryRun),
}

/// A reload that had nothing to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unchanged {
    /// The generation that holds this content.
    pub generation: u64,
    /// When it became active.
    pub active_since: String,
    /// As in [`Reloaded::draining_tunnels`].
    pub draining_tunnels: u64,
    /// Older generations that still hold something.
    pub draining_generations: u64,
    /// The last deadline among them, if any.
    pub deadline_at: Option<String>,
}

/// A reload that went well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reloaded {
    /// The new generation.
    pub generation: u64,
    /// From the request to the commit, in milliseconds.
    pub milliseconds: f64,
    /// Tunnels with a deadline: those that older generations still hold, and those of the new one
    /// whose route or server a reload has removed.
    pub draining_tunnels: u64,
    /// Older generations that still hold something.
    pub draining_generations: u64,
    /// The last deadline among them, if any.
    pub deadline_at: Option<String>,
    /// What the operator should know although the reload went well.
    pub warnings: Vec<String>,
    /// Tunnels that have moved to the new workers.
    #[serde(default)]
    pub moved: u64,
    /// What becomes of these.
    #[serde(default)]
    pub fates: Fates,
    /// Tunnels that have not moved, and drain where they are.
    #[serde(default)]
    pub stays: Vec<NotMoved>,
    /// From the commit until every tunnel had moved or was to stay, in milliseconds; `None` with
    /// `drain.handover = false`.
    #[serde(default)]
    pub handover_milliseconds: Option<f64>,
    /// The longest time for which one of these tunnels was with no worker, in milliseconds.
    #[serde(default)]
    pub longest_pause_milliseconds: Option<f64>,
}

/// Tunnels that have not moved at a reload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotMoved {
    /// Why, in words.
    pub reason: String,
    /// How many.
    pub tunnels: u64,
}

/// All workers started for one configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerationStatus {
    /// Its number; higher is newer.
    pub generation: u64,
    /// Where it is in its life.
    pub state: GenerationState,
    /// When it began.
    pub started_at: String,
    /// Since it began.
    pub age_seconds: f64,
    /// When a drain ends what is left.
    pub deadline_at: Option<String>,
    /// Until then.
    pub deadline_in_seconds: Option<f64>,
    /// How many processes it has.
    pub workers: u64,
    /// Tunnels that its workers hold.
    pub tunnels: u64,
    /// Of these, those with a deadline: all, if the generation drains; else those whose route or server a reload
    /// has removed. (Those of servers that the operator drains are told with the servers.)
    #[serde(default)]
    pub draining_tunnels: u64,
}

/// `starting → active → draining → gone`; one that is gone is not listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GenerationState {
    /// Its workers are not all ready yet.
    Starting,
    /// It accepts.
    Active,
    /// It accepts nothing new.
    Draining,
}

/// One worker process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its process.
    pub pid: u32,
    /// Its slot, from 0.
    pub slot: u64,
    /// Its generation.
    pub generation: u64,
    /// Where it is in its life.
    pub state: WorkerState,
    /// Other slots whose sockets it serves.
    pub serves_slots: Vec<u64>,
    /// Tunnels that it holds.
    pub tunnels: u64,
    /// Resident memory, in bytes.
    pub memory_bytes: u64,
    /// CPU time since it started.
    pub cpu_seconds: f64,
    /// Since it last answered; `None` if it never did.
    pub last_heard_seconds: Option<f64>,
    /// A supervisor that is gone has started it.
    #[serde(default)]
    pub adopted: bool,
}

/// A worker's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerState {
    /// It has not said `ready` yet.
    Starting,
    /// It is ready, and waits for the commit.
    Ready,
    /// It accepts.
    Active,
    /// It accepts nothing new.
    Draining,
    /// It did not answer within a second.
    Unresponsive,
}

/// A slot without a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VacantSlot {
    /// The slot, from 0.
    pub slot: u64,
    /// How often in a row its worker died.
    pub deaths: u64,
    /// Until the next start; `None` while one is starting.
    pub restart_in_seconds: Option<f64>,
    /// Its workers crashed so often in a row that it is tried seldom while others serve.
    #[serde(default)]
    pub crash_looping: bool,
    /// The pid of the worker that serves its sockets meanwhile.
    pub served_by: Option<u32>,
}

/// One `[[listener]]`, or one that was removed and is not closed yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// As in the configuration.
    pub address: String,
    /// As bound: differs where the configuration says port 0.
    pub bound: String,
    /// Listening sockets behind it.
    pub sockets: u64,
    /// Sockets that no slot has any more: accepted from for four seconds, then closed.
    #[serde(default)]
    pub retired_sockets: u64,
    /// It is not in the configuration any more.
    #[serde(default)]
    pub retired: bool,
}

/// One `[upstream.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamStatus {
    /// Its name.
    pub name: String,
    /// How a server is picked.
    pub balance: String,
    /// In the order of the configuration.
    pub servers: Vec<ServerStatus>,
}

/// One server of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// As in the configuration.
    pub address: String,
    /// Its share.
    pub weight: u32,
    /// The operator's word.
    pub state: ServerState,
    /// Tunnels to it, in every generation.
    pub tunnels: u64,
    /// Of these, those with a deadline.
    pub draining_tunnels: u64,
    /// Tunnels opened to it so far.
    pub opened: u64,
    /// Connects to it that failed so far.
    pub connect_failures: u64,
    /// Whether the active configuration has it; one that it has not is listed
    /// for as long as it holds tunnels.
    pub configured: bool,
}

/// The operator's word about a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerState {
    /// It gets new tunnels and requests.
    #[default]
    Ready,
    /// It gets nothing new, and its tunnels have until their deadline.
    Drain,
    /// It gets nothing new; its tunnels stay.
    Maint,
}

impl std::fmt::Display for ServerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maint => "maint",
        })
    }
}

/// Counters that never go back while the supervisor lives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Tunnels that live now. (The one figure here that does go back.)
    pub tunnels: u64,
    /// Tunnels opened.
    pub tunnels_opened: u64,
    /// Times that a live tunnel moved from one worker to another.
    #[serde(default)]
    pub handovers: u64,
    /// Tunnels ended, by cause.
    pub tunnels_ended: BTreeMap<String, u64>,
    /// Client connections accepted.
    pub connections: u64,
    /// Requests that were no upgrade.
    pub requests: u64,
    /// Requests that wsgate answered with an error of its own, by status.
    pub errors: BTreeMap<String, u64>,
    /// Tunnel bytes from clients to servers.
    pub bytes_from_clients: u64,
    /// Tunnel bytes from servers to clients.
    pub bytes_from_servers: u64,
    /// Whole messages from clients to servers.
    pub messages_from_clients: u64,
    /// Whole messages from servers to clients.
    pub messages_from_servers: u64,
    /// Reloads that made a new generation.
    pub reloads: u64,
    /// Reloads that failed.
    pub reloads_failed: u64,
    /// Workers that died and were replaced.
    pub worker_restarts: u64,
    /// Workers of a supervisor that is gone, taken over by this one.
    #[serde(default)]
    pub workers_adopted: u64,
    /// Times that the state could not be written down for the next supervisor.
    #[serde(default)]
    pub state_write_failures: u64,
    /// Workers that were stuck, and were ended by the watchdog.
    #[serde(default)]
    pub workers_stuck: u64,
    /// Log lines dropped because their reader was too slow (the supervisor's and the workers').
    pub log_lines_dropped: u64,
}

/// One live tunnel: an element of the array of `GET /v1/tunnels`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tunnel {
    /// The same for its whole life; also the request id of its handshake.
    pub id: String,
    /// The client's address, or `unix`.
    pub client: String,
    /// The listener that it came in by.
    pub listener: String,
    /// The request's host, without a port.
    pub host: String,
    /// The request's path, without a query.
    pub path: String,
    /// The route's name.
    pub route: String,
    /// The upstream's name.
    pub upstream: String,
    /// The server's address, as in the configuration.
    pub server: String,
    /// The worker's pid.
    pub worker: u32,
    /// Its slot.
    pub slot: u64,
    /// Its generation.
    pub generation: u64,
    /// What becomes of it.
    pub state: TunnelState,
    /// When its polite close begins at the latest.
    pub deadline_at: Option<String>,
    /// Until then.
    pub deadline_in_seconds: Option<f64>,
    /// When it was opened.
    pub opened_at: String,
    /// Since then.
    pub age_seconds: f64,
    /// Since the last byte in either direction.
    pub idle_seconds: f64,
    /// How long the client took to answer wsgate's last ping that it answered
    /// (the route's `ping_interval`).
    pub round_trip_seconds: Option<f64>,
    /// Bytes from the client to the server.
    pub bytes_from_client: u64,
    /// Bytes from the server to the client.
    pub bytes_from_server: u64,
    /// Whole messages from the client to the server.
    pub messages_from_client: u64,
    /// Whole messages from the server to the client.
    pub messages_from_server: u64,
    /// The agreed subprotocol (RFC 6455 section 1.9).
    pub subprotocol: Option<String>,
    /// A peer broke RFC 6455 framing: bytes are relayed, messages not counted.
    pub unframed: bool,
    /// How often it has moved from one worker to another.
    #[serde(default)]
    pub handovers: u64,
    /// The request's `Origin` field (RFC 6454), if it had one.
    #[serde(default)]
    pub origin: Option<String>,
    /// Why it has not moved to the active generation, in words.
    #[serde(default)]
    pub stays: Option<String>,
}

/// What becomes of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelState {
    /// It lives.
    Open,
    /// It lives, and has a deadline.
    Draining,
    /// Its polite close has begun.
    Closing,
}

/// Query parameters of `GET /v1/tunnels`. Those given must all match.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TunnelFilter {
    /// The tunnel's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The route's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// The upstream's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// The server's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// The client's address, with or without its port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// The worker's pid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<u32>,
    /// The generation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// The state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<TunnelState>,
    /// At least so many seconds old. In a query also as `1h`, `30m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub older_than: Option<f64>,
    /// At least so many seconds without a byte. In a query also as `1h`, `30m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_for: Option<f64>,
}

/// Name of the response header of `GET /v1/tunnels` that lists, separated by
/// commas, the pids of workers that did not answer within a second. Absent if all did.
pub const UNRESPONSIVE_HEADER: &str = "wsgate-unresponsive-workers";
