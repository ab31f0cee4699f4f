//! One direction of a tunnel: from the socket that is read to the one that is written.
//!
//! Nothing is read while something is pending, so a receiver that does not read
//! stops its sender by TCP's own means, and a lane never holds more than one buffer.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::frames::{Side, Tracker};
use crate::socket::Socket;

/// As much as is read at once.
pub(crate) const BUFFER: usize = 64 * 1024;

thread_local! {
    /// Every tunnel of the thread reads into this one. An idle tunnel holds no
    /// buffer: 1.3 KB of user memory in place of 17 KB.
    static SHARED: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER]);
}

/// One direction of a tunnel.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) tracker: Tracker,
    pub(crate) end: End,
    /// Read, and not yet taken by the receiver.
    pending: Bytes,
}

/// How far a lane has come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
}

impl Lane {
    /// A lane of `sender`'s frames that begins with what was read beyond the handshake.
    pub(crate) const fn new(sender: Side, ahead: Bytes) -> Self {
        Self {
            tracker: Tracker::new(sender),
            end: End::Open,
            pending: ahead,
        }
    }

    pub(crate) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn pending_bytes(&self) -> usize {
        self.pending.len()
    }

    /// One step of relaying, the end of file included. `Pending` if it can do nothing
    /// before its task is woken, or ever.
    pub(crate) fn relay(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Socket,
        sink: &mut Socket,
        tally: &mut Tally,
    ) -> Poll<Result<(), Broken>> {
        match self.end {
            End::Passed => Poll::Pending,
            End::Read => {
                fin(cx, sink);
                self.end = End::Passed;
                Poll::Ready(Ok(()))
            }
            End::Open => self.step(cx, source, sink, BUFFER, tally),
        }
    }

    /// Writes what is pending; or else reads up to `most` bytes and writes them at once.
    pub(crate) fn step(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Socket,
        sink: &mut Socket,
        most: usize,
        tally: &mut Tally,
    ) -> Poll<Result<(), Broken>> {
        if self.has_pending() {
            return self.write_pending(cx, sink, tally);
        }
        SHARED.with_borrow_mut(|buffer| {
            let mut buffer = ReadBuf::new(&mut buffer[..most.min(BUFFER)]);
            if ready!(Pin::new(source).poll_read(cx, &mut buffer)).is_err() {
                return Poll::Ready(Err(Broken::Source));
            }
            if buffer.filled().is_empty() {
                self.end = End::Read;
                return Poll::Ready(Ok(()));
            }
            self.write_through(cx, sink, buffer.filled(), tally)
        })
    }

    /// Drops what is pending: its receiver is gone, or has had its time.
    pub(crate) fn abandon(&mut self) {
        self.pending = Bytes::new();
    }

    fn write_pending(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut Socket,
        tally: &mut Tally,
    ) -> Poll<Result<(), Broken>> {
        let Ok(written) = ready!(write(cx, sink, &self.pending)) else {
            return Poll::Ready(Err(Broken::Sink));
        };
        count(&mut self.tracker, &self.pending[..written], tally);
        self.pending.advance(written);
        if self.pending.is_empty() {
            // An advanced `Bytes` still holds its memory.
            self.pending = Bytes::new();
        }
        Poll::Ready(Ok(()))
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
                self.pending = Bytes::copy_from_slice(bytes);
                Poll::Pending
            }
            Poll::Ready(Err(_)) => Poll::Ready(Err(Broken::Sink)),
            Poll::Ready(Ok(written)) => {
                let (taken, rest) = bytes.split_at(written);
                count(&mut self.tracker, taken, tally);
                if !rest.is_empty() {
                    self.pending = Bytes::copy_from_slice(rest);
                }
                Poll::Ready(Ok(()))
            }
        }
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
}
