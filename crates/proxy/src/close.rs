//! The polite close: how a tunnel ends that wsgate ends.
//!
//! Each direction by itself: what has been read is written, the frame that has begun is
//! relayed to its end and not a byte further, a Close frame follows unless the peer's own
//! has gone by, then a FIN. Then what still comes is read and forgotten until end of file:
//! a socket that is closed with unread input sends a reset, which destroys the Close frame on its
//! way. Neither step waits longer than [`CLOSE_WAIT`], and neither ever writes
//! into the middle of a frame.

mod farewell;
#[cfg(test)]
mod tests;

pub(crate) use farewell::{Farewell, masking_key};

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::time::{Instant, Sleep};

use crate::frames::Side;
use crate::socket::Socket;
use crate::tunnel::{Broken, End, Ends, Lane, Lost, ROUNDS, Tally, Turn, discard, fin, write};

/// How long a frame may take to end, and then how long a peer may take to end its connection.
pub(crate) const CLOSE_WAIT: Duration = Duration::from_secs(2);

const NO_BOUNDARY: &str = "no frame boundary within 2 s";
const NOT_TAKEN: &str = "a peer did not take its last bytes within 2 s";
const UNFRAMED: &str = "no Close frame sent: framing was broken";
const CUT_SHORT: &str = "no Close frame sent: a peer ended inside a frame";

/// A polite close under way.
#[derive(Debug)]
pub(crate) struct Closing {
    farewell: Farewell,
    to_client: Way,
    to_server: Way,
    wait: Wait,
}

/// One direction's close.
#[derive(Debug)]
struct Way {
    stage: Stage,
    /// Its source's connection broke, so what can be read is all there will ever be.
    to_the_end: bool,
    note: Option<&'static str>,
}

#[derive(Debug)]
enum Stage {
    Relaying,
    /// The Close frame, as far as it is not written yet.
    Farewell(Bytes),
    /// The FIN is sent, or nobody is there to get it.
    Done,
}

/// What the timer stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// Both directions come to a FIN.
    Fin,
    /// Both peers end. Counted from the later FIN: both sockets are dropped together.
    EndOfFile,
}

/// What a direction has come to once it relays no further.
enum Reached {
    Boundary,
    /// Behind the peer's own Close frame.
    Closed,
    Nowhere(&'static str),
    SinkLost,
}

impl Closing {
    /// Begins, with [`CLOSE_WAIT`] on the timer. `lost` names the connection that broke, if that is the reason.
    pub(crate) fn begin(
        ends: &mut Ends,
        farewell: Farewell,
        lost: Option<Lost>,
        timer: Pin<&mut Sleep>,
    ) -> Self {
        ends.books.record.closing.store(true, Ordering::Relaxed);
        timer.reset(Instant::now() + CLOSE_WAIT);
        let mut closing = Self {
            farewell,
            to_client: Way::new(&ends.to_client),
            to_server: Way::new(&ends.to_server),
            wait: Wait::Fin,
        };
        if let Some(lost) = lost {
            closing.give_up(ends, lost);
        }
        closing
    }

    /// Ready when both sockets may be dropped, with a note if something was not as it should have been.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        ends: &mut Ends,
        mut timer: Pin<&mut Sleep>,
    ) -> Poll<Option<&'static str>> {
        loop {
            if self.advance(cx, ends) {
                return Poll::Ready(self.note());
            }
            if self.wait == Wait::Fin && self.to_client.is_done() && self.to_server.is_done() {
                self.wait = Wait::EndOfFile;
                timer.as_mut().reset(Instant::now() + CLOSE_WAIT);
            }
            ready!(timer.as_mut().poll(cx));
            if self.wait == Wait::EndOfFile {
                return Poll::Ready(self.note());
            }
            self.to_client
                .cut(cx, &mut ends.to_client, &mut ends.client);
            self.to_server
                .cut(cx, &mut ends.to_server, &mut ends.server);
        }
    }

    /// Goes as far as it can. Whether all is over.
    fn advance(&mut self, cx: &mut Context<'_>, ends: &mut Ends) -> bool {
        let (mut up, mut down) = (Tally::default(), Tally::default());
        let Ends {
            client,
            server,
            to_client,
            to_server,
            pings,
            ..
        } = ends;
        let farewell = &self.farewell;
        let turn = Turn {
            tally: &mut up,
            pings: pings.as_deref_mut(),
            is_last: false,
        };
        self.to_server
            .poll(cx, to_server, client, server, turn, || farewell.to_server());
        let turn = Turn {
            tally: &mut down,
            pings: None,
            is_last: false,
        };
        self.to_client
            .poll(cx, to_client, server, client, turn, || farewell.to_client());
        self.to_server.forget_rest(cx, to_server, client);
        self.to_client.forget_rest(cx, to_client, server);
        ends.publish(up, down);
        self.to_client.is_over(&ends.to_client) && self.to_server.is_over(&ends.to_server)
    }

    fn give_up(&mut self, ends: &mut Ends, lost: Lost) {
        let (to, from, towards, away) = match lost.side {
            Side::Client => (
                &mut self.to_client,
                &mut self.to_server,
                &mut ends.to_client,
                &mut ends.to_server,
            ),
            Side::Server => (
                &mut self.to_server,
                &mut self.to_client,
                &mut ends.to_server,
                &mut ends.to_client,
            ),
        };
        towards.abandon();
        to.stage = Stage::Done;
        from.to_the_end = true;
        if lost.reading {
            away.end = End::Read.max(away.end);
        }
    }

    fn note(&self) -> Option<&'static str> {
        self.to_client.note.or(self.to_server.note)
    }
}

impl Way {
    const fn new(lane: &Lane) -> Self {
        Self {
            stage: match lane.end {
                End::Passed => Stage::Done,
                End::Open | End::Read => Stage::Relaying,
            },
            to_the_end: false,
            note: None,
        }
    }

    /// As far as it can go towards its FIN.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        lane: &mut Lane,
        source: &mut Socket,
        sink: &mut Socket,
        turn: Turn<'_>,
        farewell: impl FnOnce() -> Bytes,
    ) {
        if let Stage::Relaying = self.stage {
            let Poll::Ready(reached) = self.relay(cx, lane, source, sink, turn) else {
                return;
            };
            self.stage = match reached {
                Reached::Boundary => Stage::Farewell(farewell()),
                Reached::Closed => Stage::Farewell(Bytes::new()),
                Reached::Nowhere(note) => {
                    self.note = Some(note);
                    Stage::Farewell(Bytes::new())
                }
                Reached::SinkLost => Stage::Done,
            };
        }
        if let Stage::Farewell(frame) = &mut self.stage
            && write_all(cx, sink, frame).is_ready()
        {
            fin(cx, sink);
            self.stage = Stage::Done;
        }
    }

    /// Relays to the end of the frame, or of what there is.
    fn relay(
        &self,
        cx: &mut Context<'_>,
        lane: &mut Lane,
        source: &mut Socket,
        sink: &mut Socket,
        mut turn: Turn<'_>,
    ) -> Poll<Reached> {
        for _ in 0..ROUNDS {
            let most = match lane.end {
                End::Open if self.to_the_end => usize::MAX,
                End::Open => usize::try_from(lane.tracker.until_boundary()).unwrap_or(usize::MAX),
                End::Read | End::Passed => 0,
            };
            if most == 0 && !lane.has_pending() {
                return Poll::Ready(where_it_stands(lane));
            }
            match ready!(lane.step(cx, source, sink, most, turn.again())) {
                Ok(()) => {}
                Err(Broken::Source) => lane.end = End::Read,
                Err(Broken::Sink) => {
                    lane.abandon();
                    return Poll::Ready(Reached::SinkLost);
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// The time is up: the FIN, wherever the direction stands.
    fn cut(&mut self, cx: &mut Context<'_>, lane: &mut Lane, sink: &mut Socket) {
        if self.is_done() {
            return;
        }
        let waits_for_sink = lane.has_pending() || matches!(self.stage, Stage::Farewell(_));
        self.note = Some(if waits_for_sink {
            NOT_TAKEN
        } else {
            NO_BOUNDARY
        });
        lane.abandon();
        fin(cx, sink);
        self.stage = Stage::Done;
    }

    /// Reads and forgets what still comes from the source, once nothing of it is relayed.
    fn forget_rest(&self, cx: &mut Context<'_>, lane: &mut Lane, source: &mut Socket) {
        if matches!(self.stage, Stage::Relaying) {
            return;
        }
        for _ in 0..ROUNDS {
            if lane.end != End::Open {
                return;
            }
            match discard(cx, source) {
                Poll::Ready(true) => {}
                Poll::Ready(false) => lane.end = End::Read,
                Poll::Pending => return,
            }
        }
        cx.waker().wake_by_ref();
    }

    const fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }

    /// Nothing more to write, and nothing more to read.
    fn is_over(&self, lane: &Lane) -> bool {
        self.is_done() && lane.end != End::Open
    }
}

/// Where a lane stands that has nothing pending and will read no more.
fn where_it_stands(lane: &Lane) -> Reached {
    if lane.tracker.closed() {
        Reached::Closed
    } else if lane.tracker.unframed() {
        Reached::Nowhere(UNFRAMED)
    } else if lane.tracker.at_boundary() {
        Reached::Boundary
    } else {
        Reached::Nowhere(CUT_SHORT)
    }
}

/// A sink that breaks has taken all that it ever will.
fn write_all(cx: &mut Context<'_>, sink: &mut Socket, bytes: &mut Bytes) -> Poll<()> {
    while !bytes.is_empty() {
        match ready!(write(cx, sink, bytes)) {
            Ok(written) => bytes.advance(written),
            Err(_) => bytes.clear(),
        }
    }
    Poll::Ready(())
}
