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
