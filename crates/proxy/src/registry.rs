//! The live tunnels of this process, and their deadlines.
//!
//! That a tunnel opens, that it ends, and that a plan gives deadlines all happen under one
//! lock: no tunnel slips between a drain and its registration, and the gauges of draining
//! tunnels are exact.

mod moves;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use self::moves::Expected;
use crate::handover::Clock;

use crate::record::By;
use crate::tunnel::Ending;
use crate::{Cause, Deadline, Figure, Ledger, Record, access};

/// When the tunnels of a drain are closed, and what their Close frames say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosePlan {
    /// Status code of the Close frames (RFC 6455 section 7.4).
    pub code: u16,
    /// Their reason, at most 123 bytes of UTF-8.
    pub reason: Arc<str>,
    /// The closes are spread evenly over these, laid end to end. Ordered and disjoint; empty
    /// means now.
    pub windows: Vec<(Instant, Instant)>,
}

impl ClosePlan {
    fn deadline(&self, at: Instant) -> Deadline {
        Deadline {
            at,
            code: self.code,
            reason: Arc::clone(&self.reason),
        }
    }

    /// For tunnels that the plan did not know of.
    fn last(&self) -> Deadline {
        let end = self.windows.last().map(|(_, end)| *end);
        self.deadline(end.unwrap_or_else(Instant::now))
    }

    /// The moment of the `k`th of `n`, counted from 1: so far into the windows, laid end to end.
    fn moment(&self, k: usize, n: usize) -> Deadline {
        let length = |(begin, end): &(Instant, Instant)| end.saturating_duration_since(*begin);
        let total: Duration = self.windows.iter().map(length).sum();
        let mut left = total.mul_f64(k as f64 / n as f64);
        for window in &self.windows {
            let length = length(window);
            if left <= length {
                return self.deadline(window.0 + left);
            }
            left -= length;
        }
        self.last()
    }
}

/// All live tunnels of this process.
pub(crate) struct Registry {
    ledger: Arc<dyn Ledger>,
    state: Mutex<State>,
    /// A tunnel has begun that can move.
    arrived: Notify,
    longest_pause_us: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// Oldest first: by when they were opened, in nanoseconds of CLOCK_MONOTONIC.
    tunnels: BTreeMap<u64, Arc<Record>>,
    retired: Option<Deadline>,
    drained: HashMap<u32, Deadline>,
    expected: Expected,
}

impl State {
    /// A place of its own for a tunnel, in the order of age.
    fn insert(&mut self, record: &Arc<Record>) -> u64 {
        let mut number = Clock::now().to_ns(record.opened).max(1);
        while self.tunnels.contains_key(&number) {
            number += 1;
        }
        self.tunnels.insert(number, Arc::clone(record));
        number
    }
}

impl Registry {
    pub(crate) fn new(ledger: Arc<dyn Ledger>) -> Arc<Self> {
        Arc::new(Self {
            ledger,
            state: Mutex::default(),
            arrived: Notify::new(),
            longest_pause_us: AtomicU64::new(0),
        })
    }

    /// A place for one more tunnel, if the whole gateway has fewer than `all` and this process
    /// fewer than `here`.
    pub(crate) fn reserve(self: &Arc<Self>, all: Option<u64>, here: u64) -> Option<Reservation> {
        // First taken, then counted: of two processes that take the last place at the same
        // moment both may be refused, but never are both served.
        let reservation = Reservation(Arc::clone(self));
        self.ledger.add(Figure::Opening, 1);
        let has_room = self.ledger.tunnels_here() + self.granted() <= here
            && all.is_none_or(|all| self.ledger.tunnels() <= all);
        has_room.then_some(reservation)
    }

    /// A tunnel opens, before its client knows: whoever has a 101 is counted. It learns at once of the drains that are meant for it.
    pub(crate) fn open(self: &Arc<Self>, record: Arc<Record>) -> Entry {
        let mut state = self.lock();
        let number = state.insert(&record);
        self.count_opened(&record);
        self.tell_of_drains(&state, &record);
        drop(state);
        self.entry(record, number, Some(Cause::ClientReset))
    }

    fn tell_of_drains(&self, state: &State, record: &Record) {
        if let Some(deadline) = &state.retired {
            self.set(record, By::Retire, Some(deadline.clone()));
        }
        if let Some(deadline) = state.drained.get(&record.server.number)
            && record.orders.get(By::Server).is_none()
        {
            self.set(record, By::Server, Some(deadline.clone()));
        }
    }

    fn entry(self: &Arc<Self>, record: Arc<Record>, number: u64, cause: Option<Cause>) -> Entry {
        let entry = Entry {
            registry: Arc::clone(self),
            record,
            number,
            cause,
        };
        if cause == Some(Cause::WorkerStop) {
            entry.can_move();
        }
        entry
    }

    /// Tunnels that open from now on get the plan's last moment. Those that live get none by this.
    pub(crate) fn retire_those_to_come(&self, plan: &ClosePlan) {
        self.lock().retired = Some(plan.last());
    }

    /// Every tunnel gets a deadline, also those that open from now on.
    pub(crate) fn retire(&self, plan: &ClosePlan) {
        let mut state = self.lock();
        state.retired = Some(plan.last());
        self.spread(&state, plan, By::Retire, |_| true);
    }

    /// Every tunnel of a server gets a deadline, also those that open from now on.
    pub(crate) fn drain_server(&self, server: u32, plan: &ClosePlan) {
        let mut state = self.lock();
        state.drained.insert(server, plan.last());
        self.spread(&state, plan, By::Server, |record| {
            record.server.number == server
        });
    }

    /// The deadlines that the drain of this server gave are taken back.
    pub(crate) fn undrain_server(&self, server: u32) {
        let mut state = self.lock();
        state.drained.remove(&server);
        for record in state
            .tunnels
            .values()
            .filter(|record| record.server.number == server)
        {
            self.set(record, By::Server, None);
        }
    }

    /// The same for every server but these.
    pub(crate) fn undrain_all_but(&self, servers: &[u32]) {
        let drained: Vec<u32> = self.lock().drained.keys().copied().collect();
        for server in drained {
            if !servers.contains(&server) {
                self.undrain_server(server);
            }
        }
    }

    /// One tunnel gets a deadline that is now. Whether there is such a tunnel.
    pub(crate) fn close_tunnel(&self, id: &str, deadline: Deadline) -> bool {
        let mut state = self.lock();
        let record = state.tunnels.values().find(|record| *record.id == *id);
        if let Some(record) = record {
            self.set(record, By::Admin, Some(deadline));
            return true;
        }
        state.remember_close(id, deadline);
        false
    }

    pub(crate) fn live(&self) -> usize {
        self.lock().tunnels.len()
    }

    /// Oldest first.
    pub(crate) fn tunnels(&self) -> Vec<Arc<Record>> {
        self.lock().tunnels.values().cloned().collect()
    }

    /// At most so many that were there before `end`, oldest first, beginning behind `after`; each with its place. The place of
    /// the first one that opens from now on is [`Registry::end`].
    pub(crate) fn some(&self, after: u64, end: u64, most: usize) -> Vec<(u64, Arc<Record>)> {
        let state = self.lock();
        let tunnels = state.tunnels.range(after + 1..end.max(after + 1));
        tunnels
            .take(most)
            .map(|(number, record)| (*number, Arc::clone(record)))
            .collect()
    }

    /// See [`Registry::some`].
    pub(crate) fn end(&self) -> u64 {
        Clock::now().ns() + 1
    }

    fn spread(&self, state: &State, plan: &ClosePlan, by: By, meant: impl Fn(&Record) -> bool) {
        let meant = |record: &&Arc<Record>| !record.closing() && meant(record);
        let n = state.tunnels.values().filter(meant).count();
        for (k, record) in (1..).zip(state.tunnels.values().filter(meant)) {
            self.set(record, by, Some(plan.moment(k, n)));
        }
    }

    /// Only to be called with the state locked: see [`Registry::forget`].
    fn set(&self, record: &Record, by: By, deadline: Option<Deadline>) {
        match record.orders.set(by, deadline) {
            (false, true) => {
                for gauge in draining(record) {
                    self.ledger.add(gauge, 1);
                }
            }
            (true, false) => {
                for gauge in draining(record) {
                    self.ledger.sub(gauge, 1);
                }
            }
            _ => {}
        }
    }

    fn count_opened(&self, record: &Record) {
        for figure in [
            Figure::TunnelsOpened,
            Figure::ServerOpened(record.server.number),
        ]
        .into_iter()
        .chain(live(record))
        {
            self.ledger.add(figure, 1);
        }
    }

    fn forget(&self, number: u64, record: &Record, cause: Cause) {
        let mut state = self.lock();
        self.leave_gauges(&mut state, number, record);
        self.ledger.add(Figure::Ended(cause), 1);
    }

    fn leave_gauges(&self, state: &mut State, number: u64, record: &Record) {
        state.tunnels.remove(&number);
        if record.deadline().is_some() {
            for gauge in draining(record) {
                self.ledger.sub(gauge, 1);
            }
        }
        for gauge in live(record) {
            self.ledger.sub(gauge, 1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn live(record: &Record) -> [Figure; 3] {
    [
        Figure::Tunnels,
        Figure::RouteTunnels(record.route.number),
        Figure::ServerTunnels(record.server.number),
    ]
}

fn draining(record: &Record) -> [Figure; 2] {
    [
        Figure::RouteDraining(record.route.number),
        Figure::ServerDraining(record.server.number),
    ]
}

/// A place that a handshake holds.
pub(crate) struct Reservation(Arc<Registry>);

impl Drop for Reservation {
    fn drop(&mut self) {
        self.0.ledger.sub(Figure::Opening, 1);
    }
}

/// A tunnel's place in the registry: it is live for as long as this exists.
pub(crate) struct Entry {
    registry: Arc<Registry>,
    record: Arc<Record>,
    number: u64,
    /// What is counted if nobody says more; `None` if it has moved on.
    cause: Option<Cause>,
}

impl Entry {
    pub(crate) fn record(&self) -> &Arc<Record> {
        &self.record
    }

    /// The client has its 101. Dropped before, the tunnel was lost with the client; dropped
    /// after this without an end, it was lost with its task.
    pub(crate) fn begin(&mut self) {
        self.cause = Some(Cause::WorkerStop);
        self.can_move();
    }

    pub(super) fn can_move(&self) {
        self.record.relaying.store(true, Ordering::Relaxed);
        self.registry.arrived.notify_one();
    }

    /// The tunnel has ended.
    pub(crate) fn end(mut self, ending: &Ending) {
        self.cause = Some(ending.cause);
        access::ended(&self.record, ending);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        match self.cause {
            Some(cause) => self.registry.forget(self.number, &self.record, cause),
            None => self.registry.forget_moved(self.number, &self.record),
        }
        // Whoever waits for it to leave need not any more.
        drop(self.record.orders.take_leave());
    }
}
