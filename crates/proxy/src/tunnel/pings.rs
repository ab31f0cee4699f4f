//! wsgate's own pings (RFC 6455 section 5.5.2), by which it notices that a silent client is gone.
//!
//! A client that has been silent for the route's `ping_interval` is pinged, at a frame boundary. While a ping of
//! the server is unanswered that one does as well: a client may answer the last ping alone
//! (section 5.5.3), and the server's is not to be the one that is left out. Any byte
//! of the client counts as life, not only the pong.
//!
//! The pong is wsgate's, so the server never sees it: while one is awaited, a client's frame that
//! may be it is held back until that is sure, which takes 14 bytes. Nothing else is held, changed
//! or dropped.

mod parked;
#[cfg(test)]
mod tests;

pub(crate) use parked::ParkedPings;

use std::borrow::Cow;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::lane::Tally;
use crate::close::masking_key;
use crate::frames::Tracker;

/// After so many pings without a sign of life the client is gone.
const MOST_UNANSWERED: u8 = 2;

/// FIN and the opcode of Ping, without a mask; and its length.
const PING: [u8; 2] = [0x89, PAYLOAD as u8];

/// FIN and the opcode of Pong, a mask; and the length of a pong for a ping of wsgate.
const PONG: [u8; 2] = [0x8a, 0x80 | PAYLOAD as u8];

const PAYLOAD: usize = 8;

/// The header of a pong, its masking key and its payload.
const LONGEST: usize = 2 + 4 + PAYLOAD;

/// The pings of one tunnel.
#[derive(Debug)]
pub(crate) struct Pings {
    interval: Duration,
    /// Begins every payload; nobody can guess it.
    secret: [u8; 4],
    /// The number of the last ping. It ends the payload.
    sent: u32,
    /// The number of the last one that was answered.
    answered: u32,
    sent_at: Instant,
    /// When the client was last heard, or last asked.
    last: Instant,
    unanswered: u8,
    /// Bytes of the server that its TCP had acknowledged at the last look.
    acknowledged: u64,
    /// A ping is due, and waits for a frame boundary.
    due: bool,
    /// A ping of the server has gone to the client, and no pong has come back.
    server_waits: bool,
    /// The beginning of what may be a pong for wsgate; shorter than [`LONGEST`].
    held: Vec<u8>,
    round_trip: Option<Duration>,
}

impl Pings {
    pub(crate) fn new(interval: Duration, now: Instant) -> Self {
        Self {
            interval,
            secret: masking_key(),
            sent: 0,
            answered: 0,
            sent_at: now,
            last: now,
            unanswered: 0,
            acknowledged: 0,
            due: false,
            server_waits: false,
            held: Vec::new(),
            round_trip: None,
        }
    }

    /// When [`Pings::ask`] is to be called next; `None` while a ping waits for its boundary.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        if self.due {
            return None;
        }
        self.last.checked_add(self.interval)
    }

    /// Whether the client has had its chances by now.
    pub(crate) fn are_hopeless(&self, now: Instant) -> bool {
        self.unanswered >= MOST_UNANSWERED && self.next_look().is_some_and(|at| at <= now)
    }

    /// Makes a ping due, if the client has been silent for long enough.
    pub(crate) fn ask(&mut self, now: Instant) {
        if self.next_look().is_none_or(|at| at > now) {
            return;
        }
        if self.server_waits {
            self.count_question(now);
        } else {
            self.due = true;
        }
    }

    /// Whether the client has acknowledged bytes since the last time; `acknowledged` is how many in all.
    pub(crate) const fn goes_on(&mut self, acknowledged: u64) -> bool {
        let more = acknowledged > self.acknowledged;
        self.acknowledged = acknowledged;
        more
    }

    /// The client cannot be heard now, or cannot have seen the ping yet: it has as long again.
    pub(crate) fn postpone(&mut self, now: Instant) {
        self.last = now;
    }

    pub(crate) const fn is_due(&self) -> bool {
        self.due
    }

    /// The ping that is due. It counts as sent.
    pub(crate) fn frame(&mut self, now: Instant) -> [u8; 2 + PAYLOAD] {
        self.due = false;
        self.sent = self.sent.wrapping_add(1);
        self.sent_at = now;
        self.count_question(now);
        let mut frame = [0; 2 + PAYLOAD];
        frame[..2].copy_from_slice(&PING);
        frame[2..].copy_from_slice(&self.payload(self.sent));
        frame
    }

    /// What has gone by in both directions.
    pub(crate) fn note(&mut self, up: Tally, down: Tally) {
        // Where both have gone by nobody knows in which order.
        if down.pings > 0 {
            self.server_waits = true;
        } else if up.pongs > 0 {
            self.server_waits = false;
        }
    }

    /// Writes the last round trip where everybody sees it.
    pub(crate) fn publish(&mut self, micros: &AtomicU32) {
        if let Some(round_trip) = self.round_trip.take() {
            let round_trip = u32::try_from(round_trip.as_micros()).unwrap_or(u32::MAX);
            micros.store(round_trip.max(1), Ordering::Relaxed);
        }
    }

    /// What of the client's bytes is for the server. `tracker` stands where the first of them
    /// belongs, or those held back before.
    pub(crate) fn sift<'a>(&mut self, tracker: &Tracker, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        self.last = Instant::now();
        self.unanswered = 0;
        self.due = false;
        if !self.awaits_pong() {
            return Cow::Borrowed(bytes);
        }
        if self.held.is_empty() {
            return self.without_pongs(tracker.clone(), Cow::Borrowed(bytes));
        }
        let mut joined = self.release();
        joined.extend_from_slice(bytes);
        self.without_pongs(tracker.clone(), Cow::Owned(joined))
    }

    /// What was held back: nothing comes after it.
    pub(crate) fn release(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    /// All but the pongs for wsgate, and what may become one.
    fn without_pongs<'a>(&mut self, mut scout: Tracker, bytes: Cow<'a, [u8]>) -> Cow<'a, [u8]> {
        let mut kept = Vec::new();
        let mut rest = &*bytes;
        loop {
            let (others, after) = rest.split_at(self.others(&mut scout, rest));
            if others.len() == bytes.len() {
                return bytes;
            }
            kept.extend_from_slice(others);
            let Some((pong, after)) = after.split_first_chunk::<LONGEST>() else {
                self.held = after.to_vec();
                return Cow::Owned(kept);
            };
            self.take_pong(pong);
            rest = after;
        }
    }

    /// How many bytes come before a frame that is, or may become, a pong for wsgate.
    fn others(&self, scout: &mut Tracker, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        while !rest.is_empty() {
            if scout.closed() || scout.unframed() {
                return bytes.len();
            }
            let next = match scout.until_boundary() {
                0 if self.may_be_pong(rest) => return bytes.len() - rest.len(),
                0 => PONG.len(),
                left => usize::try_from(left).unwrap_or(usize::MAX),
            };
            let (frames, after) = rest.split_at(next.min(rest.len()));
            scout.advance(frames);
            rest = after;
        }
        bytes.len()
    }

    /// Of a frame's first bytes.
    fn may_be_pong(&self, bytes: &[u8]) -> bool {
        let shown = bytes.len().min(PONG.len());
        self.awaits_pong()
            && bytes[..shown] == PONG[..shown]
            && bytes
                .first_chunk()
                .is_none_or(|pong| self.number_of(pong).is_some())
    }

    /// Which of the pings that are not answered yet a whole pong is for.
    fn number_of(&self, pong: &[u8; LONGEST]) -> Option<u32> {
        let [_, _, k0, k1, k2, k3, masked @ ..] = *pong;
        let key = [k0, k1, k2, k3, k0, k1, k2, k3];
        let payload: [u8; PAYLOAD] = std::array::from_fn(|at| masked[at] ^ key[at]);
        let [.., n0, n1, n2, n3] = payload;
        let number = u32::from_be_bytes([n0, n1, n2, n3]);
        let place = number.wrapping_sub(self.answered);
        let is_open = (1..=self.sent.wrapping_sub(self.answered)).contains(&place);
        (is_open && payload == self.payload(number)).then_some(number)
    }

    fn take_pong(&mut self, pong: &[u8; LONGEST]) {
        let Some(number) = self.number_of(pong) else {
            return;
        };
        self.answered = number;
        if number == self.sent {
            self.round_trip = Some(self.last.saturating_duration_since(self.sent_at));
        }
    }

    fn payload(&self, number: u32) -> [u8; PAYLOAD] {
        let mut payload = [0; PAYLOAD];
        payload[..4].copy_from_slice(&self.secret);
        payload[4..].copy_from_slice(&number.to_be_bytes());
        payload
    }

    const fn awaits_pong(&self) -> bool {
        self.sent != self.answered
    }

    const fn count_question(&mut self, now: Instant) {
        self.last = now;
        self.unanswered = self.unanswered.saturating_add(1);
    }
}
