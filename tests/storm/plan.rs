//! Which faults come, in which order, and under which load: all of it from the name of the plan and a seed.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;

use crate::args::Args;
use crate::random::Numbers;

/// The storms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Name {
    /// A few of every kind, in less than a minute: the one that `cargo test` runs.
    Short,
    /// 136 reloads in ten minutes.
    Reloads,
    /// Slots 1, 8, 3, 1, ten times, under 2,000 short connections a second.
    Slots,
    /// 200 faults of every kind by chance.
    Faults,
    /// Workers that are stopped, and replaced by the watchdog.
    Stop,
    /// The supervisor is killed, and started again after two seconds.
    Supervisor,
    /// 50 reloads under tunnels that idle, ping and stream, and the same time without.
    Moves,
    /// The long ones one after the other, `faults` with six seeds.
    All,
}

/// Whether tunnels move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Handover {
    /// A reload moves them to the new workers.
    On,
    /// They stay where they are, and drain.
    Off,
}

/// The kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub(crate) enum Kind {
    /// A new configuration, by the admin API.
    Reload,
    /// By SIGHUP.
    Signal,
    /// By nothing but the changed file.
    File,
    /// SIGKILL for a worker that accepts.
    KillActive,
    /// SIGKILL for a worker of an old generation; where tunnels move none is left.
    KillDraining,
    /// SIGSTOP for a worker.
    Stop,
    /// Another number of workers.
    Slots,
    /// More workers, never fewer.
    Grow,
    /// Three listeners come and go.
    Listeners,
    /// A configuration that is no TOML.
    BadSyntax,
    /// A configuration with a key that nobody knows.
    BadKey,
    /// A configuration with an address that another process has.
    AddressInUse,
    /// No room for the gateway's state.
    FullDisk,
    /// SIGKILL for the supervisor, which is started again.
    KillSupervisor,
    /// The same, and the configuration is broken meanwhile.
    KillSupervisorBadFile,
    /// A server is taken out, or put in again.
    Drain,
    /// The operator closes some tunnels.
    Close,
    /// A reload, and SIGKILL for an old or a new worker in the midst of it.
    KillMidHandover,
    /// The same with SIGSTOP.
    StopMidHandover,
    /// A reload in which a worker crashes at a step of the handover; debug builds only.
    CrashMidHandover,
    /// Two reloads, one right after the other.
    ReloadTwice,
    /// A reload, and SIGKILL for the supervisor in the midst of it.
    KillSupervisorMidHandover,
}

/// All that this version of wsgate is to stand.
const ALL: &[Kind] = &[
    Kind::Reload,
    Kind::Signal,
    Kind::File,
    Kind::KillActive,
    Kind::KillDraining,
    Kind::Stop,
    Kind::Slots,
    Kind::Listeners,
    Kind::BadSyntax,
    Kind::BadKey,
    Kind::AddressInUse,
    Kind::FullDisk,
    Kind::KillSupervisor,
    Kind::KillSupervisorBadFile,
    Kind::Drain,
    Kind::Close,
    Kind::KillMidHandover,
    Kind::StopMidHandover,
    Kind::CrashMidHandover,
    Kind::ReloadTwice,
    Kind::KillSupervisorMidHandover,
];

/// The seeds of [`Name::All`], besides the one that is given.
const SEEDS: [u64; 5] = [2, 3, 5, 8, 13];

/// One storm.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) name: Name,
    pub(crate) seed: u64,
    pub(crate) tunnels: u32,
    /// Messages each second of all tunnels that stay.
    pub(crate) messages: f64,
    /// Of the tunnels that stay, closed and opened anew each second.
    pub(crate) renewals: f64,
    /// New connections each second.
    pub(crate) rate: f64,
    /// Workers at the start and at the end.
    pub(crate) slots: u32,
    pub(crate) steps: Vec<Step>,
    /// Faults come evenly over this time; without it each comes when the one before is over.
    pub(crate) spread: Option<Duration>,
    /// No new fault after this time.
    pub(crate) limit: Option<Duration>,
    pub(crate) overlap: bool,
    pub(crate) handover: Handover,
    pub(crate) generations: Option<u32>,
    pub(crate) close_rate: u32,
    pub(crate) watchdog: Option<Duration>,
    pub(crate) held: Option<u32>,
}

/// One fault.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) kind: Kind,
    /// Where it is not left to chance: workers.
    pub(crate) slots: Option<u32>,
    /// What chance it has.
    pub(crate) numbers: Numbers,
}

/// What a storm may have besides its name and its seed.
#[derive(Clone, Copy, Debug)]
struct Variant {
    handover: Handover,
    generations: Option<u32>,
    held: Option<u32>,
}

impl Plan {
    /// The storms that these arguments ask for.
    pub(crate) fn all(args: &Args) -> Vec<Self> {
        let variant = Variant {
            handover: args.handover,
            generations: args.generations,
            held: args.held,
        };
        match args.plan {
            Name::All => Self::long(args),
            Name::Short if args.kinds.is_empty() && args.handover == Handover::On => vec![
                Self::new(args, Name::Short, args.seed, variant),
                Self::moves(args),
            ],
            name => vec![Self::new(args, name, args.seed, variant)],
        }
    }

    fn long(args: &Args) -> Vec<Self> {
        let usual = Variant {
            handover: args.handover,
            generations: None,
            held: None,
        };
        let one = |name, seed| Self::new(args, name, seed, usual);
        let stay = Variant {
            handover: Handover::Off,
            ..usual
        };
        let few = Variant {
            generations: Some(4),
            ..stay
        };
        let held = Variant {
            held: Some(50),
            ..usual
        };
        let mut plans = vec![
            one(Name::Moves, args.seed),
            one(Name::Reloads, args.seed),
            Self::new(args, Name::Reloads, args.seed, stay),
            Self::new(args, Name::Reloads, args.seed, few),
            one(Name::Slots, args.seed),
            Self::new(args, Name::Slots, args.seed, held),
            one(Name::Stop, args.seed),
            one(Name::Supervisor, args.seed),
            one(Name::Faults, args.seed),
            Self::new(args, Name::Faults, args.seed, stay),
        ];
        plans.extend(SEEDS.map(|seed| one(Name::Faults, seed)));
        plans
    }

    /// The little one of [`Name::Moves`] that goes with [`Name::Short`].
    fn moves(args: &Args) -> Self {
        let variant = Variant {
            handover: args.handover,
            generations: None,
            held: None,
        };
        let mut plan = Self::new(args, Name::Moves, args.seed, variant);
        plan.tunnels = SHORT_MOVES.0;
        plan.steps.truncate(SHORT_MOVES.1);
        plan
    }

    fn new(args: &Args, name: Name, seed: u64, variant: Variant) -> Self {
        let usual = usual(name);
        let mut plan = Self {
            name,
            seed,
            handover: variant.handover,
            generations: variant.generations,
            held: variant.held,
            tunnels: args.tunnels.unwrap_or(usual.tunnels),
            messages: 0.0,
            // A kill names the tunnels that will break; none may come or go at that moment.
            renewals: if name == Name::Reloads { 5.0 } else { 0.0 },
            rate: args.rate.unwrap_or(usual.rate),
            slots: usual.slots,
            steps: Vec::new(),
            spread: None,
            limit: args.seconds.map(Duration::from_secs),
            overlap: args.overlap,
            close_rate: 500,
            watchdog: None,
        };
        plan.messages = (f64::from(plan.tunnels) * 2.0).min(2_000.0);
        let count = args.faults.unwrap_or(usual.faults);
        if name == Name::Reloads {
            plan.spread = plan.limit.take().or(Some(RELOADS_TIME));
        }
        let mut kinds = match args.kinds.is_empty() {
            true => usual.kinds.to_vec(),
            false => args.kinds.clone(),
        };
        kinds.retain(|kind| kind.can_be(variant.handover));
        plan.steps = steps(name, &kinds, count, seed);
        let stops = [Kind::Stop, Kind::StopMidHandover];
        plan.watchdog = stops.iter().any(|kind| plan.has(*kind)).then_some(WATCHDOG);
        plan
    }

    /// A storm that is not over then hangs.
    pub(crate) fn longest(&self) -> Duration {
        let faults = Duration::from_secs(30) * self.steps.len() as u32;
        Duration::from_secs(180) + faults + self.spread.unwrap_or_default()
    }

    /// Whether some fault is of this kind.
    pub(crate) fn has(&self, kind: Kind) -> bool {
        self.steps.iter().any(|step| step.kind == kind)
    }
}

/// `[watchdog] timeout`, where workers are stopped.
const WATCHDOG: Duration = Duration::from_secs(2);

/// 136 reloads come in this time: a rate reported from production.
const RELOADS_TIME: Duration = Duration::from_secs(600);

/// Tunnels and reloads of the little one.
const SHORT_MOVES: (u32, usize) = (200, 5);

struct Usual {
    tunnels: u32,
    rate: f64,
    slots: u32,
    faults: usize,
    kinds: &'static [Kind],
}

const fn usual(name: Name) -> Usual {
    let (tunnels, rate, slots, faults, kinds): (_, _, _, _, &[Kind]) = match name {
        Name::Short => (200, 40.0, 2, 24, ALL),
        Name::Reloads => (2_000, 200.0, 2, 136, &[Kind::Reload]),
        Name::Slots => (500, 2_000.0, 1, 30, &[Kind::Slots]),
        Name::Stop => (1_000, 200.0, 2, 5, &[Kind::Stop]),
        Name::Supervisor => (
            1_000,
            200.0,
            2,
            2,
            &[Kind::KillSupervisor, Kind::KillSupervisorBadFile],
        ),
        Name::Moves => (2_000, 0.0, 2, 50, &[Kind::Reload]),
        Name::Faults | Name::All => (1_000, 200.0, 2, 200, ALL),
    };
    Usual {
        tunnels,
        rate,
        slots,
        faults,
        kinds,
    }
}

/// Every kind once, in an order by chance, and then any.
fn steps(name: Name, kinds: &[Kind], count: usize, seed: u64) -> Vec<Step> {
    let mut numbers = Numbers::of(seed);
    let mut first = kinds.to_vec();
    let by_chance = !matches!(name, Name::Slots | Name::Supervisor);
    let mut chosen = Vec::new();
    while chosen.len() < count {
        let kind = match (by_chance, first.len()) {
            (true, 0) => numbers.one_of(kinds),
            (true, left) => first.swap_remove(numbers.below(left as u64) as usize),
            (false, _) => kinds[chosen.len() % kinds.len()],
        };
        let round = [8, 3, 1][chosen.len() % 3];
        chosen.push(Step {
            kind,
            slots: (name == Name::Slots).then_some(round),
            numbers: numbers.fork(),
        });
    }
    chosen
}

impl Kind {
    /// Whether there can be one.
    const fn can_be(self, handover: Handover) -> bool {
        match self {
            Self::KillDraining => matches!(handover, Handover::Off),
            Self::KillMidHandover
            | Self::StopMidHandover
            | Self::CrashMidHandover
            | Self::ReloadTwice
            | Self::KillSupervisorMidHandover => matches!(handover, Handover::On),
            _ => true,
        }
    }

    /// What reports call it: as on the command line.
    pub(crate) fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.to_possible_value();
        let name = name.as_ref().map_or("", |name| name.get_name());
        write!(
            f,
            "`{name}`, seed {}: {} faults, {} tunnels, {} new connections/s",
            self.seed,
            self.steps.len(),
            self.tunnels,
            self.rate
        )?;
        if self.handover == Handover::Off {
            f.write_str(", drain.handover = false")?;
        }
        if let Some(generations) = self.generations {
            write!(f, ", drain.generations = {generations}")?;
        }
        if let Some(held) = self.held {
            write!(f, ", handshakes held back {held} ms")?;
        }
        f.write_str(if self.overlap { ", overlapping" } else { "" })
    }
}
