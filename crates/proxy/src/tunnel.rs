//! The relay: the bytes of one tunnel, both ways, until it ends.
//!
//! One future per tunnel, polled by one task. It never waits for one direction while the
//! other could go on, allocates nothing for a message that its receiver takes at once, and
//! changes no byte. Frames are followed only to know where the tunnel may be
//! ended; peers that speak something else are relayed all the same.

mod ends;
mod lane;
mod pings;
#[cfg(test)]
pub(crate) mod rig;
#[cfg(test)]
mod tests;

pub(crate) use ends::{Books, Ends, Lost, ROUNDS};
pub(crate) use lane::{Broken, End, Lane, ParkedLane, Tally, Turn, discard, fin, write};
pub(crate) use pings::{ParkedPings, Pings};

use std::future::poll_fn;
use std::num::NonZeroU64;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::time::{Sleep, sleep_until};

use crate::close::{Closing, Farewell};
use crate::frames::Side;
use crate::record::{By, Deadline, Record, Timeouts};
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

/// All that a tunnel's task knows between two polls.
#[derive(Debug)]
pub(crate) struct Course {
    pub(crate) ends: Ends,
    /// Who began the end: the first Close frame, the first FIN.
    pub(crate) began: Option<Cause>,
    /// When the second Close frame was relayed, in milliseconds from the tunnel's begin.
    pub(crate) closed: Option<NonZeroU64>,
}

impl Course {
    /// Of a tunnel that opens.
    pub(crate) fn new(tunnel: Tunnel) -> Self {
        Self {
            ends: Ends::new(tunnel),
            began: None,
            closed: None,
        }
    }
}

/// What has become of a tunnel.
pub(crate) enum Outcome {
    /// It has ended, and both sockets are closed.
    Ended(Ending),
    /// Its task was told to give it up: nothing of it is read or written any more.
    Left(Box<Course>),
}

/// Relays until both directions have ended, or something ends the tunnel: a broken
/// connection, silence, a deadline; or until it is told to leave.
///
/// Not an `async fn`: that would hold the tunnel twice, as argument and as state.
///
/// To be spawned as a task, not polled inside of another future: the waker that the timer and the orders get
/// is that of the first poll, and is not renewed for every message.
pub(crate) fn run(course: Course) -> impl Future<Output = Outcome> + Send {
    let mut relay = Relay::new(course);
    async move {
        let ended = {
            let mut timer = pin!(sleep_until(relay.next_look().into()));
            poll_fn(|cx| relay.poll(cx, timer.as_mut())).await
        };
        match ended {
            Some(ending) => Outcome::Ended(ending),
            None => Outcome::Left(Box::new(relay.into_course())),
        }
    }
}

#[derive(Debug)]
struct Relay {
    ends: Ends,
    /// As in [`Course`], which would be larger by its padding.
    began: Option<Cause>,
    closed: Option<NonZeroU64>,
    orders_seen: u32,
    /// The timer has been polled since it was last set.
    waits_for_timer: bool,
    /// Who took nothing for too long.
    blocked: Option<Side>,
    closing: Option<Box<Closing>>,
}

/// Why relaying stops.
#[derive(Debug)]
enum Stop {
    /// Both directions have ended by themselves.
    Ended,
    Lost(Lost),
    Idle,
    /// This peer has taken nothing for too long.
    Blocked(Side),
    Old,
    /// The client has left its pings unanswered.
    Silent,
    Ordered(By, Deadline),
    /// The tunnel is to go on elsewhere.
    Leave,
    /// Both Close frames are through, and the peers do not end their connections.
    Lingering,
}

impl Relay {
    fn new(course: Course) -> Self {
        let Course {
            ends,
            began,
            closed,
        } = course;
        Self {
            ends,
            began,
            closed,
            orders_seen: 0,
            waits_for_timer: false,
            blocked: None,
            closing: None,
        }
    }

    fn into_course(self) -> Course {
        Course {
            ends: self.ends,
            began: self.began,
            closed: self.closed,
        }
    }

    /// `None` if it is to leave.
    fn poll(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<Option<Ending>> {
        if self.closing.is_none() {
            match ready!(self.poll_open(cx, timer.as_mut())) {
                Stop::Ended => return Poll::Ready(Some(self.ending(None))),
                Stop::Leave => return Poll::Ready(None),
                stop => self.begin_close(stop, timer.as_mut()),
            }
        }
        let note = match &mut self.closing {
            Some(closing) => ready!(closing.poll(cx, &mut self.ends, timer)),
            None => None,
        };
        Poll::Ready(Some(self.ending(note)))
    }

    fn poll_open(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<Stop> {
        if let Some(stop) = self.poll_timer(cx, timer.as_mut()) {
            return Poll::Ready(stop);
        }
        let Self { ends, began, .. } = self;
        if let Err(lost) = ends.relay(cx, |ends| *began = began.or_else(|| beginner(ends))) {
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
            let opened = self.ends.books.record.opened;
            self.closed = NonZeroU64::new(ends::millis(opened.elapsed()).max(1));
        }
        if self.look_sooner(timer) {
            self.waits_for_timer = false;
            // For the timer's new moment the task has to be registered anew.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// The one timer is not moved for every byte: when it fires, a look at the books tells
    /// whether anything is due, and when the next look is worth while.
    fn poll_timer(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Option<Stop> {
        let orders = &self.ends.books.record.orders;
        if orders.changed(&mut self.orders_seen, cx) {
            if self.ends.books.record.orders.is_to_leave() {
                return Some(Stop::Leave);
            }
            timer.as_mut().reset(self.next_look().into());
            self.waits_for_timer = false;
        }
        // The timer has the task's waker already, and need not get it for every message.
        if self.waits_for_timer && !timer.is_elapsed() {
            return None;
        }
        while timer.as_mut().poll(cx).is_ready() {
            if let Some(stop) = self.due(Instant::now()) {
                return Some(stop);
            }
            timer.as_mut().reset(self.next_look().into());
        }
        self.waits_for_timer = true;
        None
    }

    /// What ends the tunnel now. A silent client may be asked for a sign of life instead.
    fn due(&mut self, now: Instant) -> Option<Stop> {
        if let Some((by, deadline)) = self.ends.books.record.orders.first()
            && deadline.at <= now
        {
            return Some(Stop::Ordered(by, deadline));
        }
        if self.linger_end().is_some_and(|at| at <= now) {
            return Some(Stop::Lingering);
        }
        if self.idle_end() <= now {
            return Some(Stop::Idle);
        }
        if self.oldest().is_some_and(|at| at <= now) {
            return Some(Stop::Old);
        }
        let send = self.timeouts().send;
        if let Some(receiver) = self.ends.stuck_receiver(send, now) {
            return Some(Stop::Blocked(receiver));
        }
        self.ends.look_after_client(now).then_some(Stop::Silent)
    }

    fn next_look(&self) -> Instant {
        let sooner = self
            .ends
            .books
            .record
            .orders
            .first_at()
            .into_iter()
            .chain(self.oldest())
            .chain(self.may_come_up());
        sooner.fold(self.idle_end(), Instant::min)
    }

    /// What relaying can bring about, and bring forward.
    fn may_come_up(&self) -> impl Iterator<Item = Instant> {
        let blocked = self.ends.next_blocked_look(self.timeouts().send);
        let pings = self.ends.next_ping_look();
        self.linger_end().into_iter().chain(blocked).chain(pings)
    }

    /// Whether the timer had to be moved.
    fn look_sooner(&self, timer: Pin<&mut Sleep>) -> bool {
        let Some(next) = self.may_come_up().min() else {
            return false;
        };
        let sooner = timer.deadline() > next.into();
        if sooner {
            timer.reset(next.into());
        }
        sooner
    }

    fn timeouts(&self) -> &Timeouts {
        &self.ends.books.record.route.timeouts
    }

    fn idle_end(&self) -> Instant {
        let last = self.ends.books.last_byte();
        let idle = self.timeouts().idle;
        last.checked_add(idle).unwrap_or_else(|| last + FAR)
    }

    fn oldest(&self) -> Option<Instant> {
        let opened = self.ends.books.record.opened;
        opened.checked_add(self.timeouts().max_age?)
    }

    fn linger_end(&self) -> Option<Instant> {
        let closed = Duration::from_millis(self.closed?.get());
        Some(self.ends.books.record.opened + closed + CLOSED_WAIT)
    }

    fn begin_close(&mut self, stop: Stop, timer: Pin<&mut Sleep>) {
        let lost = match &stop {
            Stop::Lost(lost) => Some(*lost),
            _ => None,
        };
        if let Stop::Blocked(side) = &stop {
            self.blocked = Some(*side);
        }
        let (cause, farewell) = stop.farewell();
        // It stays to the end of its close.
        drop(self.ends.books.record.orders.take_leave());
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
            note: match self.blocked {
                Some(Side::Client) => Some("the client took nothing"),
                Some(Side::Server) => Some("the server took nothing"),
                None => note,
            },
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

impl Stop {
    /// The word for it, and what the peers are told: codes of RFC 6455 section 7.4.1. 1006, which would be
    /// the truth of a connection that broke, must not be sent.
    fn farewell(self) -> (Cause, Farewell) {
        let (cause, code, reason) = match self {
            Self::Ordered(by, order) => {
                let cause = match by {
                    By::Retire | By::Server | By::Lost => Cause::Drain,
                    By::Admin => Cause::Admin,
                };
                return (cause, Farewell::new(order.code, &order.reason));
            }
            Self::Lost(lost) => match lost.side {
                Side::Client => (Cause::ClientReset, 1001, "client connection lost"),
                Side::Server => (Cause::ServerReset, 1011, "server connection lost"),
            },
            Self::Blocked(Side::Client) => (Cause::SendTimeout, 1001, "client took nothing"),
            Self::Blocked(Side::Server) => (Cause::SendTimeout, 1011, "server took nothing"),
            Self::Idle => (Cause::Idle, 1001, "idle timeout"),
            Self::Old => (Cause::MaxAge, 1001, "max age"),
            Self::Silent => (Cause::PingTimeout, 1011, "ping timeout"),
            Self::Ended | Self::Leave | Self::Lingering => (Cause::Server, 1000, ""),
        };
        (cause, Farewell::new(code, reason))
    }
}
