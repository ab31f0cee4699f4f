//! From a validated configuration to a candidate: everything that can fail without a process.

use std::net::SocketAddr;
use std::path::PathBuf;

use wsgate_config::{Config, Loaded, LogFormat};

use super::Candidate;
use crate::generation::{Content, Record};
use crate::supervisor::Supervisor;
use crate::{admin, descriptors};

impl Supervisor {
    /// Everything that can fail without a process: what must not change, descriptors, new addresses, numbers.
    pub(super) fn prepare(&mut self, loaded: Loaded) -> Result<Candidate, Refused> {
        let Loaded {
            mut config,
            sources,
            mut warnings,
        } = loaded;
        self.check_fixed(&config)?;
        self.check_descriptors(&config).map_err(Refused::Other)?;
        let staged = self.sockets.stage(&config)?;
        let http = self.stage_http(&config)?;
        self.numbers
            .assign(
                &mut config,
                self.generations.values().map(|record| &*record.config),
                &self.figures,
            )
            .map_err(|full| Refused::Other(full.to_string()))?;
        warnings.extend(descriptors::warning(&config, self.descriptors));
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        let record = Record::new(config)
            .map_err(|error| Refused::Other(format!("configuration for the workers: {error}")))?;
        self.last_generation += 1;
        let generation = self.last_generation;
        self.generations.insert(generation, record);
        Ok(Candidate {
            generation,
            waiters: Vec::new(),
            staged,
            http,
            content: Content::new(sources),
            warnings,
            fallback: None,
            committed: false,
            failure: None,
        })
    }

    pub(super) fn check_fixed(&self, config: &Config) -> Result<(), Refused> {
        match self.fixed.changed_by(config) {
            Some(key) => Err(Refused::Other(format!(
                "{key} cannot change while wsgate runs: restart wsgate, or set it back"
            ))),
            None => Ok(()),
        }
    }

    fn stage_http(
        &self,
        config: &Config,
    ) -> Result<Option<(SocketAddr, admin::HttpListener)>, Refused> {
        let same = |address: &SocketAddr| self.http.as_ref().is_some_and(|(at, _)| at == address);
        match config.admin.http.filter(|address| !same(address)) {
            None => Ok(None),
            Some(address) => admin::listen_http(address)
                .map(|listener| Some((address, listener)))
                .map_err(|error| {
                    let error = crate::sockets::Error::new(address, error);
                    Refused::Other(format!("[admin] http: {error}"))
                }),
        }
    }
}

/// What a supervisor has opened for itself when it started.
pub(crate) struct Fixed {
    socket: PathBuf,
    log_file: Option<PathBuf>,
    log_format: LogFormat,
}

impl Fixed {
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            socket: config.admin.socket.clone(),
            log_file: config.log.file.clone(),
            log_format: config.log.format,
        }
    }

    /// The first of its keys that `config` has otherwise.
    fn changed_by(&self, config: &Config) -> Option<&'static str> {
        let keys = [
            ("admin.socket", self.socket != config.admin.socket),
            ("log.file", self.log_file != config.log.file),
            ("log.format", self.log_format != config.log.format),
        ];
        let changed = keys.into_iter().find(|(_, changed)| *changed);
        changed.map(|(key, _)| key)
    }
}

/// Why no candidate begins.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error(transparent)]
    Sockets(#[from] crate::sockets::Error),
    #[error("{0}")]
    Other(String),
}

/// Numbers are no configuration: they must not count as a difference.
pub(super) fn copy_numbers(config: &mut Config, from: &Config) {
    for (route, with_number) in config.routes.iter_mut().zip(&from.routes) {
        route.number = with_number.number;
    }
    for (name, upstream) in &mut config.upstreams {
        let Some(with_numbers) = from.upstreams.get(name) else {
            continue;
        };
        for (server, with_number) in upstream.servers.iter_mut().zip(&with_numbers.servers) {
            server.number = with_number.number;
        }
    }
}
