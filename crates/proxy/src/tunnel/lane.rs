//! One direction of a tunnel: from the socket that is read to the one that is written.
//!
//! Nothing is read while something is pending, so a receiver that does not read
//! stops its sender by TCP's own means, and a lane never holds more than one buffer.

mod parked;

pub(crate) use parked::ParkedLane;

use std::cell::RefCell;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::pings::Pings;
use crate::Ledger;
use crate::frames::{Side, Tracker};
use crate::socket::Socket;

/// As much as is read at once.
pub(crate) const BUFFER: usize = 64 * 1024;

thread_local! {
    /// Every tunnel of the thread reads into this one. An idle tunnel holds no
    /// buffer: 1.3 KB of user memory in place of 17 KB.
    static SHARED: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER]);
}

/// How often within its limit a receiver that takes nothing is looked at.
const LOOKS: u32 = 4;

/// One direction of a tunnel.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) tracker: Tracker,
    pub(crate) end: End,
    /// In a box: hardly any tunnel has it at any moment.
    pending: Option<Box<Pending>>,
}

/// What the receiver has not taken yet.
#[derive(Debug)]
struct Pending {
    /// Never empty.
    bytes: Bytes,
    /// When the receiver was last seen to take something, or may have.
    since: Instant,
    /// The last look at what the kernel holds for it.
    looked: Instant,
    /// What that was; `None` before the first look.
    unacknowledged: Option<u64>,
    /// They are wsgate's own, not the sender's. It is never a mixture: nothing is read, and no frame of
    /// wsgate's begun, while something is pending.
    own: bool,
}

/// How far a lane has come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum End {
    Open,
    /// Nothing more can be read: end of file, or the connection broke. Nothing is pending
    /// then, since nothing is read while something is.
    Read,
    /// The end of file has been passed on.
    Passed,
}

/// Which end of a lane failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    Source,
    Sink,
}

/// What a lane has relayed since it was last published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) bytes: u64,
    pub(crate) messages: u64,
    pub(crate) pings: u32,
    pub(crate) pongs: u32,
}

/// What one step of a lane leaves behind.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    pub(crate) tally: &'a mut Tally,
    /// Where the source is a client that is pinged: who looks for its pongs.
    pub(crate) pings: Option<&'a mut Pings>,
    /// The other direction is over, and nobody else has the sockets. Both are closed behind this one's end, which sends the FIN:
    /// no shutdown(2) besides.
    pub(crate) is_last: bool,
}

impl Turn<'_> {
    /// The same, for one step of several.
    pub(crate) fn again(&mut self) -> Turn<'_> {
        Turn {
            tally: &mut *self.tally,
            pings: self.pings.as_deref_mut(),
            is_last: self.is_last,
        }
    }
}

impl Lane {
    /// A lane of `sender`'s frames that begins with what was read beyond the handshake.
    pub(crate) fn new(sender: Side, ahead: &[u8]) -> Self {
        Self {
            tracker: Tracker::new(sender),
            end: End::Open,
            // A copy: what hyper gives is part of its read buffer, and keeps all of that, even if it is empty.
            pending: Pending::new(ahead, false),
        }
    }

    /// When [`Lane::is_stuck`] is to be called next.
    pub(crate) fn next_look(&self, limit: Duration) -> Option<Instant> {
        let pending = self.pending.as_ref()?;
        pending.looked.checked_add(limit / LOOKS)
    }

    /// Whether the receiver has taken nothing for so long, although something waits for it.
    ///
    /// What counts is what its TCP has acknowledged. That the kernel has room again does not: it
    /// takes some MiB for a peer that is long dead. Nor does it tell the room of a slow
    /// reader before a third of its buffer is free, which may take longer than the limit.
    pub(crate) fn is_stuck(
        &mut self,
        sink: &Socket,
        ledger: &dyn Ledger,
        limit: Duration,
        now: Instant,
    ) -> bool {
        if self.next_look(limit).is_none_or(|at| at > now) {
            return false;
        }
        let Some(pending) = &mut self.pending else {
            return false;
        };
        let held = ledger.unacknowledged(sink.as_fd()).unwrap_or(0);
        if pending.unacknowledged.is_none_or(|before| held < before) {
            pending.since = now;
        }
        pending.looked = now;
        pending.unacknowledged = Some(held);
        now.saturating_duration_since(pending.since) >= limit
    }

    /// Whether a frame of wsgate's own may begin now.
    pub(crate) fn can_speak(&self) -> bool {
        self.end == End::Open && !self.has_pending() && self.tracker.at_boundary()
    }

    pub(crate) const fn has_pending(&self) -> bool {
        self.pending.is_some()
    }

    #[cfg(test)]
    pub(crate) fn pending_bytes(&self) -> usize {
        let pending = self.pending.as_ref();
        pending.map_or(0, |pending| pending.bytes.len())
    }

    /// One step of relaying, the end of file included. `Pending` if it can do nothing
    /// before its task is woken, or ever.
    pub(crate) fn relay(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Socket,
        sink: &mut Socket,
        most: usize,
        turn: Turn<'_>,
    ) -> Poll<Result<(), Broken>> {
        match self.end {
            End::Passed => Poll::Pending,
            End::Read => {
                if !turn.is_last {
                    fin(cx, sink);
                }
                self.end = End::Passed;
                Poll::Ready(Ok(()))
            }
            End::Open => self.step(cx, source, sink, most, turn),
        }
    }

    /// Writes what is pending; or else reads up to `most` bytes and writes them at once.
    pub(crate) fn step(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Socket,
        sink: &mut Socket,
        most: usize,
        turn: Turn<'_>,
    ) -> Poll<Result<(), Broken>> {
        if let Some(pending) = &self.pending {
            let Ok(written) = ready!(write(cx, sink, &pending.bytes)) else {
                return Poll::Ready(Err(Broken::Sink));
            };
            self.took(written, turn.tally);
            return Poll::Ready(Ok(()));
        }
        SHARED.with_borrow_mut(|buffer| {
            let mut buffer = ReadBuf::new(&mut buffer[..most.min(BUFFER)]);
            if ready!(Pin::new(source).poll_read(cx, &mut buffer)).is_err() {
                return Poll::Ready(Err(Broken::Source));
            }
            match (buffer.filled(), turn.pings) {
                ([], None) => {
                    self.end = End::Read;
                    Poll::Ready(Ok(()))
                }
                ([], Some(pings)) => self.end_with(&pings.release()),
                (bytes, None) => self.write_through(cx, sink, bytes, turn.tally),
                (bytes, Some(pings)) => match &*pings.sift(&self.tracker, bytes) {
                    [] => Poll::Ready(Ok(())),
                    bytes => self.write_through(cx, sink, bytes, turn.tally),
                },
            }
        })
    }

    /// Writes a frame of wsgate's own, as far as the receiver takes it; the rest is pending.
    /// Only where [`Lane::can_speak`].
    pub(crate) fn speak(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut Socket,
        frame: &[u8],
    ) -> Result<(), Broken> {
        let written = match write(cx, sink, frame) {
            Poll::Pending => 0,
            Poll::Ready(Ok(written)) => written,
            Poll::Ready(Err(_)) => return Err(Broken::Sink),
        };
        self.pending = Pending::new(&frame[written..], true);
        Ok(())
    }

    /// Drops what is pending: its receiver is gone, or has had its time.
    pub(crate) fn abandon(&mut self) {
        self.pending = None;
    }

    fn write_through(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut Socket,
        bytes: &[u8],
        tally: &mut Tally,
    ) -> Poll<Result<(), Broken>> {
        match write(cx, sink, bytes) {
            Poll::Pending => {
                self.pending = Pending::new(bytes, false);
                Poll::Pending
            }
            Poll::Ready(Err(_)) => Poll::Ready(Err(Broken::Sink)),
            Poll::Ready(Ok(written)) => {
                let (taken, rest) = bytes.split_at(written);
                count(&mut self.tracker, taken, tally);
                self.pending = Pending::new(rest, false);
                Poll::Ready(Ok(()))
            }
        }
    }

    /// The end of file, behind what was held back: that is written first, and then the end read again.
    fn end_with(&mut self, held: &[u8]) -> Poll<Result<(), Broken>> {
        self.pending = Pending::new(held, false);
        if self.pending.is_none() {
            self.end = End::Read;
        }
        Poll::Ready(Ok(()))
    }

    /// The receiver has taken so many of the pending bytes.
    fn took(&mut self, written: usize, tally: &mut Tally) {
        let Some(pending) = &mut self.pending else {
            return;
        };
        let taken = pending.bytes.split_to(written);
        if !pending.own {
            count(&mut self.tracker, &taken, tally);
        }
        if pending.bytes.is_empty() {
            self.pending = None;
        } else {
            pending.touch();
        }
    }
}

impl Pending {
    /// `None` if there are no bytes. They are copied: what hyper has read ahead is a part of its
    /// buffer and keeps all of that in memory, and the rest of a read is in the shared buffer.
    fn new(bytes: &[u8], own: bool) -> Option<Box<Self>> {
        if bytes.is_empty() {
            return None;
        }
        let now = Instant::now();
        Some(Box::new(Self {
            bytes: Bytes::copy_from_slice(bytes),
            since: now,
            looked: now,
            unacknowledged: None,
            own,
        }))
    }

    /// The receiver has just taken something.
    fn touch(&mut self) {
        self.since = Instant::now();
        self.looked = self.since;
        self.unacknowledged = None;
    }
}

/// Writes some of `bytes`, which are not empty. That nothing was written is an error.
pub(crate) fn write(
    cx: &mut Context<'_>,
    sink: &mut Socket,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    match ready!(Pin::new(sink).poll_write(cx, bytes))? {
        0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        written => Poll::Ready(Ok(written)),
    }
}

/// Ends one direction. A sink that is gone already needs no FIN.
pub(crate) fn fin(cx: &mut Context<'_>, sink: &mut Socket) {
    let _ = Pin::new(sink).poll_shutdown(cx);
}

/// Reads and forgets. Whether there was anything; an error is an end as well.
pub(crate) fn discard(cx: &mut Context<'_>, source: &mut Socket) -> Poll<bool> {
    SHARED.with_borrow_mut(|buffer| {
        let mut buffer = ReadBuf::new(buffer);
        let read = ready!(Pin::new(source).poll_read(cx, &mut buffer));
        Poll::Ready(read.is_ok() && !buffer.filled().is_empty())
    })
}

fn count(tracker: &mut Tracker, written: &[u8], tally: &mut Tally) {
    let seen = tracker.advance(written);
    tally.bytes += written.len() as u64;
    tally.messages += u64::from(seen.messages);
    tally.pings += seen.pings;
    tally.pongs += seen.pongs;
}
