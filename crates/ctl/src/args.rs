//! The command line, as clap sees it. No I/O happens here.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PathBufValueParser, PossibleValuesParser, TypedValueParser};
use clap::parser::ValueSource;
use wsgate_protocol::admin::{
    DEFAULT_SOCKET, LONGEST_REASON, TunnelFilter, TunnelState, is_close_code,
};

const EXIT_CODES: &str = "Exit codes: 0 done, 1 refused or failed, 2 wrong usage, \
    3 no supervisor, 4 no answer in time, 130 interrupted.";

/// The API's own bounds, so that what it would refuse is wrong usage here.
const LONGEST_GRACE: Duration = Duration::from_secs(365 * 24 * 3_600);
const HIGHEST_CLOSE_RATE: u32 = 1_000_000;

/// Above the arguments that every command takes.
const GLOBAL: &str = "Global options";

/// Shows and controls a running wsgate.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "wsctl", version)]
pub struct Wsctl {
    /// What to do, and how to get there.
    #[command(flatten)]
    pub args: CtlArgs,
}

/// The arguments of `wsctl`, and of `wsgate ctl`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXIT_CODES, subcommand_required = true)]
pub struct CtlArgs {
    /// The supervisor's admin socket; else the variable WSGATE_SOCKET
    #[arg(long, value_name = "PATH", env = "WSGATE_SOCKET", default_value = DEFAULT_SOCKET, value_parser = SocketParser, global = true, help_heading = GLOBAL)]
    pub socket: PathBuf,
    /// Print the API's own JSON
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub json: bool,
    /// Give up after this long, with exit code 4 [example: 30s]
    ///
    /// Without it, all commands but reload and stop give up when the supervisor has not answered
    /// for 10 s.
    #[arg(long, value_name = "DURATION", value_parser = duration, global = true, help_heading = GLOBAL)]
    pub timeout: Option<Duration>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Show generations, workers, listeners, upstreams and totals
    Status,
    /// List the live tunnels of every generation
    ///
    /// IN is what came from the client, OUT what came from the server. A narrow
    /// terminal leaves out columns; a pipe and --json have them all.
    Tunnels(TunnelsArgs),
    /// Close tunnels politely, each by its id
    ///
    /// Client and server get a Close frame. Returns when the closes have begun. A tunnel
    /// that is refused does not keep the others open.
    Close(CloseArgs),
    /// Make the configuration on disk take effect; live tunnels move along
    ///
    /// Returns when a new generation is active and the live tunnels have moved to it. Tunnels whose
    /// route or server is gone are drained: they have until the end of `drain.grace`. A configuration with
    /// mistakes changes nothing, and all its mistakes are shown.
    Reload(ReloadArgs),
    /// Print what happens, a line each, until Ctrl-C
    ///
    /// Reloads, generations, workers, servers' states, the stop. With --json a JSON object a line. Ends
    /// with exit code 3 when the supervisor ends.
    Events,
    /// Stop wsgate: no new clients, and tunnels have until their deadline
    Stop {
        /// Close the tunnels now
        #[arg(long)]
        now: bool,
    },
    /// Send a server nothing new, and close its tunnels by the end of a grace
    Drain(DrainArgs),
    /// Send a server new tunnels and requests again, after drain or maint
    Undrain {
        /// The server, for example chat/127.0.0.1:9001
        #[arg(value_name = "UPSTREAM/SERVER")]
        target: Target,
    },
    /// Send a server nothing new; its tunnels stay
    Maint {
        /// The server, for example chat/127.0.0.1:9001
        #[arg(value_name = "UPSTREAM/SERVER")]
        target: Target,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// How to reload.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct ReloadArgs {
    /// Wait until all older generations are gone, and all tunnels that are drained
    #[arg(long)]
    pub wait_drained: bool,
    /// Change nothing: show how many tunnels would be kept and drained, and why
    #[arg(long, conflicts_with_all = ["wait_drained", "force"])]
    pub dry_run: bool,
    /// Reload although `reload.max_drained` holds it back
    #[arg(long)]
    pub force: bool,
}

/// Which tunnels to list: those that match all that is given.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct TunnelsArgs {
    /// Only the one with this id
    #[arg(long)]
    pub id: Option<String>,
    /// Only those of this route
    #[arg(long)]
    pub route: Option<String>,
    /// Only those to this upstream
    #[arg(long)]
    pub upstream: Option<String>,
    /// Only those to this server's address
    #[arg(long)]
    pub server: Option<String>,
    /// Only those of this client, with or without its port
    #[arg(long)]
    pub client: Option<String>,
    /// Only those of the worker with this pid
    #[arg(long, value_name = "PID")]
    pub worker: Option<u32>,
    /// Only those of this generation
    #[arg(long)]
    pub generation: Option<u64>,
    /// Only those in this state
    #[arg(long, value_parser = tunnel_states())]
    pub state: Option<TunnelState>,
    /// Only those at least this old [example: 1h]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub older_than: Option<Duration>,
    /// Only those without a byte for this long [example: 30s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub idle_for: Option<Duration>,
}

impl TunnelsArgs {
    pub(crate) fn filter(&self) -> TunnelFilter {
        TunnelFilter {
            id: self.id.clone(),
            route: self.route.clone(),
            upstream: self.upstream.clone(),
            server: self.server.clone(),
            client: self.client.clone(),
            worker: self.worker,
            generation: self.generation,
            state: self.state,
            older_than: self.older_than.map(|age| age.as_secs_f64()),
            idle_for: self.idle_for.map(|idle| idle.as_secs_f64()),
        }
    }
}

/// Which tunnels to close, and what their peers are told.
#[derive(Clone, Debug, clap::Args)]
pub struct CloseArgs {
    /// Ids, as `wsctl tunnels` lists them
    #[arg(value_name = "ID", required = true, value_parser = tunnel_id)]
    pub ids: Vec<String>,
    /// Status code of the Close frames: 1000 to 1003, 1007 to 1014 or 3000 to 4999; 1001 (Going Away) if not given
    #[arg(long, value_name = "N", value_parser = close_code)]
    pub code: Option<u16>,
    /// Their reason, at most 123 bytes; "closed by operator" if not given
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    pub reason: Option<String>,
}

/// Which server to drain, and how gently.
#[derive(Clone, Debug, clap::Args)]
pub struct DrainArgs {
    /// The server, for example chat/127.0.0.1:9001
    #[arg(value_name = "UPSTREAM/SERVER")]
    pub target: Target,
    /// How long its tunnels may stay, 365d at most; `drain.grace` of the configuration if not given [example: 10m]
    #[arg(long, value_name = "DURATION", value_parser = grace)]
    pub grace: Option<Duration>,
    /// Close at most N tunnels per second; `drain.close_rate` of the configuration if not given
    #[arg(long, value_name = "N", value_parser = close_rate)]
    pub close_rate: Option<u32>,
}

/// A server of an upstream, written `UPSTREAM/SERVER`. Shown as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The upstream's name, which has no `/`.
    pub upstream: String,
    /// The server's address, which may have some, as `unix:/run/chat.sock`.
    pub server: String,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((upstream, server)) if !upstream.is_empty() && !server.is_empty() => Ok(Self {
                upstream: upstream.to_owned(),
                server: server.to_owned(),
            }),
            _ => Err("expected UPSTREAM/SERVER, as chat/127.0.0.1:9001".to_owned()),
        }
    }
}

/// A path; an environment variable that is set to nothing counts as unset.
#[derive(Clone)]
struct SocketParser;

impl TypedValueParser for SocketParser {
    type Value = PathBuf;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<PathBuf, clap::Error> {
        PathBufValueParser::new().parse_ref(command, argument, value)
    }

    fn parse_ref_(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
        source: ValueSource,
    ) -> Result<PathBuf, clap::Error> {
        if source == ValueSource::EnvVariable && value.is_empty() {
            return Ok(DEFAULT_SOCKET.into());
        }
        self.parse_ref(command, argument, value)
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "write a number with its unit, for example 1h or 30s".to_owned())
}

fn grace(text: &str) -> Result<Duration, String> {
    let grace = duration(text)?;
    if grace > LONGEST_GRACE {
        return Err("365d is the longest grace".to_owned());
    }
    Ok(grace)
}

fn close_rate(text: &str) -> Result<u32, String> {
    let rate = text.parse().ok();
    rate.filter(|rate| (1..=HIGHEST_CLOSE_RATE).contains(rate))
        .ok_or_else(|| "expected tunnels per second, from 1 to 1,000,000".to_owned())
}

fn close_code(text: &str) -> Result<u16, String> {
    let code = text.parse().ok();
    code.filter(|code| is_close_code(*code))
        .ok_or_else(|| "expected 1000 to 1003, 1007 to 1014 or 3000 to 4999".to_owned())
}

/// The API would take an empty one for the list of all.
fn tunnel_id(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("an id is empty; `wsctl tunnels` lists them".to_owned());
    }
    Ok(text.to_owned())
}

fn reason(text: &str) -> Result<String, String> {
    if text.len() > LONGEST_REASON {
        let length = text.len();
        return Err(format!(
            "it has {length} bytes, a Close frame carries {LONGEST_REASON}"
        ));
    }
    Ok(text.to_owned())
}

/// The names here are those of the JSON.
fn tunnel_states() -> impl TypedValueParser<Value = TunnelState> {
    PossibleValuesParser::new(["open", "draining", "closing"]).map(|name| match name.as_str() {
        "open" => TunnelState::Open,
        "draining" => TunnelState::Draining,
        _ => TunnelState::Closing,
    })
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    fn parse(line: &str) -> Result<Wsctl, clap::Error> {
        Wsctl::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_sound() {
        Wsctl::command().debug_assert();
    }

    #[test]
    fn a_server_may_be_a_unix_socket() {
        let target: Target = "chat/unix:/run/x.sock".parse().unwrap();
        assert_eq!(target.upstream, "chat");
        assert_eq!(target.server, "unix:/run/x.sock");
    }

    #[test]
    fn a_target_without_upstream_or_server_is_wrong_usage() {
        for line in ["drain chat", "drain /a:1", "maint chat/", "undrain"] {
            let error = parse(&format!("wsctl {line}")).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}: {error}");
        }
    }

    #[test]
    fn the_filters_are_those_of_the_api() {
        let line = "wsctl tunnels --id 6b-1-1 --route r --worker 7 --state draining --older-than 1h --idle-for 1500ms";
        let Command::Tunnels(args) = parse(line).unwrap().args.command else {
            panic!("not the tunnels command");
        };
        let expected = TunnelFilter {
            id: Some("6b-1-1".to_owned()),
            route: Some("r".to_owned()),
            worker: Some(7),
            state: Some(TunnelState::Draining),
            older_than: Some(3600.0),
            idle_for: Some(1.5),
            ..TunnelFilter::default()
        };
        assert_eq!(args.filter(), expected);
    }

    #[test]
    fn global_arguments_may_follow_the_command() {
        let args = parse("wsctl status --json --socket /tmp/a.sock --timeout 5s")
            .unwrap()
            .args;
        assert!(args.json);
        assert_eq!(args.socket, PathBuf::from("/tmp/a.sock"));
        assert_eq!(args.timeout, Some(Duration::from_secs(5)));
    }

    #[test]
    fn what_is_not_built_is_wrong_usage() {
        for line in [
            "reload --dry-run --force",
            "reload --dry-run --wait-drained",
            "drain a/b --wait",
            "upgrade",
            "close --server a",
        ] {
            assert_eq!(
                parse(&format!("wsctl {line}")).unwrap_err().exit_code(),
                2,
                "{line}"
            );
        }
    }

    #[test]
    fn wrong_usage_says_what_is_right() {
        for (line, expected) in [
            ("drain a/b --close-rate 0", "from 1 to 1,000,000"),
            ("drain a/b --close-rate 1000001", "from 1 to 1,000,000"),
            ("drain a/b --grace 366d", "365d is the longest grace"),
            ("close", "<ID>"),
            ("close a --code 1006", "1007 to 1014"),
            ("close a --code 70000", "1007 to 1014"),
            ("tunnels --older-than x", "for example 1h or 30s"),
            ("tunnels --idle-for 10", "for example 1h or 30s"),
            ("status --timeout soon", "for example 1h or 30s"),
        ] {
            let error = parse(&format!("wsctl {line}")).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(expected), "{line}: {error}");
        }
        assert!(parse("wsctl drain a/b --grace 365d --close-rate 1000000").is_ok());
    }

    #[test]
    fn an_empty_id_is_wrong_usage() {
        let error = Wsctl::try_parse_from(["wsctl", "close", "a", ""]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let expected = "an id is empty; `wsctl tunnels` lists them";
        assert!(error.to_string().contains(expected), "{error}");
    }

    #[test]
    fn a_reason_is_counted_in_bytes() {
        let close =
            |reason: &str| Wsctl::try_parse_from(["wsctl", "close", "a", "--reason", reason]);
        assert!(close(&"x".repeat(123)).is_ok());
        let error = close(&"ü".repeat(62)).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("124 bytes"), "{error}");
    }

    #[test]
    fn what_help_says_is_what_is_sent_without_a_word() {
        use wsgate_protocol::admin::{CLOSE_CODE, CLOSE_REASON};
        let mut wsctl = Wsctl::command();
        let close = wsctl.find_subcommand_mut("close").unwrap();
        let help = close.render_long_help().to_string();
        assert!(
            help.contains(&format!("{CLOSE_CODE} (Going Away) if")),
            "{help}"
        );
        assert!(help.contains(&format!("\"{CLOSE_REASON}\" if")), "{help}");
    }

    #[test]
    fn an_empty_variable_counts_as_unset_but_an_empty_argument_is_wrong() {
        let parse = |value: &str, source| {
            SocketParser.parse_ref_(&Wsctl::command(), None, OsStr::new(value), source)
        };
        let from_environment = |value| parse(value, ValueSource::EnvVariable).unwrap();
        assert_eq!(from_environment(""), PathBuf::from(DEFAULT_SOCKET));
        assert_eq!(from_environment("/a"), PathBuf::from("/a"));
        assert!(parse("", ValueSource::CommandLine).is_err());
    }
}
