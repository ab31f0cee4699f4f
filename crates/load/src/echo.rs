//! The echo server: one thread, any number of peers.
//!
//! | path | |
//! | --- | --- |
//! | `/sink`, `/sink?bytes=N` | messages are checked and not echoed; after each, or each N bytes of them, an [`Ack`] |
//! | any other with a handshake | each frame goes back as it came, unmasked, in a write of its own |
//! | any other without | 200, and the connection ends |
//!
//! A ping comes back as a pong, a Close as a Close and a FIN. It does not stop for any peer:
//! one that sends nonsense gets a Close with 1002, one that reads nothing is not read from.

mod connection;

pub use connection::Ack;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::check::Pattern;
use crate::connect::listen;
use crate::echo::connection::{Connection, Next};
use crate::frame::LONGEST_HEADER;

/// Payloads that a sink checks may be so long.
pub const LONGEST_CHECKED: usize = 1 << 20;

/// Bytes of one read. A frame of 64 KiB fits with its header, and it stays in the second-level cache.
const READ: usize = 128 * 1024;

const EVENTS: usize = 1024;

/// The server, bound and listening.
#[derive(Debug)]
pub struct Echo {
    poll: Poll,
    listeners: Vec<Listener>,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    /// They have more to read, but others had to have their turn.
    again: Vec<usize>,
    /// The last accept failed for want of descriptors: the next one when some are free.
    starved: bool,
    stop: Stop,
    desk: Desk,
}

/// What all connections share.
#[derive(Debug)]
struct Desk {
    /// Room for a header, and then what is read.
    buffer: Box<[u8]>,
    pattern: Pattern,
}

#[derive(Debug)]
struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

/// Ends [`Echo::run`] from another thread.
#[derive(Clone, Debug)]
pub struct Stop {
    said: Arc<AtomicBool>,
    waker: Arc<Waker>,
}

impl Stop {
    /// # Errors
    /// Those of write(2) on an eventfd.
    pub fn stop(&self) -> io::Result<()> {
        self.said.store(true, Ordering::Release);
        self.waker.wake()
    }
}

const WAKE: Token = Token(usize::MAX);

impl Echo {
    /// Listens at all of these; port 0 is one that the kernel picks.
    ///
    /// # Errors
    /// Those of binding, and of epoll.
    pub fn bind(addresses: &[SocketAddr]) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        let mut echo = Self {
            poll,
            listeners: Vec::new(),
            connections: Vec::new(),
            free: Vec::new(),
            again: Vec::new(),
            starved: false,
            stop: Stop {
                said: Arc::default(),
                waker,
            },
            desk: Desk {
                buffer: vec![0; LONGEST_HEADER + READ].into_boxed_slice(),
                pattern: Pattern::new(LONGEST_CHECKED),
            },
        };
        addresses
            .iter()
            .try_for_each(|address| echo.add(*address))?;
        Ok(echo)
    }

    fn add(&mut self, address: SocketAddr) -> io::Result<()> {
        let mut socket = listen(address)?;
        let token = Token(self.listeners.len());
        self.poll
            .registry()
            .register(&mut socket, token, Interest::READABLE)?;
        let address = socket.local_addr()?;
        self.listeners.push(Listener { socket, address });
        Ok(())
    }

    /// Where it listens, in the order of [`Self::bind`].
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|one| one.address).collect()
    }

    /// Ends [`Self::run`].
    #[must_use]
    pub fn stopper(&self) -> Stop {
        self.stop.clone()
    }

    /// Serves until told to stop. Connections that are open then are dropped.
    ///
    /// # Errors
    /// Those of epoll and of accept(2), but none that a peer can cause.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        while !self.stop.said.load(Ordering::Acquire) {
            let wait = (!self.again.is_empty()).then_some(std::time::Duration::ZERO);
            match self.poll.poll(&mut events, wait) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                polled => polled?,
            }
            for index in std::mem::take(&mut self.again) {
                self.serve(index);
            }
            for event in &events {
                self.ready(event)?;
            }
        }
        Ok(())
    }

    fn ready(&mut self, event: &mio::event::Event) -> io::Result<()> {
        if event.token() == WAKE {
            return Ok(());
        }
        let Some(index) = event.token().0.checked_sub(self.listeners.len()) else {
            return self.accept(event.token().0);
        };
        // It may have ended by an earlier event of this turn.
        if let Some(Some(connection)) = self.connections.get_mut(index) {
            connection.note(event);
            self.serve(index);
        }
        Ok(())
    }

    fn serve(&mut self, index: usize) {
        let Some(Some(connection)) = self.connections.get_mut(index) else {
            return;
        };
        match connection.serve(&mut self.desk) {
            Next::Wait => {}
            Next::Again if self.again.contains(&index) => {}
            Next::Again => self.again.push(index),
            Next::End => self.remove(index),
        }
    }

    /// Dropping it deregisters and closes it. Those that waited for its descriptor are accepted.
    fn remove(&mut self, index: usize) {
        self.connections[index] = None;
        self.free.push(index);
        if std::mem::take(&mut self.starved) {
            for listener in 0..self.listeners.len() {
                if self.accept(listener).is_err() {
                    self.starved = true;
                }
            }
        }
    }

    fn accept(&mut self, listener: usize) -> io::Result<()> {
        loop {
            match self.listeners[listener].socket.accept() {
                Ok((stream, _)) => self.insert(stream)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if is_starved(&error) => {
                    self.starved = true;
                    return Ok(());
                }
                Err(error) if is_of_the_peer(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn insert(&mut self, mut stream: mio::net::TcpStream) -> io::Result<()> {
        let index = self.free.pop().unwrap_or(self.connections.len());
        let token = Token(self.listeners.len() + index);
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(&mut stream, token, interest)?;
        // A peer that has gone already makes this fail; its end shows at the first read.
        drop(stream.set_nodelay(true));
        let connection = Some(Connection::new(stream));
        match self.connections.get_mut(index) {
            Some(place) => *place = connection,
            None => self.connections.push(connection),
        }
        Ok(())
    }
}

fn is_starved(error: &io::Error) -> bool {
    let starved = [nix::Error::EMFILE, nix::Error::ENFILE, nix::Error::ENOBUFS];
    starved
        .iter()
        .any(|one| error.raw_os_error() == Some(*one as i32))
}

/// What accept(2) passes on of a connection that failed before it was accepted.
fn is_of_the_peer(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}
