//! Sockets as both sides of the load want them.

use std::io;
use std::net::{IpAddr, SocketAddr};

use mio::net::{TcpListener, TcpStream};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// More may not wait to be accepted; net.core.somaxconn may be lower.
const BACKLOG: i32 = 4096;

/// Begins a connection, from a source address if one is given. It stands, or has failed, once the socket
/// is writable.
///
/// One that is held does not end the handshake by itself: without TCP_QUICKACK the kernel delays the last ACK, for the first
/// data to ride on, by up to 200 ms (tcp(7)). So long the server's side is in SYN_RECV, though it stands for the client.
pub(crate) fn connect(to: SocketAddr, from: Option<IpAddr>, held: bool) -> io::Result<TcpStream> {
    let socket = stream_socket(to)?;
    socket.set_tcp_nodelay(true)?;
    if held {
        socket.set_tcp_quickack(false)?;
    }
    if let Some(from) = from {
        // Else the port is taken at the bind, from all that this address has for any target.
        setsockopt(&socket, IpBindAddressNoPort, &true)?;
        socket.bind(&SockAddr::from(SocketAddr::new(from, 0)))?;
    }
    match socket.connect(&SockAddr::from(to)) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(nix::Error::EINPROGRESS as i32) => {}
        Err(error) => return Err(error),
    }
    Ok(TcpStream::from_std(socket.into()))
}

pub(crate) fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = stream_socket(at)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(at))?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from_std(socket.into()))
}

fn stream_socket(address: SocketAddr) -> io::Result<Socket> {
    Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )
}
