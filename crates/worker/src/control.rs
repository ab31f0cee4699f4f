//! Obeys the supervisor, message by message.
//!
//! When the supervisor is gone the worker serves on, and waits for the next one: see [`crate::orphan`].

mod moves;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use wsgate_os::channel::Channel;
use wsgate_os::rendezvous::{Peer, Rendezvous};
use wsgate_protocol::admin::ServerState;
use wsgate_protocol::control::{
    ClosePlan, FromWorker, ServerStateOf, SocketSpec, ToWorker, VERSION,
};
use wsgate_proxy::{Acceptor, Listening};

use self::moves::Moves;
use crate::boot::{self, Booted};
use crate::listing::Lister;
use crate::{Error, hooks, judge};

/// What tunnels get beyond the deadline for their polite close, until the supervisor's patience is over.
const OVERTIME: Duration = Duration::from_secs(5);

/// The same for everything else. Before the supervisor's patience is over, which is
/// [`OVERTIME`]: what is cut here is in the log.
const CUT_AFTER: Duration = Duration::from_millis(4_500);

/// The worker's side of the control channel.
pub(crate) struct Control {
    /// `None` while there is no supervisor.
    pub(crate) channel: Option<Channel>,
    pub(crate) booted: Booted,
    /// Sockets that are not accepted from yet.
    held: BTreeMap<SocketSpec, Listening>,
    pub(crate) accepting: BTreeMap<SocketSpec, Acceptor>,
    /// When a drain ends, once it has begun.
    pub(crate) drains_until: Option<Instant>,
    pub(crate) said_empty: bool,
    moves: Moves,
}

/// What a worker waits for.
enum Heard {
    Message(std::io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>>),
    /// Somebody has come to the rendezvous.
    Visit(std::io::Result<(Channel, Peer)>),
    /// A handover has something to say.
    Report(FromWorker),
    /// Nothing is held any more.
    Empty,
    /// What has outstayed the drain is to be cut.
    TimeIsUp,
}

/// Whether to go on.
pub(crate) enum Next {
    Message,
    Exit,
}

impl Control {
    pub(crate) fn new(channel: Channel, booted: Booted) -> Self {
        Self {
            channel: Some(channel),
            booted,
            held: BTreeMap::new(),
            accepting: BTreeMap::new(),
            drains_until: None,
            said_empty: false,
            moves: Moves::new(),
        }
    }

    /// Obeys until told to exit; without a supervisor, until nothing is held any more.
    pub(crate) async fn run(mut self) -> Result<(), Error> {
        loop {
            let next = match self.hear().await {
                Heard::Message(message) => self.heard(message).await?,
                Heard::Visit(visit) => self.visited(visit).await,
                Heard::Report(report) => {
                    self.reported(report).await;
                    Next::Message
                }
                Heard::Empty => self.is_empty().await,
                Heard::TimeIsUp => {
                    tracing::warn!("the deadline has passed: connections that are left are cut");
                    Next::Exit
                }
            };
            if matches!(next, Next::Exit) {
                return Ok(());
            }
        }
    }

    async fn hear(&mut self) -> Heard {
        let gateway = &self.booted.gateway;
        let is_orphan = self.channel.is_none();
        let cut_at = self.drains_until.map(|deadline| deadline + CUT_AFTER);
        let may_be_empty =
            self.drains_until.is_some() && !self.said_empty && self.moves.is_settled();
        tokio::select! {
            message = receive(self.channel.as_ref()) => Heard::Message(message),
            visit = next_visit(self.booted.rendezvous.as_mut()), if is_orphan => Heard::Visit(visit),
            () = sleep_until(cut_at) => Heard::TimeIsUp,
            report = self.moves.report() => Heard::Report(report),
            () = gateway.empty(), if may_be_empty => Heard::Empty,
        }
    }

    async fn heard(
        &mut self,
        message: std::io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>>,
    ) -> Result<Next, Error> {
        match message {
            Ok(Some((bytes, fds))) => match self.obey(&bytes, fds).await {
                Ok(next) => Ok(next),
                Err(error) => {
                    self.report_failure(&error).await;
                    self.end_by_itself(&error.to_string()).await;
                    Err(error)
                }
            },
            // Descriptors were lost for want of room, and with them what they were for. The
            // rest goes on.
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                tracing::error!(%error, "a message of the supervisor was lost");
                Ok(Next::Message)
            }
            Ok(None) => Ok(self.is_orphaned("its end of the control channel is closed")),
            Err(error) => Ok(self.is_orphaned(&error.to_string())),
        }
    }

    async fn is_empty(&mut self) -> Next {
        // Whoever is dismissed must not get anything any more.
        self.moves.stop_taking();
        if !self.booted.gateway.is_empty() {
            return Next::Message;
        }
        while let Some(report) = self.moves.next_report() {
            self.reported(report).await;
        }
        self.said_empty = true;
        if self.channel.is_none() {
            return Next::Exit;
        }
        self.say(&FromWorker::Empty).await;
        Next::Message
    }

    async fn obey(&mut self, bytes: &[u8], fds: Vec<OwnedFd>) -> Result<Next, Error> {
        let message: ToWorker =
            serde_json::from_slice(bytes).map_err(|error| Error::Message(error.to_string()))?;
        let gateway = &self.booted.gateway;
        match message {
            ToWorker::Boot(_) => return Err(Error::Message("a second boot".to_owned())),
            ToWorker::Sockets { sockets } => self.hold(sockets, fds)?,
            ToWorker::Prepare => self.ready().await,
            ToWorker::Accept { sockets } => self.accept(sockets),
            ToWorker::Return { sockets } => self.give_back(&sockets),
            ToWorker::LetGo { sockets, retired } => self.let_go(&sockets, retired).await,
            ToWorker::Retire { for_good, plan } => self.retire(for_good, &plan).await,
            ToWorker::Servers { states } => self.set_servers(&states),
            ToWorker::DrainServer { server, plan } => {
                gateway.drain_server(server, &translate(&plan))
            }
            ToWorker::UndrainServer { server } => gateway.undrain_server(server),
            ToWorker::CloseTunnel { id, code, reason } => self.close_tunnel(&id, code, &reason),
            ToWorker::Ping { nonce } => self.pong(nonce).await,
            ToWorker::Tunnels { filter } => self.list(filter, fds)?,
            ToWorker::Judge => self.judge(fds)?,
            ToWorker::HandOver { handover, to } => self.hand_over(handover, to, fds),
            ToWorker::TakeOver {
                handover,
                from,
                grace_ms,
            } => self.take_over(handover, from, Duration::from_millis(grace_ms), fds),
            ToWorker::DrainLost { plan } => gateway.drain_lost(&translate(&plan)),
            ToWorker::ReopenLogs => self.reopen_logs(),
            ToWorker::Exit => return Ok(Next::Exit),
        }
        Ok(Next::Message)
    }

    fn hold(&mut self, sockets: Vec<SocketSpec>, fds: Vec<OwnedFd>) -> Result<(), Error> {
        if sockets.len() != fds.len() {
            return Err(Error::Message(format!(
                "{} sockets with {} descriptors",
                sockets.len(),
                fds.len()
            )));
        }
        for (spec, fd) in sockets.into_iter().zip(fds) {
            let socket = match spec.slot {
                Some(_) => Listening::Tcp(fd.into()),
                None => Listening::Unix(fd.into()),
            };
            self.held.insert(spec, socket);
        }
        Ok(())
    }

    async fn ready(&self) {
        let slot = self.booted.boot.slot;
        if !hooks::never_ready(slot) {
            self.say(&FromWorker::Ready { version: VERSION }).await;
            hooks::at_ready(slot);
        }
    }

    fn accept(&mut self, sockets: Vec<SocketSpec>) {
        for spec in sockets {
            let Some(socket) = self.held.remove(&spec) else {
                tracing::error!(?spec, "a socket to accept from never came");
                continue;
            };
            match self.booted.gateway.accept(&spec.listener, socket) {
                // One that it replaces had become another socket of the same name.
                Ok(acceptor) => drop(self.accepting.insert(spec, acceptor)),
                // The supervisor still has the socket: nobody who waits on it is lost.
                Err(error) => tracing::error!(?spec, %error, "a socket is not accepted from"),
            }
        }
    }

    /// The whole of the operator's word: who does not drain by it has no deadline by an older one.
    fn set_servers(&self, states: &[ServerStateOf]) {
        let gateway = &self.booted.gateway;
        gateway.set_servers(&boot::states(states));
        let drains = states.iter().filter(|of| of.state == ServerState::Drain);
        let drains: Vec<u32> = drains.map(|of| of.server).collect();
        gateway.undrain_all_but(&drains);
    }

    /// Everything that it holds and that listens: nobody is left to tell it.
    pub(crate) fn accept_all(&mut self) {
        let listens = |socket: &Listening| match socket {
            Listening::Tcp(socket) => wsgate_os::socket::listens(socket.as_fd()),
            Listening::Unix(socket) => wsgate_os::socket::listens(socket.as_fd()),
        };
        let held = self.held.iter().filter(|(_, socket)| listens(socket));
        let held: Vec<SocketSpec> = held.map(|(spec, _)| spec.clone()).collect();
        self.accept(held);
    }

    fn give_back(&mut self, sockets: &[SocketSpec]) {
        for spec in sockets {
            self.held.remove(spec);
            if let Some(acceptor) = self.accepting.remove(spec) {
                acceptor.stop();
            }
        }
    }

    async fn let_go(&mut self, sockets: &[SocketSpec], retired: u64) {
        for spec in sockets {
            self.held.remove(spec);
            if let Some(acceptor) = self.accepting.remove(spec) {
                acceptor.stop_after_queue();
            }
        }
        self.say(&FromWorker::LetGo { retired }).await;
    }

    async fn retire(&mut self, for_good: bool, plan: &ClosePlan) {
        self.stop_accepting(for_good);
        self.say(&FromWorker::Released).await;
        if for_good {
            // Nobody goes on after this: neither this worker, nor whoever gives to it.
            self.moves.stop_giving();
            self.moves.stop_taking();
        }
        self.drain(&translate(plan));
    }

    /// Begins a drain, or ends it sooner.
    pub(crate) fn drain(&mut self, plan: &wsgate_proxy::ClosePlan) {
        let end = plan.windows.last().map(|(_, end)| *end);
        self.drains_until = Some(end.unwrap_or_else(Instant::now));
        self.retire_by(plan);
    }

    /// `for_good`: nobody else accepts from them.
    pub(crate) fn stop_accepting(&mut self, for_good: bool) {
        self.held.clear();
        for acceptor in std::mem::take(&mut self.accepting).into_values() {
            if for_good {
                acceptor.stop_after_queue();
            } else {
                acceptor.stop();
            }
        }
    }

    fn close_tunnel(&self, id: &str, code: u16, reason: &str) {
        if !self.booted.gateway.close_tunnel(id, code, reason) {
            tracing::debug!(id, "the tunnel to be closed has ended by itself");
        }
    }

    async fn pong(&self, nonce: u64) {
        self.booted
            .ledger
            .set_log_lines_dropped(self.booted.log.dropped());
        self.say(&FromWorker::Pong { nonce }).await;
    }

    fn list(
        &self,
        filter: wsgate_protocol::admin::TunnelFilter,
        fds: Vec<OwnedFd>,
    ) -> Result<(), Error> {
        let [to] = <[OwnedFd; 1]>::try_from(fds).map_err(|fds| {
            Error::Message(format!(
                "tunnels with {} descriptors in place of 1",
                fds.len()
            ))
        })?;
        let (lister, tunnels) = (
            Lister::new(&self.booted, self.moves.giving()),
            self.booted.gateway.tunnels(),
        );
        tokio::spawn(async move {
            if let Err(error) = lister.list(tunnels, filter, to).await {
                tracing::debug!(%error, "the list of tunnels was not read to its end");
            }
        });
        Ok(())
    }

    fn judge(&self, fds: Vec<OwnedFd>) -> Result<(), Error> {
        let [config, to] = <[OwnedFd; 2]>::try_from(fds).map_err(|fds| {
            Error::Message(format!(
                "judge with {} descriptors in place of 2",
                fds.len()
            ))
        })?;
        let gateway = Arc::clone(&self.booted.gateway);
        tokio::spawn(async move {
            if let Err(error) = judge::judge(gateway, config, to).await {
                tracing::warn!(%error, "tunnels not judged");
            }
        });
        Ok(())
    }

    fn reopen_logs(&self) {
        if let Err(error) = self.booted.log.reopen() {
            tracing::error!(%error, "log file not reopened; lines go to the old one");
        }
    }

    /// A supervisor that cannot be told is gone, which the next receive finds out.
    async fn say(&self, message: &FromWorker) {
        let Some(channel) = &self.channel else { return };
        if let Err(error) = say(channel, message).await {
            tracing::debug!(%error, "supervisor not reached");
        }
    }

    /// Tells the supervisor why the worker is about to end.
    async fn report_failure(&self, error: &Error) {
        let reason = error.to_string();
        self.say(&FromWorker::Failed { reason }).await;
    }

    /// Drains by its own configuration, hearing nobody, and returns when nothing is held any more.
    async fn end_by_itself(&mut self, why: &str) {
        self.drain_by_itself(why, self.booted.config.drain.grace, false);
        let Some(deadline) = self.drains_until else {
            return;
        };
        self.settle_moves().await;
        let gateway = &self.booted.gateway;
        let empty = tokio::time::timeout_at((deadline + OVERTIME).into(), gateway.empty());
        if empty.await.is_err() {
            tracing::warn!("the deadline has passed: what is left is cut");
        }
    }

    /// Begins to drain without having been told to. `for_good`: nobody accepts after it.
    pub(crate) fn drain_by_itself(&mut self, why: &str, grace: Duration, for_good: bool) {
        let tunnels = self.booted.gateway.tunnels().len() as u32;
        let (workers, drain) = (self.booted.config.workers as u32, &self.booted.config.drain);
        let now = Instant::now();
        let deadline = now + grace;
        // The rate is that of all workers, and each of them closes as if it held its share.
        let needed = Duration::from_secs(1) * (tunnels * workers) / drain.close_rate.max(1);
        let from = deadline.checked_sub(needed).unwrap_or(now).max(now);
        let plan = wsgate_proxy::ClosePlan {
            code: drain.close_code,
            reason: Arc::from("gateway gone"),
            windows: vec![(from, deadline)],
        };
        tracing::warn!(why, tunnels, ?grace, "draining without a supervisor");
        if self.drains_until.is_none() {
            self.stop_accepting(for_good);
            self.drain(&plan);
        }
    }
}

/// The supervisor's next message; for ever, if there is no supervisor.
async fn receive(channel: Option<&Channel>) -> std::io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    match channel {
        Some(channel) => channel.recv().await,
        None => std::future::pending().await,
    }
}

/// The next one who comes; for ever, if nobody can.
async fn next_visit(rendezvous: Option<&mut Rendezvous>) -> std::io::Result<(Channel, Peer)> {
    match rendezvous {
        Some(rendezvous) => rendezvous.accept().await,
        None => std::future::pending().await,
    }
}

/// Tells the supervisor why the worker is about to end, if it can still be told.
pub(crate) async fn report_failure(channel: &Channel, error: &Error) {
    let message = FromWorker::Failed {
        reason: error.to_string(),
    };
    if let Err(error) = say(channel, &message).await {
        tracing::debug!(%error, "supervisor not reached");
    }
}

async fn say(channel: &Channel, message: &FromWorker) -> std::io::Result<()> {
    channel.send(&serde_json::to_vec(message)?, &[]).await
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// A plan's times are relative to its receipt, which is now.
fn translate(plan: &ClosePlan) -> wsgate_proxy::ClosePlan {
    let now = Instant::now();
    let at = |ms: u64| now + Duration::from_millis(ms);
    wsgate_proxy::ClosePlan {
        code: plan.code,
        reason: Arc::from(plan.reason.as_str()),
        windows: plan
            .windows
            .iter()
            .map(|window| (at(window.from_ms), at(window.to_ms)))
            .collect(),
    }
}
