//! A lane as it goes from one process to another.

use std::time::Instant;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{End, Lane, Pending};
use crate::frames::{Side, Tracker};
use crate::handover::Clock;

/// A lane without the bytes that are pending in it: those go beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ParkedLane {
    tracker: Tracker,
    end: End,
    pending: Option<ParkedPending>,
}

/// Moments are nanoseconds of CLOCK_MONOTONIC. They go along so that a receiver that takes nothing is not
/// given its time anew by every move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ParkedPending {
    bytes: usize,
    since: u64,
    looked: u64,
    unacknowledged: Option<u64>,
    own: bool,
}

impl Lane {
    pub(crate) fn park(self, clock: Clock) -> (ParkedLane, Bytes) {
        let (pending, bytes) = match self.pending {
            None => (None, Bytes::new()),
            Some(pending) => {
                let Pending {
                    bytes,
                    since,
                    looked,
                    unacknowledged,
                    own,
                } = *pending;
                let parked = ParkedPending {
                    bytes: bytes.len(),
                    since: clock.to_ns(since),
                    looked: clock.to_ns(looked),
                    unacknowledged,
                    own,
                };
                (Some(parked), bytes)
            }
        };
        let parked = ParkedLane {
            tracker: self.tracker,
            end: self.end,
            pending,
        };
        (parked, bytes)
    }
}

impl ParkedLane {
    /// How many bytes are pending.
    pub(crate) fn pending(&self) -> usize {
        self.pending.as_ref().map_or(0, |pending| pending.bytes)
    }

    /// The lane of `sender`'s frames again; `None` if this cannot have been one.
    pub(crate) fn unpark(self, sender: Side, bytes: &[u8], clock: Clock) -> Option<Lane> {
        if bytes.len() != self.pending() || !self.tracker.is_sound(sender) {
            return None;
        }
        let instant = |ns| -> Instant { clock.to_instant(ns) };
        let pending = self.pending.filter(|_| !bytes.is_empty()).map(|parked| {
            Box::new(Pending {
                bytes: Bytes::copy_from_slice(bytes),
                since: instant(parked.since),
                looked: instant(parked.looked),
                unacknowledged: parked.unacknowledged,
                own: parked.own,
            })
        });
        Some(Lane {
            tracker: self.tracker,
            end: self.end,
            pending,
        })
    }
}
