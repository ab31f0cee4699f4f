//! What becomes of a tunnel under another configuration.
//!
//! A tunnel is kept if a request like its own, by the same listener and for the same host and path, would be led to an
//! upstream that has its server. Whether a server is ready is not asked: that is the operator's word, and no
//! configuration. Nothing here changes a tunnel, and no look is linear in the number of routes or servers.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use wsgate_config::Config;

use crate::record::{By, Record, Timeouts};
use crate::registry::Registry;
use crate::table::{Plan, RouteEntry, Server};
use crate::{Gateway, record};

/// Tunnels judged in one go: a tenth of a millisecond.
const STEP: usize = 256;

/// What a tunnel was routed by, and where it leads to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RoutedBy<'a> {
    pub(crate) listener: &'a str,
    pub(crate) host: &'a str,
    pub(crate) path: &'a str,
    pub(crate) upstream: &'a str,
    /// Its address as written.
    pub(crate) server: &'a str,
}

/// What becomes of a tunnel.
#[derive(Debug)]
pub(crate) enum Fate<'a> {
    /// It has its way still.
    Kept {
        route: &'a RouteEntry,
        server: &'a Server,
    },
    /// It has lost it.
    Lost(Reason),
}

/// Why a tunnel has lost its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Its listener is gone.
    ListenerRemoved,
    /// No route is for its host and path.
    RouteRemoved,
    /// Its upstream does not have its server.
    ServerRemoved,
    /// Its host and path lead to this upstream, which does not have its server.
    OtherUpstream(Arc<str>),
}

/// What tunnels have lost, and by what.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lost {
    /// Why.
    pub reason: Reason,
    /// The listener that they came in by.
    pub listener: Arc<str>,
    /// Their route's name.
    pub route: Arc<str>,
    /// The upstream of their server.
    pub upstream: Arc<str>,
    /// Their server's address, as in the configuration.
    pub server: Arc<str>,
}

/// What becomes of many tunnels. Each is counted as one of kept, drained and draining.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// They have their way still.
    pub kept: u64,
    /// Of these, those that a lower `idle_timeout` or `max_age` ends at once.
    pub ending: u64,
    /// They have lost it.
    pub drained: u64,
    /// Those that have a deadline already, which they keep, or are being closed.
    pub draining: u64,
    /// Why they are drained, and how many for each reason.
    pub lost: HashMap<Lost, u64>,
}

/// What becomes of a tunnel under the configuration of this plan.
pub(crate) fn fate<'a>(plan: &'a Plan, by: &RoutedBy<'_>) -> Fate<'a> {
    if !plan.has_listener(by.listener) {
        return Fate::Lost(Reason::ListenerRemoved);
    }
    let Some(place) = plan.find(by.host, by.path) else {
        return Fate::Lost(Reason::RouteRemoved);
    };
    let upstream = plan.upstream_of(place);
    match upstream.server(by.server) {
        Some(server) => Fate::Kept {
            route: plan.route(place),
            server,
        },
        None if *upstream.name == *by.upstream => Fate::Lost(Reason::ServerRemoved),
        None => Fate::Lost(Reason::OtherUpstream(Arc::clone(&upstream.name))),
    }
}

/// Whether a tunnel that has been silent for so long, and is so old, ends at once under these.
pub(crate) fn ending(timeouts: &Timeouts, idle: Duration, age: Duration) -> bool {
    idle >= timeouts.idle || timeouts.max_age.is_some_and(|max| age >= max)
}

impl<'a> RoutedBy<'a> {
    pub(crate) fn of(record: &'a Record) -> Self {
        Self {
            listener: &record.listener,
            host: &record.host,
            path: &record.path,
            upstream: &record.server.upstream,
            server: &record.server.name,
        }
    }
}

impl Lost {
    pub(crate) fn of(record: &Record, reason: Reason) -> Self {
        let record::Server { name, upstream, .. } = &*record.server;
        Self {
            reason,
            listener: Arc::clone(&record.listener),
            route: Arc::clone(&record.route.name),
            upstream: Arc::clone(upstream),
            server: Arc::clone(name),
        }
    }
}

impl Judgement {
    /// Counts what becomes of one more tunnel, as [`Gateway::adopt`] would. The deadline of its generation goes as soon as it moves, one
    /// for its lost way as soon as it has its way back.
    fn judge(&mut self, plan: &Plan, moves: bool, record: &Record) {
        let has = |by| record.orders.get(by).is_some();
        let drains =
            record.closing() || has(By::Server) || has(By::Admin) || (has(By::Retire) && !moves);
        match fate(plan, &RoutedBy::of(record)) {
            _ if drains => self.draining += 1,
            Fate::Lost(_) if has(By::Lost) => self.draining += 1,
            Fate::Kept { route, .. } => {
                let timeouts = &route.shared.timeouts;
                self.count_kept(ending(timeouts, record.idle(), record.opened.elapsed()));
            }
            Fate::Lost(reason) => self.count_lost(Lost::of(record, reason)),
        }
    }

    /// `ends`: by a lower limit, at once.
    pub(crate) fn count_kept(&mut self, ends: bool) {
        self.kept += 1;
        self.ending += u64::from(ends);
    }

    pub(crate) fn count_lost(&mut self, lost: Lost) {
        self.drained += 1;
        *self.lost.entry(lost).or_default() += 1;
    }
}

impl Gateway {
    /// What would become of the tunnels that live here under another configuration. Nothing
    /// changes by it.
    ///
    /// It takes its time: between small steps other tasks have their turn. Tunnels that open meanwhile are not judged.
    ///
    /// # Errors
    ///
    /// If there is no thread for the routing table of that configuration.
    pub async fn judge(&self, config: Config) -> std::io::Result<Judgement> {
        // Thousands of routes take milliseconds, in which no tunnel of this thread would be served.
        let moves = config.drain.handover;
        let plan = tokio::task::spawn_blocking(move || Plan::new(&config)).await?;
        let judgement = judge(&self.registry, &plan, moves).await;
        tokio::task::spawn_blocking(move || drop(plan));
        Ok(judgement)
    }
}

/// `moves`: tunnels do, at a reload.
async fn judge(registry: &Registry, plan: &Plan, moves: bool) -> Judgement {
    let mut judgement = Judgement::default();
    let (mut last, end) = (0, registry.end());
    loop {
        let tunnels = registry.some(last, end, STEP);
        let Some((number, _)) = tunnels.last() else {
            return judgement;
        };
        last = *number;
        for (_, record) in &tunnels {
            judgement.judge(plan, moves, record);
        }
        drop(tunnels);
        tokio::task::yield_now().await;
    }
}
