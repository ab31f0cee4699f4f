//! Listening sockets, from birth to `listen`, which are two steps here.
//!
//! A TCP socket with SO_REUSEPORT gets its share of connections from the moment
//! that it listens, so sockets of a generation that may yet fail are bound and no more.
//! All are non-blocking and close-on-exec. Nothing here accepts.

pub mod steer;
mod unix;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::context;

pub use unix::{UnixBound, bind_unix, probe_unix, remove_stale};

/// Connections that wait in a socket's queue, as asked of the kernel, which
/// takes `net.core.somaxconn` if that is less.
pub const BACKLOG: i32 = 4096;

/// Whether nobody else listens on this address: binds it for a moment without
/// SO_REUSEPORT. Sockets with SO_REUSEPORT do not see each other as conflicts, and so a second
/// wsgate of the same user would silently share the traffic.
///
/// Not to be called for an address that this process listens on. It does not see
/// a socket that is bound and does not listen yet; the [lock](crate::lock) covers that.
///
/// # Errors
/// `AddrInUse` if somebody listens; `PermissionDenied`, `AddrNotAvailable` and the others of bind(2).
pub fn probe(addr: SocketAddr) -> io::Result<()> {
    // SO_REUSEADDR, or else connections in TIME_WAIT would refuse a restart.
    bind(&new_socket(addr)?, addr)
}

/// Bytes that were written to a connected stream and that its peer has not acknowledged yet
/// (SIOCOUTQ, tcp(7)); of a Unix stream, those that its peer has not read (unix(7)).
///
/// # Errors
/// Those of ioctl(2).
pub fn unacknowledged(stream: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open, and SIOCOUTQ, whose number is that of TIOCOUTQ, writes one int.
    let done = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::try_from(bytes).unwrap_or(0))
}

/// A TCP socket bound with SO_REUSEPORT, which does not listen: connects are refused.
/// With port 0 the kernel chooses one; see [`local_addr`].
///
/// It has TCP_NODELAY and SO_KEEPALIVE for what will be accepted from it: Linux passes both on, so
/// nobody has to set them for each connection.
///
/// # Errors
/// Those of socket(2) and bind(2); `AddrInUse` if the address is held without
/// SO_REUSEPORT, or by another user.
pub fn bind_reuseport(addr: SocketAddr) -> io::Result<OwnedFd> {
    let socket = new_socket(addr)?;
    socket.set_reuse_port(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_keepalive(true)?;
    bind(&socket, addr)?;
    Ok(socket.into())
}

/// The address that a TCP socket is bound to.
///
/// # Errors
/// `InvalidInput` if it is no TCP socket; else those of getsockname(2).
pub fn local_addr(fd: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let addr = SockRef::from(&fd).local_addr()?;
    addr.as_socket().ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "the socket has no internet address",
        )
    })
}

/// Makes a bound socket listen: connections queue from now on. On one that
/// listens already it does no harm (its backlog is set anew).
///
/// # Errors
/// Those of listen(2): `AddrInUse` if another socket without SO_REUSEPORT got there first.
pub fn listen(fd: BorrowedFd<'_>, backlog: i32) -> io::Result<()> {
    SockRef::from(&fd).listen(backlog)
}

/// Whether a socket listens (SO_ACCEPTCONN, socket(7)). One that cannot tell does not.
pub fn listens(fd: BorrowedFd<'_>) -> bool {
    nix::sys::socket::getsockopt(&fd, nix::sys::socket::sockopt::AcceptConn).unwrap_or(false)
}

fn new_socket(addr: SocketAddr) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(addr), kind, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        // [::] means IPv6 alone, whatever the sysctl says: 0.0.0.0 is a listener of its own.
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

fn bind(socket: &Socket, addr: SocketAddr) -> io::Result<()> {
    socket
        .bind(&addr.into())
        .map_err(|error| context(error, format_args!("binding {addr}")))
}

#[cfg(test)]
mod tests;
