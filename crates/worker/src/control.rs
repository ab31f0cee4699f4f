//! Obeys the supervisor, message by message.
//!
//! When the supervisor is gone the worker accepts nothing more and drains.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wsgate_os::channel::Channel;
use wsgate_protocol::control::{ClosePlan, FromWorker, SocketSpec, ToWorker, VERSION};
use wsgate_proxy::{Acceptor, Listening};

use crate::boot::{self, Booted};
use crate::listing::Lister;
use crate::{Error, hooks};

/// What tunnels get beyond the deadline for their polite close.
const OVERTIME: Duration = Duration::from_secs(5);

/// The same for everything else. Before the supervisor's patience is over, which is
/// [`OVERTIME`]: what is cut here is in the log.
const CUT_AFTER: Duration = Duration::from_millis(4_500);

/// The worker's side of the control channel.
pub(crate) struct Control {
    channel: Channel,
    booted: Booted,
    /// Sockets that are not accepted from yet.
    held: BTreeMap<SocketSpec, Listening>,
    accepting: BTreeMap<SocketSpec, Acceptor>,
    retired: bool,
    /// When what has outstayed the drain is cut.
    cut_at: Option<Instant>,
}

/// Whether to go on.
enum Next {
    Message,
    Exit,
}

impl Control {
    pub(crate) fn new(channel: Channel, booted: Booted) -> Self {
        Self {
            channel,
            booted,
            held: BTreeMap::new(),
            accepting: BTreeMap::new(),
            retired: false,
            cut_at: None,
        }
    }

    /// Obeys until told to exit. Without a supervisor: until nothing is held any more.
    pub(crate) async fn run(mut self) -> Result<(), Error> {
        let gateway = self.booted.gateway.clone();
        let mut said_empty = false;
        loop {
            let message = tokio::select! {
                message = self.channel.recv() => message,
                () = sleep_until(self.cut_at) => {
                    tracing::warn!("the deadline has passed: connections that are left are cut");
                    return Ok(());
                }
                () = gateway.empty(), if self.retired && !said_empty => {
                    said_empty = true;
                    self.say(&FromWorker::Empty).await;
                    continue;
                }
            };
            match message {
                Ok(Some((bytes, fds))) => match self.obey(&bytes, fds).await {
                    Ok(Next::Message) => {}
                    Ok(Next::Exit) => return Ok(()),
                    Err(error) => {
                        report_failure(&self.channel, &error).await;
                        self.outlive_supervisor(&error.to_string()).await;
                        return Err(error);
                    }
                },
                // Descriptors were lost for want of room, and with them what they were for. The
                // rest goes on.
                Err(error) if error.kind() == ErrorKind::InvalidData => {
                    tracing::error!(%error, "a message of the supervisor was lost");
                }
                Ok(None) => {
                    self.outlive_supervisor("the supervisor is gone").await;
                    return Ok(());
                }
                Err(error) => {
                    self.outlive_supervisor(&error.to_string()).await;
                    return Err(Error::Channel(error));
                }
            }
        }
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
            ToWorker::Servers { states } => gateway.set_servers(&boot::states(&states)),
            ToWorker::DrainServer { server, plan } => {
                gateway.drain_server(server, &translate(&plan))
            }
            ToWorker::UndrainServer { server } => gateway.undrain_server(server),
            ToWorker::CloseTunnel { id, code, reason } => self.close_tunnel(&id, code, &reason),
            ToWorker::Ping { nonce } => self.pong(nonce).await,
            ToWorker::Tunnels { filter } => self.list(filter, fds)?,
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
        let plan = translate(plan);
        let deadline = plan
            .windows
            .last()
            .map_or_else(Instant::now, |(_, end)| *end);
        self.cut_at = Some(deadline + CUT_AFTER);
        self.booted.gateway.retire(&plan);
    }

    fn stop_accepting(&mut self, for_good: bool) {
        self.retired = true;
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
        let (lister, tunnels) = (Lister::new(&self.booted), self.booted.gateway.tunnels());
        tokio::spawn(async move {
            if let Err(error) = lister.list(tunnels, filter, to).await {
                tracing::debug!(%error, "the list of tunnels was not read to its end");
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
        if let Err(error) = say(&self.channel, message).await {
            tracing::debug!(%error, "supervisor not reached");
        }
    }

    /// Drains by its own configuration, and returns when nothing is held any more.
    async fn outlive_supervisor(&mut self, why: &str) {
        let (gateway, drain) = (self.booted.gateway.clone(), &self.booted.config.drain);
        let now = Instant::now();
        let deadline = now + drain.grace;
        let tunnels = gateway.tunnels().len() as u32;
        tracing::warn!(why, tunnels, grace = ?drain.grace, "draining without a supervisor");
        if !self.retired {
            let needed = Duration::from_secs(1) * tunnels / drain.close_rate.max(1);
            let plan = wsgate_proxy::ClosePlan {
                code: drain.close_code,
                reason: Arc::from("gateway gone"),
                windows: vec![(
                    deadline.checked_sub(needed).unwrap_or(now).max(now),
                    deadline,
                )],
            };
            // The supervisor's sockets are gone with it: nobody else accepts.
            self.stop_accepting(true);
            gateway.retire(&plan);
        }
        if tokio::time::timeout_at((deadline + OVERTIME).into(), gateway.empty())
            .await
            .is_err()
        {
            tracing::warn!("the deadline has passed: what is left is cut");
        }
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
