//! `PUT /v1/upstreams/{u}/servers/{addr}`: the operator's word about a server.

use std::time::{Duration, Instant, SystemTime};

use http::StatusCode;
use wsgate_lifecycle::Phase;
use wsgate_protocol::admin::{EventKind, ServerState, ServerStateChanged, ServerStateRequest};
use wsgate_protocol::control::ToWorker;

use super::{Refusal, seconds_until, time_of_day_at};
use crate::actions::{grace, owner_of_server};
use crate::servers::{self, Word};
use crate::supervisor::Supervisor;

/// What the Close frames of a drained server's tunnels say.
const REASON: &str = "server drains";

/// Servers that may be other than ready: all of them go into one message of at most 200 KiB.
const MOST_STATES: usize = 4_000;

impl Supervisor {
    /// Stores a server's state into the running workers of all generations.
    pub(crate) fn change_server(
        &mut self,
        upstream: &str,
        server: &str,
        change: &ServerStateRequest,
    ) -> Result<ServerStateChanged, Refusal> {
        let number = self.find_server(upstream, server)?;
        check(change)?;
        if change.state != ServerState::Ready && self.states.len() >= MOST_STATES {
            let message =
                format!("{MOST_STATES} servers are in drain or maint already, no more can be");
            let help = "undrain some, or take servers out of the configuration";
            return Err(Refusal::new(
                StatusCode::CONFLICT,
                "too_many",
                message,
                help,
            ));
        }
        let mut word = Word {
            state: change.state,
            close_rate: change.close_rate,
            ..Word::default()
        };
        let was = self.states.set(upstream, server, word);
        let states = self.states.by_number(&self.numbers);
        self.send_to_all(&ToWorker::Servers { states });
        tracing::info!(upstream, server, %was, state = %change.state, "server state changed");
        self.news.tell(EventKind::Server {
            upstream: upstream.to_owned(),
            server: server.to_owned(),
            was,
            state: change.state,
        });

        let mut changed = ServerStateChanged {
            upstream: upstream.to_owned(),
            server: server.to_owned(),
            was,
            state: change.state,
            tunnels: self.figures.server(number).tunnels,
            deadline_at: None,
            deadline_in_seconds: None,
            warnings: Vec::new(),
        };
        changed.warnings.extend(self.nobody_left(upstream));
        if change.state == ServerState::Drain {
            word.deadline = Some(self.drain_server(number, change, &mut changed));
            self.states.set(upstream, server, word);
        } else if was == ServerState::Drain {
            self.closes.release(owner_of_server(number));
            self.send_to_all(&ToWorker::UndrainServer { server: number });
        }
        changed.warnings.extend(self.save_state());
        Ok(changed)
    }

    /// A warning if no server of an upstream gets anything new.
    fn nobody_left(&self, upstream: &str) -> Option<String> {
        let config = &self.running.as_ref()?.config;
        let mut servers = config.upstreams.get(upstream)?.servers.iter();
        let state =
            |server: &wsgate_config::Server| self.states.get(upstream, &server.address.to_string());
        let nobody = servers.all(|server| state(server) != ServerState::Ready);
        nobody.then(|| format!("no server of {upstream} is ready now: its clients get 503"))
    }

    fn find_server(&self, upstream: &str, server: &str) -> Result<u32, Refusal> {
        let Some(running) = &self.running else {
            return Err(Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "starting",
                "the first generation is not active yet",
                "try again when `wsctl status` says running",
            ));
        };
        if self.lifecycle.phase() == Phase::Stopping {
            return Err(Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "stopping",
                "wsgate stops: no server gets anything new",
                "start wsgate again first",
            ));
        }
        let number = self.numbers.server(upstream, server);
        number.filter(|_| servers::has(&running.config, upstream, server)).ok_or_else(|| {
            let held = number.is_some_and(|number| self.figures.server(number).tunnels > 0);
            let what = if held {
                format!("{upstream}/{server} is not in the configuration any more: it gets nothing new, and its tunnels have their deadlines")
            } else if running.config.upstreams.contains_key(upstream) {
                format!("upstream {upstream} has no server {server}")
            } else {
                format!("there is no upstream {upstream}")
            };
            let help = if held {
                "put it back into the configuration first, if it is to have a state"
            } else {
                "`wsctl status` lists upstreams and their servers; write a server as the configuration does"
            };
            Refusal::new(StatusCode::NOT_FOUND, "unknown_server", what, help)
        })
    }

    /// Gives a server's tunnels their deadlines, and returns the last of them.
    fn drain_server(
        &mut self,
        number: u32,
        change: &ServerStateRequest,
        changed: &mut ServerStateChanged,
    ) -> SystemTime {
        let default = self
            .running
            .as_ref()
            .map_or(Duration::ZERO, |running| running.config.drain.grace);
        let grace = change.grace_seconds.and_then(grace).unwrap_or(default);
        let warning = self.drain_server_within(number, grace, change.close_rate);
        let at = Instant::now() + grace;
        changed.deadline_at = Some(time_of_day_at(at));
        changed.deadline_in_seconds = Some(seconds_until(at));
        changed.warnings.extend(warning);
        SystemTime::now() + grace
    }

    /// What the last supervisor was told about servers still stands, and so do their deadlines.
    pub(crate) fn restore_drains(&mut self) {
        let states = self.states.by_number(&self.numbers);
        self.send_to_all(&ToWorker::Servers { states });
        for (upstream, server, deadline, rate) in self.states.drains() {
            let left = deadline
                .duration_since(SystemTime::now())
                .unwrap_or_default();
            if let Some(number) = self.numbers.server(&upstream, &server)
                && let Some(warning) = self.drain_server_within(number, left, rate)
            {
                tracing::warn!(upstream, server, "{warning}");
            }
        }
    }

    pub(crate) fn drain_server_within(
        &mut self,
        number: u32,
        grace: Duration,
        rate: Option<u32>,
    ) -> Option<String> {
        let deadline = self.now() + grace;
        let ids: Vec<_> = self.links.keys().copied().collect();
        let held = |id| {
            self.links
                .get(id)
                .map_or(0, |link| self.figures.tunnels_of_to(link.block, number))
        };
        let shares: Vec<u64> = ids.iter().map(held).collect();
        let owner = owner_of_server(number);
        let (plans, warning) = self.plan(owner, deadline, &shares, rate, REASON);
        for (id, plan) in ids.iter().zip(plans) {
            if let Some(link) = self.links.get(id) {
                link.send(ToWorker::DrainServer {
                    server: number,
                    plan,
                });
            }
        }
        warning
    }
}

fn check(change: &ServerStateRequest) -> Result<(), Refusal> {
    let invalid = |message: &str, help| {
        Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "invalid_request",
            message,
            help,
        ))
    };
    if change.state != ServerState::Drain
        && (change.grace_seconds.is_some() || change.close_rate.is_some())
    {
        return invalid(
            "grace_seconds and close_rate go with state drain only",
            "leave them out",
        );
    }
    if change
        .grace_seconds
        .is_some_and(|seconds| grace(seconds).is_none_or(|grace| grace.as_secs() > 365 * 86_400))
    {
        return invalid(
            "grace_seconds is no duration up to a year",
            "give seconds, as 600",
        );
    }
    if change
        .close_rate
        .is_some_and(|rate| !(1..=1_000_000).contains(&rate))
    {
        return invalid(
            "close_rate is not between 1 and 1000000",
            "give tunnels per second, at least 1",
        );
    }
    Ok(())
}
