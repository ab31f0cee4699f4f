//! A storm: tunnels that number their messages and new connections all the time, while a script of faults runs against
//! one gateway. At the end everything is counted, and what nobody can explain by a fault is a failure.
//!
//! `cargo test --test storm` runs a short one; `cargo test --release --test storm -- --plan NAME` the long ones of
//! docs/reliability.md, and `-- --help` tells the options. It must never forgive: each break of a tunnel is laid to one
//! fault that named this tunnel before, and a storm that could not do what its plan says has failed.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program of its own, that prints its report"
)]

mod args;
mod census;
mod config;
mod crowd;
mod faults;
mod gateway;
mod guest;
mod judge;
mod keeper;
mod moves;
mod plan;
#[path = "../../benches/support/process.rs"]
mod process;
#[path = "../support/random.rs"]
#[expect(
    dead_code,
    clippy::unwrap_used,
    reason = "the tests' helper has more than a storm needs"
)]
mod random;
mod report;
mod room;
mod storm;
mod wait;

use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use clap::Parser;

use crate::args::Args;

fn main() -> ExitCode {
    if let Some(code) = wsgate_load::role::run_if_child().or_else(keeper::run_if_child) {
        return code;
    }
    let args = Args::parse();
    if let Some(code) = args.harness() {
        return code;
    }
    room::enter();
    let plans = plan::Plan::all(&args);
    let (mut failed, mut summary) = (false, String::new());
    for plan in plans {
        eprintln!("storm {plan}");
        let _watch = watch(plan.longest());
        let report = storm::run(&args, plan);
        if args.json {
            println!("{}", report.json());
        } else {
            println!("{report}");
        }
        failed |= !report.failures.is_empty();
        summary += &format!(
            "{}{}",
            if summary.is_empty() { "" } else { "; " },
            report.summary()
        );
    }
    failed |= !summarize(&summary);
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// Where `scripts/test` wants it, leaves a line for its summary.
fn summarize(summary: &str) -> bool {
    let Some(path) = std::env::var_os("WSGATE_STORM_SUMMARY") else {
        return true;
    };
    let written = std::fs::write(path, summary);
    written
        .map_err(|error| eprintln!("summary: {error}"))
        .is_ok()
}

/// Ends this process when its time is over; the keeper sees that it is gone. To be held as long as the storm goes on.
fn watch(limit: Duration) -> Sender<()> {
    let (runs, ended) = channel();
    thread::spawn(move || {
        if ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            eprintln!("error: not done within {limit:?}");
            std::process::exit(1);
        }
    });
    runs
}
