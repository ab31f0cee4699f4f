//! Why a tunnel ended.

use serde::{Deserialize, Serialize};

/// Why a tunnel ended: one word, the same in the log, the admin API and the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The client ended it, by a Close frame or a FIN.
    Client,
    /// The server ended it, by a Close frame or a FIN.
    Server,
    /// The client's connection broke.
    ClientReset,
    /// The server's connection broke.
    ServerReset,
    /// No byte came for the route's `idle_timeout`.
    Idle,
    /// A peer took nothing of what waited for it for the route's `send_timeout`.
    SendTimeout,
    /// It was as old as the route's `max_age` allows.
    MaxAge,
    /// The client left two pings unanswered, and sent nothing else.
    PingTimeout,
    /// A deadline came: of its generation, or of its server.
    Drain,
    /// An operator closed it.
    Admin,
    /// Its worker had to end at once.
    WorkerStop,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Client,
        Self::Server,
        Self::ClientReset,
        Self::ServerReset,
        Self::Idle,
        Self::SendTimeout,
        Self::MaxAge,
        Self::PingTimeout,
        Self::Drain,
        Self::Admin,
        Self::WorkerStop,
    ];

    /// The word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::ClientReset => "client_reset",
            Self::ServerReset => "server_reset",
            Self::Idle => "idle",
            Self::SendTimeout => "send_timeout",
            Self::MaxAge => "max_age",
            Self::PingTimeout => "ping_timeout",
            Self::Drain => "drain",
            Self::Admin => "admin",
            Self::WorkerStop => "worker_stop",
        }
    }
}
