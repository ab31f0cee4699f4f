//! A tunnel as everybody but its own task sees it.
//!
//! The task counts into the record and obeys the deadlines in it; the registry, the
//! admin API and the drains read the one and write the other. Nobody else touches
//! the tunnel's sockets.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::handover::LeaveOrder;
use crate::socket::Peer;

/// One live tunnel.
#[derive(Debug)]
pub struct Record {
    /// The same for its whole life; also the request id of its handshake.
    pub id: Box<str>,
    /// The client's end.
    pub client: Peer,
    /// The listener that it came in by.
    pub listener: Arc<str>,
    /// The request's host, without a port.
    pub host: Box<str>,
    /// The request's path, without a query.
    pub path: Box<str>,
    /// The page that it was opened by, as the request's Origin field says (RFC 6455 section 4.1).
    pub origin: Option<Box<str>>,
    /// What it was routed by.
    pub route: Arc<Route>,
    /// Where it leads to.
    pub server: Arc<Server>,
    /// The agreed subprotocol.
    pub subprotocol: Option<Box<str>>,
    /// When the 101 was sent.
    pub opened: Instant,
    /// The same as a time of day.
    pub opened_at: SystemTime,
    /// How often it has moved from one worker to another.
    pub handovers: u32,
    pub(crate) from_client: Flow,
    pub(crate) from_server: Flow,
    /// Milliseconds from `opened` to the last byte in either direction.
    pub(crate) last_byte_ms: AtomicU64,
    /// Microseconds from wsgate's last answered ping to its pong; 0 before the first.
    pub(crate) round_trip_us: AtomicU32,
    pub(crate) unframed: AtomicBool,
    /// Its client has the 101, and a task relays.
    pub(crate) relaying: AtomicBool,
    /// Another process may have copies of its sockets: closing them here does not end the connections for certain.
    pub(crate) copied: AtomicBool,
    /// Its task has given it up, and nobody relays it at the moment.
    pub(crate) away: AtomicBool,
    pub(crate) closing: AtomicBool,
    pub(crate) refused: AtomicU8,
    pub(crate) orders: Orders,
}

/// What a client asked for when it opened a tunnel, and what was agreed.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) id: Box<str>,
    pub(crate) client: Peer,
    pub(crate) listener: Arc<str>,
    pub(crate) host: Box<str>,
    pub(crate) path: Box<str>,
    pub(crate) origin: Option<Box<str>>,
    pub(crate) subprotocol: Option<Box<str>>,
}

/// What all tunnels of a route share.
#[derive(Debug)]
pub struct Route {
    /// Its name.
    pub name: Arc<str>,
    /// Its number.
    pub number: u32,
    /// When its tunnels end by themselves.
    pub timeouts: Timeouts,
}

/// What all tunnels to a server share.
#[derive(Debug)]
pub struct Server {
    /// Its address, as in the configuration.
    pub name: Arc<str>,
    /// Its number.
    pub number: u32,
    /// The name of its upstream.
    pub upstream: Arc<str>,
}

/// When a tunnel ends by itself, and how its client is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// No byte in either direction for so long.
    pub idle: Duration,
    /// A peer has taken nothing of what waits for it for so long.
    pub send: Duration,
    /// Its longest life.
    pub max_age: Option<Duration>,
    /// A client that has been silent for so long is pinged.
    pub ping: Option<Duration>,
}

/// What has been relayed in one direction.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    pub(crate) bytes: AtomicU64,
    pub(crate) messages: AtomicU64,
}

impl Record {
    /// A tunnel that opens now.
    pub(crate) fn new(asked: Asked, route: Arc<Route>, server: Arc<Server>) -> Self {
        let Asked {
            id,
            client,
            listener,
            host,
            path,
            origin,
            subprotocol,
        } = asked;
        Self {
            id,
            client,
            listener,
            host,
            path,
            origin,
            route,
            server,
            subprotocol,
            opened: Instant::now(),
            opened_at: SystemTime::now(),
            handovers: 0,
            from_client: Flow::default(),
            from_server: Flow::default(),
            last_byte_ms: AtomicU64::new(0),
            round_trip_us: AtomicU32::new(0),
            unframed: AtomicBool::new(false),
            relaying: AtomicBool::new(false),
            copied: AtomicBool::new(false),
            away: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            refused: AtomicU8::new(0),
            orders: Orders::default(),
        }
    }

    /// Bytes and whole messages from the client to the server.
    #[must_use]
    pub fn from_client(&self) -> (u64, u64) {
        self.from_client.get()
    }

    /// Bytes and whole messages from the server to the client.
    #[must_use]
    pub fn from_server(&self) -> (u64, u64) {
        self.from_server.get()
    }

    /// Time since the last byte in either direction.
    #[must_use]
    pub fn idle(&self) -> Duration {
        let last = Duration::from_millis(self.last_byte_ms.load(Ordering::Relaxed));
        self.opened.elapsed().saturating_sub(last)
    }

    /// How long the client took to answer wsgate's last ping that it answered.
    #[must_use]
    pub fn round_trip(&self) -> Option<Duration> {
        let micros = self.round_trip_us.load(Ordering::Relaxed);
        (micros > 0).then(|| Duration::from_micros(micros.into()))
    }

    pub(crate) fn round_trip_us(&self) -> u32 {
        self.round_trip_us.load(Ordering::Relaxed)
    }

    pub(crate) fn last_byte_ms(&self) -> u64 {
        self.last_byte_ms.load(Ordering::Relaxed)
    }

    /// Whether a peer broke RFC 6455 framing.
    #[must_use]
    pub fn unframed(&self) -> bool {
        self.unframed.load(Ordering::Relaxed)
    }

    /// Whether its client has its 101, and bytes are relayed.
    #[must_use]
    pub fn relaying(&self) -> bool {
        self.relaying.load(Ordering::Relaxed)
    }

    /// Why no other worker took it, as [`Record::set_refused`] says; 0 if none has refused it.
    #[must_use]
    pub fn refused(&self) -> u8 {
        self.refused.load(Ordering::Relaxed)
    }

    /// It is not offered to another worker any more, for a reason whose number is the caller's; 0 takes that back.
    pub fn set_refused(&self, reason: u8) {
        self.refused.store(reason, Ordering::Relaxed);
    }

    /// Whether closing its sockets here ends its connections.
    pub(crate) fn is_sole_owner(&self) -> bool {
        self.handovers == 0 && !self.copied.load(Ordering::Relaxed)
    }

    /// Whether its polite close has begun.
    #[must_use]
    pub fn closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// The deadline that comes first, if it has one.
    #[must_use]
    pub fn deadline(&self) -> Option<Deadline> {
        self.orders.first().map(|(_, deadline)| deadline)
    }
}

impl Flow {
    pub(crate) fn new(bytes: u64, messages: u64) -> Self {
        Self {
            bytes: AtomicU64::new(bytes),
            messages: AtomicU64::new(messages),
        }
    }

    fn get(&self) -> (u64, u64) {
        (
            self.bytes.load(Ordering::Relaxed),
            self.messages.load(Ordering::Relaxed),
        )
    }
}

/// When a tunnel's polite close begins, and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// The moment.
    pub at: Instant,
    /// Status code of the Close frame (RFC 6455 section 7.4).
    pub code: u16,
    /// Its reason, at most 123 bytes of UTF-8.
    pub reason: Arc<str>,
}

/// Who set a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum By {
    /// The drain of the tunnel's generation.
    Retire,
    /// The drain of its server.
    Server,
    /// An operator, for this tunnel alone.
    Admin,
    /// A new configuration, which does not lead to its server any more.
    Lost,
}

impl By {
    pub(crate) const ALL: [Self; 4] = [Self::Retire, Self::Server, Self::Admin, Self::Lost];
}

/// The deadlines of a tunnel, and how its task learns of them.
#[derive(Debug)]
pub(crate) struct Orders {
    state: Mutex<OrdersState>,
    /// Changes with every [`Orders::set`], so that the task need not lock for every message. Never 0.
    version: AtomicU32,
}

#[derive(Debug, Default)]
struct OrdersState {
    /// By whom they were set. Nearly every tunnel has none for all its life.
    deadlines: Option<Box<[Option<Deadline>; By::ALL.len()]>>,
    leave: Option<Box<LeaveOrder>>,
    /// Taken at every change.
    waker: Option<Waker>,
}

impl Default for Orders {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            version: AtomicU32::new(1),
        }
    }
}

impl Orders {
    /// Sets or clears one deadline and wakes the tunnel's task. Returns whether
    /// the tunnel had any deadline before and has one now.
    pub(crate) fn set(&self, by: By, deadline: Option<Deadline>) -> (bool, bool) {
        let mut state = self.lock();
        let had = state.deadlines.is_some();
        let mut all = state.deadlines.take().unwrap_or_default();
        all[by as usize] = deadline;
        let has = all.iter().any(Option::is_some);
        state.deadlines = has.then_some(all);
        self.tell(state);
        (had, has)
    }

    /// What [`Orders::set`] was given last.
    pub(crate) fn get(&self, by: By) -> Option<Deadline> {
        self.lock().deadlines.as_ref()?[by as usize].clone()
    }

    /// The tunnel's task is to give it up.
    pub(crate) fn leave(&self, order: LeaveOrder) {
        let mut state = self.lock();
        state.leave = Some(Box::new(order));
        self.tell(state);
    }

    pub(crate) fn is_to_leave(&self) -> bool {
        self.lock().leave.is_some()
    }

    /// The order to leave. Whoever takes it obeys it, or drops it.
    pub(crate) fn take_leave(&self) -> Option<Box<LeaveOrder>> {
        self.lock().leave.take()
    }

    fn tell(&self, mut state: MutexGuard<'_, OrdersState>) {
        let next = self.version.load(Ordering::Relaxed).wrapping_add(1).max(1);
        self.version.store(next, Ordering::Release);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The deadline that comes first, and who set it.
    pub(crate) fn first(&self) -> Option<(By, Deadline)> {
        let state = self.lock();
        let all = state.deadlines.as_ref()?.iter().zip(By::ALL);
        all.filter_map(|(deadline, by)| Some((by, deadline.as_ref()?)))
            .min_by_key(|(_, deadline)| deadline.at)
            .map(|(by, deadline)| (by, deadline.clone()))
    }

    /// The moment of the deadline that comes first.
    pub(crate) fn first_at(&self) -> Option<Instant> {
        let state = self.lock();
        let all = state.deadlines.as_ref()?.iter().flatten();
        all.map(|deadline| deadline.at).min()
    }

    /// Whether something has changed since `seen`, which is 0 at first. If so the task of `cx` is woken at the
    /// next change: it is registered once for each, since it is always the same.
    pub(crate) fn changed(&self, seen: &mut u32, cx: &Context<'_>) -> bool {
        if self.version.load(Ordering::Acquire) == *seen {
            return false;
        }
        let mut state = self.lock();
        *seen = self.version.load(Ordering::Relaxed);
        state.waker = Some(cx.waker().clone());
        true
    }

    fn lock(&self) -> MutexGuard<'_, OrdersState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
