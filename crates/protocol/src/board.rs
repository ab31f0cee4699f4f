//! What the cells of the board mean.
//!
//! The board is memory that all processes share: each worker writes only the
//! block that is its own, readers sum over blocks. Gauges of a dead worker are
//! cleared, its totals are kept, by the supervisor.

/// Why a tunnel ended, in the order of their cells.
pub const CAUSES: [&str; 11] = [
    "client",
    "server",
    "client_reset",
    "server_reset",
    "idle",
    "send_timeout",
    "max_age",
    "ping_timeout",
    "drain",
    "admin",
    "worker_stop",
];

/// Statuses of wsgate's own answers, in the order of their cells.
pub const STATUSES: [u16; 12] = [400, 403, 404, 405, 408, 426, 431, 500, 501, 502, 503, 504];

/// How often what moves is looked at again before the count is too high rather than late.
const LOOKS: usize = 100;

/// Live tunnels by these gauges, each read as `sum` of all blocks, in this order: one that goes from one gauge to another is to be found in the
/// later one. Never too few: that would let a limit be exceeded. Too many only if tunnels move during each of many looks.
///
/// One that moves can be in the gauges of both workers for a moment, or of neither: the new one counts it as soon as it gets to that, and the
/// old one as soon as it hears that it is the new one's. What was taken and given tells which. The workers' blocks are read one after the
/// other, so that counts only if it is the same before and behind.
pub fn tunnels(gauges: &[Cell], sum: impl Fn(Cell) -> u64) -> u64 {
    let moved = || (sum(Cell::MovedIn), sum(Cell::MovedOut));
    let mut most = 0;
    let mut before = moved();
    for _ in 0..LOOKS {
        let held: u64 = gauges.iter().map(|gauge| sum(*gauge)).sum();
        let (taken, given) = moved();
        if before == (taken, given) {
            return (held + given).saturating_sub(taken);
        }
        // Whoever came behind the reader's back has been taken meanwhile.
        let (unseen, underway) = (
            taken.saturating_sub(before.0),
            given.saturating_sub(before.0),
        );
        most = most.max(held + unseen + underway);
        before = (taken, given);
    }
    most
}

/// A cell of the general part of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// Tunnels that live (gauge).
    Tunnels,
    /// Tunnels opened.
    TunnelsOpened,
    /// Client connections accepted.
    Connections,
    /// Requests that were no upgrade.
    Requests,
    /// Tunnel bytes from clients.
    BytesFromClients,
    /// Tunnel bytes from servers.
    BytesFromServers,
    /// Messages from clients.
    MessagesFromClients,
    /// Messages from servers.
    MessagesFromServers,
    /// Log lines dropped.
    LogLinesDropped,
    /// Handshakes under way (gauge).
    Opening,
    /// Turns that the worker's runtime has made by its timer: they go on while it works.
    Beats,
    /// Tunnels taken over from another worker.
    MovedIn,
    /// Tunnels that another worker has taken over. See [`tunnels`].
    MovedOut,
    /// Tunnels ended, by index in [`CAUSES`].
    Ended(usize),
    /// Own answers, by index in [`STATUSES`].
    Errors(usize),
}

impl Cell {
    /// Its place in the general part of a block.
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Tunnels => 0,
            Self::TunnelsOpened => 1,
            Self::Connections => 2,
            Self::Requests => 3,
            Self::BytesFromClients => 4,
            Self::BytesFromServers => 5,
            Self::MessagesFromClients => 6,
            Self::MessagesFromServers => 7,
            Self::LogLinesDropped => 8,
            Self::Opening => 9,
            Self::Beats => 10,
            Self::MovedIn => 11,
            Self::MovedOut => 12,
            Self::Ended(cause) => 32 + cause,
            Self::Errors(status) => 64 + status,
        }
    }
}

/// Cells of a route.
pub mod route {
    /// Tunnels that live (gauge).
    pub const TUNNELS: usize = 0;
    /// Of these, those with a deadline (gauge).
    pub const DRAINING: usize = 1;
}

/// Cells of a server.
pub mod server {
    /// Tunnels that live (gauge).
    pub const TUNNELS: usize = 0;
    /// Of these, those with a deadline (gauge).
    pub const DRAINING: usize = 1;
    /// Tunnels opened.
    pub const OPENED: usize = 2;
    /// Connects that failed.
    pub const CONNECT_FAILURES: usize = 3;
}
