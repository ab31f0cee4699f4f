//! wsgate, nginx and HAProxy side by side: one run, one machine, one load, and a table.
//!
//! `cargo bench --bench compare -- --help` tells the options. The gateway that is measured has one
//! worker on one core, the load and the echo server share another. Each round measures every
//! gateway in turn, so that what the machine does meanwhile hits all of them alike.
//!
//! It knows the gateways by their programs and configuration files only. It ends with an error where
//! an echo is wrong or a process dies: a figure from such a run would mean nothing.

mod args;
mod cases;
mod figures;
mod gateway;
#[path = "../support/host.rs"]
mod host;
mod machine;
mod memory;
mod peers;
#[path = "../support/process.rs"]
mod process;
mod production;
mod reload;
mod strace;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use wsgate_load::role::EchoProcess;

use crate::args::{Args, Case};
use crate::figures::Figures;
use crate::gateway::Gateway;
use crate::peers::{Peer, Setup};

/// Server addresses behind each gateway: short tunnels leave ports behind that are not free for a minute.
const SERVERS: [&str; 4] = ["127.0.0.2:0", "127.0.0.3:0", "127.0.0.4:0", "127.0.0.5:0"];

fn main() -> ExitCode {
    if let Some(code) = wsgate_load::role::run_if_child() {
        return code;
    }
    let args = Args::parse();
    match compare(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            progress(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn compare(args: &Args) -> io::Result<()> {
    wsgate_load::machine::raise_nofile()?;
    peers::find_programs(&args.peers)?;
    if let Some(minutes) = args.production {
        let text = machine::describe(args)? + &production::compare(args, minutes)?;
        return io::stdout().lock().write_all(text.as_bytes());
    }
    let mut figures = Figures::default();
    let rounds = if cases::ALL.iter().any(|case| args.wants(case.name)) {
        args.rounds()
    } else {
        0
    };
    for round in 0..rounds {
        for peer in in_turn(&args.peers, round) {
            progress(&format!("round {} of {rounds}: {peer}", round + 1));
            one_round(args, peer, &mut figures)?;
        }
    }
    once(args, &mut figures)?;
    let mut text = machine::describe(args)?;
    text += &figures.table(&args.peers);
    if args.wants(Case::Reload) {
        text += "\n";
        text += &reload::compare(args)?;
    }
    io::stdout().lock().write_all(text.as_bytes())
}

/// What is measured in every round, with one gateway after the other.
fn one_round(args: &Args, peer: Peer, figures: &mut Figures) -> io::Result<()> {
    let mut cases = cases::ALL.iter().filter(|case| args.wants(case.name));
    with_gateway(args, peer, |gateway| {
        cases.try_for_each(|case| case.measure(args, gateway, figures))
    })
}

/// What does not vary from round to round.
fn once(args: &Args, figures: &mut Figures) -> io::Result<()> {
    for peer in &args.peers {
        if args.wants(Case::Syscalls) {
            progress(&format!("syscalls: {peer}"));
            with_gateway(args, *peer, |gateway| {
                strace::measure(args, gateway, figures)
            })?;
        }
        if args.wants(Case::Memory) {
            progress(&format!("memory: {peer}"));
            with_gateway(args, *peer, |gateway| {
                memory::measure(args, gateway, figures)
            })?;
        }
    }
    Ok(())
}

/// A gateway with one worker on its core, servers behind it, for as long as `measure` takes.
fn with_gateway(
    args: &Args,
    peer: Peer,
    measure: impl FnOnce(&mut Gateway) -> io::Result<()>,
) -> io::Result<()> {
    let echo = echo(Some(args.load_core))?;
    let setup = Setup {
        workers: 1,
        shutdown_limit: None,
        handover: true,
    };
    let mut gateway = Gateway::start(args, peer, echo.addresses(), &setup)?;
    gateway.pin(args.gateway_core)?;
    let measured = measure(&mut gateway).and_then(|()| gateway.check());
    measured.map_err(|error| io::Error::other(format!("{peer}: {error}\n{}", gateway.log())))
}

fn echo(core: Option<usize>) -> io::Result<EchoProcess> {
    let listen: Result<Vec<_>, _> = SERVERS.iter().map(|address| address.parse()).collect();
    EchoProcess::spawn(&listen.map_err(io::Error::other)?, core)
}

/// Nobody is always the first.
fn in_turn(peers: &[Peer], round: usize) -> impl Iterator<Item = Peer> + use<'_> {
    let first = round % peers.len().max(1);
    peers.iter().cycle().skip(first).take(peers.len()).copied()
}

/// To stderr: stdout gets the table and nothing else.
fn progress(text: &str) {
    // Whoever does not listen does not have to.
    drop(writeln!(io::stderr().lock(), "{text}"));
}
