//! The own addresses that a server is connected to from: `source` of its upstream.
//!
//! Which one is next, and what a socket needs to be connected from it. Each worker takes its own
//! turns, for each server: ports run out for a pair of own address and server.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::Socket;
use tracing::warn;

use super::DialError;
use crate::seldom::Seldom;

/// Own addresses to connect to one server from; without any the kernel chooses.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    addresses: Arc<[IpAddr]>,
    turn: AtomicUsize,
    told: Seldom,
}

impl Sources {
    pub(crate) fn new(addresses: Arc<[IpAddr]>) -> Self {
        Self {
            addresses,
            ..Self::default()
        }
    }

    /// Those of the server's family, beginning with the one whose turn it is.
    pub(super) fn towards(&self, server: SocketAddr) -> impl Iterator<Item = IpAddr> {
        let fit = || {
            let fits = move |ip: &IpAddr| ip.is_ipv4() == server.is_ipv4();
            self.addresses.iter().copied().filter(fits)
        };
        let count = fit().count();
        let first = match count {
            0 | 1 => 0,
            _ => self.turn.fetch_add(1, Ordering::Relaxed) % count,
        };
        fit().skip(first).chain(fit().take(first))
    }

    /// An address could not be used, and the next one could: nobody else would learn of it.
    pub(super) fn tell(&self, server: SocketAddr, why: &DialError) {
        if self.told.is_due() {
            warn!(target: "wsgate::proxy", %server, "the next `source` is used: {why}");
        }
    }
}

/// Binds a socket that is to be connected to `server`.
///
/// The port is left to connect(2) (IP_BIND_ADDRESS_NO_PORT, ip(7)): it may be one that is
/// in use towards other servers, so there are as many connections as ports to each of them,
/// and not to all of them together.
pub(super) fn bind(socket: &Socket, source: IpAddr, server: SocketAddr) -> io::Result<()> {
    setsockopt(socket, sockopt::IpBindAddressNoPort, &true)?;
    let address = match (source, server) {
        // A link-local address is one only together with its interface, which is the server's.
        (IpAddr::V6(ip), SocketAddr::V6(server)) => {
            SocketAddrV6::new(ip, 0, 0, server.scope_id()).into()
        }
        _ => SocketAddr::new(source, 0),
    };
    socket.bind(&address.into())
}
