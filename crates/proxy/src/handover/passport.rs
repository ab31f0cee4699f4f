//! What goes from one process to another with a tunnel's two sockets.
//!
//! Fields may be added within a version if they have a default. Moments are nanoseconds of CLOCK_MONOTONIC.

use std::io;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Clock;
use crate::frames::Side;
use crate::record::{Asked, By, Deadline, Flow, Record, Route, Server, Timeouts};
use crate::socket::{Kind, Peer, Socket};
use crate::tunnel::{Books, Course, Ends, ParkedLane, ParkedPings, Pings};
use crate::{Cause, Ledger};

/// A tunnel without its sockets and the bytes that are on their way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Passport {
    pub(super) id: Box<str>,
    client: Peer,
    pub(super) listener: Box<str>,
    pub(super) host: Box<str>,
    pub(super) path: Box<str>,
    origin: Option<Box<str>>,
    subprotocol: Option<Box<str>>,
    pub(super) route: RouteMark,
    pub(super) server: ServerMark,
    opened: u64,
    opened_at: SystemTime,
    /// How often it has moved, this time included.
    handovers: u32,
    from_client: (u64, u64),
    from_server: (u64, u64),
    last_byte_ms: u64,
    round_trip_us: u32,
    unframed: bool,
    /// Deadlines that go along: see [`MOVING`].
    deadlines: Vec<(By, DeadlineMark)>,
    kinds: (Kind, Kind),
    to_client: ParkedLane,
    to_server: ParkedLane,
    pings: Option<ParkedPings>,
    began: Option<Cause>,
    closed_ms: Option<NonZeroU64>,
    /// When its task gave it up.
    pub(super) left: u64,
}

/// Not those of the drain of the generation that it leaves.
const MOVING: [By; 2] = [By::Server, By::Lost];

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RouteMark {
    pub(super) name: Box<str>,
    pub(super) number: u32,
    timeouts: Timeouts,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ServerMark {
    pub(super) name: Box<str>,
    pub(super) number: u32,
    pub(super) upstream: Box<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct DeadlineMark {
    at: u64,
    code: u16,
    reason: Box<str>,
}

/// A tunnel in parts.
pub(super) struct Parts {
    pub(super) passport: Passport,
    pub(super) client: Socket,
    pub(super) server: Socket,
    /// To the client, and to the server.
    pub(super) pending: [Bytes; 2],
}

impl Passport {
    /// Takes a tunnel apart that its task has given up at `left`.
    pub(super) fn of(course: Course, left: u64) -> Parts {
        let Course {
            ends,
            began,
            closed,
        } = course;
        let Ends {
            client,
            server,
            to_client,
            to_server,
            books,
            pings,
        } = ends;
        let clock = Clock::now();
        let (to_client, down) = to_client.park(clock);
        let (to_server, up) = to_server.park(clock);
        let record = &*books.record;
        let passport = Self {
            id: record.id.clone(),
            client: record.client,
            listener: (*record.listener).into(),
            host: record.host.clone(),
            path: record.path.clone(),
            origin: record.origin.clone(),
            subprotocol: record.subprotocol.clone(),
            route: RouteMark::of(&record.route),
            server: ServerMark::of(&record.server),
            opened: clock.to_ns(record.opened),
            opened_at: record.opened_at,
            handovers: record.handovers + 1,
            from_client: record.from_client(),
            from_server: record.from_server(),
            last_byte_ms: record.last_byte_ms(),
            round_trip_us: record.round_trip_us(),
            unframed: record.unframed(),
            deadlines: deadlines(record, clock),
            kinds: (client.kind(), server.kind()),
            to_client,
            to_server,
            pings: pings.map(|pings| pings.park(clock)),
            began,
            closed_ms: closed,
            left,
        };
        Parts {
            passport,
            client,
            server,
            pending: [down, up],
        }
    }

    /// Bytes that are on their way to the client and to the server: so many belong to this tunnel.
    #[must_use]
    pub fn pending(&self) -> [usize; 2] {
        [self.to_client.pending(), self.to_server.pending()]
    }

    /// Its sockets, registered with the runtime: the client's and the server's.
    pub(super) fn sockets(&self, fds: [OwnedFd; 2]) -> io::Result<(Socket, Socket)> {
        let [client, server] = fds;
        let (of_client, of_server) = self.kinds;
        Ok((
            Socket::from_fd(of_client, client)?,
            Socket::from_fd(of_server, server)?,
        ))
    }

    /// The deadlines that came along.
    pub(super) fn deadlines(&self, clock: Clock) -> impl Iterator<Item = (By, Deadline)> {
        self.deadlines.iter().map(move |(by, mark)| {
            let deadline = Deadline {
                at: clock.to_instant(mark.at),
                code: mark.code,
                reason: Arc::from(&*mark.reason),
            };
            (*by, deadline)
        })
    }

    /// The tunnel's record, as everybody sees it.
    pub(super) fn record(
        &self,
        listener: Arc<str>,
        route: Arc<Route>,
        server: Arc<Server>,
        clock: Clock,
    ) -> Record {
        let asked = Asked {
            id: self.id.clone(),
            client: self.client,
            listener,
            host: self.host.clone(),
            path: self.path.clone(),
            origin: self.origin.clone(),
            subprotocol: self.subprotocol.clone(),
        };
        let flow = |(bytes, messages)| Flow::new(bytes, messages);
        Record {
            opened: clock.to_instant(self.opened),
            opened_at: self.opened_at,
            handovers: self.handovers,
            from_client: flow(self.from_client),
            from_server: flow(self.from_server),
            last_byte_ms: self.last_byte_ms.into(),
            round_trip_us: self.round_trip_us.into(),
            unframed: self.unframed.into(),
            ..Record::new(asked, route, server)
        }
    }

    /// The tunnel as its task has it. `None` if this cannot have been one.
    pub(super) fn course(
        self,
        record: Arc<Record>,
        ledger: Arc<dyn Ledger>,
        client: Socket,
        server: Socket,
        pending: &[Bytes; 2],
    ) -> Option<Course> {
        let clock = Clock::now();
        let interval = record.route.timeouts.ping;
        let pings = match self.pings {
            Some(parked) => Some(parked.unpark(interval, clock)?),
            None => interval.map(|interval| Pings::new(interval, std::time::Instant::now())),
        };
        let [down, up] = pending;
        Some(Course {
            ends: Ends {
                client,
                server,
                to_client: self.to_client.unpark(Side::Server, down, clock)?,
                to_server: self.to_server.unpark(Side::Client, up, clock)?,
                books: Books { record, ledger },
                pings: pings.map(Box::new),
            },
            began: self.began,
            closed: self.closed_ms,
        })
    }
}

impl RouteMark {
    fn of(route: &Route) -> Self {
        Self {
            name: (*route.name).into(),
            number: route.number,
            timeouts: route.timeouts,
        }
    }

    pub(super) fn is(&self, route: &Route) -> bool {
        *self.name == *route.name && self.timeouts == route.timeouts
    }

    pub(super) fn route(&self) -> Route {
        Route {
            name: Arc::from(&*self.name),
            number: self.number,
            timeouts: self.timeouts,
        }
    }
}

impl ServerMark {
    fn of(server: &Server) -> Self {
        Self {
            name: (*server.name).into(),
            number: server.number,
            upstream: (*server.upstream).into(),
        }
    }

    pub(super) fn is(&self, server: &Server) -> bool {
        *self.name == *server.name && *self.upstream == *server.upstream
    }

    pub(super) fn server(&self) -> Server {
        Server {
            name: Arc::from(&*self.name),
            number: self.number,
            upstream: Arc::from(&*self.upstream),
        }
    }
}

fn deadlines(record: &Record, clock: Clock) -> Vec<(By, DeadlineMark)> {
    let mark = |by| {
        let deadline: Deadline = record.orders.get(by)?;
        let mark = DeadlineMark {
            at: clock.to_ns(deadline.at),
            code: deadline.code,
            reason: (*deadline.reason).into(),
        };
        Some((by, mark))
    };
    MOVING.into_iter().filter_map(mark).collect()
}
