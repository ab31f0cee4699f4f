//! Connects to a server.
//!
//! One server, one try, one time limit. Who tries another server is [`crate::exchange`]; nothing
//! here retries.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::{Instant, timeout, timeout_at};
use wsgate_config::ServerAddress;

use crate::socket::Socket;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// No answer within the upstream's `connect_timeout`.
    #[error("no connection within {0:?}")]
    TimedOut(Duration),
    /// This machine has run out of something; the server has done no wrong.
    #[error("no connection for want of own resources: {0}")]
    Local(io::Error),
    /// Refused, unreachable, or its name is not known.
    #[error("{0}")]
    Failed(io::Error),
}

impl From<io::Error> for DialError {
    fn from(error: io::Error) -> Self {
        if is_own_fault(&error) {
            Self::Local(error)
        } else {
            Self::Failed(error)
        }
    }
}

/// Connects within `limit`, the lookup of a name included.
pub(crate) async fn dial(address: &ServerAddress, limit: Duration) -> Result<Socket, DialError> {
    let connected = timeout(limit, async {
        match address {
            ServerAddress::Ip(address) => tcp(*address).await,
            ServerAddress::Name(name, port) => named(name, *port, limit).await,
            ServerAddress::Unix(path) => Ok(UnixStream::connect(path).await.map(Socket::Unix)?),
        }
    });
    connected.await.map_err(|_| DialError::TimedOut(limit))?
}

async fn tcp(address: SocketAddr) -> Result<Socket, DialError> {
    let socket = TcpStream::connect(address).await.map(Socket::Tcp)?;
    // Fails only if the connection is gone again, which the first write will find out.
    let _ = socket.set_nodelay();
    Ok(socket)
}

/// Every address of the name, in the resolver's order. Each gets an equal share of the time
/// that is left, so that one that swallows packets does not use up the time of the next.
async fn named(name: &str, port: u16, limit: Duration) -> Result<Socket, DialError> {
    let end = Instant::now() + limit;
    let addresses: Vec<SocketAddr> = lookup_host((name, port)).await?.collect();
    let mut last = DialError::Failed(io::Error::other("the name has no address"));
    for (address, left) in addresses.iter().zip((1..=addresses.len() as u32).rev()) {
        let share = end.saturating_duration_since(Instant::now()) / left;
        last = match timeout_at(Instant::now() + share, tcp(*address)).await {
            Ok(Ok(socket)) => return Ok(socket),
            Ok(Err(error)) => error,
            Err(_) => DialError::TimedOut(limit),
        };
    }
    Err(last)
}

/// Whether an error says that this process or machine has no more descriptors, ports or memory.
pub(crate) fn is_own_fault(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EADDRNOTAVAIL)
    )
}
