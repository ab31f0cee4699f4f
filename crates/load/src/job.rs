//! What a fleet is told to do. All of it can be written as JSON, for a fleet in another process.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What to open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// Where to connect to, in turn.
    pub targets: Vec<SocketAddr>,
    /// Where to connect from, in turn; the kernel picks if there is none. One address has
    /// some 28,000 ports for each target.
    pub sources: Vec<IpAddr>,
    /// The `Host` field.
    pub host: String,
    /// What the tunnels are for.
    pub mode: Mode,
    /// How many are held open.
    pub tunnels: usize,
    /// No message is longer, in bytes.
    pub longest: usize,
    /// Each connection is half open for so long, less than 200 ms, before its request ends the handshake: see
    /// `connect.rs`. Zero is not at all.
    pub held: Duration,
    /// Number of the first connection. Fleets that go through one gateway must not share numbers, or
    /// a message of another's tunnel would not be seen as such.
    pub first: u32,
}

impl Default for Open {
    fn default() -> Self {
        Self {
            targets: Vec::new(),
            sources: Vec::new(),
            host: "localhost".to_owned(),
            mode: Mode::Echo,
            tunnels: 1,
            longest: 64 * 1024,
            held: Duration::ZERO,
            first: 0,
        }
    }
}

/// What the server makes of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It sends them back.
    Echo,
    /// It swallows them, and says so after each `bytes` of them, 0 for after each message. A window
    /// has to be larger than that.
    Sink {
        /// Payload bytes between two answers.
        bytes: u64,
    },
}

impl Mode {
    /// The path of the request.
    #[must_use]
    pub fn path(self) -> String {
        match self {
            Self::Echo => "/echo".to_owned(),
            Self::Sink { bytes: 0 } => "/sink".to_owned(),
            Self::Sink { bytes } => format!("/sink?bytes={bytes}"),
        }
    }
}

/// One job for a fleet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The work.
    pub work: Work,
    /// Bytes of each message, [`crate::check::STAMP`] at least.
    pub size: usize,
    /// When it ends.
    pub until: Until,
    /// The same work goes on for so long before anything is counted; not with [`Until::Each`].
    pub warm_up: Duration,
    /// Processes whose CPU time in the measured part is wanted.
    pub clocks: Vec<u32>,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            work: Work::Messages { window: 1 },
            size: 64,
            until: Until::Elapsed(Duration::from_secs(1)),
            warm_up: Duration::ZERO,
            clocks: Vec::new(),
        }
    }
}

/// Kinds of work.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Each tunnel has so many messages in flight; one is ping-pong. Each message is a write of its own.
    Messages {
        /// Messages in flight.
        window: u32,
    },
    /// Nothing is sent.
    Idle,
    /// Each tunnel sends at this rate, whatever comes back, all evenly spread. A tunnel that ends is opened again.
    Rate {
        /// Messages each second and tunnel.
        per_second: f64,
        /// So many of all tunnels are closed and opened anew each second.
        renewals: f64,
    },
    /// Short tunnels one after the other: open, echoes, close. For a fleet that holds none open.
    Lives {
        /// So many at a time.
        concurrency: usize,
        /// Messages of each.
        echoes: u64,
    },
    /// Short tunnels at a rate, whatever becomes of those before.
    Arrivals {
        /// New ones each second.
        per_second: f64,
        /// Messages of each.
        echoes: u64,
    },
}

/// When a job ends. What is in flight then is waited for, but not measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// After this time, the warm-up not included.
    Elapsed(Duration),
    /// When told to ([`crate::fleet::Halt`]), and not before.
    Halted,
    /// After so many messages (or short tunnels) of all.
    Total(u64),
    /// After so many messages of each tunnel.
    Each {
        /// Messages.
        messages: u64,
        /// Tunnels that work at a time: what is in flight takes the kernel's memory.
        active: usize,
    },
}
