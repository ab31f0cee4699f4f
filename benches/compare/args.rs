//! What the command line says.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::peers::Peer;

/// Compares wsgate with nginx and HAProxy on this machine, and prints a markdown table.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// Rounds for each gateway; the table has the medians.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,

    /// One round, and less of everything: to see whether it works.
    #[arg(long)]
    quick: bool,

    /// Only these cases.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "CASE")]
    only: Vec<Case>,

    /// Only these gateways.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Peer::ALL, value_name = "PEER")]
    pub(crate) peers: Vec<Peer>,

    /// Seconds that each case is measured for.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,

    /// Idle tunnels whose memory is measured.
    #[arg(long, default_value_t = 9000)]
    tunnels: usize,

    /// The core of the gateway.
    #[arg(long, default_value_t = 0)]
    pub(crate) gateway_core: usize,

    /// The core of clients and servers.
    #[arg(long, default_value_t = 1)]
    pub(crate) load_core: usize,

    /// Nothing but reloads as production has them: 13.6 a minute under 2,000 tunnels and 200 new connections a second, for so
    /// many minutes with each gateway.
    #[arg(long, value_name = "MINUTES", num_args = 0..=1, default_missing_value = "10")]
    pub(crate) production: Option<f64>,

    /// There with a limit of so many seconds for old processes, where tunnels stay in them.
    #[arg(long, value_name = "SECONDS", requires = "production")]
    pub(crate) limit: Option<u64>,

    /// Another wsgate than the one of this build.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_wsgate"), value_name = "PROGRAM")]
    pub(crate) wsgate: PathBuf,

    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Case {
    /// 64 B, one tunnel, one message in flight.
    One,
    /// 64 B, 256 tunnels, one message in flight in each.
    Many,
    /// 1 KiB, 16 tunnels, 16 messages in flight in each.
    Pipelined,
    /// 64 KiB, 4 tunnels, 4 messages in flight in each.
    Bulk,
    /// Short tunnels: handshake, one echo, close.
    Handshake,
    /// System calls per message.
    Syscalls,
    /// Memory of idle tunnels.
    Memory,
    /// Ten reloads under load.
    Reload,
}

impl Args {
    pub(crate) fn wants(&self, case: Case) -> bool {
        self.only.is_empty() || self.only.contains(&case)
    }

    /// Whether one of these is compared.
    pub(crate) fn has(&self, peers: &[Peer]) -> bool {
        peers.iter().any(|peer| self.peers.contains(peer))
    }

    pub(crate) fn rounds(&self) -> usize {
        if self.quick { 1 } else { self.rounds.into() }
    }

    /// How long each case is measured.
    pub(crate) fn time(&self) -> Duration {
        Duration::from_secs_f64(if self.quick { 0.5 } else { self.seconds })
    }

    /// How many idle tunnels are held.
    pub(crate) fn tunnels(&self) -> usize {
        if self.quick {
            self.tunnels.min(1000)
        } else {
            self.tunnels
        }
    }

    /// How often is reloaded under load.
    pub(crate) fn reloads(&self) -> u32 {
        if self.quick { 3 } else { 10 }
    }
}
