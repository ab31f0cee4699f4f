//! The relay: the bytes of one tunnel, both ways, until it ends.
//!
//! One future per tunnel, polled by one task. It never waits for one direction while the
//! other could go on, allocates nothing for a message that its receiver takes at once, and
//! changes no byte. Frames are followed only to know where the tunnel may be
//! ended; peers that speak something else are relayed all the same.

mod ends;
mod lane;
#[cfg(test)]
pub(crate) mod rig;
#[cfg(test)]
mod tests;

pub(crate) use ends::{Ends, Lost, ROUNDS};
pub(crate) use lane::{Broken, End, Lane, Tally, discard, fin, write};

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::time::{Sleep, sleep_until};

use crate::close::{Closing, Farewell};
use crate::frames::Side;
use crate::record::{Deadline, Record};
use crate::socket::Socket;
use crate::{Cause, Ledger};

/// How long the peers may take to end their connections by themselves once both
/// have sent a Close frame. RFC 6455 section 7.1.1 leaves the first FIN to the server.
const CLOSED_WAIT: Duration = Duration::from_secs(10);

/// In place of a moment that no clock can hold.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// An upgraded connection that is to be relayed.
pub(crate) struct Tunnel {
    pub(crate) client: Socket,
    pub(crate) server: Socket,
    /// Read beyond the handshake, and not yet sent on.
    pub(crate) ahead_from_client: Bytes,
    pub(crate) ahead_from_server: Bytes,
    pub(crate) record: Arc<Record>,
    pub(crate) ledger: Arc<dyn Ledger>,
}

/// How a tunnel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    /// Who or what began the end.
    pub(crate) cause: Cause,
    /// The status code of the client's Close frame, if one was relayed; 1005 if it had none.
    pub(crate) client_code: Option<u16>,
    /// The status code of the server's Close frame, likewise.
    pub(crate) server_code: Option<u16>,
    /// What was not as it should have been.
    pub(crate) note: Option<&'static str>,
}

/// Relays until both directions have ended, or something ends the tunnel: a broken
/// connection, silence, a deadline. Returns when both sockets are closed.
///
/// Not an `async fn`: that would hold the tunnel twice, as argument and as state.
pub(crate) fn relay(tunnel: Tunnel) -> impl Future<Output = Ending> + Send {
    let mut relay = Relay::new(tunnel);
    async move {
        let mut timer = pin!(sleep_until(relay.next_look().into()));
        poll_fn(|cx| relay.poll(cx, timer.as_mut())).await
    }
}

#[derive(Debug)]
struct Relay {
    ends: Ends,
    /// Who began the end: the first Close frame, the first FIN.
    began: Option<Cause>,
    /// When the second Close frame was relayed.
    closed: Option<Instant>,
    orders_version: u32,
    closing: Option<Box<Closing>>,
}

/// Why relaying stops.
#[derive(Debug)]
enum Stop {
    /// Both directions have ended by themselves.
    Ended,
    Lost(Lost),
    Idle,
    Drain(Deadline),
    /// Both Close frames are through, and the peers do not end their connections.
    Lingering,
}

impl Relay {
    fn new(tunnel: Tunnel) -> Self {
        Self {
            ends: Ends::new(tunnel),
            began: None,
            closed: None,
            orders_version: 0,
            closing: None,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<Ending> {
        if self.closing.is_none() {
            match ready!(self.poll_open(cx, timer.as_mut())) {
                Stop::Ended => return Poll::Ready(self.ending(None)),
                stop => self.begin_close(stop, timer.as_mut()),
            }
        }
        let note = match &mut self.closing {
            Some(closing) => ready!(closing.poll(cx, &mut self.ends, timer)),
            None => None,
        };
        Poll::Ready(self.ending(note))
    }

    fn poll_open(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<Stop> {
        if let Some(stop) = self.poll_timer(cx, timer.as_mut()) {
            return Poll::Ready(stop);
        }
        let began = &mut self.began;
        if let Err(lost) = self
            .ends
            .relay(cx, |ends| *began = began.or_else(|| beginner(ends)))
        {
            return Poll::Ready(Stop::Lost(lost));
        }
        let Ends {
            to_client,
            to_server,
            ..
        } = &self.ends;
        if to_client.end == End::Passed && to_server.end == End::Passed {
            return Poll::Ready(Stop::Ended);
        }
        if self.closed.is_none() && to_client.tracker.closed() && to_server.tracker.closed() {
            self.closed = Some(Instant::now());
            self.look_sooner(timer.as_mut());
            // Registers the task's waker with the timer's new moment.
            return self
                .poll_timer(cx, timer)
                .map_or(Poll::Pending, Poll::Ready);
        }
        Poll::Pending
    }

    /// The one timer is not moved for every byte: when it fires, a look at the books tells
    /// whether anything is due, and when the next look is worth while.
    fn poll_timer(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Option<Stop> {
        let orders = &self.ends.books.record.orders;
        orders.register(cx);
        let version = orders.version();
        if version != self.orders_version {
            self.orders_version = version;
            self.look_sooner(timer.as_mut());
        }
        while timer.as_mut().poll(cx).is_ready() {
            if let Some(stop) = self.due(Instant::now()) {
                return Some(stop);
            }
            timer.as_mut().reset(self.next_look().into());
        }
        None
    }

    fn due(&self, now: Instant) -> Option<Stop> {
        if let Some(deadline) = self.ends.books.record.orders.first()
            && deadline.at <= now
        {
            return Some(Stop::Drain(deadline));
        }
        if self.linger_end().is_some_and(|at| at <= now) {
            return Some(Stop::Lingering);
        }
        (self.idle_end() <= now).then_some(Stop::Idle)
    }

    fn next_look(&self) -> Instant {
        let deadline = self
            .ends
            .books
            .record
            .orders
            .first()
            .map(|deadline| deadline.at);
        let others = deadline.into_iter().chain(self.linger_end());
        others.fold(self.idle_end(), Instant::min)
    }

    fn look_sooner(&self, timer: Pin<&mut Sleep>) {
        let next = self.next_look().into();
        if next < timer.deadline() {
            timer.reset(next);
        }
    }

    fn idle_end(&self) -> Instant {
        let last = self.ends.books.last_byte();
        let idle = self.ends.books.record.idle_timeout;
        last.checked_add(idle).unwrap_or_else(|| last + FAR)
    }

    fn linger_end(&self) -> Option<Instant> {
        self.closed.map(|at| at + CLOSED_WAIT)
    }

    fn begin_close(&mut self, stop: Stop, timer: Pin<&mut Sleep>) {
        let (cause, lost, farewell) = match stop {
            Stop::Drain(order) => (Cause::Drain, None, Farewell::new(order.code, &order.reason)),
            Stop::Idle => (Cause::Idle, None, Farewell::new(1001, "idle timeout")),
            Stop::Lost(lost) => lost_farewell(lost),
            Stop::Ended | Stop::Lingering => (Cause::Server, None, Farewell::new(1000, "")),
        };
        // Who sent a Close frame or a FIN began the end, whatever came after it.
        self.began.get_or_insert(cause);
        self.closing = Some(Box::new(Closing::begin(
            &mut self.ends,
            farewell,
            lost,
            timer,
        )));
    }

    fn ending(&self, note: Option<&'static str>) -> Ending {
        let Ends {
            to_client,
            to_server,
            ..
        } = &self.ends;
        Ending {
            // A tunnel that ended by itself has had a first FIN: see `beginner`.
            cause: self.began.unwrap_or(Cause::Server),
            client_code: to_server.tracker.close_code(),
            server_code: to_client.tracker.close_code(),
            note,
        }
    }
}

/// Who has begun to end the tunnel, if anyone has.
fn beginner(ends: &Ends) -> Option<Cause> {
    let ending = |lane: &Lane| lane.tracker.closed() || lane.end != End::Open;
    if ending(&ends.to_server) {
        Some(Cause::Client)
    } else if ending(&ends.to_client) {
        Some(Cause::Server)
    } else {
        None
    }
}

/// Codes of RFC 6455 section 7.4.1; 1006, which would be the truth, must not be sent.
fn lost_farewell(lost: Lost) -> (Cause, Option<Lost>, Farewell) {
    let (cause, code, reason) = match lost.side {
        Side::Client => (Cause::ClientReset, 1001, "client connection lost"),
        Side::Server => (Cause::ServerReset, 1011, "server connection lost"),
    };
    (cause, Some(lost), Farewell::new(code, reason))
}
