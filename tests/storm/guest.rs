//! Single clients that a fault brings along: at listeners that come and go, and in the queue of a worker that is stopped.
//! They block, within limits.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use wsgate_load::handshake::{Head, LONGEST_HEAD, accept, head_length, key, request};

use crate::config::SHORT;

/// For each answer, as the fleets have it.
const PATIENCE: Duration = Duration::from_secs(10);

/// A binary frame with four bytes under a key of zeros, and its echo; a Close with 1000.
const MESSAGE: [u8; 10] = [0x82, 0x84, 0, 0, 0, 0, 1, 2, 3, 4];
const ECHO: [u8; 6] = [0x82, 4, 1, 2, 3, 4];
const CLOSE: [u8; 8] = [0x88, 0x82, 0, 0, 0, 0, 3, 0xe8];
const CLOSED: [u8; 4] = [0x88, 2, 3, 0xe8];

/// Where to.
#[derive(Clone, Debug)]
pub(crate) enum Door {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Guest(Stream);

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Another tunnel than every other one; nothing else depends on it.
const KEY: u64 = 7;

impl Guest {
    /// Connects and asks for a tunnel, and does not wait for the answer.
    pub(crate) fn ask(door: &Door) -> io::Result<Self> {
        let stream = match door {
            Door::Tcp(address) => Stream::Tcp(TcpStream::connect_timeout(address, PATIENCE)?),
            Door::Unix(path) => Stream::Unix(UnixStream::connect(path)?),
        };
        let mut guest = Self(stream);
        guest.patience(PATIENCE)?;
        guest.write(request(SHORT, "/echo", &key(KEY)).as_bytes())?;
        Ok(guest)
    }

    /// Waits for the answer.
    pub(crate) fn opened(&mut self) -> io::Result<()> {
        let mut head = Vec::new();
        let mut byte = [0];
        while head_length(&head).is_none() && head.len() < LONGEST_HEAD {
            self.read(&mut byte)?;
            head.push(byte[0]);
        }
        let expected = accept(key(KEY).as_bytes());
        let found = Head(&head).field("sec-websocket-accept");
        match found == Some(expected.as_bytes()) {
            true => Ok(()),
            false => Err(io::Error::other(format!(
                "no 101: {}",
                String::from_utf8_lossy(&head)
            ))),
        }
    }

    /// Whether the answer has not begun to come within so long.
    pub(crate) fn waits(&mut self, time: Duration) -> io::Result<bool> {
        self.patience(time)?;
        let Stream::Tcp(stream) = &self.0 else {
            return Ok(false);
        };
        let peeked = stream.peek(&mut [0]);
        self.patience(PATIENCE)?;
        match peeked {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
            peeked => peeked.map(|_| false),
        }
    }

    /// A message and its echo.
    pub(crate) fn echo(&mut self) -> io::Result<()> {
        self.write(&MESSAGE)?;
        self.hear(&ECHO)
    }

    /// A Close, its answer, and the end.
    pub(crate) fn close(mut self) -> io::Result<()> {
        self.write(&CLOSE)?;
        self.hear(&CLOSED)?;
        let mut rest = [0];
        let count = match &mut self.0 {
            Stream::Tcp(stream) => stream.read(&mut rest),
            Stream::Unix(stream) => stream.read(&mut rest),
        }?;
        (count == 0)
            .then_some(())
            .ok_or_else(|| io::Error::other("more behind the Close"))
    }

    /// All of it at once: what most connections are.
    pub(crate) fn visit(door: &Door) -> io::Result<()> {
        let mut guest = Self::ask(door)?;
        guest.opened()?;
        guest.echo()?;
        guest.close()
    }

    fn hear<const N: usize>(&mut self, expected: &[u8; N]) -> io::Result<()> {
        let mut heard = [0; N];
        self.read(&mut heard)?;
        (heard == *expected)
            .then_some(())
            .ok_or_else(|| io::Error::other(format!("heard {heard:?} in place of {expected:?}")))
    }

    fn patience(&self, time: Duration) -> io::Result<()> {
        match &self.0 {
            Stream::Tcp(stream) => stream.set_read_timeout(Some(time)),
            Stream::Unix(stream) => stream.set_read_timeout(Some(time)),
        }
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        match &mut self.0 {
            Stream::Tcp(stream) => stream.read_exact(bytes),
            Stream::Unix(stream) => stream.read_exact(bytes),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.0 {
            Stream::Tcp(stream) => stream.write_all(bytes),
            Stream::Unix(stream) => stream.write_all(bytes),
        }
    }
}
