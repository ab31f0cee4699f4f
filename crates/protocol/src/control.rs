//! Messages between the supervisor and a worker.
//!
//! Each is one JSON text in one SOCK_SEQPACKET message, with descriptors beside
//! it (SCM_RIGHTS) in the order that the message names. A message that its
//! receiver does not understand is fatal to the worker: the two come from one image.

use serde::{Deserialize, Serialize};

use crate::admin::{Fates, ServerState, TunnelFilter};

/// The first thing either side checks. It also stands for the layout of the configuration and the meaning of
/// the board's cells, which a supervisor gets from workers that it adopts: higher with every change of either.
pub const VERSION: u32 = 3;

/// From the supervisor to a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToWorker {
    /// The first message. Descriptors: the config (sealed memfd, JSON), the board, and the
    /// rendezvous socket, on which the worker listens.
    Boot(Boot),
    /// Listening sockets, which the worker keeps but does not accept from until
    /// [`ToWorker::Accept`]. Descriptors: one a socket, in order. May come several
    /// times, before and after `ready`.
    Sockets {
        /// What each descriptor is.
        sockets: Vec<SocketSpec>,
    },
    /// After the last [`ToWorker::Sockets`] of the start: answer [`FromWorker::Ready`].
    Prepare,
    /// Accept from these sockets, which came with [`ToWorker::Sockets`].
    Accept {
        /// Which ones.
        sockets: Vec<SocketSpec>,
    },
    /// Stop accepting from these sockets, and close them. Connections that wait in
    /// their queues are left to whoever accepts from them next.
    Return {
        /// Which ones.
        sockets: Vec<SocketSpec>,
    },
    /// Stop accepting from these sockets for good: accept what waits in their queues,
    /// close them, and answer [`FromWorker::LetGo`].
    LetGo {
        /// Which ones.
        sockets: Vec<SocketSpec>,
        /// Whose commit retired them; comes back.
        retired: u64,
    },
    /// Stop accepting, close all listening sockets and say [`FromWorker::Released`]; finish
    /// requests in flight, and let tunnels stay until the closes of `plan`.
    Retire {
        /// Nobody will accept after this worker: what waits in the queues is accepted first.
        for_good: bool,
        /// When tunnels are closed.
        plan: ClosePlan,
    },
    /// The operator's word about servers: all that are not `ready`. Servers that are not in `drain` by it lose
    /// deadlines that [`ToWorker::DrainServer`] gave.
    Servers {
        /// The whole list; servers that are not in it are `ready`.
        states: Vec<ServerStateOf>,
    },
    /// A server's tunnels get their deadlines.
    DrainServer {
        /// Its number.
        server: u32,
        /// When they are closed.
        plan: ClosePlan,
    },
    /// A server's tunnels lose the deadlines that [`ToWorker::DrainServer`] gave them.
    UndrainServer {
        /// Its number.
        server: u32,
    },
    /// Close one tunnel politely, now. One that is not there has ended.
    CloseTunnel {
        /// Its id.
        id: String,
        /// Status code of the Close frames.
        code: u16,
        /// Their reason, at most 123 bytes.
        reason: String,
    },
    /// Answer [`FromWorker::Pong`].
    Ping {
        /// Comes back.
        nonce: u64,
    },
    /// Write every tunnel that matches as one line of JSON to the descriptor
    /// beside this message (a pipe), then an empty line, which tells a whole list
    /// from one that broke off, and close it.
    Tunnels {
        /// Which ones.
        filter: TunnelFilter,
    },
    /// Give all tunnels to another worker, in small batches, and from then on each that opens. What cannot be given stays,
    /// and drains as [`ToWorker::Retire`] says, which comes behind this. Answered by [`FromWorker::HandedOver`].
    /// Takes the place of a handover that is under way. Descriptor: an end of a channel; see [`crate::handover`].
    HandOver {
        /// Names it in reports.
        handover: u64,
        /// The other worker's process, for the log.
        to: u32,
    },
    /// Take over what another worker gives. Answered by [`FromWorker::TookOver`]. Descriptor: the other end of the channel.
    TakeOver {
        /// Names it in reports.
        handover: u64,
        /// The other worker's process, for the log.
        from: u32,
        /// What those get whose route or server is gone, until [`ToWorker::DrainLost`] says when each is closed: in
        /// milliseconds from the receipt.
        grace_ms: u64,
    },
    /// Those that were taken over since the last such message, and whose route or server is gone, are closed by a plan.
    DrainLost {
        /// When.
        plan: ClosePlan,
    },
    /// Say what would become of every tunnel under another configuration: write [`Fates`] as JSON to a pipe,
    /// and close it. Descriptors: the configuration (sealed memfd, JSON), and the pipe.
    Judge,
    /// Reopen log files.
    ReopenLogs,
    /// End the process: nothing is held any more, or nothing may be.
    Exit,
}

/// What a worker is to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Boot {
    /// [`VERSION`].
    pub version: u32,
    /// Unique among all workers of this supervisor.
    pub worker: u64,
    /// Begins the ids of requests and tunnels: differs between supervisors.
    pub instance: u64,
    /// Its slot.
    pub slot: usize,
    /// Its generation.
    pub generation: u64,
    /// Its generation is active already: it is to accept as soon as it can, supervisor or not.
    pub active: bool,
    /// The block of the board that is its own.
    pub block: usize,
    /// The operator's word about servers, as [`ToWorker::Servers`].
    pub states: Vec<ServerStateOf>,
}

/// One listening socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SocketSpec {
    /// The listener's address, as in the configuration.
    pub listener: String,
    /// The slot that owns it; `None` for a Unix socket, which all slots share.
    pub slot: Option<usize>,
}

/// A server that is not `ready`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStateOf {
    /// Its number.
    pub server: u32,
    /// Its state.
    pub state: ServerState,
}

/// When a worker closes tunnels: evenly over these windows, laid end to end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClosePlan {
    /// Status code of the Close frame.
    pub code: u16,
    /// Its reason, at most 123 bytes.
    pub reason: String,
    /// When closes may begin, in milliseconds from the receipt of the message;
    /// ordered and disjoint. Empty: all at once, now.
    pub windows: Vec<Window>,
}

/// A span of time, in milliseconds from the receipt of its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// First moment.
    pub from_ms: u64,
    /// Last moment.
    pub to_ms: u64,
}

/// From a worker to the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromWorker {
    /// Everything needed is there: routing table built, sockets registered.
    Ready {
        /// [`VERSION`].
        version: u32,
    },
    /// It cannot do what it is for, and is about to exit.
    Failed {
        /// Why, in words for an operator.
        reason: String,
    },
    /// Answer to [`ToWorker::Ping`].
    Pong {
        /// As in the question.
        nonce: u64,
    },
    /// After [`ToWorker::Retire`]: no listening socket is left here.
    Released,
    /// Answer to [`ToWorker::LetGo`].
    LetGo {
        /// As in the message.
        retired: u64,
    },
    /// After [`ToWorker::Retire`]: no tunnel and no request is left.
    Empty,
    /// After [`ToWorker::HandOver`], whenever every tunnel was given or stays, and once more if the handover breaks off.
    HandedOver {
        /// As in the message.
        handover: u64,
        /// Tunnels that the other worker has taken since the last report.
        moved: u64,
        /// Those that are here still, by the reason.
        stays: Vec<Staying>,
        /// Why nothing more can be given; `None` while tunnels that open are given still.
        broken: Option<Refusal>,
        /// The longest time for which one that stays was with neither worker, in microseconds.
        #[serde(default)]
        longest_pause_us: u64,
    },
    /// After [`ToWorker::TakeOver`], whenever the other worker has nothing to give, and when it is gone.
    TookOver {
        /// As in the message.
        handover: u64,
        /// What becomes of the tunnels taken since the last report.
        fates: Fates,
        /// The longest time for which one of them was with neither worker, in microseconds.
        longest_pause_us: u64,
        /// The giver is gone, or has been told to give to another one.
        over: bool,
    },
    /// The first message to a supervisor that has not started this worker. Descriptors: the config
    /// and the board, as they came with [`ToWorker::Boot`].
    Hello(Hello),
    /// After [`FromWorker::Hello`], as often as needed: the listening sockets. Descriptors: one a socket, in order.
    Sockets {
        /// What each descriptor is.
        sockets: Vec<SocketSpec>,
    },
}

/// Tunnels that do not move, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staying {
    /// Why.
    pub reason: Stays,
    /// How many.
    pub tunnels: u64,
}

/// Why a tunnel does not move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stays {
    /// Its polite close is under way.
    Closing,
    /// Its client does not have its 101 yet.
    Opening,
    /// The other worker would not, or could not, take it.
    Refused(Refusal),
}

/// Why a worker takes no tunnels, or not these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// It holds as many as its file descriptors allow.
    NoRoom,
    /// Descriptors were lost on their way: it could open no more.
    NoDescriptors,
    /// It knows another layout.
    Version,
    /// It did not understand the batch, or could not serve what came.
    Unfit,
    /// It did not answer in time.
    Late,
    /// It has ended.
    Gone,
    /// The kernel did not let the batch through.
    Unsent,
    /// Nobody is there to take it.
    Nobody,
}

impl std::fmt::Display for Stays {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closing => f.write_str("the polite close is under way"),
            Self::Opening => f.write_str("the client does not have its 101 yet"),
            Self::Refused(why) => why.fmt(f),
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NoRoom => "the new worker holds as many as its file descriptors allow",
            Self::NoDescriptors => "the new worker could open no more file descriptors",
            Self::Version => "the new worker knows another layout of tunnels",
            Self::Unfit => "the new worker could not serve what came",
            Self::Late => "the new worker did not answer in time",
            Self::Gone => "the new worker has ended",
            Self::Unsent => "the kernel did not let the message through",
            Self::Nobody => "no new worker is there to take it",
        })
    }
}

impl Refusal {
    /// Whether another try may go better, with the same worker or another one.
    #[must_use]
    pub const fn may_pass(self) -> bool {
        !matches!(self, Self::Version)
    }

    /// Whether it lies with the worker that was to take: another one is tried first.
    #[must_use]
    pub const fn is_the_takers(self) -> bool {
        matches!(
            self,
            Self::Late | Self::Gone | Self::Unfit | Self::NoDescriptors | Self::NoRoom
        )
    }
}

/// What a worker is that has lost its supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`].
    pub version: u32,
    /// As in [`Boot::instance`].
    pub instance: u64,
    /// Its slot.
    pub slot: usize,
    /// Its generation.
    pub generation: u64,
    /// The block of the board that is its own.
    pub block: usize,
    /// How long it has lived, in milliseconds.
    pub age_ms: u64,
    /// If it accepts nothing any more: how long until everything that it holds has been closed, in milliseconds.
    pub drains_for_ms: Option<u64>,
    /// How many listening sockets will follow: all that it accepts from.
    pub sockets: usize,
}
