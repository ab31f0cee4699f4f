//! The gateway's configuration: what stays for the whole storm, and the few things that faults change.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::plan::{Handover, Plan};

/// What stays.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    /// Runtime directory: the admin socket, and what wsgate keeps beside it.
    pub(crate) run: PathBuf,
    /// Always there, IPv4 and IPv6.
    pub(crate) listeners: [SocketAddr; 2],
    /// That come and go, IPv4 and IPv6 and Unix.
    pub(crate) guests: [SocketAddr; 2],
    pub(crate) guest_path: PathBuf,
    /// Servers of the tunnels that stay, and those of short ones.
    pub(crate) steady: Vec<SocketAddr>,
    pub(crate) short: Vec<SocketAddr>,
    /// The server of streams, where there are any.
    pub(crate) stream: Option<SocketAddr>,
    pub(crate) handover: Handover,
    pub(crate) grace: Duration,
    pub(crate) close_rate: u32,
    pub(crate) generations: Option<u32>,
    pub(crate) watchdog: Option<Duration>,
}

/// What faults change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) slots: u32,
    pub(crate) guests: bool,
    /// Makes each configuration another one: milliseconds of a limit beyond its default.
    pub(crate) serial: u32,
}

/// The `Host` of requests, by which routes are told.
pub(crate) const STEADY: &str = "steady.example";
pub(crate) const SHORT: &str = "short.example";
pub(crate) const STREAM: &str = "stream.example";

impl Site {
    pub(crate) fn new(run: &Path, plan: &Plan, servers: &[SocketAddr]) -> Self {
        let ports = free_ports();
        let at =
            |ip: &str, index: usize| SocketAddr::new(ip.parse().unwrap_or(LOOPBACK), ports[index]);
        let (steady, short) = servers.split_at(servers.len() / 2);
        Self {
            run: run.to_owned(),
            listeners: [at("127.0.0.1", 0), at("::1", 1)],
            guests: [at("127.0.0.1", 2), at("::1", 3)],
            guest_path: run.join("guest.sock"),
            steady: steady.to_vec(),
            short: short.to_vec(),
            stream: None,
            handover: plan.handover,
            grace: Duration::from_secs(36_000),
            close_rate: plan.close_rate,
            generations: plan.generations,
            watchdog: plan.watchdog,
        }
    }

    /// The whole file.
    pub(crate) fn text(&self, shape: &Shape) -> String {
        let mut text = format!("workers = {}\n", shape.slots);
        let mut add = |line: String| text.extend([line.as_str(), "\n"]);
        add(format!(
            "[admin]\nsocket = \"{}/admin.sock\"",
            self.run.display()
        ));
        add("[log]\naccess = false".to_owned());
        add(format!(
            "[limits]\nhandshake_timeout = \"{}ms\"",
            10_000 + shape.serial
        ));
        add(format!(
            "[drain]\ngrace = \"{}s\"\nclose_rate = {}",
            self.grace.as_secs(),
            self.close_rate
        ));
        if self.handover == Handover::Off {
            add("handover = false".to_owned());
        }
        if let Some(generations) = self.generations {
            add(format!("generations = {generations}"));
        }
        if let Some(timeout) = self.watchdog {
            add(format!(
                "[watchdog]\ntimeout = \"{}ms\"",
                timeout.as_millis()
            ));
        }
        add("[stop]\ngrace = \"5s\"".to_owned());
        let guests = self.guests.map(|guest| guest.to_string());
        let unix = format!("unix:{}", self.guest_path.display());
        let guests = guests.into_iter().chain([unix]).filter(|_| shape.guests);
        for address in self
            .listeners
            .map(|it| it.to_string())
            .into_iter()
            .chain(guests)
        {
            add(format!("[[listener]]\naddress = \"{address}\""));
        }
        let stream: Vec<SocketAddr> = self.stream.into_iter().collect();
        let all = [
            ("steady", STEADY, &self.steady),
            ("short", SHORT, &self.short),
            ("stream", STREAM, &stream),
        ];
        for (name, host, servers) in all.into_iter().filter(|(.., it)| !it.is_empty()) {
            add(format!(
                "[[route]]\nhost = \"{host}\"\nupstream = \"{name}\""
            ));
            add(format!("[upstream.{name}]\nservers = {}", list(servers)));
        }
        text
    }
}

fn list(servers: &[SocketAddr]) -> String {
    let mut text = String::from("[");
    for server in servers {
        // A String takes everything.
        let _ = write!(text, "\"{server}\", ");
    }
    text + "]"
}

const LOOPBACK: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// Four ports that nobody has, below those that the kernel gives to clients: a gateway that is started again must find
/// its own free.
fn free_ports() -> Vec<u16> {
    let first = 10_000 + (std::process::id() % 5_000) as u16 * 4;
    let is_free = |port: &u16| {
        ["127.0.0.1", "::1"]
            .iter()
            .all(|ip| std::net::TcpListener::bind((*ip, *port)).is_ok())
    };
    let mut ports: Vec<u16> = (first..first + 1_000).filter(is_free).take(4).collect();
    ports.resize(4, 0);
    ports
}
