//! wsctl: shows and controls a running wsgate. All it does is in `wsgate_ctl`.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    wsgate_ctl::run(wsgate_ctl::Wsctl::parse().args)
}
