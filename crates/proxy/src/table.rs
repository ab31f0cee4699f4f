//! The routing table: routes, upstreams, and the state of every server.
//!
//! It never changes. A handshake reads it once; a new state of a server makes a new table,
//! stored whole. What must survive that (whose turn it is) is shared between tables.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use wsgate_config::{Config, ServerAddress};

use crate::balance::Turns;
use crate::dial::Sources;
use crate::record::{self, Timeouts};
use crate::route::Routes;

/// The operator's word about a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServerState {
    /// It gets requests and tunnels.
    #[default]
    Ready,
    /// It gets nothing new; its tunnels have a deadline.
    Drain,
    /// It gets nothing new.
    Maint,
}

/// A routing table.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) plan: Arc<Plan>,
    /// Only those that are not ready.
    states: HashMap<u32, ServerState>,
}

/// What a configuration says: the part of a table that servers' states leave alone.
#[derive(Debug)]
pub(crate) struct Plan {
    routes: Routes,
    entries: Vec<RouteEntry>,
    upstreams: Vec<Upstream>,
    /// Their addresses.
    listeners: HashSet<Box<str>>,
}

/// A route, as far as it matters once it was picked.
#[derive(Debug)]
pub(crate) struct RouteEntry {
    pub(crate) shared: Arc<record::Route>,
    upstream: usize,
}

/// A group of servers.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) name: Arc<str>,
    pub(crate) connect_timeout: Duration,
    pub(crate) retries: u32,
    pub(crate) servers: Vec<Server>,
    /// The place of each server, by its address as written.
    places: HashMap<Arc<str>, usize>,
    pub(crate) turns: Turns,
}

/// A server of an upstream.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) shared: Arc<record::Server>,
    pub(crate) address: ServerAddress,
    pub(crate) sources: Sources,
    pub(crate) weight: u32,
    /// Handshakes and requests of this process that the server has not answered yet.
    pub(crate) waiting: Arc<AtomicU64>,
}

impl Table {
    pub(crate) fn new(plan: Arc<Plan>, states: &[(u32, ServerState)]) -> Self {
        let away = states
            .iter()
            .copied()
            .filter(|(_, state)| *state != ServerState::Ready);
        Self {
            plan,
            states: away.collect(),
        }
    }

    pub(crate) fn drains(&self, server: u32) -> bool {
        self.states.get(&server) == Some(&ServerState::Drain)
    }

    pub(crate) fn is_ready(&self, server: u32) -> bool {
        !self.states.contains_key(&server)
    }
}

impl Plan {
    pub(crate) fn new(config: &Config) -> Self {
        let places: HashMap<&str, usize> = config
            .upstreams
            .keys()
            .map(String::as_str)
            .zip(0..)
            .collect();
        // A validated configuration has no route without an upstream.
        let routed = || {
            config
                .routes
                .iter()
                .filter(|route| places.contains_key(&*route.upstream))
        };
        let entry = |route: &wsgate_config::Route| RouteEntry {
            shared: Arc::new(record::Route {
                name: route.name().into(),
                number: route.number,
                timeouts: Timeouts {
                    idle: route.idle_timeout,
                    send: route.send_timeout,
                    max_age: route.max_age,
                    ping: route.ping_interval,
                },
            }),
            upstream: places[&*route.upstream],
        };
        Self {
            routes: Routes::new(routed()),
            entries: routed().map(entry).collect(),
            upstreams: config
                .upstreams
                .iter()
                .map(|(name, it)| Upstream::new(name, it))
                .collect(),
            listeners: config
                .listeners
                .iter()
                .map(|listener| listener.address.to_string().into())
                .collect(),
        }
    }

    /// The place of the route that a host and a path take.
    pub(crate) fn find(&self, host: &str, path: &str) -> Option<usize> {
        self.routes.find(host, path)
    }

    pub(crate) fn route(&self, place: usize) -> &RouteEntry {
        &self.entries[place]
    }

    pub(crate) fn upstream_of(&self, route: usize) -> &Upstream {
        &self.upstreams[self.entries[route].upstream]
    }

    pub(crate) fn has_listener(&self, address: &str) -> bool {
        self.listeners.contains(address)
    }
}

impl Upstream {
    fn new(name: &str, upstream: &wsgate_config::Upstream) -> Self {
        let sources: Arc<[_]> = upstream.source.as_slice().into();
        let name: Arc<str> = name.into();
        let server = |server: &wsgate_config::Server| Server {
            shared: Arc::new(record::Server {
                name: server.address.to_string().into(),
                number: server.number,
                upstream: Arc::clone(&name),
            }),
            address: server.address.clone(),
            sources: Sources::new(Arc::clone(&sources)),
            weight: server.weight,
            waiting: Arc::default(),
        };
        let servers: Vec<Server> = upstream.servers.iter().map(server).collect();
        let names = servers.iter().map(|it| Arc::clone(&it.shared.name));
        Self {
            connect_timeout: upstream.connect_timeout,
            retries: upstream.retries,
            places: names.zip(0..).collect(),
            servers,
            turns: Turns::new(upstream.balance, upstream.servers.len()),
            name,
        }
    }

    /// The server with this address.
    pub(crate) fn server(&self, address: &str) -> Option<&Server> {
        Some(&self.servers[*self.places.get(address)?])
    }
}
