//! What a fleet saw.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::check::Faults;
use crate::histogram::{Histogram, Summary};

/// How a tunnel, or the try to open one, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The fleet closed it, and its Close was answered.
    Polite,
    /// The fleet closed it, and it ended without an answer to its Close.
    CloseUnanswered,
    /// A Close of the other side, with this code (1005 without one).
    Closed(u16),
    /// A FIN without a Close.
    Fin,
    /// A reset.
    Reset,
    /// The connection was refused.
    Refused,
    /// Another answer than 101.
    Status(u16),
    /// A FIN before the answer.
    NoAnswer,
    /// A reset before the answer.
    ResetBeforeAnswer,
    /// A 101 that is not right, or no HTTP.
    BadAnswer,
    /// Frames that no server may send.
    BadFrame,
    /// No answer to the request, or no end after a Close, in time.
    TimedOut,
    /// Another error of the kernel, by its number.
    Failed(i32),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Polite => f.write_str("polite"),
            Self::CloseUnanswered => f.write_str("close unanswered"),
            Self::Closed(code) => write!(f, "close {code}"),
            Self::Fin => f.write_str("fin"),
            Self::Reset => f.write_str("reset"),
            Self::Refused => f.write_str("refused"),
            Self::Status(status) => write!(f, "status {status}"),
            Self::NoAnswer => f.write_str("fin before 101"),
            Self::ResetBeforeAnswer => f.write_str("reset before 101"),
            Self::BadAnswer => f.write_str("bad answer"),
            Self::BadFrame => f.write_str("bad frame"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Failed(number) => write!(f, "errno {number}"),
        }
    }
}

/// One end that was not [`End::Polite`], to be compared with what was done to the gateway at that time. Times are
/// those of [`crate::machine::now`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// The client's own address; `None` if the kernel gave it none.
    pub local: Option<SocketAddr>,
    /// When the connect began.
    pub began: Duration,
    /// When the end was seen.
    pub ended: Duration,
    /// Whether it had been opened, by a right 101.
    pub opened: bool,
    /// How it ended.
    pub end: End,
    /// Messages that were in flight.
    pub unanswered: u64,
}

/// What a job came to. Figures are of the measured part; faults and ends of all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Messages that came back right, or that a sink took.
    pub messages: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// Short tunnels that ended politely.
    pub lives: u64,
    /// How long the measured part took.
    pub elapsed: Duration,
    /// From a message's write to its echo. With a window, of one message at a time for each tunnel.
    pub round_trips: Summary,
    /// The same by the phase in which they were under way ([`crate::fleet::Phase`]), the highest of them.
    pub phases: BTreeMap<u8, Histogram>,
    /// From the connect to a right 101.
    pub handshakes: Summary,
    /// CPU nanoseconds of all processes whose clocks were asked for.
    pub cpu: u64,
    /// Messages that came back wrong.
    pub faults: Faults,
    /// Messages that were in flight on tunnels that ended.
    pub unanswered: u64,
    /// Messages that were still in flight when waiting for them was given up.
    pub stuck: u64,
    /// Ends of tunnels by their names, see [`End`].
    pub ends: BTreeMap<String, u64>,
    /// Those of them that were not polite, one by one: the first [`ENDINGS`].
    pub endings: Vec<Ending>,
    /// Tunnels that are open now.
    pub open: u64,
}

/// So many ends are kept one by one; all are counted.
pub const ENDINGS: usize = 200_000;

impl Report {
    /// That every message came back right, and no tunnel ended but by the fleet's own Close.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub fn sound(&self) -> Result<(), String> {
        let others = self.ends.iter().filter(|(end, _)| *end != "polite");
        let ends: Vec<String> = others.map(|(end, n)| format!("{n} × {end}")).collect();
        if !self.faults.any() && self.unanswered == 0 && self.stuck == 0 && ends.is_empty() {
            return Ok(());
        }
        let Faults {
            lost,
            doubled,
            reordered,
            corrupted,
        } = self.faults;
        let ends = match ends.is_empty() {
            true => "none".to_owned(),
            false => ends.join(", "),
        };
        Err(format!(
            "messages: {lost} lost, {doubled} doubled, {reordered} reordered, {corrupted} corrupted, \
             {} unanswered, {} stuck; tunnels that ended: {ends}",
            self.unanswered, self.stuck
        ))
    }

    /// Adds what another fleet saw at the same time. Of times, the worse is kept. Not of CPU
    /// clocks: both may have read the same ones.
    pub fn add(&mut self, other: &Self) {
        self.messages += other.messages;
        self.bytes += other.bytes;
        self.lives += other.lives;
        self.elapsed = self.elapsed.max(other.elapsed);
        self.round_trips.add(&other.round_trips);
        for (number, round_trips) in &other.phases {
            self.phases.entry(*number).or_default().add(round_trips);
        }
        self.handshakes.add(&other.handshakes);
        self.faults.add(&other.faults);
        self.unanswered += other.unanswered;
        self.stuck += other.stuck;
        self.open += other.open;
        let room = ENDINGS.saturating_sub(self.endings.len());
        self.endings
            .extend(other.endings.iter().take(room).cloned());
        for (end, count) in &other.ends {
            *self.ends.entry(end.clone()).or_default() += count;
        }
    }
}
