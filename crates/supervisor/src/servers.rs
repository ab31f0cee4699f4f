//! The operator's word about servers. It is no configuration: it changes tables inside
//! running workers, and outlives reloads and workers.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use wsgate_config::Config;
use wsgate_protocol::admin::ServerState;
use wsgate_protocol::control::ServerStateOf;

use crate::numbers::Numbers;

/// The servers that are not `ready`, by upstream and address.
#[derive(Debug, Default)]
pub(crate) struct ServerStates {
    states: BTreeMap<(String, String), Word>,
}

/// What the operator has said about a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Word {
    pub(crate) state: ServerState,
    /// With `drain`: when the last tunnel is closed.
    pub(crate) deadline: Option<SystemTime>,
    /// With `drain`: tunnels closed per second, if that was said.
    pub(crate) close_rate: Option<u32>,
}

/// The same in the state file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Saved {
    upstream: String,
    server: String,
    #[serde(flatten)]
    word: Word,
}

/// What a commit has done to the operator's word.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Followed {
    /// Words that have gone along.
    pub(crate) renamed: Vec<Renamed>,
    /// What to tell of the others.
    pub(crate) forgotten: Vec<String>,
}

/// A server whose upstream has another name now.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Renamed {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) server: String,
}

impl ServerStates {
    pub(crate) fn get(&self, upstream: &str, address: &str) -> ServerState {
        self.states
            .get(&(upstream.to_owned(), address.to_owned()))
            .map_or_else(ServerState::default, |word| word.state)
    }

    /// How many servers are not ready.
    pub(crate) fn len(&self) -> usize {
        self.states.len()
    }

    /// Sets a state and returns the one before.
    pub(crate) fn set(&mut self, upstream: &str, address: &str, word: Word) -> ServerState {
        let key = (upstream.to_owned(), address.to_owned());
        let before = match word.state {
            ServerState::Ready => self.states.remove(&key),
            _ => self.states.insert(key, word),
        };
        before.unwrap_or_default().state
    }

    /// What was said, for the state file.
    pub(crate) fn saved(&self) -> Vec<Saved> {
        let saved = |((upstream, server), word): (&(String, String), &Word)| Saved {
            upstream: upstream.clone(),
            server: server.clone(),
            word: *word,
        };
        self.states.iter().map(saved).collect()
    }

    /// What the state file says.
    pub(crate) fn restored(saved: Vec<Saved>) -> Self {
        let states = saved.into_iter();
        let states = states.map(|it| ((it.upstream, it.server), it.word));
        Self {
            states: states.collect(),
        }
    }

    /// Every server that is not ready.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &str, ServerState)> {
        let states = self.states.iter();
        states.map(|((upstream, server), word)| (upstream.as_str(), server.as_str(), word.state))
    }

    /// Servers that drain: upstream, address, deadline, and rate if one was said.
    pub(crate) fn drains(&self) -> Vec<(String, String, SystemTime, Option<u32>)> {
        let drains = self.states.iter().filter_map(|((upstream, server), word)| {
            let deadline = word.deadline?;
            Some((upstream.clone(), server.clone(), deadline, word.close_rate))
        });
        drains.collect()
    }

    /// What becomes of the operator's word at a commit. A server that the configuration does not have any more is
    /// forgotten: one that comes back is a new one. But where its upstream has only been given another name the word goes along.
    pub(crate) fn follow(&mut self, before: Option<&Config>, config: &Config) -> Followed {
        let mut followed = Followed::default();
        let gone = |(upstream, address): &(String, String)| !has(config, upstream, address);
        let gone: Vec<_> = self
            .states
            .keys()
            .filter(|key| gone(key))
            .cloned()
            .collect();
        for key in gone {
            let Some(word) = self.states.remove(&key) else {
                continue;
            };
            let (upstream, address) = key;
            match renamed(before, config, &upstream, &address) {
                Some(name) => {
                    self.states.insert((name.clone(), address.clone()), word);
                    followed.renamed.push(Renamed {
                        from: upstream,
                        to: name,
                        server: address,
                    });
                }
                None => followed.forgotten.push(format!(
                    "server {upstream}/{address} was in {}: that word is forgotten with it",
                    word.state
                )),
            }
        }
        followed
    }

    /// What a worker is told.
    pub(crate) fn by_number(&self, numbers: &Numbers) -> Vec<ServerStateOf> {
        self.states
            .iter()
            .filter_map(|((upstream, address), word)| {
                let server = numbers.server(upstream, address)?;
                Some(ServerStateOf {
                    server,
                    state: word.state,
                })
            })
            .collect()
    }
}

/// The new name of an upstream that is gone: that of the only one with this server, if the name is new.
fn renamed(
    before: Option<&Config>,
    config: &Config,
    upstream: &str,
    address: &str,
) -> Option<String> {
    if config.upstreams.contains_key(upstream) {
        return None;
    }
    let mut with_it = config
        .upstreams
        .keys()
        .filter(|name| has(config, name, address));
    let name = with_it.next()?;
    let is_new = before.is_none_or(|before| !before.upstreams.contains_key(name));
    (with_it.next().is_none() && is_new).then(|| name.clone())
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
