//! `wsgate`: the daemon. Each command is a few lines; the work is in the crates.

mod demo;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use mimalloc::MiMalloc;
use wsgate_supervisor::{Ended, Error, Options};

/// It keeps small things of one size together: with the C library's, what a burst of handshakes
/// leaves behind (its tunnels) pins the pages of their buffers, 2.4 to 4.3 KiB of them for each tunnel.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Where the configuration is unless `--config` says otherwise.
const DEFAULT_CONFIG: &str = "/etc/wsgate/wsgate.toml";

/// A WebSocket gateway whose live tunnels outlive what happens around them.
#[derive(Parser)]
#[command(name = "wsgate", version, about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway in the foreground until it is told to stop.
    ///
    /// Signals: HUP reloads; TERM, QUIT and INT stop gracefully, a second INT at once;
    /// USR1 reopens log files. Exit code 2: the configuration has mistakes; 1: it could not start.
    Run(ConfigArgs),
    /// Check the configuration, and say what is wrong with it. Exit code 0: nothing; 2: something.
    Check(ConfigArgs),
    /// End workers that serve on although their supervisor is gone, if no other one is to come.
    ///
    /// They stop as `wsctl stop` would have stopped them. Exit code 0: none is left;
    /// 1: a supervisor lives, or they are of another user (be that one, or root).
    EndOrphans {
        #[command(flatten)]
        config: ConfigArgs,
        /// Close their tunnels at once, whatever stop.grace says.
        #[arg(long)]
        now: bool,
    },
    /// Run the gateway with a chat server behind it, to try it out.
    Demo(demo::DemoArgs),
    /// Control the running gateway; the same as `wsctl`.
    Ctl(wsgate_ctl::CtlArgs),
    /// Write the man pages of wsgate and wsctl into a directory.
    #[command(hide = true)]
    Man {
        /// The directory, which is made if it is not there.
        directory: PathBuf,
    },
}

#[derive(clap::Args)]
struct ConfigArgs {
    /// The configuration file.
    #[arg(long, short, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
}

fn main() -> ExitCode {
    // The supervisor tells a worker what it is by its name, which `ps` shows.
    if wsgate_worker::is_worker(std::env::args_os().next().as_deref()) {
        return wsgate_worker::run();
    }
    match Cli::parse().command {
        Command::Run(ConfigArgs { config }) => run(&Options {
            // What is shown of it has to mean the same in every directory.
            config: std::path::absolute(&config).unwrap_or(config),
            stop_at_first_interrupt: false,
        }),
        Command::Check(ConfigArgs { config }) => check(&config),
        Command::EndOrphans { config, now } => end_orphans(&config.config, now),
        Command::Demo(args) => demo::run(&args),
        Command::Ctl(args) => wsgate_ctl::run(args),
        Command::Man { directory } => man(&directory),
    }
}

fn run(options: &Options) -> ExitCode {
    match wsgate_supervisor::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Config(errors)) => {
            say(&mut std::io::stderr(), &errors.to_string());
            ExitCode::from(2)
        }
        Err(error) => complain(&error, 1),
    }
}

fn check(config: &Path) -> ExitCode {
    match wsgate_config::load(config) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                say(&mut std::io::stderr(), &format!("warning: {warning}"));
            }
            say(
                &mut std::io::stdout(),
                &format!("{}: no mistakes", config.display()),
            );
            ExitCode::SUCCESS
        }
        Err(errors) => {
            say(&mut std::io::stderr(), &errors.to_string());
            ExitCode::from(2)
        }
    }
}

fn end_orphans(config: &Path, now: bool) -> ExitCode {
    // As `run` has it: what was written down last knows the file by this name.
    let config = std::path::absolute(config).unwrap_or_else(|_| config.to_owned());
    match wsgate_supervisor::end_orphans(&config, now) {
        Ok(Ended {
            workers: 0,
            directory,
            ..
        }) => {
            let directory = directory.display();
            let text = format!("no workers without a supervisor in {directory}");
            say(&mut std::io::stdout(), &text);
            ExitCode::SUCCESS
        }
        Ok(Ended {
            workers,
            tunnels,
            killed,
            ..
        }) => {
            let text =
                format!("ended {workers} workers with {tunnels} tunnels, {killed} by SIGKILL");
            say(&mut std::io::stdout(), &text);
            ExitCode::SUCCESS
        }
        Err(error) => complain(&error, 1),
    }
}

fn man(directory: &Path) -> ExitCode {
    let pages = [Cli::command(), wsgate_ctl::Wsctl::command()];
    let mut pages = pages.into_iter();
    let written = std::fs::create_dir_all(directory)
        .and_then(|()| pages.try_for_each(|command| clap_mangen::generate_to(command, directory)));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = format!("cannot write man pages to {}: {error}", directory.display());
            complain(&std::io::Error::other(text), 1)
        }
    }
}

fn complain(error: &dyn std::error::Error, code: u8) -> ExitCode {
    say(&mut std::io::stderr(), &format!("wsgate: {error}"));
    ExitCode::from(code)
}

/// A terminal that is gone cannot be told.
fn say(to: &mut impl Write, text: &str) {
    drop(writeln!(to, "{text}"));
}
