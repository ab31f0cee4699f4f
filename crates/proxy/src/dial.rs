//! Connects to a server.
//!
//! One server, one try, one time limit. Who tries another server is [`crate::exchange`]; nothing
//! here retries.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
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
            ServerAddress::Unix(path) => unix(path).await,
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

/// A Unix socket whose queue is full answers EAGAIN at once, where TCP would wait: see unix(7).
async fn unix(path: &Path) -> Result<Socket, DialError> {
    let mut pause = Duration::from_millis(1);
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(50));
            }
            connected => return Ok(connected.map(Socket::Unix)?),
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    #[tokio::test]
    async fn a_unix_socket_with_a_full_queue_is_waited_for() {
        let dir = std::env::temp_dir().join(format!("wsgate-dial-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("full.sock");
        let socket =
            socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        socket
            .bind(&socket2::SockAddr::unix(&path).unwrap())
            .unwrap();
        socket.listen(0).unwrap();
        socket.set_nonblocking(true).unwrap();
        let listener = UnixListener::from_std(std::os::fd::OwnedFd::from(socket).into()).unwrap();
        let mut waiting = Vec::new();
        let full = loop {
            match UnixStream::connect(&path).await {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);

        let address = ServerAddress::Unix(path);
        let short = dial(&address, Duration::from_millis(60)).await;
        assert!(matches!(short, Err(DialError::TimedOut(_))), "{short:?}");
        let dialled = tokio::spawn(async move { dial(&address, Duration::from_secs(10)).await });
        let (_first, _) = listener.accept().await.unwrap();
        let dialled = dialled.await.unwrap();
        assert!(dialled.is_ok(), "{dialled:?}");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
