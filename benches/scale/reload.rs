//! A reload while all tunnels are open: a message in each of them, and short tunnels that come and go meanwhile.

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

#[derive(Debug)]
pub(crate) struct Seen {
    /// By its own account, and for whoever waited for it.
    pub(crate) reloaded: Reloaded,
    pub(crate) took: Duration,
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
    let (reloaded, took) = gateway.reload()?;
    let seen = Seen {
        reloaded,
        took,
        steady: fleets.finish()?,
        short: short.finish()?,
    };
    seen.check().map(|()| seen)
}

impl Seen {
    /// Short tunnels that were opened, had their echo, and were closed.
    pub(crate) fn short_ones(&self) -> u64 {
        self.short.ends.get("polite").copied().unwrap_or(0)
    }

    fn check(&self) -> io::Result<()> {
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

/// That all tunnels are where they were, in a generation that drains, and that the new one serves.
pub(crate) fn check_after(look: &Look, plan: &Plan) -> io::Result<()> {
    let generations = &look.status.generations;
    // Of few tunnels a worker may have had none: then it has gone.
    let is_right = matches!(
        generations.as_slice(),
        [old, new] if old.state == GenerationState::Draining
            && old.tunnels == plan.tunnels
            && new.state == GenerationState::Active
            && new.workers == plan.workers
            && look.listing.tunnels.iter().all(|it| it.generation == old.generation)
    );
    match is_right {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "after the reload there are: {generations:?}"
        ))),
    }
}
