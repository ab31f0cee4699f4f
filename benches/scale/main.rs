//! One gateway with 50,000 tunnels: that all of them open and echo, what they cost, how fast the operator's
//! commands answer meanwhile, and what a reload does to them.
//!
//! `cargo bench --bench scale -- --help` tells the options. One process may have too few descriptors, so there are several
//! for the clients and several for the servers, and the workers share the tunnels. Nothing is bound to a core.
//!
//! It ends with an error as soon as anything is not as it should be; a table is printed of a run without fault only.

mod fleets;
mod gateway;
#[path = "../support/host.rs"]
mod host;
#[path = "../support/keeper.rs"]
mod keeper;
mod listing;
mod look;
mod plan;
#[path = "../support/process.rs"]
mod process;
mod reload;
mod table;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use clap::Parser;

use crate::fleets::{Fleets, Servers};
use crate::gateway::Gateway;
use crate::look::Look;
use crate::plan::Plan;
use crate::table::Work;

/// All of it. What hangs is ended then.
const LIMIT: Duration = Duration::from_secs(300);

/// Holds tens of thousands of tunnels through one wsgate, and prints a markdown table.
#[derive(Debug, Parser)]
struct Args {
    /// Tunnels that are held open.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    tunnels: u32,

    /// The gateway's workers.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    workers: u32,

    /// Another wsgate than the one of this build.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_wsgate"), value_name = "PROGRAM")]
    wsgate: PathBuf,

    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    if let Some(code) = wsgate_load::role::run_if_child().or_else(keeper::run_if_child) {
        return code;
    }
    let args = Args::parse();
    let _watch = watch();
    match scale(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            progress(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Ends this process when its time is over; all others see that it is gone. To be held as long as it runs.
fn watch() -> Sender<()> {
    let (runs, ended) = channel();
    thread::spawn(move || {
        if ended.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
            progress(&format!("error: not done within {LIMIT:?}"));
            std::process::exit(1);
        }
    });
    runs
}

fn scale(args: &Args) -> io::Result<()> {
    let plan = Plan::new(args)?;
    // Dropped last to first: clients, the gateway, servers.
    let servers = Servers::start(&plan)?;
    let gateway = Gateway::start(args, servers.addresses())?;
    let mut fleets = Fleets::start(&plan, gateway.address())?;
    let text = measure(&plan, &gateway, &mut fleets)
        .map_err(|error| io::Error::other(format!("{error}\n{}", gateway.log())))?;
    io::stdout().lock().write_all(text.as_bytes())
}

/// The whole run, and its tables.
fn measure(plan: &Plan, gateway: &Gateway, fleets: &mut Fleets) -> io::Result<String> {
    let mut looks = vec![Look::at(gateway, "no tunnel", 0, 0)?];
    let opened = fleets.open()?;
    looks.push(Look::at(gateway, "all open", opened.open, 0)?);
    let echoed = fleets.echo()?;
    looks.push(Look::at(gateway, "each has echoed", echoed.open, 1)?);
    let reload = reload::under_load(plan, gateway, fleets)?;
    let echoed_again = fleets.echo()?;
    let after = Look::at(gateway, "after the reload", echoed_again.open, 2)?;
    reload::check_after(&after, plan)?;
    looks.push(after);
    let closed = fleets.close()?;
    gateway.wait_for_one_generation()?;
    looks.push(Look::at(gateway, "all closed", closed.open, 0)?);
    gateway.check_log()?;
    let work = Work {
        opened,
        echoed,
        reload,
        echoed_again,
        closed,
    };
    Ok(table::head(plan, &gateway.version()?)? + &table::of_looks(&looks) + &work.table())
}

/// To stderr: stdout gets the tables and nothing else.
fn progress(text: &str) {
    // Whoever does not listen does not have to.
    drop(writeln!(io::stderr().lock(), "{text}"));
}
