//! What a storm is told: its own options, and those that `cargo test` passes to every test.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::plan::{Handover, Kind, Name};

/// What the storm is called among the tests.
const NAME: &str = "storm";

/// Faults against a gateway under load; everything that nobody can explain is counted.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// Which storm.
    #[arg(long, value_enum, default_value_t = Name::Short)]
    pub(crate) plan: Name,

    /// What chance comes from: the same seed, the same faults in the same order.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,

    /// Tunnels that are held open.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=15_000))]
    pub(crate) tunnels: Option<u32>,

    /// New connections each second.
    #[arg(long)]
    pub(crate) rate: Option<f64>,

    /// How many faults.
    #[arg(long)]
    pub(crate) faults: Option<usize>,

    /// How long the faults go on, in seconds: `reloads` spreads its own over them, others end when the time is over.
    #[arg(long)]
    pub(crate) seconds: Option<u64>,

    /// Only faults of these kinds.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) kinds: Vec<Kind>,

    /// `drain.handover`: whether live tunnels move to the new workers at a reload.
    #[arg(long, value_enum, default_value_t = Handover::On)]
    pub(crate) handover: Handover,

    /// With `drain.generations` set to this.
    #[arg(long)]
    pub(crate) generations: Option<u32>,

    /// New connections are half open for so many milliseconds, less than 200: the client's last ACK comes with its request.
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    pub(crate) held: Option<u32>,

    /// A fault does not wait until the gateway has settled from the one before.
    #[arg(long)]
    pub(crate) overlap: bool,

    /// One line of JSON in place of the table.
    #[arg(long)]
    pub(crate) json: bool,

    /// Leaves the gateway's directory, with its log.
    #[arg(long)]
    pub(crate) keep: bool,

    /// Another wsgate than the one of this build.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_wsgate"), value_name = "PROGRAM")]
    pub(crate) wsgate: PathBuf,

    #[command(flatten)]
    libtest: Libtest,
}

fn milliseconds(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix("ms").unwrap_or(text);
    number
        .parse()
        .map_err(|_| "write milliseconds, as 50ms".to_owned())
}

/// What the harness of other tests takes. Those that choose tests choose here as well; the rest changes nothing.
#[derive(Debug, clap::Args)]
struct Libtest {
    #[arg(hide = true)]
    filters: Vec<String>,
    #[arg(long, hide = true)]
    skip: Vec<String>,
    #[arg(long, hide = true)]
    exact: bool,
    #[arg(long, hide = true)]
    list: bool,
    #[arg(long, hide = true)]
    ignored: bool,
    #[arg(long, hide = true)]
    include_ignored: bool,
    #[arg(long, hide = true)]
    test: bool,
    #[arg(long, hide = true)]
    bench: bool,
    #[arg(long, visible_alias = "no-capture", hide = true)]
    nocapture: bool,
    #[arg(long, hide = true)]
    show_output: bool,
    #[arg(short, long, hide = true)]
    quiet: bool,
    #[arg(long, hide = true)]
    test_threads: Option<String>,
    #[arg(long, hide = true)]
    color: Option<String>,
    #[arg(long, hide = true)]
    format: Option<String>,
    #[arg(long, hide = true)]
    logfile: Option<PathBuf>,
    #[arg(long, hide = true)]
    report_time: bool,
    #[arg(long, hide = true)]
    ensure_time: bool,
    #[arg(long, hide = true)]
    shuffle: bool,
    #[arg(long, hide = true)]
    shuffle_seed: Option<String>,
    #[arg(short = 'Z', hide = true)]
    unstable: Vec<String>,
}

impl Args {
    /// What to end with, if these arguments do not choose the storm or only ask for its name.
    pub(crate) fn harness(&self) -> Option<ExitCode> {
        let chosen = self.libtest.choose(NAME);
        if self.libtest.list {
            if chosen {
                println!("{NAME}: test");
            }
            return Some(ExitCode::SUCCESS);
        }
        (!chosen).then_some(ExitCode::SUCCESS)
    }
}

impl Libtest {
    fn choose(&self, name: &str) -> bool {
        let fits = |filter: &String| match self.exact {
            true => name == filter,
            false => name.contains(filter.as_str()),
        };
        // The storm is not ignored, so `--ignored` alone leaves it out.
        let wanted = self.filters.is_empty() || self.filters.iter().any(fits);
        wanted && !self.skip.iter().any(fits) && !self.ignored && !self.bench
    }
}
