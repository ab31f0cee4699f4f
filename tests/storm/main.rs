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
    let mut failed = false;
    for plan in plans {
        eprintln!("storm {plan}");
        let report = storm::run(&args, plan);
        if args.json {
            println!("{}", report.json());
        } else {
            println!("{report}");
        }
        failed |= !report.failures.is_empty();
    }
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
