//! The tunnels that move: half of them ping all the time, most others idle, and one in twenty streams.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use wsgate_load::job::{Open, Run, Until, Work};
use wsgate_load::report::Report;
use wsgate_load::role::FleetProcess;
use wsgate_load::stream::{self, Kind, Running, Streams};

use crate::config::{STEADY, STREAM, Site};
use crate::plan::Plan;

/// Messages of a tunnel that pings, and of one that idles, each second.
const PINGS: f64 = 5.0;
const PROBES: f64 = 0.05;

/// Turns of a stream each second, in each of which it sends some hundred bytes each way.
const TURNS: f64 = 20.0;

/// Idle tunnels that are probed at a time.
const ACTIVE: usize = 64;

/// Bytes of each message.
const SIZE: usize = 256;

/// Fleets must not share numbers.
const IDLE_FIRST: u32 = 1 << 30;

/// What streams do, in turn.
const KINDS: [Kind; 10] = [
    Kind::Even,
    Kind::Even,
    Kind::SlowClient,
    Kind::LongFrame,
    Kind::ClientDone,
    Kind::Even,
    Kind::SlowServer,
    Kind::LongFrame,
    Kind::ServerDone,
    Kind::SlowBoth,
];

/// How many tunnels of each sort.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    pub(super) pinging: u32,
    pub(super) idle: u32,
    pub(super) streaming: u32,
}

impl Counts {
    pub(super) const fn of(plan: &Plan) -> Self {
        let (pinging, streaming) = (plan.tunnels / 2, plan.tunnels / 20);
        Self {
            pinging,
            idle: plan.tunnels - pinging - streaming,
            streaming,
        }
    }
}

#[derive(Debug)]
pub(super) struct Traffic {
    pinging: FleetProcess,
    idle: FleetProcess,
    streaming: Running,
}

/// What the tunnels saw.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) pinging: Report,
    /// The probes at the end included.
    pub(super) idle: Report,
    /// Idle tunnels that answered at the end.
    pub(super) answered: u64,
    pub(super) streaming: stream::Report,
}

/// The streams' server, which is there before the gateway.
pub(crate) fn streams() -> io::Result<Streams> {
    Streams::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
}

impl Traffic {
    /// Opens all tunnels, and begins.
    ///
    /// # Errors
    /// If not every tunnel opens.
    pub(super) fn start(counts: Counts, site: &Site, streams: Streams) -> io::Result<Self> {
        let streaming = streams.start(stream::Open {
            targets: site.listeners.to_vec(),
            host: STREAM.to_owned(),
            kinds: (KINDS.into_iter().cycle())
                .take(counts.streaming as usize)
                .collect(),
            per_second: TURNS,
        });
        streaming.opened()?;
        Ok(Self {
            pinging: fleet(site, counts.pinging, 0, PINGS)?,
            idle: fleet(site, counts.idle, IDLE_FIRST, PROBES)?,
            streaming,
        })
    }

    /// Something else goes on from now on.
    pub(super) fn phase(&mut self, number: u8) -> io::Result<()> {
        self.streaming.phase().begin(number);
        self.idle.phase(number)?;
        self.pinging.phase(number)
    }

    /// Probes those that idled, waits for all that is under way, and closes all tunnels.
    pub(super) fn finish(mut self) -> io::Result<Seen> {
        self.pinging.halt()?;
        self.idle.halt()?;
        let mut pinging = self.pinging.finish()?;
        let mut idle = self.idle.finish()?;
        let probed = self.idle.run(&Run {
            work: Work::Messages { window: 1 },
            until: Until::Each {
                messages: 1,
                active: ACTIVE,
            },
            ..run(0.0)
        })?;
        let streaming = self.streaming.finish()?;
        let (pings_open, idle_open) = (pinging.open, probed.open);
        pinging.add(&self.pinging.close()?);
        let round_trips = idle.phases.clone();
        idle.add(&probed);
        idle.add(&self.idle.close()?);
        (pinging.open, idle.open, idle.phases) = (pings_open, idle_open, round_trips);
        Ok(Seen {
            pinging,
            idle,
            answered: probed.messages,
            streaming,
        })
    }
}

fn fleet(site: &Site, tunnels: u32, first: u32, per_second: f64) -> io::Result<FleetProcess> {
    let mut fleet = FleetProcess::spawn(None)?;
    let opened = fleet.open(&Open {
        targets: site.listeners.to_vec(),
        tunnels: tunnels as usize,
        host: STEADY.to_owned(),
        longest: SIZE,
        first,
        ..Open::default()
    })?;
    opened.sound().map_err(io::Error::other)?;
    fleet.start(&run(per_second))?;
    Ok(fleet)
}

fn run(per_second: f64) -> Run {
    Run {
        work: Work::Rate {
            per_second,
            renewals: 0.0,
        },
        size: SIZE,
        until: Until::Halted,
        ..Run::default()
    }
}
