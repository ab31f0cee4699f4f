//! Messages between two workers while live tunnels move from one to the other.
//!
//! Each is one JSON text in one SOCK_SEQPACKET message of a channel that the supervisor has given to both. In this order:
//!
//! 1. the giver says [`FromGiver::Hello`], and the taker [`FromTaker::Room`];
//! 2. as long as there is room: one [`FromGiver::Batch`], and [`FromTaker::Taken`] with the room for the next one, or
//!    [`FromTaker::Refused`]. One batch at a time is under way;
//! 3. [`FromGiver::Done`] whenever there is nothing to give at the moment: the taker promises nothing any more;
//! 4. [`FromGiver::Ask`] and [`FromTaker::Room`] when there is something again, as tunnels whose handshake ends later.
//!
//! # Who owns a tunnel
//!
//! Exactly one of the two, at any moment. The taker reads and writes nothing of a tunnel before its `Taken` has been sent
//! successfully; the giver nothing between giving and the answer. A giver that waits no longer shuts the
//! channel down in both directions (shutdown(2)) and then reads what is queued: a `Taken` that it finds was sent in time, and the
//! batch is the taker's; if there is none, none can come any more (EPIPE), and the batch is the giver's.

use serde::{Deserialize, Serialize};

/// The layout of these messages. What a tunnel is made of has a version of its own.
pub const VERSION: u32 = 1;

/// From the worker that gives tunnels away.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromGiver<T> {
    /// The first message.
    Hello {
        /// [`VERSION`].
        version: u32,
        /// The layout of the tunnels.
        tunnels: u32,
        /// So many are here.
        holds: usize,
    },
    /// For how many there is room. No room is left from before.
    Ask {
        /// So many are here.
        holds: usize,
    },
    /// Tunnels. Descriptors: two for each, its client's socket and its server's, in order. Behind the JSON text and a
    /// zero byte come bytes that are on their way in each tunnel; if all that is too long for a message, it is
    /// in a sealed memfd, which is the last descriptor.
    Batch {
        /// Its number, from 1.
        number: u64,
        /// The tunnels.
        tunnels: Vec<T>,
        /// So many are here besides.
        more: usize,
    },
    /// Where a batch is that is too long for a message: in the memfd beside this one.
    Long,
    /// There is nothing to give at the moment.
    Done,
}

/// From the worker that takes them over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromTaker {
    /// So many tunnels may come.
    Room {
        /// At most.
        tunnels: usize,
    },
    /// The taker owns the whole batch from here on.
    Taken {
        /// Its number.
        number: u64,
        /// For the next one; at most so many.
        room: usize,
    },
    /// The taker owns nothing of the batch, or cannot take any.
    Refused {
        /// Why.
        reason: super::control::Refusal,
    },
}
