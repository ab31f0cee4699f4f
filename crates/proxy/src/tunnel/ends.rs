//! A tunnel's two sockets and two lanes, and the books that it is counted in.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::Tunnel;
use super::lane::{BUFFER, Broken, End, Lane, Tally, Turn};
use super::pings::Pings;
use crate::frames::Side;
use crate::record::{Flow, Record};
use crate::{Figure, Ledger};

/// Steps of each lane before the task lets others run.
pub(crate) const ROUNDS: usize = 16;

/// Bytes in either direction before the task lets others run.
const BYTES: u64 = 256 * 1024;

#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) client: crate::socket::Socket,
    pub(crate) server: crate::socket::Socket,
    pub(crate) to_client: Lane,
    pub(crate) to_server: Lane,
    pub(crate) books: Books,
    /// Where the route has a `ping_interval`.
    pub(crate) pings: Option<Box<Pings>>,
}

/// Where a tunnel is counted.
pub(crate) struct Books {
    pub(crate) record: Arc<Record>,
    pub(crate) ledger: Arc<dyn Ledger>,
}

/// A connection that broke, and what had been tried on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) side: Side,
    /// Whether reading failed. If only writing has, there may be something left to read.
    pub(crate) reading: bool,
}

impl Ends {
    pub(crate) fn new(tunnel: Tunnel) -> Self {
        let interval = tunnel.record.route.timeouts.ping;
        let pings = interval.map(|interval| Pings::new(interval, tunnel.record.opened));
        Self {
            pings: pings.map(Box::new),
            client: tunnel.client,
            server: tunnel.server,
            to_client: Lane::new(Side::Server, &tunnel.ahead_from_server),
            to_server: Lane::new(Side::Client, &tunnel.ahead_from_client),
            books: Books {
                record: tunnel.record,
                ledger: tunnel.ledger,
            },
        }
    }

    /// Relays until neither lane can go on, or others should run. `seen` is called after each step.
    pub(crate) fn relay(
        &mut self,
        cx: &mut Context<'_>,
        mut seen: impl FnMut(&Self),
    ) -> Result<(), Lost> {
        let (mut up, mut down) = (Tally::default(), Tally::default());
        let (mut up_goes, mut down_goes) = (true, true);
        let mut rounds = 0;
        let mut result = Ok(());
        while result.is_ok() && (up_goes || down_goes) {
            if rounds == ROUNDS || up.bytes.max(down.bytes) >= BYTES {
                cx.waker().wake_by_ref();
                break;
            }
            rounds += 1;
            // A lane that is blocked has left its waker: not tried again in this turn.
            if up_goes {
                (up_goes, result) = self.up(cx, &mut up);
                seen(self);
            }
            if down_goes && result.is_ok() {
                (down_goes, result) = self.down(cx, &mut down);
                seen(self);
            }
        }
        self.publish(up, down);
        result
    }

    /// When [`Ends::stuck_receiver`] is to be called next.
    pub(crate) fn next_blocked_look(&self, limit: Duration) -> Option<Instant> {
        let looks = [&self.to_client, &self.to_server].map(|lane| lane.next_look(limit));
        looks.into_iter().flatten().min()
    }

    /// A receiver that has taken nothing for so long: see [`Lane::is_stuck`].
    pub(crate) fn stuck_receiver(&mut self, limit: Duration, now: Instant) -> Option<Side> {
        let Self {
            client,
            server,
            to_client,
            to_server,
            books,
            ..
        } = self;
        let ledger = &*books.ledger;
        if to_client.is_stuck(client, ledger, limit, now) {
            return Some(Side::Client);
        }
        to_server
            .is_stuck(server, ledger, limit, now)
            .then_some(Side::Server)
    }

    /// When [`Ends::look_after_client`] is to be called next.
    pub(crate) fn next_ping_look(&self) -> Option<Instant> {
        let pings = self.pings.as_ref().filter(|_| self.can_ping())?;
        pings.next_look()
    }

    /// Asks a silent client whether it is there. Whether it is gone.
    pub(crate) fn look_after_client(&mut self, now: Instant) -> bool {
        let can_ping = self.can_ping();
        let deaf = self.to_server.has_pending();
        let Some(pings) = self.pings.as_mut().filter(|_| can_ping) else {
            return false;
        };
        if pings.next_look().is_none_or(|at| at > now) {
            return false;
        }
        // A ping waits behind what the client has not taken yet; a slow reader that takes some of it is alive.
        let Books { record, ledger } = &self.books;
        let queued = ledger.unacknowledged(self.client.as_fd()).unwrap_or(0);
        let (written, _) = record.from_server();
        let reads = pings.goes_on(written.saturating_sub(queued)) && queued > 0;
        if deaf || reads {
            pings.postpone(now);
        } else if pings.are_hopeless(now) {
            return true;
        } else {
            pings.ask(now);
        }
        false
    }

    /// Whether both directions go on and are of frames.
    fn can_ping(&self) -> bool {
        [&self.to_client, &self.to_server]
            .iter()
            .all(|lane| lane.end == End::Open && !lane.tracker.closed() && !lane.tracker.unframed())
    }

    /// Writes both tallies into the books.
    pub(crate) fn publish(&mut self, up: Tally, down: Tally) {
        if let Some(pings) = &mut self.pings {
            pings.note(up, down);
            pings.publish(&self.books.record.round_trip_us);
        }
        let Books { record, ledger } = &self.books;
        if up.bytes > 0 {
            book(&record.from_client, up);
            ledger.add(Figure::BytesFromClients, up.bytes);
            if up.messages > 0 {
                ledger.add(Figure::MessagesFromClients, up.messages);
            }
        }
        if down.bytes > 0 {
            book(&record.from_server, down);
            ledger.add(Figure::BytesFromServers, down.bytes);
            if down.messages > 0 {
                ledger.add(Figure::MessagesFromServers, down.messages);
            }
        }
        if up.bytes + down.bytes > 0 {
            self.note_bytes();
        }
    }

    fn note_bytes(&self) {
        let record = &self.books.record;
        let now = millis(record.opened.elapsed());
        record.last_byte_ms.store(now, Ordering::Relaxed);
        if self.to_client.tracker.unframed() || self.to_server.tracker.unframed() {
            record.unframed.store(true, Ordering::Relaxed);
        }
    }

    fn up(&mut self, cx: &mut Context<'_>, tally: &mut Tally) -> (bool, Result<(), Lost>) {
        let Self {
            client,
            server,
            to_server,
            to_client,
            pings,
            books,
        } = self;
        let turn = Turn {
            tally,
            pings: pings.as_deref_mut(),
            is_last: to_client.end == End::Passed && books.record.is_sole_owner(),
        };
        let step = to_server.relay(cx, client, server, BUFFER, turn);
        outcome(step, Side::Client, Side::Server)
    }

    fn down(&mut self, cx: &mut Context<'_>, tally: &mut Tally) -> (bool, Result<(), Lost>) {
        let most = match self.ping(cx) {
            Ok(most) => most,
            Err(broken) => return outcome(Poll::Ready(Err(broken)), Side::Server, Side::Client),
        };
        let Self {
            client,
            server,
            to_client,
            to_server,
            books,
            ..
        } = self;
        let turn = Turn {
            tally,
            pings: None,
            is_last: to_server.end == End::Passed && books.record.is_sole_owner(),
        };
        let step = to_client.relay(cx, server, client, most, turn);
        outcome(step, Side::Server, Side::Client)
    }

    /// Sends the ping that is due, if one is and a frame ends here; if one does not, says how far it is
    /// to its end at least. Else all may be read.
    fn ping(&mut self, cx: &mut Context<'_>) -> Result<usize, Broken> {
        // Since it became due a peer may have ended its side.
        let is_due = self.pings.as_ref().is_some_and(|pings| pings.is_due()) && self.can_ping();
        let Some(pings) = self.pings.as_mut().filter(|_| is_due) else {
            return Ok(BUFFER);
        };
        if self.to_client.can_speak() {
            let frame = pings.frame(Instant::now());
            self.to_client.speak(cx, &mut self.client, &frame)?;
        }
        match self.to_client.tracker.until_boundary() {
            0 => Ok(BUFFER),
            left => Ok(usize::try_from(left).unwrap_or(usize::MAX)),
        }
    }
}

impl Books {
    /// When the last byte came, or the tunnel was opened.
    pub(crate) fn last_byte(&self) -> Instant {
        let ms = self.record.last_byte_ms.load(Ordering::Relaxed);
        self.record.opened + Duration::from_millis(ms)
    }
}

impl std::fmt::Debug for Books {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Books")
            .field("record", &self.record)
            .finish_non_exhaustive()
    }
}

/// Whether the lane goes on, and what broke.
fn outcome(step: Poll<Result<(), Broken>>, source: Side, sink: Side) -> (bool, Result<(), Lost>) {
    match step {
        Poll::Pending => (false, Ok(())),
        Poll::Ready(Ok(())) => (true, Ok(())),
        Poll::Ready(Err(Broken::Source)) => (
            false,
            Err(Lost {
                side: source,
                reading: true,
            }),
        ),
        Poll::Ready(Err(Broken::Sink)) => (
            false,
            Err(Lost {
                side: sink,
                reading: false,
            }),
        ),
    }
}

/// Only the tunnel's task writes here, so no read-modify-write is needed: seven of them, with the
/// ledger's, cost a hundredth of a relayed message.
fn book(flow: &Flow, tally: Tally) {
    let add = |cell: &AtomicU64, n: u64| {
        cell.store(cell.load(Ordering::Relaxed) + n, Ordering::Relaxed);
    };
    add(&flow.bytes, tally.bytes);
    add(&flow.messages, tally.messages);
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
