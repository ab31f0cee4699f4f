//! The admin socket: HTTP and JSON for the operator, and `/metrics` for machines.
//!
//! Everything here runs beside the supervisor's loop and asks it by events. What may take
//! a while (workers that do not answer, a list of a hundred thousand tunnels) is
//! waited for here, never in the loop.

mod close;
mod events;
mod http;
mod metrics;
mod servers;
mod snapshot;
mod status;
mod tunnels;

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use tokio::net::{TcpListener, UnixListener};
use wsgate_os::socket;
use wsgate_protocol::admin::Held;

pub(crate) use events::News;
pub(crate) use http::{serve, serve_http};
pub(crate) use snapshot::Snapshot;

use crate::Error;

/// The admin socket's mode: its owner and its group may command wsgate.
const MODE: u32 = 0o660;

/// Why a request is refused, as the API says it.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: ::http::StatusCode,
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) help: &'static str,
    pub(crate) details: Box<[String]>,
    /// A reload that is held back.
    pub(crate) held: Option<Box<Held>>,
    /// A header field of the answer, for programs: name and value.
    pub(crate) header: Option<(&'static str, Box<str>)>,
}

impl Refusal {
    pub(crate) fn new(
        status: ::http::StatusCode,
        code: &'static str,
        message: impl Into<String>,
        help: &'static str,
    ) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            help,
            details: Box::default(),
            held: None,
            header: None,
        }
    }
}

/// A listening `[admin] http`.
pub(crate) type HttpListener = TcpListener;

/// Opens the admin socket.
pub(crate) fn listen(path: &Path) -> Result<UnixListener, Error> {
    let failed = |source: io::Error| Error::System {
        what: format!(
            "admin socket {} (set [admin] socket to another path)",
            path.display()
        ),
        source,
    };
    let bound = socket::bind_unix(path, MODE).map_err(failed)?;
    let fd: std::os::fd::OwnedFd = bound.into();
    socket::listen(std::os::fd::AsFd::as_fd(&fd), socket::BACKLOG).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE)).map_err(failed)?;
    UnixListener::from_std(fd.into()).map_err(failed)
}

/// Removes the admin socket at the end.
pub(crate) fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "admin socket not removed");
    }
}

/// Binds `[admin] http`.
pub(crate) fn listen_http(address: SocketAddr) -> io::Result<HttpListener> {
    socket::probe(address)?;
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// RFC 3339 in UTC, with milliseconds.
pub(crate) fn time_of_day(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// The same for a moment of the monotonic clock.
pub(crate) fn time_of_day_at(moment: Instant) -> String {
    let now = Instant::now();
    let ahead = moment.saturating_duration_since(now);
    let behind = now.saturating_duration_since(moment);
    time_of_day(SystemTime::now() + ahead - behind)
}

/// Seconds until a moment; 0 if it has passed.
pub(crate) fn seconds_until(moment: Instant) -> f64 {
    moment
        .saturating_duration_since(Instant::now())
        .as_secs_f64()
}

/// A duration that a query gives, in seconds or as `1h 30m`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    match text.parse() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        Err(_) => humantime::parse_duration(text).ok(),
    }
}
