//! How things are, as the supervisor's loop knows it without asking anybody.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use tokio::sync::watch;
use wsgate_config::{Balance, Config};
use wsgate_lifecycle::{Phase, State};
use wsgate_protocol::admin::{
    ConfigStatus, GatewayState, GenerationState, GenerationStatus, ListenerStatus, ServerStatus,
    Status, Totals, UpstreamStatus, VacantSlot, WorkerState, WorkerStatus,
};

use super::{seconds_until, time_of_day, time_of_day_at};
use crate::descriptors;
use crate::generation::Content;
use crate::link::Link;
use crate::servers;
use crate::sockets::Counts;
use crate::supervisor::Supervisor;

/// A view of the gateway at one moment.
pub(crate) struct Snapshot {
    /// Everything but what only workers and the disk can tell.
    pub(crate) status: Status,
    pub(crate) links: Vec<Link>,
    pub(crate) content: Option<Content>,
    pub(crate) config_file: PathBuf,
    pub(crate) routes: Vec<RouteFigures>,
    /// Whether live tunnels move.
    pub(crate) moving: watch::Receiver<bool>,
}

/// Tunnels by one route.
pub(crate) struct RouteFigures {
    pub(crate) name: String,
    pub(crate) tunnels: u64,
    pub(crate) draining: u64,
}

impl Supervisor {
    pub(crate) fn snapshot(&self) -> Snapshot {
        let config = self.running.as_ref().map(|running| &running.config);
        let status = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            state: self.gateway_state(),
            started_at: time_of_day(self.started_at),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            config: self.config_status(),
            last_reload: self.reloads.last.clone(),
            held_reload: self.reloads.held.as_ref().map(|held| held.report.clone()),
            generations: self.generation_statuses(),
            workers: self.worker_statuses(),
            vacant_slots: self.vacant_slots(),
            listeners: config.map_or_else(Vec::new, |config| self.listener_statuses(config)),
            upstreams: config.map_or_else(Vec::new, |config| self.upstream_statuses(config)),
            limits: config.map(|config| descriptors::status(config, self.descriptors)),
            totals: self.totals(),
        };
        Snapshot {
            status,
            links: self.links.values().cloned().collect(),
            content: self.running.as_ref().map(|running| running.content.clone()),
            config_file: self.options.config.clone(),
            routes: self.route_figures(),
            moving: self.handovers.watch(),
        }
    }

    fn gateway_state(&self) -> GatewayState {
        match (self.lifecycle.phase(), &self.running) {
            (Phase::Running, Some(_)) => GatewayState::Running,
            (Phase::Running, None) => GatewayState::Starting,
            _ => GatewayState::Stopping,
        }
    }

    fn config_status(&self) -> ConfigStatus {
        let content = self.running.as_ref().map(|running| &running.content);
        ConfigStatus {
            file: self.config_file(),
            sha256: content.map_or_else(String::new, |content| content.sha256.clone()),
            active_since: content
                .map_or_else(String::new, |content| time_of_day(content.active_since)),
            file_differs: false,
            fallback: self.fallback.clone(),
        }
    }

    fn generation_statuses(&self) -> Vec<GenerationStatus> {
        let stopping = self.lifecycle.phase() == Phase::Stopping;
        let status = |(number, record): (&u64, &crate::generation::Record)| {
            let workers = || {
                self.links
                    .values()
                    .filter(|link| link.generation == *number)
            };
            let state = if Some(*number) == self.lifecycle.candidate() {
                GenerationState::Starting
            } else if Some(*number) == self.lifecycle.active() && !stopping {
                GenerationState::Active
            } else {
                GenerationState::Draining
            };
            GenerationStatus {
                generation: *number,
                state,
                started_at: time_of_day(record.started_at),
                age_seconds: record.started.elapsed().as_secs_f64(),
                deadline_at: record.deadline.map(time_of_day_at),
                deadline_in_seconds: record.deadline.map(seconds_until),
                workers: workers().count() as u64,
                tunnels: workers()
                    .map(|link| self.figures.tunnels_of(link.block))
                    .sum(),
                draining_tunnels: match state {
                    GenerationState::Draining => workers()
                        .map(|link| self.figures.tunnels_of(link.block))
                        .sum(),
                    _ => self.lost_in(*number),
                },
            }
        };
        self.generations.iter().map(status).collect()
    }

    fn worker_statuses(&self) -> Vec<WorkerStatus> {
        let mut statuses: Vec<WorkerStatus> = self
            .links
            .values()
            .map(|link| self.worker_status(link))
            .collect();
        statuses.sort_by_key(|worker| (worker.generation, worker.slot, worker.pid));
        statuses
    }

    fn worker_status(&self, link: &Link) -> WorkerStatus {
        let state = match self
            .lifecycle
            .workers()
            .get(&link.id)
            .map(|worker| &worker.state)
        {
            Some(State::Starting { .. }) => WorkerState::Starting,
            Some(State::Ready | State::Proving { .. }) => WorkerState::Ready,
            Some(State::Active { .. }) => WorkerState::Active,
            _ => WorkerState::Draining,
        };
        let slots = self.lifecycle.slots().iter().enumerate();
        let served =
            slots.filter(|(number, slot)| slot.served_by == Some(link.id) && *number != link.slot);
        WorkerStatus {
            pid: link.pid,
            slot: link.slot as u64,
            generation: link.generation,
            state,
            serves_slots: served.map(|(number, _)| number as u64).collect(),
            tunnels: self.figures.tunnels_of(link.block),
            memory_bytes: 0,
            cpu_seconds: 0.0,
            last_heard_seconds: None,
            adopted: link.adopted,
        }
    }

    fn vacant_slots(&self) -> Vec<VacantSlot> {
        let own_active = |id| {
            self.lifecycle
                .workers()
                .get(&id)
                .is_some_and(wsgate_lifecycle::Worker::is_active)
        };
        let used = self
            .running
            .as_ref()
            .map_or(0, |running| running.config.workers);
        let slots = self.lifecycle.slots().iter().enumerate().take(used);
        let vacant = slots.filter(|(_, slot)| {
            self.lifecycle.phase() != Phase::Stopping && !slot.own.is_some_and(own_active)
        });
        vacant
            .map(|(number, slot)| VacantSlot {
                slot: number as u64,
                deaths: u64::from(slot.deaths),
                crash_looping: self.lifecycle.is_crash_looping(number),
                restart_in_seconds: slot
                    .restart_at
                    .map(|at| at.saturating_sub(self.now()).as_secs_f64()),
                served_by: slot
                    .served_by
                    .and_then(|id| self.links.get(&id))
                    .map(|link| link.pid),
            })
            .collect()
    }

    fn listener_statuses(&self, config: &Config) -> Vec<ListenerStatus> {
        let configured = config.listeners.iter().map(|listener| {
            let address = listener.address.to_string();
            match self.sockets.counts(&listener.address) {
                Some(counts) => listener_status(address, counts, false),
                None => ListenerStatus {
                    bound: address.clone(),
                    address,
                    sockets: 0,
                    retired_sockets: 0,
                    retired: false,
                },
            }
        });
        let removed = self.sockets.removed(config).into_iter();
        let removed = removed.map(|(address, counts)| listener_status(address, counts, true));
        configured.chain(removed).collect()
    }

    /// The active configuration's servers, and those of older ones that still hold tunnels.
    fn upstream_statuses(&self, config: &Config) -> Vec<UpstreamStatus> {
        let mut upstreams: BTreeMap<String, UpstreamStatus> = BTreeMap::new();
        for (name, upstream) in &config.upstreams {
            let servers = upstream.servers.iter();
            let servers = servers.map(|server| {
                self.server_status(
                    name,
                    &server.address.to_string(),
                    server.number,
                    Some(server.weight),
                )
            });
            let balance = balance(upstream.balance).to_owned();
            upstreams.insert(
                name.clone(),
                UpstreamStatus {
                    name: name.clone(),
                    balance,
                    servers: servers.collect(),
                },
            );
        }
        for ((name, address), number) in self.numbers.servers() {
            if self.figures.server(number).tunnels == 0 || servers::has(config, name, address) {
                continue;
            }
            let gone = || UpstreamStatus {
                name: name.clone(),
                balance: String::new(),
                servers: Vec::new(),
            };
            let upstream = upstreams.entry(name.clone()).or_insert_with(gone);
            upstream
                .servers
                .push(self.server_status(name, address, number, None));
        }
        upstreams.into_values().collect()
    }

    fn server_status(
        &self,
        upstream: &str,
        address: &str,
        number: u32,
        weight: Option<u32>,
    ) -> ServerStatus {
        let figures = self.figures.server(number);
        ServerStatus {
            address: address.to_owned(),
            weight: weight.unwrap_or(0),
            state: self.states.get(upstream, address),
            tunnels: figures.tunnels,
            draining_tunnels: figures.draining,
            opened: figures.opened,
            connect_failures: figures.connect_failures,
            configured: weight.is_some(),
        }
    }

    fn totals(&self) -> Totals {
        let totals = self.figures.totals();
        Totals {
            reloads: self.reloads.done,
            reloads_failed: self.reloads.failed,
            worker_restarts: self.restarts,
            workers_adopted: self.adoptions,
            state_write_failures: self.state_write_failures,
            workers_stuck: self.watchdog.stuck,
            log_lines_dropped: totals.log_lines_dropped + self.log.dropped(),
            ..totals
        }
    }

    fn route_figures(&self) -> Vec<RouteFigures> {
        let routes = self
            .running
            .as_ref()
            .map_or(&[][..], |running| &running.config.routes);
        let configured: HashSet<u32> = routes.iter().map(|route| route.number).collect();
        self.numbers
            .routes()
            .map(|(name, number)| (name, number, self.figures.route(number)))
            .filter(|(_, number, (tunnels, _))| *tunnels > 0 || configured.contains(number))
            .map(|(name, _, (tunnels, draining))| RouteFigures {
                name: name.clone(),
                tunnels,
                draining,
            })
            .collect()
    }
}

fn listener_status(address: String, counts: Counts, retired: bool) -> ListenerStatus {
    ListenerStatus {
        address,
        bound: counts.bound,
        sockets: counts.in_use as u64,
        retired_sockets: counts.retired as u64,
        retired,
    }
}

fn balance(balance: Balance) -> &'static str {
    match balance {
        Balance::RoundRobin => "round-robin",
        Balance::LeastTunnels => "least-tunnels",
    }
}
