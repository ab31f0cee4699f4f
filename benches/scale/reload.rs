//! A reload that moves all tunnels: a message in each of them around it, and short tunnels that come and go meanwhile.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use wsgate_load::job::{Until, Work};
use wsgate_load::report::Report;
use wsgate_load::role::FleetProcess;
use wsgate_protocol::admin::{GenerationState, Reloaded};

use crate::fleets::{Fleets, run, sound};
use crate::gateway::Gateway;
use crate::look::Look;
use crate::plan::Plan;
use crate::progress;

/// How long there is load; in this time each tunnel has its turn once.
const TIME: Duration = Duration::from_secs(10);

/// From its beginning to the reload.
const LEAD: Duration = Duration::from_secs(3);

/// New connections each second, each with one echo.
const ARRIVALS: f64 = 200.0;

/// Phases of round trips: what was under way while `wsctl reload` ran, and all the rest.
const AROUND: u8 = 0;
pub(crate) const DURING: u8 = 1;

#[derive(Debug)]
pub(crate) struct Seen {
    /// By its own account, and for whoever waited for it.
    pub(crate) reloaded: Reloaded,
    pub(crate) took: Duration,
    /// From its start until old generations are gone.
    pub(crate) gone: Duration,
    pub(crate) steady: Report,
    pub(crate) short: Report,
}

/// Reloads under load.
///
/// # Errors
/// If anything goes wrong with a tunnel, or if a new connection fails.
pub(crate) fn under_load(
    plan: &Plan,
    gateway: &Gateway,
    fleets: &mut Fleets<'_>,
) -> io::Result<Seen> {
    let mut short = FleetProcess::spawn(None)?;
    short.open(&plan.short_ones(plan.processes, gateway.address()))?;
    let began = Instant::now();
    let steady = Work::Rate {
        per_second: 1.0 / TIME.as_secs_f64(),
        renewals: 0.0,
    };
    let arrivals = Work::Arrivals {
        per_second: ARRIVALS,
        echoes: 1,
    };
    fleets.begin(&run(steady, Until::Elapsed(TIME)))?;
    short.start(&run(arrivals, Until::Elapsed(TIME)))?;
    while let Some(left) = (began + LEAD).checked_duration_since(Instant::now()) {
        thread::park_timeout(left);
    }
    progress("reload");
    fleets.phase(DURING)?;
    let asked = Instant::now();
    let (reloaded, took) = gateway.reload()?;
    fleets.phase(AROUND)?;
    gateway.wait_for_one_generation()?;
    let gone = asked.elapsed();
    let seen = Seen {
        reloaded,
        took,
        gone,
        steady: fleets.finish()?,
        short: short.finish()?,
    };
    seen.check(plan).map(|()| seen)
}

impl Seen {
    /// Short tunnels that were opened, had their echo, and were closed.
    pub(crate) fn short_ones(&self) -> u64 {
        self.short.ends.get("polite").copied().unwrap_or(0)
    }

    fn check(&self, plan: &Plan) -> io::Result<()> {
        if self.reloaded.moved < plan.tunnels {
            return Err(io::Error::other(format!(
                "not all tunnels have moved: {:?}",
                self.reloaded
            )));
        }
        sound("new connections", &self.short)?;
        let due = ARRIVALS * TIME.as_secs_f64();
        if (self.short_ones() as f64) < 0.9 * due {
            let count = self.short_ones();
            return Err(io::Error::other(format!(
                "{count} new connections, {due} were due"
            )));
        }
        Ok(())
    }
}

/// That all tunnels are in the new generation, and that nothing is left of the old one.
pub(crate) fn check_after(look: &Look, plan: &Plan) -> io::Result<()> {
    let generations = &look.status.generations;
    let is_right = matches!(
        generations.as_slice(),
        [new] if new.state == GenerationState::Active
            && new.tunnels == plan.tunnels
            && new.workers == plan.workers
            && look.listing.tunnels.iter().all(|it| it.generation == new.generation)
            && look.listing.tunnels.iter().all(|it| it.handovers == 1)
    ) && look.processes as u64 == 1 + plan.workers;
    match is_right {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "after the reload there are: {generations:?}"
        ))),
    }
}
