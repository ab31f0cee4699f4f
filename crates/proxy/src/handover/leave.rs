//! The way out: tasks that give their tunnels up, and tunnels that nobody relays at the moment.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::lazy;
use tokio::sync::Notify;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::error;

use super::passport::Parts;
use super::{Clock, Passport};
use crate::registry::Entry;
use crate::tunnel::{Course, Outcome, run};
use crate::{Gateway, Record};

/// Tunnels that have been asked to leave.
pub(crate) struct Leaving {
    shared: Arc<Shared>,
}

struct Shared {
    gateway: Arc<Gateway>,
    state: Mutex<State>,
    answered: Notify,
}

#[derive(Default)]
struct State {
    /// Those that have neither left nor ended yet.
    open: usize,
    left: Vec<Left>,
}

/// A tunnel as its task has given it up.
struct Left {
    course: Box<Course>,
    entry: Entry,
    at: u64,
    token: TaskTrackerToken,
}

/// Tells a tunnel's task to give its tunnel up. Dropped, it says that the tunnel does not leave: it has ended, or is about to.
pub(crate) struct LeaveOrder {
    shared: Arc<Shared>,
}

impl Leaving {
    pub(crate) fn new(gateway: &Arc<Gateway>) -> Self {
        Self {
            shared: Arc::new(Shared {
                gateway: Arc::clone(gateway),
                state: Mutex::default(),
                answered: Notify::new(),
            }),
        }
    }

    /// For one tunnel more.
    pub(crate) fn order(&self) -> LeaveOrder {
        self.shared.lock().open += 1;
        LeaveOrder {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Waits until every task has answered, which they do as soon as the runtime gets to them.
    pub(crate) async fn all(self) -> Vec<Leaver> {
        loop {
            if let Some(left) = self.shared.if_all() {
                let left = left.into_iter();
                return left
                    .filter_map(|left| Leaver::new(&self.shared.gateway, left))
                    .collect();
            }
            self.shared.answered.notified().await;
        }
    }
}

impl LeaveOrder {
    /// The tunnel, from its task.
    pub(crate) fn obey(&self, course: Box<Course>, entry: Entry) {
        let left = Left {
            course,
            entry,
            at: Clock::now().ns(),
            token: self.shared.gateway.tasks.token(),
        };
        self.shared.lock().left.push(left);
    }
}

impl Drop for LeaveOrder {
    fn drop(&mut self) {
        self.shared.lock().open -= 1;
        self.shared.answered.notify_one();
    }
}

impl std::fmt::Debug for LeaveOrder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LeaveOrder").finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn if_all(&self) -> Option<Vec<Left>> {
        let mut state = self.lock();
        (state.open == 0).then(|| std::mem::take(&mut state.left))
    }
}

/// A tunnel that nobody relays at the moment. It counts as live here until it is said to have [moved](Leaver::moved).
#[must_use = "a tunnel that is neither moved nor resumed is lost"]
pub struct Leaver {
    gateway: Arc<Gateway>,
    passport: Passport,
    sockets: [OwnedFd; 2],
    pending: [Bytes; 2],
    entry: Entry,
    _token: TaskTrackerToken,
}

impl Leaver {
    /// `None` if the runtime does not give its sockets away: then it is lost.
    fn new(gateway: &Arc<Gateway>, left: Left) -> Option<Self> {
        let Parts {
            passport,
            client,
            server,
            pending,
        } = Passport::of(*left.course, left.at);
        let sockets = client
            .into_fd()
            .and_then(|client| Ok([client, server.into_fd()?]));
        let sockets = sockets.inspect_err(|error| {
            error!(target: "wsgate::proxy", id = &*passport.id, %error, "tunnel lost: its sockets cannot be taken out of the runtime");
        });
        Some(Self {
            gateway: Arc::clone(gateway),
            sockets: sockets.ok()?,
            passport,
            pending,
            entry: left.entry,
            _token: left.token,
        })
    }

    /// What goes along with its sockets.
    #[must_use]
    pub const fn passport(&self) -> &Passport {
        &self.passport
    }

    /// Its client's socket, and its server's.
    #[must_use]
    pub fn sockets(&self) -> [BorrowedFd<'_>; 2] {
        self.sockets.each_ref().map(|socket| socket.as_fd())
    }

    /// The bytes that are on their way to the client, and to the server.
    #[must_use]
    pub fn pending(&self) -> [&[u8]; 2] {
        self.pending.each_ref().map(|bytes| &**bytes)
    }

    /// Another process has it: here it is no more. The sockets are closed here alone, so its peers notice nothing.
    pub fn moved(self) {
        self.entry.moved();
    }

    /// It goes on here.
    pub fn resume(self) {
        let record = Arc::clone(self.entry.record());
        let (id, left) = (record.id.clone(), self.passport.left);
        match resumed(
            &self.gateway,
            self.passport,
            self.sockets,
            &self.pending,
            record,
        ) {
            Ok(course) => {
                let pause = Clock::now().ns().saturating_sub(left);
                self.gateway
                    .registry
                    .note_pause(Duration::from_nanos(pause));
                self.entry.stay();
                spawn(&self.gateway, course, self.entry);
            }
            Err(error) => {
                error!(target: "wsgate::proxy", id = &*id, %error, "tunnel lost: it did not move, and cannot go on");
            }
        }
    }

    /// It goes on here and is not asked again, for a reason whose number is the caller's; see [`Record::refused`](crate::Record::refused).
    pub fn refused(self, reason: u8) {
        self.entry.record().set_refused(reason);
        self.resume();
    }
}

fn resumed(
    gateway: &Gateway,
    passport: Passport,
    sockets: [OwnedFd; 2],
    pending: &[Bytes; 2],
    record: Arc<Record>,
) -> io::Result<Course> {
    let (client, server) = passport.sockets(sockets)?;
    let course = passport.course(record, Arc::clone(&gateway.ledger), client, server, pending);
    course.ok_or_else(|| io::Error::other("its own passport does not fit"))
}

impl Gateway {
    /// Asks the oldest tunnels that can move to leave, at most so many, and waits until they have. Empty if there is none.
    ///
    /// Whoever asks must not be cancelled before the end, and moves or resumes each.
    pub async fn leavers(self: &Arc<Self>, most: usize) -> Vec<Leaver> {
        let leaving = Leaving::new(self);
        self.registry.ask_to_leave(most, &leaving);
        leaving.all().await
    }

    /// Whether there is a tunnel that can move.
    #[must_use]
    pub fn has_movable(&self) -> bool {
        self.registry.has_movable()
    }

    /// Waits until there may be one more that can move.
    pub async fn movable(&self) {
        self.registry.movable().await;
    }

    /// The longest time for which a tunnel was relayed by nobody, since the last look.
    #[must_use]
    pub fn longest_pause(&self) -> Duration {
        self.registry.longest_pause()
    }

    /// Tunnels that were refused before may be asked again.
    pub fn forget_refusals(&self) {
        self.registry
            .tunnels()
            .iter()
            .for_each(|record| record.set_refused(0));
    }
}

/// A task of its own for a tunnel, so that nothing of what came before stays in memory.
pub(crate) fn spawn(gateway: &Gateway, course: Course, entry: Entry) {
    gateway
        .tasks
        .spawn(run(course).map(|outcome| settle(outcome, entry)));
}

/// The same for one that calls something first, in its own task.
pub(super) fn spawn_with(
    gateway: &Gateway,
    first: impl FnOnce() + Send + 'static,
    course: Course,
    entry: Entry,
) {
    let relayed = lazy(|_| first()).then(|()| run(course));
    gateway
        .tasks
        .spawn(relayed.map(|outcome| settle(outcome, entry)));
}

fn settle(outcome: Outcome, entry: Entry) {
    match outcome {
        Outcome::Ended(ending) => entry.end(&ending),
        Outcome::Left(course) => entry.leave(course),
    }
}
