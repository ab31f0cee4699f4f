//! Live tunnels move from one worker to another: [`give`] is the old one's side, [`take`] the new one's.
//!
//! The two speak over a channel of their own (see [`wsgate_protocol::handover`]); the supervisor hears only how many there were.
//! Each batch is small, so that both go on serving between two of them, and no tunnel waits for many others.

mod give;
mod parcel;
mod stays;
mod take;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub(crate) use self::give::{Giving, Order as GiveOrder};
pub(crate) use self::stays::why_it_stays;
pub(crate) use self::take::{Order as TakeOrder, Taking};

/// Tunnels in one message. Twice as many descriptors are in flight then, for each pair of workers: a user without privileges may have
/// as many of them as RLIMIT_NOFILE allows (ETOOMANYREFS in sendmsg(2)).
const BATCH: usize = 32;

/// How long the other worker may take for an answer. A batch is with neither worker for as long.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
