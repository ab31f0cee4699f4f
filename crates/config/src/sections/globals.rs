//! What the main file alone may hold: all but listeners, routes and upstreams.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::thread::available_parallelism;
use std::time::Duration;

use super::{POSITIVE, narrow};
use crate::decode::{Section, Value};
use crate::error::Complaint;
use crate::{
    Admin, DEFAULT_ADMIN_SOCKET, Drain, Limits, Log, LogFormat, LogLevel, Reload, Share, Stop,
    Watchdog, address, units,
};

const MOST_WORKERS: u64 = 256;
const MOST_GENERATIONS: u64 = 1_000;
/// A shorter watchdog would bark at a page that comes from a slow disk.
const LEAST_TIMEOUT: Duration = Duration::from_secs(1);

/// What the main file alone may hold.
#[derive(Debug)]
pub(crate) struct Globals {
    pub(crate) workers: usize,
    pub(crate) admin: Admin,
    pub(crate) log: Log,
    pub(crate) reload: Reload,
    pub(crate) drain: Drain,
    pub(crate) stop: Stop,
    pub(crate) watchdog: Watchdog,
    pub(crate) limits: Limits,
}

pub(super) fn read(root: &mut Section<'_>) -> Globals {
    root.optional("include", include);
    let workers = root.optional("workers", |it| auto_or(it, 1..=MOST_WORKERS));
    Globals {
        workers: workers
            .flatten()
            .map_or_else(cores, |number| number as usize),
        admin: admin(root.section("admin")),
        log: log(root.section("log")),
        reload: reload(root.section("reload")),
        drain: drain(root.section("drain")),
        stop: stop(root.section("stop")),
        watchdog: watchdog(root.section("watchdog")),
        limits: limits(root.section("limits")),
    }
}

/// One slot for each core that this process may use.
fn cores() -> usize {
    available_parallelism().map_or(1, |cores| cores.get().min(MOST_WORKERS as usize))
}

/// That these are texts; they have been followed while reading.
fn include(value: &Value<'_>) -> Result<(), Complaint> {
    let help = "write include = [\"conf.d/*.toml\"]";
    let Some(items) = value.items() else {
        return Err(value.wrong("a list", help));
    };
    for item in items.iter().filter(|item| !item.is_text()) {
        item.complain(item.wrong("a list of paths", help));
    }
    Ok(())
}

/// `None` for `"auto"`.
fn auto_or(value: &Value<'_>, range: RangeInclusive<u64>) -> Result<Option<u64>, Complaint> {
    if value.as_text() == Some("auto") {
        return Ok(None);
    }
    value.number(range).map(Some).map_err(|mut complaint| {
        let help = complaint.help.unwrap_or_default();
        complaint.help = Some(format!("{help}, or \"auto\""));
        complaint
    })
}

fn admin(mut section: Section<'_>) -> Admin {
    let socket = PathBuf::from(DEFAULT_ADMIN_SOCKET);
    let admin = Admin {
        socket: section.read("socket", socket, |it| it.read(socket_without_scheme)),
        http: section.optional("http", |it| it.read(address::ip_and_port)),
    };
    section.finish(&[]);
    admin
}

fn socket_without_scheme(text: &str) -> Result<PathBuf, Complaint> {
    match text.strip_prefix("unix:") {
        Some(path) => Err(Complaint::new(
            format!("`{text}` is not an absolute path"),
            format!("write the path alone: \"{path}\""),
        )),
        None => address::admin_socket_path(text, DEFAULT_ADMIN_SOCKET),
    }
}

fn log(mut section: Section<'_>) -> Log {
    const LEVELS: [(&str, LogLevel); 5] = [
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ];
    const FORMATS: [(&str, LogFormat); 2] = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let log = Log {
        level: section.read("level", LogLevel::Info, |it| it.word(&LEVELS)),
        format: section.read("format", LogFormat::Text, |it| it.word(&FORMATS)),
        file: section.optional("file", |it| it.read(log_file)),
        access: section.read("access", true, access),
    };
    section.finish(&[]);
    log
}

fn log_file(text: &str) -> Result<PathBuf, Complaint> {
    address::absolute_path(text, "/var/log/wsgate/wsgate.log")
}

fn access(value: &Value<'_>) -> Result<bool, Complaint> {
    match value.as_text() {
        Some(text) if text.contains('/') => Err(Complaint::not_supported(
            "`access` as a file of its own",
            "write true, and the lines go where `log.file` says",
        )),
        _ => value.boolean(),
    }
}

fn reload(mut section: Section<'_>) -> Reload {
    let reload = Reload {
        watch: section.read("watch", true, Value::boolean),
        max_drained: section.read("max_drained", Share::ALL, Value::share),
    };
    section.finish(&[]);
    reload
}

fn drain(mut section: Section<'_>) -> Drain {
    let drain = Drain {
        handover: section.read("handover", true, Value::boolean),
        grace: section.read("grace", Duration::from_secs(600), |it| {
            it.duration(POSITIVE)
        }),
        close_rate: section.read("close_rate", 100, |it| it.number(1..=1_000_000).map(narrow)),
        close_code: section.read("close_code", 1012, close_code),
        orphan_grace: section.optional("orphan_grace", |it| it.duration(Duration::ZERO)),
        generations: section.read("generations", 0, |it| {
            it.number(0..=MOST_GENERATIONS)
                .map(|number| number as usize)
        }),
    };
    section.finish(&[]);
    drain
}

/// What an endpoint may send (RFC 6455 section 7.4 and the registry that it
/// founded): the others stand for the absence of a Close frame, or are nobody's.
fn close_code(value: &Value<'_>) -> Result<u16, Complaint> {
    let help = "write 1000 to 1003, 1007 to 1014 or 3000 to 4999; 1012 is Service Restart";
    let Some(code) = value.as_integer() else {
        return Err(value.wrong("a number", help));
    };
    match u16::try_from(code) {
        Ok(code @ (1000..=1003 | 1007..=1014 | 3000..=4999)) => Ok(code),
        _ => Err(Complaint::new(
            format!("{code} may not be sent in a Close frame"),
            help,
        )),
    }
}

fn stop(mut section: Section<'_>) -> Stop {
    let stop = Stop {
        accept_for: section.read("accept_for", Duration::ZERO, |it| {
            it.duration(Duration::ZERO)
        }),
        grace: section.read("grace", Duration::from_secs(30), |it| {
            it.duration(Duration::ZERO)
        }),
    };
    section.finish(&[]);
    stop
}

fn watchdog(mut section: Section<'_>) -> Watchdog {
    let timeout = Some(Duration::from_secs(10));
    let watchdog = Watchdog {
        timeout: section.read("timeout", timeout, off_or_duration),
    };
    section.finish(&[]);
    watchdog
}

/// `None` for `"off"` and for no time at all.
fn off_or_duration(value: &Value<'_>) -> Result<Option<Duration>, Complaint> {
    let text = value.as_text();
    let zero = |text| units::duration(text, Duration::ZERO).is_ok_and(|it| it.is_zero());
    if text == Some("off") || text.is_some_and(zero) || value.as_integer() == Some(0) {
        return Ok(None);
    }
    let read = value.duration(LEAST_TIMEOUT).map(Some);
    read.map_err(|mut complaint| {
        let help = complaint.help.unwrap_or_default();
        complaint.help = Some(format!("{help}, or \"off\""));
        complaint
    })
}

fn limits(mut section: Section<'_>) -> Limits {
    let timeout = Duration::from_secs(10);
    let limits = Limits {
        tunnels: section.read("tunnels", None, |it| auto_or(it, 1..=100_000_000)),
        handshake_timeout: section.read("handshake_timeout", timeout, |it| it.duration(POSITIVE)),
        // hyper reads a head into a buffer of no less than 8 KiB.
        header_bytes: section.read("header_bytes", 16 << 10, |it| {
            it.size(8 << 10..=1 << 20).map(|bytes| bytes as usize)
        }),
    };
    section.finish(&["tunnels_per_client", "handshakes_per_second"]);
    limits
}
