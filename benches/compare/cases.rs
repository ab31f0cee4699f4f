//! CPU time and round trips: what is measured in every round.

use std::io;
use std::time::Duration;

use wsgate_load::job::{Open, Run, Until, Work};
use wsgate_load::report::Report;
use wsgate_load::role::FleetProcess;

use crate::args::{Args, Case};
use crate::figures::Figures;
use crate::gateway::Gateway;

/// Before anything is counted: caches, the kernel's windows and the gateway's buffers settle.
const WARM_UP: Duration = Duration::from_millis(300);

/// Sources of clients, so that ports do not run out.
pub(crate) const SOURCES: [[u8; 4]; 2] = [[127, 0, 0, 11], [127, 0, 0, 12]];

/// One case: tunnels, what they do, and what is reported of it.
pub(crate) struct Load {
    pub(crate) name: Case,
    tunnels: usize,
    size: usize,
    work: Work,
    figures: fn(&Report) -> Vec<(&'static str, f64)>,
}

pub(crate) const ALL: [Load; 5] = [
    Load {
        name: Case::One,
        tunnels: 1,
        size: 64,
        work: Work::Messages { window: 1 },
        figures: |report| {
            vec![
                ("CPU µs per message, 64 B, 1 tunnel", per_message(report)),
                (
                    "round trip µs, p50, 64 B, 1 tunnel",
                    micros(report.round_trips.p50),
                ),
                (
                    "round trip µs, p99, 64 B, 1 tunnel",
                    micros(report.round_trips.p99),
                ),
            ]
        },
    },
    Load {
        name: Case::Many,
        tunnels: 256,
        size: 64,
        work: Work::Messages { window: 1 },
        figures: |report| {
            vec![
                ("CPU µs per message, 64 B, 256 tunnels", per_message(report)),
                (
                    "round trip µs, p50, 64 B, 256 tunnels",
                    micros(report.round_trips.p50),
                ),
                (
                    "round trip µs, p99, 64 B, 256 tunnels",
                    micros(report.round_trips.p99),
                ),
            ]
        },
    },
    Load {
        name: Case::Pipelined,
        tunnels: 16,
        size: 1024,
        work: Work::Messages { window: 16 },
        figures: |report| {
            vec![(
                "CPU µs per message, 1 KiB, 16 tunnels, pipelined",
                per_message(report),
            )]
        },
    },
    Load {
        name: Case::Bulk,
        tunnels: 4,
        size: 64 * 1024,
        work: Work::Messages { window: 4 },
        figures: |report| {
            // An echo is relayed twice; nanoseconds per byte are seconds per GB.
            let relayed = 2.0 * report.bytes as f64;
            vec![(
                "CPU s per GB, 64 KiB, 4 tunnels",
                report.cpu as f64 / relayed,
            )]
        },
    },
    Load {
        name: Case::Handshake,
        tunnels: 0,
        size: 64,
        work: Work::Lives {
            concurrency: 8,
            echoes: 1,
        },
        figures: |report| {
            let each = micros(report.cpu) / report.lives as f64;
            vec![
                ("CPU µs per short tunnel: handshake, echo, close", each),
                ("handshake µs, p50", micros(report.handshakes.p50)),
                ("handshake µs, p99", micros(report.handshakes.p99)),
            ]
        },
    },
];

impl Load {
    pub(crate) fn measure(
        &self,
        args: &Args,
        gateway: &mut Gateway,
        figures: &mut Figures,
    ) -> io::Result<()> {
        let mut fleet = FleetProcess::spawn(Some(args.load_core))?;
        sound("opening", &fleet.open(&open(gateway, self.tunnels))?)?;
        let report = fleet.run(&Run {
            work: self.work,
            size: self.size,
            until: Until::Elapsed(args.time()),
            warm_up: WARM_UP.min(args.time()),
            clocks: gateway.processes()?,
        })?;
        sound(&format!("{:?}", self.name), &report)?;
        if report.messages == 0 {
            return Err(io::Error::other(format!(
                "{:?}: no message came back",
                self.name
            )));
        }
        for (title, value) in (self.figures)(&report) {
            figures.add(title, gateway.peer, value);
        }
        sound("closing", &fleet.close()?)
    }
}

/// Tunnels through a gateway.
pub(crate) fn open(gateway: &Gateway, tunnels: usize) -> Open {
    Open {
        targets: vec![gateway.address()],
        sources: SOURCES.map(Into::into).to_vec(),
        tunnels,
        ..Open::default()
    }
}

/// That nothing was wrong.
pub(crate) fn sound(what: &str, report: &Report) -> io::Result<()> {
    let sound = report.sound();
    sound.map_err(|problem| io::Error::other(format!("{what}: {problem}")))
}

/// Each echo is two messages for a gateway.
fn per_message(report: &Report) -> f64 {
    micros(report.cpu) / (2.0 * report.messages as f64)
}

fn micros(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1000.0
}
