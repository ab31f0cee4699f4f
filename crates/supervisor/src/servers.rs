//! The operator's word about servers. It is no configuration: it changes tables inside
//! running workers, and outlives reloads and workers.

use std::collections::BTreeMap;

use wsgate_config::Config;
use wsgate_protocol::admin::ServerState;
use wsgate_protocol::control::ServerStateOf;

use crate::numbers::Numbers;

/// The servers that are not `ready`, by upstream and address.
#[derive(Debug, Default)]
pub(crate) struct ServerStates {
    states: BTreeMap<(String, String), ServerState>,
}

impl ServerStates {
    pub(crate) fn get(&self, upstream: &str, address: &str) -> ServerState {
        self.states
            .get(&(upstream.to_owned(), address.to_owned()))
            .copied()
            .unwrap_or_default()
    }

    /// How many servers are not ready.
    pub(crate) fn len(&self) -> usize {
        self.states.len()
    }

    /// Sets a state and returns the one before.
    pub(crate) fn set(&mut self, upstream: &str, address: &str, state: ServerState) -> ServerState {
        let key = (upstream.to_owned(), address.to_owned());
        let before = match state {
            ServerState::Ready => self.states.remove(&key),
            _ => self.states.insert(key, state),
        };
        before.unwrap_or_default()
    }

    /// Forgets servers that `config` does not have: one that comes back is a new one.
    pub(crate) fn keep_only(&mut self, config: &Config) {
        self.states
            .retain(|(upstream, address), _| has(config, upstream, address));
    }

    /// What a worker is told.
    pub(crate) fn by_number(&self, numbers: &Numbers) -> Vec<ServerStateOf> {
        self.states
            .iter()
            .filter_map(|((upstream, address), state)| {
                let server = numbers.server(upstream, address)?;
                Some(ServerStateOf {
                    server,
                    state: *state,
                })
            })
            .collect()
    }
}

/// Whether a configuration has a server.
pub(crate) fn has(config: &Config, upstream: &str, address: &str) -> bool {
    let servers = config
        .upstreams
        .get(upstream)
        .map(|upstream| upstream.servers.as_slice());
    servers
        .into_iter()
        .flatten()
        .any(|server| server.address.to_string() == address)
}
