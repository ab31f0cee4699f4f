//! How the data path counts, and what it may know of the rest of the gateway and of the kernel.

use std::io;
use std::os::fd::BorrowedFd;

use crate::Cause;

/// Where figures go, and where those of the whole gateway come from.
///
/// Calls are on the path of every message: an implementation does not block,
/// allocate or lock.
pub trait Ledger: Send + Sync + 'static {
    /// Adds to a figure.
    fn add(&self, figure: Figure, n: u64);
    /// Takes from a gauge.
    fn sub(&self, gauge: Figure, n: u64);
    /// Live tunnels, and handshakes under way ([`Figure::Opening`]), in the whole gateway.
    fn tunnels(&self) -> u64;
    /// The same in this process.
    fn tunnels_here(&self) -> u64;
    /// Live tunnels to a server in the whole gateway, by the server's number.
    fn tunnels_to(&self, server: u32) -> u64;
    /// Bytes that were written to a connected stream and that its peer has not acknowledged yet: what the
    /// kernel holds of it. Asked only of peers that take nothing.
    ///
    /// # Errors
    ///
    /// If the kernel does not know.
    fn unacknowledged(&self, stream: BorrowedFd<'_>) -> io::Result<u64>;
}

/// What is counted. Numbers of routes and servers are those of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Live tunnels (gauge).
    Tunnels,
    /// Handshakes under way: places that are as good as taken (gauge).
    Opening,
    /// Tunnels opened.
    TunnelsOpened,
    /// Tunnels ended.
    Ended(Cause),
    /// Client connections accepted.
    Connections,
    /// Requests that were no upgrade.
    Requests,
    /// wsgate's own error answers, by status.
    Error(u16),
    /// Tunnel bytes that clients sent.
    BytesFromClients,
    /// Tunnel bytes that servers sent.
    BytesFromServers,
    /// Whole messages that clients sent.
    MessagesFromClients,
    /// Whole messages that servers sent.
    MessagesFromServers,
    /// Tunnels that came from another process.
    MovedIn,
    /// Tunnels that another process has taken over.
    MovedOut,
    /// Live tunnels by a route (gauge).
    RouteTunnels(u32),
    /// Of these, those with a deadline (gauge).
    RouteDraining(u32),
    /// Live tunnels to a server (gauge).
    ServerTunnels(u32),
    /// Of these, those with a deadline (gauge).
    ServerDraining(u32),
    /// Tunnels opened to a server.
    ServerOpened(u32),
    /// Connects to a server that failed.
    ServerConnectFailures(u32),
}
