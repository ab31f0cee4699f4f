//! Tunnels that leave for another process, and those that come from one.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Entry, Registry, State, draining, live};
use crate::handover::{LeaveOrder, Leaving};
use crate::record::By;
use crate::tunnel::Course;
use crate::{ClosePlan, Deadline, Figure, Record};

/// More closes of tunnels that are not here are not remembered: an operator does not close so many by name at a time.
const MOST_CLOSES: usize = 1024;

/// What is known of tunnels that may be on their way here.
#[derive(Debug, Default)]
pub(super) struct Expected {
    /// Whoever gives tunnels; while there is nobody nothing is remembered.
    givers: usize,
    /// Places that givers have been promised.
    granted: u64,
    closes: HashMap<Box<str>, Deadline>,
    /// Those that have lost their way, and no plan for it yet.
    lost: Vec<Arc<Record>>,
}

impl Registry {
    /// Orders the oldest tunnels that can move, at most so many, to leave.
    pub(crate) fn ask_to_leave(&self, most: usize, leaving: &Leaving) {
        let state = self.lock();
        let movable = state.tunnels.values().filter(|record| can_move(record));
        for record in movable.take(most) {
            record.orders.leave(leaving.order());
        }
    }

    pub(crate) fn has_movable(&self) -> bool {
        self.lock().tunnels.values().any(|record| can_move(record))
    }

    /// Waits until a tunnel has opened, or has come.
    pub(crate) async fn movable(&self) {
        self.arrived.notified().await;
    }

    /// A tunnel that another process had is this one's. It learns at once of the drains that are meant for it.
    pub(crate) fn take_over(self: &Arc<Self>, record: Arc<Record>, is_lost: bool) -> Entry {
        let mut state = self.lock();
        let number = state.insert(&record);
        for figure in live(&record).into_iter().chain([Figure::MovedIn]) {
            self.ledger.add(figure, 1);
        }
        if record.deadline().is_some() {
            for gauge in draining(&record) {
                self.ledger.add(gauge, 1);
            }
        }
        if let Some(deadline) = record.orders.get(By::Server) {
            state
                .drained
                .entry(record.server.number)
                .or_insert(deadline);
        }
        self.tell_of_drains(&state, &record);
        if let Some(deadline) = state.expected.closes.remove(&record.id) {
            self.set(&record, By::Admin, Some(deadline));
        }
        if is_lost {
            state.expected.lost.push(Arc::clone(&record));
        }
        drop(state);
        self.entry(record, number, Some(crate::Cause::WorkerStop))
    }

    /// Those that have lost their way since the last plan get deadlines by this one.
    pub(crate) fn drain_lost(&self, plan: &ClosePlan) {
        let mut state = self.lock();
        let mut lost = std::mem::take(&mut state.expected.lost);
        // Those that have ended, or have gone on to another process, need none.
        lost.retain(|record| Arc::strong_count(record) > 1 && !record.closing());
        let n = lost.len();
        for (k, record) in (1..).zip(&lost) {
            // A tunnel that has ended has left the gauges.
            if record.orders.get(By::Lost).is_some() {
                self.set(record, By::Lost, Some(plan.moment(k, n)));
            }
        }
    }

    /// Somebody gives tunnels from now on.
    pub(crate) fn expect(&self) {
        self.lock().expected.givers += 1;
    }

    /// One of those gives no more.
    pub(crate) fn expect_no_more(&self) {
        let mut state = self.lock();
        state.expected.givers = state.expected.givers.saturating_sub(1);
        if state.expected.givers == 0 {
            state.expected.closes.clear();
        }
    }

    /// Promises places for tunnels that come, at most so many, of `here` in all.
    pub(crate) fn grant(&self, most: usize, here: u64) -> usize {
        let mut state = self.lock();
        let taken = self.ledger.tunnels_here() + state.expected.granted;
        let free = usize::try_from(here.saturating_sub(taken)).unwrap_or(usize::MAX);
        let granted = free.min(most);
        state.expected.granted += granted as u64;
        granted
    }

    /// Takes a promise back, or the tunnels have come.
    pub(crate) fn give_back(&self, granted: usize) {
        let mut state = self.lock();
        state.expected.granted = state.expected.granted.saturating_sub(granted as u64);
    }

    pub(super) fn granted(&self) -> u64 {
        self.lock().expected.granted
    }

    /// For how long a tunnel that has come was relayed by nobody.
    pub(crate) fn note_pause(&self, pause: Duration) {
        let micros = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
        self.longest_pause_us.fetch_max(micros, Ordering::Relaxed);
    }

    /// The longest such time since the last look.
    pub(crate) fn longest_pause(&self) -> Duration {
        Duration::from_micros(self.longest_pause_us.swap(0, Ordering::Relaxed))
    }

    pub(super) fn forget_moved(&self, number: u64, record: &Record) {
        let mut state = self.lock();
        // First here: see `Ledger::tunnels`.
        self.ledger.add(Figure::MovedOut, 1);
        self.leave_gauges(&mut state, number, record);
    }
}

/// Whether a tunnel's task can give it up now.
fn can_move(record: &Record) -> bool {
    let away = record.away.load(Ordering::Relaxed);
    record.relaying() && !away && !record.closing() && record.refused() == 0
}

impl State {
    /// A close of a tunnel that is not here may be meant for one that is on its way.
    pub(super) fn remember_close(&mut self, id: &str, deadline: Deadline) {
        let Expected { givers, closes, .. } = &mut self.expected;
        if *givers > 0
            && closes.len() < MOST_CLOSES
            && let Place::Vacant(place) = closes.entry(id.into())
        {
            place.insert(deadline);
        }
    }
}

impl Entry {
    /// Its task gives it up, if it is still wanted: nobody orders a tunnel to leave and does not wait for it.
    pub(crate) fn leave(self, course: Box<Course>) {
        if let Some(order) = self.record.orders.take_leave() {
            self.record.copied.store(true, Ordering::Relaxed);
            self.record.away.store(true, Ordering::Relaxed);
            LeaveOrder::obey(&order, course, self);
        }
    }

    /// It goes on here.
    pub(crate) fn stay(&self) {
        self.record.away.store(false, Ordering::Relaxed);
        self.can_move();
    }

    /// Another process has it.
    pub(crate) fn moved(mut self) {
        self.cause = None;
    }
}
