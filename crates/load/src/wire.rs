//! A socket, what waits to be written to it, and whether it may be read.
//!
//! Readiness comes by edges: a socket is read until it has no more, or it never wakes again.

use std::io::{self, Read, Write};
use std::net::Shutdown;

use mio::net::TcpStream;

/// Kept for the next backlog; a longer one is given back.
const KEPT: usize = 4096;

#[derive(Debug)]
pub(crate) struct Wire {
    stream: TcpStream,
    readable: bool,
    /// The peer's FIN, or an error, is behind what can be read: a short read is not the last one.
    ending: bool,
    pending: Vec<u8>,
    written: usize,
}

impl Wire {
    pub(crate) const fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            readable: false,
            ending: false,
            pending: Vec::new(),
            written: 0,
        }
    }

    pub(crate) const fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// What epoll says of it.
    pub(crate) fn note(&mut self, event: &mio::event::Event) {
        self.readable |= event.is_readable();
        self.ending |= event.is_read_closed() || event.is_error();
    }

    /// It may be read, whatever epoll says.
    pub(crate) const fn read_on(&mut self) {
        self.readable = true;
    }

    /// `None` if nothing can be read now; 0 at the end.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        while self.readable {
            match self.stream.read(buffer) {
                Ok(count) => {
                    self.readable = self.ending || count == buffer.len();
                    return Ok(Some(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Writes all of it, or as much as goes and keeps the rest.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if self.pending.is_empty() {
            bytes = &bytes[self.push(bytes)?..];
        }
        self.pending.extend_from_slice(bytes);
        Ok(())
    }

    /// Whether nothing waits to be written any more.
    pub(crate) fn flush(&mut self) -> io::Result<bool> {
        if self.pending.is_empty() {
            return Ok(true);
        }
        let pending = std::mem::take(&mut self.pending);
        let pushed = self.push(&pending[self.written..]);
        self.pending = pending;
        self.written += pushed?;
        if self.written < self.pending.len() {
            return Ok(false);
        }
        self.written = 0;
        self.pending.clear();
        self.pending.shrink_to(KEPT);
        Ok(true)
    }

    pub(crate) const fn is_flushed(&self) -> bool {
        self.pending.is_empty()
    }

    /// Sends a FIN. A peer that has reset the connection meanwhile shows at the next read.
    pub(crate) fn finish(&self) {
        drop(self.stream.shutdown(Shutdown::Write));
    }

    /// How many bytes went.
    fn push(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut gone = 0;
        while gone < bytes.len() {
            match self.stream.write(&bytes[gone..]) {
                Ok(count) => gone += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(gone)
    }
}
