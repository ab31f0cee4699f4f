//! How a connection ended, as the kernel told it: libraries hide the difference between
//! a FIN and a reset once a Close frame has been seen.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// The end of a byte stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WireEnd {
    /// The peer finished it.
    Fin,
    /// An error, most often a reset.
    Error(io::ErrorKind),
}

/// A TCP or Unix stream.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Where [`Watched`] notes the end.
pub(crate) type EndNote = Arc<Mutex<Option<WireEnd>>>;

/// A stream that notes how its reading side ended.
#[derive(Debug)]
pub(crate) struct Watched {
    stream: Stream,
    end: EndNote,
}

impl Watched {
    pub(crate) fn new(stream: Stream) -> (Self, EndNote) {
        let end = EndNote::default();
        let watched = Self {
            stream,
            end: Arc::clone(&end),
        };
        (watched, end)
    }

    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, room) = (buf.filled().len(), buf.remaining());
        let polled = match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        let end = match &polled {
            Poll::Ready(Ok(())) if buf.filled().len() == before && room > 0 => Some(WireEnd::Fin),
            Poll::Ready(Err(error)) => Some(WireEnd::Error(error.kind())),
            _ => None,
        };
        if let Some(end) = end {
            self.end.lock().unwrap().get_or_insert(end);
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
