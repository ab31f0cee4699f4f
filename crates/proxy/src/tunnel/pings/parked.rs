//! The pings of a tunnel as they go from one process to another.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{LONGEST, Pings};
use crate::handover::Clock;

/// Moments are nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ParkedPings {
    secret: [u8; 4],
    sent: u32,
    answered: u32,
    sent_at: u64,
    last: u64,
    unanswered: u8,
    acknowledged: u64,
    due: bool,
    server_waits: bool,
    held: Vec<u8>,
}

impl Pings {
    pub(crate) fn park(self, clock: Clock) -> ParkedPings {
        ParkedPings {
            secret: self.secret,
            sent: self.sent,
            answered: self.answered,
            sent_at: clock.to_ns(self.sent_at),
            last: clock.to_ns(self.last),
            unanswered: self.unanswered,
            acknowledged: self.acknowledged,
            due: self.due,
            server_waits: self.server_waits,
            held: self.held,
        }
    }
}

impl ParkedPings {
    /// The pings again, by the interval of the route that it has now. Where that has none, nobody is pinged any more,
    /// but a pong that is awaited is wsgate's still. `None` if these cannot have been any.
    pub(crate) fn unpark(self, interval: Option<Duration>, clock: Clock) -> Option<Pings> {
        if self.held.len() >= LONGEST {
            return None;
        }
        Some(Pings {
            // No clock can hold the next one.
            interval: interval.unwrap_or(Duration::MAX),
            secret: self.secret,
            sent: self.sent,
            answered: self.answered,
            sent_at: clock.to_instant(self.sent_at),
            last: clock.to_instant(self.last),
            unanswered: self.unanswered,
            acknowledged: self.acknowledged,
            due: self.due && interval.is_some(),
            server_waits: self.server_waits,
            held: self.held,
            round_trip: None,
        })
    }
}
