//! A tunnel as everybody but its own task sees it.
//!
//! The task counts into the record and obeys the deadlines in it; the registry, the
//! admin API and the drains read the one and write the other. Nobody else touches
//! the tunnel's sockets.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Context;
use std::time::{Duration, Instant, SystemTime};

use futures_util::task::AtomicWaker;

/// One live tunnel.
#[derive(Debug)]
pub struct Record {
    /// The same for its whole life; also the request id of its handshake.
    pub id: Box<str>,
    /// The client's address, or `unix`.
    pub client: Box<str>,
    /// The listener that it came in by.
    pub listener: Arc<str>,
    /// The request's host, without a port.
    pub host: Box<str>,
    /// The request's path, without a query.
    pub path: Box<str>,
    /// The route's name.
    pub route: Arc<str>,
    /// The route's number.
    pub route_number: u32,
    /// The upstream's name.
    pub upstream: Arc<str>,
    /// The server's address, as in the configuration.
    pub server: Arc<str>,
    /// The server's number.
    pub server_number: u32,
    /// The agreed subprotocol.
    pub subprotocol: Option<Box<str>>,
    /// The tunnel ends when no byte came for so long.
    pub idle_timeout: Duration,
    /// When the 101 was sent.
    pub opened: Instant,
    /// The same as a time of day.
    pub opened_at: SystemTime,
    pub(crate) from_client: Flow,
    pub(crate) from_server: Flow,
    /// Milliseconds from `opened` to the last byte in either direction.
    pub(crate) last_byte_ms: AtomicU64,
    pub(crate) unframed: AtomicBool,
    pub(crate) closing: AtomicBool,
    pub(crate) orders: Orders,
}

/// What has been relayed in one direction.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    pub(crate) bytes: AtomicU64,
    pub(crate) messages: AtomicU64,
}

impl Record {
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

    /// Whether a peer broke RFC 6455 framing.
    #[must_use]
    pub fn unframed(&self) -> bool {
        self.unframed.load(Ordering::Relaxed)
    }

    /// Whether its polite close has begun.
    #[must_use]
    pub fn closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// The deadline that comes first, if it has one.
    #[must_use]
    pub fn deadline(&self) -> Option<Deadline> {
        self.orders.first()
    }
}

impl Flow {
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// The drain of the tunnel's generation.
    Retire,
    /// The drain of its server.
    Server,
}

/// The deadlines of a tunnel, and how its task learns of them.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    deadlines: Mutex<[Option<Deadline>; 2]>,
    version: AtomicU32,
    waker: AtomicWaker,
}

impl Orders {
    /// Sets or clears one deadline and wakes the tunnel's task. Returns whether
    /// the tunnel had any deadline before and has one now.
    pub(crate) fn set(&self, by: By, deadline: Option<Deadline>) -> (bool, bool) {
        let mut deadlines = self
            .deadlines
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let had = deadlines.iter().any(Option::is_some);
        deadlines[by as usize] = deadline;
        let has = deadlines.iter().any(Option::is_some);
        drop(deadlines);
        self.version.fetch_add(1, Ordering::Release);
        self.waker.wake();
        (had, has)
    }

    /// The deadline that comes first.
    pub(crate) fn first(&self) -> Option<Deadline> {
        let deadlines = self
            .deadlines
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        deadlines
            .iter()
            .flatten()
            .min_by_key(|deadline| deadline.at)
            .cloned()
    }

    /// Changes with every [`Orders::set`]: tells the task without a lock whether to look.
    pub(crate) fn version(&self) -> u32 {
        self.version.load(Ordering::Acquire)
    }

    /// The task of `cx` is woken at the next [`Orders::set`].
    pub(crate) fn register(&self, cx: &Context<'_>) {
        self.waker.register(cx.waker());
    }
}
