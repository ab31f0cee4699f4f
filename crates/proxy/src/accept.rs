//! Takes connections from a listening socket.
//!
//! A connection is accepted and given a task of its own in one step, so none is lost between the
//! two. Nothing here reads a byte.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::AbortHandle;
use tracing::warn;

use crate::gateway::Gateway;
use crate::seldom::Seldom;
use crate::shortage::Shortage;
use crate::socket::{Peer, Socket};
use crate::{Figure, connection};

/// How long nothing is accepted where accepting has failed for want of descriptors or memory: the
/// queue stays ready, and trying at once again would only burn the CPU.
const PAUSE: Duration = Duration::from_millis(100);

/// A socket that listens already. It is made non-blocking.
#[derive(Debug)]
pub enum Listening {
    /// TCP. Its connections get TCP_NODELAY and SO_KEEPALIVE from it, if it has them: on Linux they
    /// inherit both, and two system calls for each are saved.
    Tcp(std::net::TcpListener),
    /// A Unix socket.
    Unix(std::os::unix::net::UnixListener),
}

/// An accept loop. Stopped when dropped.
pub struct Acceptor {
    gateway: Arc<Gateway>,
    name: Arc<str>,
    listener: Shared,
    task: AbortHandle,
}

/// Taken out to stop: the lock makes sure that no connection is accepted after that.
type Shared = Arc<Mutex<Option<Listener>>>;

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Acceptor {
    pub(crate) fn start(
        gateway: Arc<Gateway>,
        name: Arc<str>,
        socket: Listening,
    ) -> io::Result<Self> {
        let listener = Arc::new(Mutex::new(Some(Listener::new(socket)?)));
        let running = run(
            Arc::clone(&gateway),
            Arc::clone(&name),
            Arc::clone(&listener),
        );
        let task = tokio::spawn(running).abort_handle();
        Ok(Self {
            gateway,
            name,
            listener,
            task,
        })
    }

    /// The listener's name.
    #[must_use]
    pub fn listener(&self) -> &str {
        &self.name
    }

    /// The socket that it accepts from, by a descriptor of its own.
    ///
    /// # Errors
    ///
    /// Those of fcntl(2) with F_DUPFD_CLOEXEC.
    pub fn socket(&self) -> io::Result<OwnedFd> {
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        match &*listener {
            Some(Listener::Tcp(listener)) => listener.as_fd().try_clone_to_owned(),
            Some(Listener::Unix(listener)) => listener.as_fd().try_clone_to_owned(),
            // It is taken out only by what consumes the acceptor.
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// As [`Acceptor::stop`], but what waits in the queue is accepted first: nobody else
    /// will, and closing the last descriptor of a listening socket resets it.
    pub fn stop_after_queue(self) {
        let mut listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(last) = listener.take() else {
            return;
        };
        // Not by tokio: it would not ask the kernel before the next event.
        let emptied = last.into_std().and_then(|last| {
            while let Some((socket, peer)) = accept_waiting(&last)? {
                begin(&self.gateway, &self.name, socket, peer);
            }
            Ok(())
        });
        drop(listener);
        if let Err(error) = emptied {
            warn!(
                target: "wsgate::proxy",
                listener = &*self.name,
                %error,
                "the accept queue was not emptied"
            );
        }
    }

    /// Not one connection is accepted after this, and the descriptor is closed. Those
    /// accepted before are served on.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        let mut listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        drop(listener.take());
        self.task.abort();
    }
}

impl Listener {
    fn new(socket: Listening) -> io::Result<Self> {
        match socket {
            Listening::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                TcpListener::from_std(socket).map(Self::Tcp)
            }
            Listening::Unix(socket) => {
                socket.set_nonblocking(true)?;
                UnixListener::from_std(socket).map(Self::Unix)
            }
        }
    }

    fn into_std(self) -> io::Result<Listening> {
        match self {
            Self::Tcp(listener) => listener.into_std().map(Listening::Tcp),
            Self::Unix(listener) => listener.into_std().map(Listening::Unix),
        }
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Socket, Peer)>> {
        Poll::Ready(match self {
            Self::Tcp(listener) => ready!(listener.poll_accept(cx))
                .map(|(stream, address)| (Socket::Tcp(stream), Peer::Tcp(address))),
            Self::Unix(listener) => ready!(listener.poll_accept(cx))
                .map(|(stream, _)| (Socket::Unix(stream), Peer::Unix)),
        })
    }
}

/// The next connection of the queue, if there is one.
fn accept_waiting(listener: &Listening) -> io::Result<Option<(Socket, Peer)>> {
    loop {
        let accepted = match listener {
            Listening::Tcp(listener) => listener.accept().and_then(|(stream, address)| {
                stream.set_nonblocking(true)?;
                let stream = TcpStream::from_std(stream)?;
                Ok((Socket::Tcp(stream), Peer::Tcp(address)))
            }),
            Listening::Unix(listener) => listener.accept().and_then(|(stream, _)| {
                stream.set_nonblocking(true)?;
                Ok((Socket::Unix(UnixStream::from_std(stream)?), Peer::Unix))
            }),
        };
        return match accepted {
            Ok(accepted) => Ok(Some(accepted)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => Err(error),
        };
    }
}

async fn run(gateway: Arc<Gateway>, name: Arc<str>, listener: Shared) {
    let told = Seldom::default();
    loop {
        if gateway.tasks.len() >= gateway.connections_here {
            complain(
                &told,
                &name,
                &"this worker holds as many as its descriptors allow",
            );
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        match poll_fn(|cx| poll_shared(&listener, cx)).await {
            None => return,
            Some(Ok((socket, peer))) => begin(&gateway, &name, socket, peer),
            // The client was gone before it was accepted.
            Some(Err(error)) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Some(Err(error)) => {
                match Shortage::of(&error) {
                    Some(shortage) => complain(&told, &name, &shortage),
                    None => complain(&told, &name, &error),
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn complain(told: &Seldom, listener: &str, why: &dyn std::fmt::Display) {
    if told.is_due() {
        warn!(
            target: "wsgate::proxy",
            listener,
            "cannot accept connections, they wait in the queue: {why}"
        );
    }
}

fn poll_shared(
    listener: &Shared,
    cx: &mut Context<'_>,
) -> Poll<Option<io::Result<(Socket, Peer)>>> {
    let listener = listener.lock().unwrap_or_else(PoisonError::into_inner);
    match &*listener {
        Some(listener) => listener.poll_accept(cx).map(Some),
        None => Poll::Ready(None),
    }
}

fn begin(gateway: &Arc<Gateway>, name: &Arc<str>, socket: Socket, peer: Peer) {
    gateway.ledger.add(Figure::Connections, 1);
    let serving = connection::serve(Arc::clone(gateway), Arc::clone(name), socket, peer);
    gateway.tasks.spawn(serving);
}
