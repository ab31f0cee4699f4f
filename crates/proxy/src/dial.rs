//! Connects to a server.
//!
//! One server, one try, one time limit. Who tries another server is [`crate::exchange`]; nothing
//! here retries, but from the next own address where one cannot be used.
//!
//! A TCP connection costs socket(2), setsockopt(2) twice, connect(2) and epoll_ctl(2); with a
//! `source` one more setsockopt(2), and bind(2).

mod source;

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, Protocol, Type};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::{Instant, timeout, timeout_at};
use wsgate_config::ServerAddress;

pub(crate) use self::source::Sources;
use crate::shortage::Shortage;
use crate::socket::Socket;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// No answer within the upstream's `connect_timeout`.
    #[error("no connection within {0:?}")]
    TimedOut(Duration),
    /// Refused, unreachable, or its name is not known.
    #[error("{0}")]
    Failed(io::Error),
    /// Nothing can be connected to.
    #[error(transparent)]
    Short(Shortage),
    /// All local ports are in use towards this server, from this address of the upstream's `source`.
    #[error("no free local port{} to {server}: give the upstream's `source` more addresses, or widen net.ipv4.ip_local_port_range", shown(.from))]
    NoPort {
        server: SocketAddr,
        from: Option<IpAddr>,
    },
    /// An address of the upstream's `source` that no interface has.
    #[error(
        "`source` {0} is not an address of this machine: correct it, or give it to an interface"
    )]
    NotOurs(IpAddr),
    /// One that does not go with this server.
    #[error("`source` {from} cannot be used to reach {server}: {error}")]
    Unfit {
        from: IpAddr,
        server: SocketAddr,
        error: io::Error,
    },
}

impl DialError {
    /// Whether the server has done wrong. If not, the fault is this machine's or the
    /// configuration's.
    pub(crate) fn is_the_servers(&self) -> bool {
        matches!(self, Self::TimedOut(_) | Self::Failed(_))
    }

    /// Whether another server of the upstream may be connected to all the same.
    pub(crate) fn may_differ_at(&self, other: &ServerAddress) -> bool {
        match (self, other) {
            (Self::Short(_), _) => false,
            (Self::NotOurs(source), ServerAddress::Ip(ip)) => source.is_ipv4() != ip.is_ipv4(),
            _ => true,
        }
    }
}

fn shown(from: &Option<IpAddr>) -> String {
    from.map_or_else(String::new, |from| format!(" from {from}"))
}

impl From<io::Error> for DialError {
    fn from(error: io::Error) -> Self {
        Shortage::of(&error).map_or_else(|| Self::Failed(error), Self::Short)
    }
}

/// Connects within `limit`, the lookup of a name included.
pub(crate) async fn dial(
    address: &ServerAddress,
    sources: &Sources,
    limit: Duration,
) -> Result<Socket, DialError> {
    let connected = timeout(limit, async {
        match address {
            ServerAddress::Ip(address) => tcp(*address, sources).await,
            ServerAddress::Name(name, port) => named(name, *port, sources, limit).await,
            ServerAddress::Unix(path) => unix(path).await,
        }
    });
    connected.await.map_err(|_| DialError::TimedOut(limit))?
}

async fn tcp(server: SocketAddr, sources: &Sources) -> Result<Socket, DialError> {
    let stream = TcpStream::from_std(begin(server, sources)?.into())?;
    let ready = stream.ready(Interest::WRITABLE | Interest::ERROR).await?;
    // A connect that failed says so by EPOLLERR; without it nothing has to be asked.
    if ready.is_error()
        && let Some(error) = stream.take_error()?
    {
        return Err(error.into());
    }
    Ok(Socket::Tcp(stream))
}

/// A socket that connects, from the first own address that can be used.
fn begin(server: SocketAddr, sources: &Sources) -> Result<socket2::Socket, DialError> {
    let mut unused = None;
    for source in sources.towards(server) {
        match begin_from(server, Some(source)) {
            Ok(socket) => {
                if let Some(why) = unused {
                    sources.tell(server, &why);
                }
                return Ok(socket);
            }
            Err(why @ DialError::Short(_)) => return Err(why),
            // That an address is not ours says nothing of the others: what they met decides whether
            // another server may do better.
            Err(DialError::NotOurs(_)) if unused.is_some() => {}
            Err(why) => unused = Some(why),
        }
    }
    unused.map_or_else(|| begin_from(server, None), Err)
}

fn begin_from(server: SocketAddr, source: Option<IpAddr>) -> Result<socket2::Socket, DialError> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = socket2::Socket::new(Domain::for_address(server), kind, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_keepalive(true)?;
    if let Some(source) = source {
        source::bind(&socket, source, server).map_err(|error| unbound(error, source, server))?;
    }
    match socket.connect(&server.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => {
            Err(unconnected(error, source, server))
        }
        _ => Ok(socket),
    }
}

/// What bind(2) has said.
fn unbound(error: io::Error, source: IpAddr, server: SocketAddr) -> DialError {
    match Shortage::of(&error) {
        Some(shortage) => DialError::Short(shortage),
        None if error.kind() == io::ErrorKind::AddrNotAvailable => DialError::NotOurs(source),
        None => DialError::Unfit {
            from: source,
            server,
            error,
        },
    }
}

/// What connect(2) has said at once.
fn unconnected(error: io::Error, source: Option<IpAddr>, server: SocketAddr) -> DialError {
    match (error.raw_os_error(), source) {
        (Some(libc::EADDRNOTAVAIL), None) if !has_address_towards(server) => error.into(),
        (Some(libc::EADDRNOTAVAIL), _) => DialError::NoPort {
            server,
            from: source,
        },
        // One of the loopback's, to somewhere else (tcp(7) does not tell).
        (Some(libc::EINVAL), Some(source)) => DialError::Unfit {
            from: source,
            server,
            error,
        },
        _ => error.into(),
    }
}

/// Whether this machine has an address of the kind that `server` is reached from: where it has
/// none in IPv6, connect(2) says the same as where ports are used up. UDP has ports of its own.
fn has_address_towards(server: SocketAddr) -> bool {
    let connected = || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?.connect(server);
    server.is_ipv4()
        || connected().map_or_else(
            |error: io::Error| error.kind() != io::ErrorKind::AddrNotAvailable,
            |()| true,
        )
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
async fn named(
    name: &str,
    port: u16,
    sources: &Sources,
    limit: Duration,
) -> Result<Socket, DialError> {
    let end = Instant::now() + limit;
    let addresses: Vec<SocketAddr> = lookup_host((name, port)).await?.collect();
    let mut last = DialError::Failed(io::Error::other("the name has no address"));
    for (address, left) in addresses.iter().zip((1..=addresses.len() as u32).rev()) {
        let share = end.saturating_duration_since(Instant::now()) / left;
        last = match timeout_at(Instant::now() + share, tcp(*address, sources)).await {
            Ok(Ok(socket)) => return Ok(socket),
            Ok(Err(error @ DialError::Short(_))) => return Err(error),
            Ok(Err(error)) => error,
            Err(_) => DialError::TimedOut(limit),
        };
    }
    Err(last)
}

#[cfg(test)]
mod tests;
