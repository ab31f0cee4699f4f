//! Why a tunnel ended.

/// Why a tunnel ended: one word, the same in the log, the admin API and the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// A deadline came: of its generation, or of its server.
    Drain,
    /// Its worker had to end at once.
    WorkerStop,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Client,
        Self::Server,
        Self::ClientReset,
        Self::ServerReset,
        Self::Idle,
        Self::Drain,
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
            Self::Drain => "drain",
            Self::WorkerStop => "worker_stop",
        }
    }
}
