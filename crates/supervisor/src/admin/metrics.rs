//! `/metrics`: the figures in the OpenMetrics text format.
//!
//! Names no client, and has a series for each route and server, not for each tunnel.
//! The registry is made for each page: all figures live on the board.

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use wsgate_protocol::admin::{GenerationState, Totals, UpstreamStatus};

use super::Snapshot;
use super::snapshot::RouteFigures;

pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;

/// The whole page.
pub(crate) fn render(snapshot: &Snapshot) -> String {
    let mut page = Page(Registry::with_prefix("wsgate"));
    let status = &snapshot.status;
    page.totals(&status.totals);
    page.tunnels(&snapshot.routes, &status.upstreams);
    page.processes(snapshot);
    page.gauge(
        "reload_held",
        "Whether a reload is held back because it would drain too many tunnels",
        i64::from(status.held_reload.is_some()),
    );
    page.gauge(
        "uptime_seconds",
        "Seconds since the supervisor started",
        status.uptime_seconds as i64,
    );
    let mut out = String::new();
    if text::encode(&mut out, &page.0).is_err() {
        // Writing to a String does not fail; half a page must not be taken for a whole one.
        out.clear();
    }
    out
}

struct Page(Registry);

impl Page {
    fn totals(&mut self, totals: &Totals) {
        self.counter("tunnels_opened", "Tunnels opened", totals.tunnels_opened);
        self.counter(
            "handovers",
            "Times that a live tunnel moved from one worker to another",
            totals.handovers,
        );
        let ended = totals
            .tunnels_ended
            .iter()
            .map(|(cause, n)| (vec![("cause", cause.clone())], *n));
        self.counters("tunnels_ended", "Tunnels ended, by cause", ended);
        self.counter(
            "connections",
            "Client connections accepted",
            totals.connections,
        );
        self.counter("requests", "Requests that were no upgrade", totals.requests);
        let errors = totals
            .errors
            .iter()
            .map(|(status, n)| (vec![("status", status.clone())], *n));
        self.counters(
            "errors",
            "Requests that wsgate answered with an error of its own, by status",
            errors,
        );
        let by = |client, server| [(from("client"), client), (from("server"), server)];
        let bytes = by(totals.bytes_from_clients, totals.bytes_from_servers);
        self.counters(
            "tunnel_bytes",
            "Bytes relayed in tunnels, by who sent them",
            bytes.into_iter(),
        );
        let messages = by(totals.messages_from_clients, totals.messages_from_servers);
        self.counters(
            "tunnel_messages",
            "Whole messages relayed in tunnels, by who sent them",
            messages.into_iter(),
        );
        let reloads = [
            (vec![("result", "reloaded".to_owned())], totals.reloads),
            (vec![("result", "failed".to_owned())], totals.reloads_failed),
        ];
        self.counters(
            "reloads",
            "Reloads, by what came of them",
            reloads.into_iter(),
        );
        self.counter(
            "worker_restarts",
            "Workers that died and were replaced",
            totals.worker_restarts,
        );
        self.counter(
            "workers_adopted",
            "Workers of a supervisor that is gone, taken over by this one",
            totals.workers_adopted,
        );
        self.counter(
            "state_write_failures",
            "Times that the state could not be written down for the next supervisor",
            totals.state_write_failures,
        );
        self.counter(
            "workers_stuck",
            "Workers that were stuck, and were ended by the watchdog",
            totals.workers_stuck,
        );
        self.counter(
            "log_lines_dropped",
            "Log lines dropped because they were not read fast enough",
            totals.log_lines_dropped,
        );
    }

    fn tunnels(&mut self, routes: &[RouteFigures], upstreams: &[UpstreamStatus]) {
        let by_route = routes.iter().flat_map(|route| {
            states(route.tunnels, route.draining)
                .map(|(state, n)| (vec![("route", route.name.clone()), state], n))
        });
        self.gauges(
            "route_tunnels",
            "Live tunnels, by route and state",
            by_route,
        );
        let servers = || {
            upstreams.iter().flat_map(|upstream| {
                upstream
                    .servers
                    .iter()
                    .map(move |server| (upstream, server))
            })
        };
        let labels = |upstream: &UpstreamStatus, address: &str| {
            vec![
                ("upstream", upstream.name.clone()),
                ("server", address.to_owned()),
            ]
        };
        let by_server = servers().flat_map(|(upstream, server)| {
            states(server.tunnels, server.draining_tunnels).map(|(state, n)| {
                let mut labels = labels(upstream, &server.address);
                labels.push(state);
                (labels, n)
            })
        });
        self.gauges(
            "server_tunnels",
            "Live tunnels, by server and state",
            by_server,
        );
        let opened =
            servers().map(|(upstream, server)| (labels(upstream, &server.address), server.opened));
        self.counters("server_tunnels_opened", "Tunnels opened, by server", opened);
        let failures = servers()
            .map(|(upstream, server)| (labels(upstream, &server.address), server.connect_failures));
        self.counters(
            "server_connect_failures",
            "Connects that failed, by server",
            failures,
        );
    }

    fn processes(&mut self, snapshot: &Snapshot) {
        let status = &snapshot.status;
        self.gauge(
            "workers",
            "Worker processes that live",
            status.workers.len() as i64,
        );
        self.gauge(
            "vacant_slots",
            "Slots without a worker of their own",
            status.vacant_slots.len() as i64,
        );
        self.gauge(
            "config_fallback",
            "1 while the last good configuration runs because the file has mistakes",
            i64::from(status.config.fallback.is_some()),
        );
        let looping = status.vacant_slots.iter().filter(|slot| slot.crash_looping);
        self.gauge(
            "crash_looping_slots",
            "Slots whose workers crash again and again",
            looping.count() as i64,
        );
        let named = [
            ("starting", GenerationState::Starting),
            ("active", GenerationState::Active),
            ("draining", GenerationState::Draining),
        ];
        let generations = named.into_iter().map(|(name, state)| {
            let n = status
                .generations
                .iter()
                .filter(|generation| generation.state == state)
                .count();
            (vec![("state", name.to_owned())], n as u64)
        });
        self.gauges(
            "generations",
            "Generations that live, by state",
            generations,
        );
        let active = status
            .generations
            .iter()
            .filter(|generation| generation.state == GenerationState::Active);
        let number = active
            .map(|generation| generation.generation)
            .max()
            .unwrap_or(0);
        self.gauge(
            "active_generation",
            "Number of the active generation",
            number as i64,
        );
    }

    fn counter(&mut self, name: &str, help: &str, n: u64) {
        let counter: Counter = Counter::default();
        counter.inc_by(n);
        self.0.register(name, help, counter);
    }

    fn counters(&mut self, name: &str, help: &str, figures: impl Iterator<Item = (Labels, u64)>) {
        let family = Family::<Labels, Counter>::default();
        for (labels, n) in figures {
            family.get_or_create(&labels).inc_by(n);
        }
        self.0.register(name, help, family);
    }

    fn gauge(&mut self, name: &str, help: &str, n: i64) {
        let gauge: Gauge = Gauge::default();
        gauge.set(n);
        self.0.register(name, help, gauge);
    }

    fn gauges(&mut self, name: &str, help: &str, figures: impl Iterator<Item = (Labels, u64)>) {
        let family = Family::<Labels, Gauge>::default();
        for (labels, n) in figures {
            family.get_or_create(&labels).set(n as i64);
        }
        self.0.register(name, help, family);
    }
}

fn from(who: &str) -> Labels {
    vec![("from", who.to_owned())]
}

fn states(tunnels: u64, draining: u64) -> [((&'static str, String), u64); 2] {
    [
        (
            ("state", "open".to_owned()),
            tunnels.saturating_sub(draining),
        ),
        (("state", "draining".to_owned()), draining),
    ]
}
