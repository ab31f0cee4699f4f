//! The data path as a worker drives it: one [`Gateway`] for each process.
//!
//! It owns what connections share. It decides nothing about when to drain or stop: it is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use wsgate_config::Config;

use crate::accept::{Acceptor, Listening};
use crate::handover::Ways;
use crate::pool::Pool;
use crate::registry::{ClosePlan, Registry};
use crate::table::{Plan, ServerState, Table};
use crate::{Deadline, Ledger, Record};

/// What a gateway is made from.
pub struct Settings {
    /// The whole configuration; only limits, routes and upstreams are looked at.
    pub config: Arc<Config>,
    /// Request ids are this, a dash, and a number in hexadecimal.
    pub id_prefix: String,
    /// The most tunnels that the descriptors of this process allow.
    pub tunnels_here: u64,
    /// The most client connections, tunnels included. Beyond them nothing is accepted: what
    /// waits keeps its place in the queue, and descriptors are left for the supervisor's messages.
    pub connections_here: usize,
    /// Where figures go.
    pub ledger: Arc<dyn Ledger>,
    /// Server states, by the servers' numbers; those not named are ready.
    pub states: Vec<(u32, ServerState)>,
}

/// The data path of one process. Its methods are to be called within a tokio runtime.
pub struct Gateway {
    pub(crate) config: Arc<Config>,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) pool: Arc<Pool>,
    /// Cancelled by [`Gateway::retire`].
    pub(crate) retired: CancellationToken,
    /// Every client connection and every tunnel holds one of its tokens.
    pub(crate) tasks: TaskTracker,
    pub(crate) tunnels_here: u64,
    pub(crate) connections_here: usize,
    pub(crate) ways: Ways,
    table: ArcSwap<Table>,
    id_prefix: String,
    ids: AtomicU64,
}

/// See [`Gateway::hold`].
#[derive(Debug)]
pub struct Hold {
    _token: TaskTrackerToken,
}

impl Gateway {
    /// A gateway that accepts nothing yet.
    #[must_use]
    pub fn new(settings: Settings) -> Arc<Self> {
        let plan = Arc::new(Plan::new(&settings.config));
        Arc::new(Self {
            registry: Registry::new(Arc::clone(&settings.ledger)),
            pool: Arc::default(),
            retired: CancellationToken::new(),
            tasks: TaskTracker::new(),
            tunnels_here: settings.tunnels_here,
            connections_here: settings.connections_here,
            ways: Ways::default(),
            table: ArcSwap::from_pointee(Table::new(plan, &settings.states)),
            config: settings.config,
            ledger: settings.ledger,
            id_prefix: settings.id_prefix,
            ids: AtomicU64::new(0),
        })
    }

    /// Accepts connections from a listening socket until the [`Acceptor`] is stopped or dropped.
    /// `listener` is the listener's name in the log and in the records of tunnels.
    ///
    /// # Errors
    ///
    /// If the socket cannot be made non-blocking or registered with the runtime.
    pub fn accept(
        self: &Arc<Self>,
        listener: &str,
        socket: Listening,
    ) -> std::io::Result<Acceptor> {
        Acceptor::start(Arc::clone(self), listener.into(), socket)
    }

    /// A new routing table: these states, and `ready` for every server not named. Handshakes
    /// that have begun go on with the old one.
    pub fn set_servers(&self, states: &[(u32, ServerState)]) {
        let plan = Arc::clone(&self.table.load().plan);
        self.table.store(Arc::new(Table::new(plan, states)));
    }

    /// Drains everything: connections end after the request in flight, idle ones at once, and
    /// tunnels get deadlines by the plan. A tunnel whose handshake is in flight gets the
    /// plan's last moment. To be called again when the plan changes.
    ///
    /// It does not stop the acceptors. A connection that was accepted and has sent nothing
    /// yet has its first request served still.
    pub fn retire(&self, plan: &ClosePlan) {
        self.registry.retire(plan);
        self.retired.cancel();
        self.pool.close();
    }

    /// The same, but for tunnels that live: [`Gateway::retire`] is to follow for those that do not move away.
    pub fn retire_those_to_come(&self, plan: &ClosePlan) {
        self.registry.retire_those_to_come(plan);
        self.retired.cancel();
        self.pool.close();
    }

    /// Tunnels that have come from another process, and whose route or server is gone, get deadlines by the plan: those that have
    /// come since the last one.
    pub fn drain_lost(&self, plan: &ClosePlan) {
        self.registry.drain_lost(plan);
    }

    /// The tunnels to a server get deadlines by the plan. A tunnel to it that opens
    /// later gets the plan's last moment.
    pub fn drain_server(&self, server: u32, plan: &ClosePlan) {
        self.registry.drain_server(server, plan);
    }

    /// Takes the deadlines of [`Gateway::drain_server`] back.
    pub fn undrain_server(&self, server: u32) {
        self.registry.undrain_server(server);
    }

    /// The same for every server but these: whoever took the place of the one that drained them knows no more.
    pub fn undrain_all_but(&self, servers: &[u32]) {
        self.registry.undrain_all_but(servers);
    }

    /// Closes one tunnel politely, with this status code (RFC 6455 section 7.4) and a reason of at most 123
    /// bytes. Whether it lives here.
    pub fn close_tunnel(&self, id: &str, code: u16, reason: &str) -> bool {
        let deadline = Deadline {
            at: Instant::now(),
            code,
            reason: reason.into(),
        };
        self.registry.close_tunnel(id, deadline)
    }

    /// The live tunnels, oldest first.
    #[must_use]
    pub fn tunnels(&self) -> Vec<Arc<Record>> {
        self.registry.tunnels()
    }

    /// How many tunnels live here.
    #[must_use]
    pub fn live(&self) -> usize {
        self.registry.live()
    }

    /// Waits until no connection, request or tunnel is left. To be called after
    /// [`Gateway::retire`], with all acceptors stopped.
    pub async fn empty(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// As long as this is held the gateway is not empty.
    #[must_use]
    pub fn hold(&self) -> Hold {
        Hold {
            _token: self.tasks.token(),
        }
    }

    /// Whether no connection, request or tunnel is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    pub(crate) fn table(&self) -> Arc<Table> {
        self.table.load_full()
    }

    pub(crate) fn next_id(&self) -> Box<str> {
        let number = self.ids.fetch_add(1, Ordering::Relaxed) + 1;
        format!("{}-{number:x}", self.id_prefix).into()
    }
}
