//! Idle connections to servers, for plain HTTP requests.
//!
//! Tunnels never come from here: a connection that carried a request may have bytes
//! underway that hyper would take for its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{Either, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use tokio::time::{Instant, sleep_until};

/// What goes to a server: a client's body, or none.
pub(crate) type Outgoing = Either<Incoming, Empty<Bytes>>;

/// One connection to a server.
pub(crate) type Sender = http1::SendRequest<Outgoing>;

/// Idle connections kept for each server.
const MOST_IDLE: usize = 32;

/// How long a connection may be idle. Shorter than what common servers allow, so that it is
/// seldom the server that ends it while a request is on its way.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Idle connections, by the servers' numbers.
#[derive(Default)]
pub(crate) struct Pool {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    idle: HashMap<u32, Vec<Idle>>,
    sweeping: bool,
    closed: bool,
}

struct Idle {
    sender: Sender,
    until: Instant,
}

impl Pool {
    /// The connection to a server that was used last, if one is left that seems alive.
    pub(crate) fn take(&self, server: u32) -> Option<Sender> {
        let mut state = self.lock();
        let idle = state.idle.get_mut(&server)?;
        let now = Instant::now();
        while let Some(last) = idle.pop() {
            if last.until > now && last.sender.is_ready() {
                return Some(last.sender);
            }
        }
        None
    }

    /// Takes a connection back once the answer on it has been read to its end.
    pub(crate) fn give_back(self: &Arc<Self>, server: u32, mut sender: Sender) {
        let pool = Arc::clone(self);
        tokio::spawn(async move {
            if sender.ready().await.is_ok() {
                pool.put(server, sender);
            }
        });
    }

    /// Closes all idle connections, and keeps none from now on.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.idle.clear();
    }

    fn put(self: &Arc<Self>, server: u32, sender: Sender) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        let idle = state.idle.entry(server).or_default();
        if idle.len() >= MOST_IDLE {
            return;
        }
        let until = Instant::now() + IDLE_TIMEOUT;
        idle.push(Idle { sender, until });
        if !state.sweeping {
            state.sweeping = true;
            tokio::spawn(sweep(Arc::downgrade(self), until));
        }
    }

    /// Closes what has been idle for too long; the next moment to look, if anything is left.
    fn expire(&self, now: Instant) -> Option<Instant> {
        let mut state = self.lock();
        for idle in state.idle.values_mut() {
            idle.retain(|idle| idle.until > now && !idle.sender.is_closed());
        }
        let next = state.idle.values().flatten().map(|idle| idle.until).min();
        state.sweeping = next.is_some();
        next
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn sweep(pool: Weak<Pool>, mut next: Instant) {
    loop {
        sleep_until(next).await;
        let Some(later) = pool.upgrade().and_then(|pool| pool.expire(Instant::now())) else {
            return;
        };
        next = later;
    }
}

#[cfg(test)]
impl Pool {
    pub(crate) fn idle(&self, server: u32) -> usize {
        let state = self.lock();
        let idle = state.idle.get(&server).into_iter().flatten();
        idle.filter(|idle| idle.sender.is_ready()).count()
    }
}
