//! The way in: a tunnel that another process has given up.
//!
//! It is made ready first, and begins only when it is certain that it is this process' own: until then nothing is read
//! from its sockets or written to them, and dropping it leaves no trace.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::leave::spawn_with;
use super::{Clock, Passport};
use crate::fate::{Fate, Judgement, Lost, Reason, RoutedBy, ending, fate};
use crate::record::By;
use crate::tunnel::Course;
use crate::{Deadline, Gateway, Record, Route, Server};

/// What the Close frames of tunnels say that have lost their way.
const REASON: &str = "service restart";

/// Why a tunnel cannot go on here.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// Its sockets cannot be registered with the runtime.
    #[error("its sockets cannot be registered: {0}")]
    Sockets(#[from] std::io::Error),
    /// Its passport contradicts itself.
    #[error("its passport contradicts itself")]
    Passport,
}

/// A tunnel that is ready to go on here.
#[must_use = "it goes on when it is told to begin"]
pub struct Adopted {
    gateway: Arc<Gateway>,
    record: Arc<Record>,
    course: Course,
    verdict: Verdict,
    left: u64,
}

enum Verdict {
    Kept { ends: bool },
    Lost(Reason),
    Draining,
}

impl Gateway {
    /// Makes a tunnel ready to go on here. `pending` are the bytes on their way to the client and to the server. If its route or
    /// server is gone it has until `lost_until`, unless it has a deadline for that already.
    ///
    /// # Errors
    ///
    /// If it is not fit to go on; nothing has been done to its sockets then.
    pub fn adopt(
        self: &Arc<Self>,
        passport: Passport,
        sockets: [OwnedFd; 2],
        pending: [&[u8]; 2],
        lost_until: Instant,
    ) -> Result<Adopted, Unfit> {
        let clock = Clock::now();
        let (record, verdict) = self.judge_arrival(&passport, lost_until, clock);
        let record = Arc::new(record);
        let (client, server) = passport.sockets(sockets)?;
        let left = passport.left;
        let pending = pending.map(Bytes::copy_from_slice);
        let ledger = Arc::clone(&self.ledger);
        let course = passport
            .course(Arc::clone(&record), ledger, client, server, &pending)
            .ok_or(Unfit::Passport)?;
        Ok(Adopted {
            gateway: Arc::clone(self),
            record,
            course,
            verdict,
            left,
        })
    }

    /// Its record here, with its deadlines.
    fn judge_arrival(
        &self,
        passport: &Passport,
        lost_until: Instant,
        clock: Clock,
    ) -> (Record, Verdict) {
        let table = self.table();
        let by = RoutedBy {
            listener: &passport.listener,
            host: &passport.host,
            path: &passport.path,
            upstream: &passport.server.upstream,
            server: &passport.server.name,
        };
        let (record, lost) = match fate(&table.plan, &by) {
            Fate::Kept { route, server } => {
                let (route, server) = (Arc::clone(&route.shared), Arc::clone(&server.shared));
                (self.arrival(passport, route, server, clock), None)
            }
            Fate::Lost(reason) => {
                let (route, server) = self.ways.lost(passport);
                let record = self.arrival(passport, route, server, clock);
                (record, Some(reason))
            }
        };
        let drains = self.set_deadlines(&record, passport, lost.is_some(), clock);
        let verdict = match lost {
            _ if drains => Verdict::Draining,
            None => Verdict::Kept {
                ends: ending(
                    &record.route.timeouts,
                    record.idle(),
                    record.opened.elapsed(),
                ),
            },
            Some(reason) => {
                let deadline = Deadline {
                    at: lost_until,
                    code: self.config.drain.close_code,
                    reason: REASON.into(),
                };
                record.orders.set(By::Lost, Some(deadline));
                Verdict::Lost(reason)
            }
        };
        (record, verdict)
    }

    /// The deadlines that came along, as far as they hold. Whether one does.
    fn set_deadlines(
        &self,
        record: &Record,
        passport: &Passport,
        is_lost: bool,
        clock: Clock,
    ) -> bool {
        let mut drains = false;
        for (by, deadline) in passport.deadlines(clock) {
            let holds = match by {
                By::Lost => is_lost,
                // It may have been taken back while the tunnel was on its way.
                _ => is_lost || self.table().drains(record.server.number),
            };
            // The operator's word about a server ends with the server, its drain does not.
            let by = if is_lost { By::Lost } else { by };
            let sooner = |set: Deadline| set.at <= deadline.at;
            if holds && !record.orders.get(by).is_some_and(sooner) {
                record.orders.set(by, Some(deadline));
            }
            drains |= holds;
        }
        drains
    }

    fn arrival(
        &self,
        passport: &Passport,
        route: Arc<Route>,
        server: Arc<Server>,
        clock: Clock,
    ) -> Record {
        let listener = self.ways.listener(&passport.listener);
        passport.record(listener, route, server, clock)
    }
}

/// Places that are promised to somebody who gives tunnels. As long as it lives, closes of tunnels that are not here are remembered
/// for those that come.
pub struct Places {
    gateway: Arc<Gateway>,
    granted: usize,
    next: usize,
}

impl Gateway {
    /// Somebody is about to give tunnels.
    #[must_use]
    pub fn places(self: &Arc<Self>) -> Places {
        self.registry.expect();
        Places {
            gateway: Arc::clone(self),
            granted: 0,
            next: 0,
        }
    }

    fn grant(&self, most: usize) -> usize {
        self.registry.grant(most, self.tunnels_here)
    }
}

impl Places {
    /// Promises the first ones, at most so many: what the descriptors of this process allow.
    pub fn grant(&mut self, most: usize) -> usize {
        self.granted += self.gateway.grant(most);
        self.granted
    }

    /// How many are promised.
    #[must_use]
    pub const fn granted(&self) -> usize {
        self.granted
    }

    /// Promises none any more.
    pub fn give_back(&mut self) {
        self.gateway.registry.give_back(self.granted);
        self.granted = 0;
    }

    /// Promises those for the next batch, at most so many, while the tunnels of this one are about to begin. [`Places::arrived`]
    /// is to follow.
    pub fn grant_more(&mut self, most: usize) -> usize {
        self.next = self.gateway.grant(most);
        self.next
    }

    /// The tunnels for which places were promised count as such by now.
    pub fn arrived(&mut self) {
        self.gateway.registry.give_back(self.granted);
        self.granted = std::mem::take(&mut self.next);
    }

    /// The longest time for which a tunnel that has come was relayed by nobody, since the last look.
    #[must_use]
    pub fn longest_pause(&self) -> Duration {
        self.gateway.registry.longest_pause()
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        self.gateway.registry.give_back(self.granted + self.next);
        self.gateway.registry.expect_no_more();
    }
}

impl Adopted {
    /// It is this process' own from now on, and goes on. Counts what becomes of it.
    pub fn begin(self, judgement: &mut Judgement) {
        let Self {
            gateway,
            record,
            course,
            verdict,
            left,
        } = self;
        let is_lost = matches!(verdict, Verdict::Lost(_));
        match verdict {
            Verdict::Kept { ends } => judgement.count_kept(ends),
            Verdict::Draining => judgement.draining += 1,
            Verdict::Lost(reason) => judgement.count_lost(Lost::of(&record, reason)),
        }
        let entry = gateway.registry.take_over(record, is_lost);
        let registry = Arc::clone(&gateway.registry);
        let arrive = move || {
            let pause = Duration::from_nanos(Clock::now().ns().saturating_sub(left));
            registry.note_pause(pause);
        };
        spawn_with(&gateway, arrive, course, entry);
    }
}
