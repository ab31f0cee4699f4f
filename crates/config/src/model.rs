//! The validated configuration: what runs.
//!
//! Everything here has been checked: names resolve, addresses parse, defaults
//! are filled in. It travels to the workers as JSON, so what was validated is
//! what runs; nothing in it refers back to a file.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A whole, validated configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Number of slots, `auto` already resolved; at least 1.
    pub workers: usize,
    /// `[admin]`
    pub admin: Admin,
    /// `[log]`
    pub log: Log,
    /// `[reload]`
    pub reload: Reload,
    /// `[drain]`
    pub drain: Drain,
    /// `[stop]`
    pub stop: Stop,
    /// `[watchdog]`
    pub watchdog: Watchdog,
    /// `[limits]`
    pub limits: Limits,
    /// `[[listener]]`, in the order of the file; at least one.
    pub listeners: Vec<Listener>,
    /// `[[route]]`, in the order of the file; at least one.
    pub routes: Vec<Route>,
    /// `[upstream.NAME]`
    pub upstreams: BTreeMap<String, Upstream>,
}

/// `[admin]`: where the supervisor answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admin {
    /// The Unix socket of the admin API.
    pub socket: PathBuf,
    /// `/metrics`, `/healthz`, `/readyz`; off unless set.
    pub http: Option<SocketAddr>,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// Least severe level that is written.
    pub level: LogLevel,
    /// How a line looks.
    pub format: LogFormat,
    /// A file to append to instead of stderr; reopened on SIGUSR1.
    pub file: Option<PathBuf>,
    /// Whether tunnels and requests get lines of their own.
    pub access: bool,
}

/// `log.level`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What stops wsgate from doing its job.
    Error,
    /// What an operator should look at.
    Warn,
    /// What an operator wants to have been told.
    Info,
    /// For finding faults.
    Debug,
    /// Everything.
    Trace,
}

/// `log.format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `[reload]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reload {
    /// Reload by itself when the file, or one that it includes, changes.
    pub watch: bool,
    /// A reload by itself that would drain a larger share of the tunnels than this is held back.
    pub max_drained: Share,
}

/// A part of a whole, from none to all of it. Exact: in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Share(u32);

impl Share {
    /// All of it.
    pub const ALL: Self = Self(1_000_000);

    /// `None` if it is more than all.
    #[must_use]
    pub const fn from_millionths(millionths: u32) -> Option<Self> {
        if millionths > Self::ALL.0 {
            return None;
        }
        Some(Self(millionths))
    }

    /// From 0 to 1.
    #[must_use]
    pub fn as_fraction(self) -> f64 {
        f64::from(self.0) / f64::from(Self::ALL.0)
    }

    /// Whether `part` is more than this share of `whole`.
    #[must_use]
    pub const fn is_exceeded(self, part: u64, whole: u64) -> bool {
        part as u128 * Self::ALL.0 as u128 > whole as u128 * self.0 as u128
    }
}

/// As it is configured: `0.5%`.
impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / 10_000, self.0 % 10_000);
        if rest == 0 {
            return write!(f, "{whole}%");
        }
        let rest = format!("{rest:04}");
        write!(f, "{whole}.{}%", rest.trim_end_matches('0'))
    }
}

/// `[drain]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// At a reload live tunnels move to the new workers; else they stay where they are and drain.
    pub handover: bool,
    /// How long a tunnel of an old generation may stay.
    pub grace: Duration,
    /// Tunnels closed per second at most; at least 1.
    pub close_rate: u32,
    /// Status code of the Close frame (RFC 6455 section 7.4).
    pub close_code: u16,
    /// A worker whose supervisor is gone drains at once, for so long; `None`: it serves on until
    /// another supervisor comes.
    pub orphan_grace: Option<Duration>,
    /// Old generations that may hold tunnels at one time; 0 is no limit.
    pub generations: usize,
}

/// `[stop]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// How long connections are accepted still while `/readyz` fails already.
    pub accept_for: Duration,
    /// How long tunnels may stay when wsgate stops.
    pub grace: Duration,
}

/// `[watchdog]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watchdog {
    /// A worker that shows no sign of life for so long is replaced; at least a second. `None` is `off`.
    pub timeout: Option<Duration>,
}

/// `[limits]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Tunnels in the whole gateway; `None` is `auto`: what the descriptors allow.
    pub tunnels: Option<u64>,
    /// From accept to a complete request head.
    pub handshake_timeout: Duration,
    /// Longest request head, in bytes.
    pub header_bytes: usize,
}

/// `[[listener]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Where clients come in.
    pub address: ListenAddress,
}

/// An address to listen on. Its text form is the listener's name everywhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ListenAddress {
    /// IPv4, or IPv6 without IPv4 in it (`IPV6_V6ONLY`). Port 0 takes a free one.
    Tcp(SocketAddr),
    /// A path in the file system.
    Unix(PathBuf),
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// `[[route]]`: what picks an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Hosts that it is for; empty is any.
    pub hosts: Vec<HostPattern>,
    /// Paths that it is for.
    pub path: PathPattern,
    /// Name of an upstream that exists.
    pub upstream: String,
    /// A tunnel ends when no byte came in either direction for so long.
    pub idle_timeout: Duration,
    /// A peer that takes nothing for so long, while something waits for it, is gone.
    pub send_timeout: Duration,
    /// A tunnel's longest life; `None` is any.
    pub max_age: Option<Duration>,
    /// A client that is silent for so long is pinged; `None` is never.
    pub ping_interval: Option<Duration>,
    /// The supervisor's number for this route, stable across generations.
    #[serde(default)]
    pub number: u32,
}

impl Route {
    /// What the route is called in the log, in metrics and in the admin API:
    /// its first host (`*` if any) and its path, as `chat.example.com/ver`.
    #[must_use]
    pub fn name(&self) -> String {
        match self.hosts.as_slice() {
            [] => format!("*{}", self.path),
            [host] => format!("{host}{}", self.path),
            [host, more @ ..] => format!("{host}+{}{}", more.len(), self.path),
        }
    }
}

/// A host that a route is for; lower case, without a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostPattern {
    /// This host alone.
    Exact(String),
    /// Every host below this one: `*.example.com` is held as `example.com`,
    /// and is for `a.example.com` and `a.b.example.com` but not for `example.com`.
    Below(String),
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Below(host) => write!(f, "*.{host}"),
        }
    }
}

/// Paths that a route is for. Each begins with `/`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PathPattern {
    /// `"=/ver"`: that path alone.
    Exact(String),
    /// `"/ver"`: that path and what is below it, on segment borders. Held without
    /// a trailing slash, so the root is the empty string. A configured trailing
    /// slash means the same as none.
    Segments(String),
    /// `"/ver*"`: every path that begins so.
    Prefix(String),
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(path) => write!(f, "={path}"),
            Self::Segments(path) if path.is_empty() => f.write_str("/"),
            Self::Segments(path) => f.write_str(path),
            Self::Prefix(path) => write!(f, "{path}*"),
        }
    }
}

/// `[upstream.NAME]`: a named group of servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// How a server is picked.
    pub balance: Balance,
    /// Longest time for one connect.
    pub connect_timeout: Duration,
    /// Connects to another server before the client gets 502.
    pub retries: u32,
    /// Own addresses to connect from, in turn, those of the server's family; none twice. Where
    /// there is none the kernel chooses.
    pub source: Vec<IpAddr>,
    /// At least one, no address twice.
    pub servers: Vec<Server>,
}

/// `upstream.balance`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// Smooth weighted round-robin.
    RoundRobin,
    /// The server with the fewest tunnels for its weight.
    LeastTunnels,
}

/// One server of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Where it is.
    pub address: ServerAddress,
    /// Its share, 1 to 1000.
    pub weight: u32,
    /// The supervisor's number for this server of this upstream, stable across generations.
    #[serde(default)]
    pub number: u32,
}

/// Where a server is. Its text form, as written, is the server's name everywhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerAddress {
    /// An address and a port.
    Ip(SocketAddr),
    /// A host name, looked up at each connect, and a port.
    Name(String, u16),
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Name(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
