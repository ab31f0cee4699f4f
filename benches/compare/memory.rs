//! Memory of idle tunnels, that of all processes of the gateway taken together. What the kernel holds for the sockets is
//! not in it: it is the same for all.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use wsgate_load::job::{Run, Until, Work};
use wsgate_load::role::FleetProcess;

use crate::args::Args;
use crate::cases::{open, sound};
use crate::figures::Figures;
use crate::gateway::Gateway;
use crate::process;

/// What each tunnel carries: 1 MiB in both directions together.
const MESSAGES: u64 = 8;
const SIZE: usize = 64 * 1024;

/// Tunnels that carry it at a time.
const ACTIVE: usize = 64;

/// Memory that has not changed for so long has settled.
const SETTLED: Duration = Duration::from_secs(3);
const LIMIT: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(100);

pub(crate) fn measure(args: &Args, gateway: &mut Gateway, figures: &mut Figures) -> io::Result<()> {
    let tunnels = args.tunnels();
    let mut fleet = FleetProcess::spawn(Some(args.load_core))?;
    let before = settled(gateway)?;
    let mib = before as f64 / 1024.0 / 1024.0;
    figures.add("MiB of all processes, no tunnel yet", gateway.peer, mib);
    let each = |now: u64| (now as f64 - before as f64) / tunnels as f64 / 1024.0;
    sound("opening", &fleet.open(&open(gateway, tunnels))?)?;
    let title = format!("KiB per idle tunnel, {tunnels} tunnels");
    figures.add(&title, gateway.peer, each(settled(gateway)?));
    let report = fleet.run(&Run {
        work: Work::Messages { window: 1 },
        size: SIZE,
        until: Until::Each {
            messages: MESSAGES,
            active: ACTIVE,
        },
        ..Run::default()
    })?;
    sound("carrying", &report)?;
    let title = "KiB per idle tunnel that has carried 1 MiB";
    figures.add(title, gateway.peer, each(settled(gateway)?));
    sound("closing", &fleet.close()?)
}

/// The gateway's memory in bytes once it does not change any more.
fn settled(gateway: &Gateway) -> io::Result<u64> {
    let began = Instant::now();
    let mut last = (Instant::now(), 0);
    loop {
        let now = process::memory(&gateway.processes()?)?;
        if now != last.1 {
            last = (Instant::now(), now);
        }
        if last.0.elapsed() >= SETTLED || began.elapsed() >= LIMIT {
            return Ok(now);
        }
        thread::park_timeout(LOOK);
    }
}
