//! The load: servers, tunnels that stay, and new connections by IPv4 and IPv6, each in a process of its own.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use wsgate_load::job::{Open, Run, Until, Work};
use wsgate_load::report::Report;
use wsgate_load::role::{EchoProcess, FleetProcess};

use crate::config::{SHORT, STEADY, Site};
use crate::plan::Plan;

/// Servers: half of them for steady tunnels, half for short ones.
const SERVERS: usize = 4;

/// The servers, which are there before the gateway.
#[derive(Debug)]
pub(crate) struct Servers(EchoProcess);

impl Servers {
    pub(crate) fn start() -> io::Result<Self> {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        EchoProcess::spawn(&[any; SERVERS], None).map(Self)
    }

    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        self.0.addresses()
    }
}

/// The clients.
#[derive(Debug)]
pub(crate) struct Crowd {
    steady: FleetProcess,
    short: Vec<FleetProcess>,
}

/// What they saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) steady: Report,
    pub(crate) short: Report,
}

impl Crowd {
    /// Opens all tunnels, and begins.
    ///
    /// # Errors
    /// If not every tunnel opens.
    pub(crate) fn start(plan: &Plan, site: &Site) -> io::Result<Self> {
        let mut steady = FleetProcess::spawn(None)?;
        let opened = steady.open(&open(
            STEADY,
            site.listeners.to_vec(),
            plan.tunnels as usize,
            0,
        ))?;
        opened.sound().map_err(io::Error::other)?;
        steady.start(&run(Work::Rate {
            per_second: plan.messages / f64::from(plan.tunnels),
            renewals: plan.renewals,
        }))?;
        let mut crowd = Self {
            steady,
            short: Vec::new(),
        };
        for (number, (target, share)) in site.listeners.into_iter().zip([0.75, 0.25]).enumerate() {
            let mut short = FleetProcess::spawn(None)?;
            let mut open = open(SHORT, vec![target], 0, number as u32 + 1);
            if target.is_ipv4() {
                open.sources = SOURCES.map(IpAddr::V4).to_vec();
            }
            open.held = Duration::from_millis(plan.held.unwrap_or(0).into());
            short.open(&open)?;
            short.start(&run(Work::Arrivals {
                per_second: plan.rate * share,
                echoes: 1,
            }))?;
            crowd.short.push(short);
        }
        Ok(crowd)
    }

    /// Nothing new any more; waits for what is under way, and closes all tunnels.
    pub(crate) fn finish(mut self) -> io::Result<Seen> {
        self.steady.halt()?;
        self.short.iter_mut().try_for_each(FleetProcess::halt)?;
        let mut seen = Seen {
            steady: self.steady.finish()?,
            ..Seen::default()
        };
        for short in &mut self.short {
            seen.short.add(&short.finish()?);
        }
        let open = seen.steady.open;
        seen.steady.add(&self.steady.close()?);
        seen.steady.open = open;
        Ok(seen)
    }
}

/// One address has some 28,000 ports for each target; these are for thousands of connections a second.
const SOURCES: [Ipv4Addr; 4] = [
    Ipv4Addr::new(127, 0, 0, 2),
    Ipv4Addr::new(127, 0, 0, 3),
    Ipv4Addr::new(127, 0, 0, 4),
    Ipv4Addr::new(127, 0, 0, 5),
];

fn open(host: &str, targets: Vec<SocketAddr>, tunnels: usize, number: u32) -> Open {
    Open {
        targets,
        tunnels,
        host: host.to_owned(),
        longest: 4096,
        first: number << 30,
        ..Open::default()
    }
}

fn run(work: Work) -> Run {
    Run {
        work,
        size: 256,
        until: Until::Halted,
        ..Run::default()
    }
}
