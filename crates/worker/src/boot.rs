//! The start of a worker: from the first message to a data path that is ready.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use wsgate_config::{Config, LogFormat, LogLevel};
use wsgate_os::board::Board;
use wsgate_os::channel::Channel;
use wsgate_os::limits::Budget;
use wsgate_os::log::{LogHandle, LogSettings};
use wsgate_os::rendezvous::Rendezvous;
use wsgate_os::{limits, log, memfd, process};
use wsgate_protocol::admin::ServerState;
use wsgate_protocol::control::{Boot, ServerStateOf, ToWorker, VERSION};
use wsgate_proxy::{Gateway, Settings};

use crate::Error;
use crate::ledger::BoardLedger;

/// What a worker is, after its first message.
pub(crate) struct Booted {
    pub(crate) boot: Boot,
    pub(crate) config: Arc<Config>,
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) ledger: Arc<BoardLedger>,
    pub(crate) log: LogHandle,
    pub(crate) heirloom: Heirloom,
    /// Where the next supervisor finds this worker; `None` if there was no room for one.
    pub(crate) rendezvous: Option<Rendezvous>,
    pub(crate) began: Instant,
}

/// What a worker keeps for the next supervisor, as it got it from the first.
pub(crate) struct Heirloom {
    pub(crate) config: OwnedFd,
    pub(crate) board: OwnedFd,
}

impl Booted {
    /// Waits for the supervisor's first message and builds what it asks for.
    pub(crate) async fn receive(channel: &Channel) -> Result<Self, Error> {
        let (bytes, fds) = channel
            .recv()
            .await
            .map_err(Error::Channel)?
            .ok_or(Error::ChannelEnded)?;
        let boot = match serde_json::from_slice(&bytes) {
            Ok(ToWorker::Boot(boot)) if boot.version == VERSION => boot,
            Ok(other) => {
                return Err(Error::Message(format!(
                    "{other:?} in place of boot version {VERSION}"
                )));
            }
            Err(error) => return Err(Error::Message(error.to_string())),
        };
        let count = fds.len();
        let mut fds = fds.into_iter();
        let (Some(config), Some(board), rendezvous, None) =
            (fds.next(), fds.next(), fds.next(), fds.next())
        else {
            return Err(Error::Message(format!(
                "boot with {count} descriptors in place of 2 or 3"
            )));
        };
        Self::build(boot, Heirloom { config, board }, rendezvous)
    }

    fn build(boot: Boot, heirloom: Heirloom, rendezvous: Option<OwnedFd>) -> Result<Self, Error> {
        let text = heirloom.config.try_clone().and_then(memfd::read);
        let text = text.map_err(|source| Error::System {
            what: "read of the configuration",
            source,
        })?;
        let config: Config =
            serde_json::from_slice(&text).map_err(|error| Error::Message(error.to_string()))?;
        let name = format!("worker {} gen {}", boot.slot, boot.generation);
        process::set_name(&format!("wsgate w{} g{}", boot.slot, boot.generation)).map_err(
            |source| Error::System {
                what: "naming of the process",
                source,
            },
        )?;
        let log = log::init(log_settings(&config, name)).map_err(|source| Error::System {
            what: "opening of the log",
            source,
        })?;
        crate::hooks::at_start(boot.slot);

        let descriptors = limits::raise_nofile().map_err(|source| Error::System {
            what: "raise of RLIMIT_NOFILE",
            source,
        })?;
        let rendezvous = rendezvous.map(Rendezvous::listen).transpose();
        let rendezvous = rendezvous.map_err(|source| Error::System {
            what: "listen on the rendezvous socket",
            source,
        })?;
        let board = heirloom.board.try_clone().and_then(Board::open);
        let board = board.map_err(|source| Error::System {
            what: "map of the board",
            source,
        })?;
        let ledger = Arc::new(BoardLedger::new(board, boot.block));
        let sockets = config.workers * config.listeners.len();
        let Budget { tunnels, refusals } = Budget::new(descriptors, sockets as u64);
        let config = Arc::new(config);
        let gateway = Gateway::new(Settings {
            config: config.clone(),
            id_prefix: format!("{:x}-{:x}", boot.instance, boot.worker),
            tunnels_here: tunnels,
            connections_here: usize::try_from(tunnels + refusals).unwrap_or(usize::MAX),
            ledger: ledger.clone(),
            states: states(&boot.states),
        });
        Ok(Self {
            boot,
            config,
            gateway,
            ledger,
            log,
            heirloom,
            rendezvous,
            began: Instant::now(),
        })
    }
}

/// The operator's word, in the data path's terms.
pub(crate) fn states(states: &[ServerStateOf]) -> Vec<(u32, wsgate_proxy::ServerState)> {
    states
        .iter()
        .map(|of| {
            let state = match of.state {
                ServerState::Ready => wsgate_proxy::ServerState::Ready,
                ServerState::Drain => wsgate_proxy::ServerState::Drain,
                ServerState::Maint => wsgate_proxy::ServerState::Maint,
            };
            (of.server, state)
        })
        .collect()
}

fn log_settings(config: &Config, process: String) -> LogSettings {
    LogSettings {
        level: match config.log.level {
            LogLevel::Error => tracing::Level::ERROR,
            LogLevel::Warn => tracing::Level::WARN,
            LogLevel::Info => tracing::Level::INFO,
            LogLevel::Debug => tracing::Level::DEBUG,
            LogLevel::Trace => tracing::Level::TRACE,
        },
        json: config.log.format == LogFormat::Json,
        access: config.log.access,
        file: config.log.file.clone(),
        process,
    }
}
