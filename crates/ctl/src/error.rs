//! What can go wrong, what the operator is told about it, and the exit code it means.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::StatusCode;
use wsgate_protocol::admin::{ApiError, UnjudgedWorker};

use crate::args::{Command, CtlArgs};
use crate::console::Console;

/// Why a command did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CtlError {
    #[error(
        "no supervisor answers at {}: {}; {}start it with `systemctl start wsgate` or `wsgate run --config FILE`, or name its socket with --socket",
        socket.display(), reason(source), orphans(socket)
    )]
    NoSupervisor { socket: PathBuf, source: io::Error },
    #[error(
        "the supervisor{} does not answer at {}: nothing came for {}; {} and the end of its log tell more, and --timeout waits longer",
        pid.map_or_else(String::new, |pid| format!(" (pid {pid})")),
        socket.display(),
        humantime::format_duration(*patience),
        where_to_look(*pid)
    )]
    NoAnswer {
        socket: PathBuf,
        patience: Duration,
        pid: Option<u32>,
    },
    #[error("permission denied for {}: {}", socket.display(), who_may(socket))]
    PermissionDenied { socket: PathBuf },
    #[error("cannot connect to {}: {source}", socket.display())]
    Connect { socket: PathBuf, source: io::Error },
    #[error("the supervisor ended the connection without a full answer: {0}")]
    Broken(#[from] hyper::Error),
    #[error("{}", .error.message)]
    Refused { error: Box<ApiError>, json: Vec<u8> },
    #[error("the reload failed: {message}")]
    ReloadFailed {
        message: String,
        errors: Vec<String>,
    },
    #[error("the supervisor answered {status}{}", excerpt(body))]
    NoErrorBody { status: StatusCode, body: Vec<u8> },
    #[error(
        "the answer to {path} is not what this wsctl understands ({source}); is the supervisor of another version?"
    )]
    NotUnderstood {
        path: String,
        source: serde_json::Error,
    },
    #[error("these workers did not answer within 1 s, their tunnels are not listed: {pids}")]
    Incomplete { pids: String },
    #[error(
        "these workers did not answer within 1 s, their tunnels are not judged: {}",
        pids(workers)
    )]
    Unjudged { workers: Vec<UnjudgedWorker> },
    #[error("the supervisor has ended, at {at}")]
    StreamEnded { at: String },
    #[error("{refused} of {of} tunnels were not closed")]
    NotClosed { refused: usize, of: usize },
    #[error("not a valid request: {0}")]
    Request(#[from] http::Error),
    #[error("cannot write to the standard output: {0}")]
    Output(#[from] io::Error),
    #[error("cannot start: {0}")]
    Runtime(io::Error),
    #[error("gave up after {}", humantime::format_duration(*.0))]
    TimedOut(Duration),
    #[error("interrupted")]
    Interrupted,
}

impl CtlError {
    /// As admin.md of the design and `wsctl --help` list them.
    fn exit_code(&self) -> u8 {
        match self {
            Self::NoSupervisor { .. } | Self::StreamEnded { .. } => 3,
            Self::TimedOut(_) | Self::NoAnswer { .. } => 4,
            Self::Interrupted => 130,
            // The reader, as `head`, has seen what it wanted.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            _ => 1,
        }
    }

    /// What stands below the first line, and what to do about it.
    fn details_and_help(&self) -> (&[String], Option<&str>) {
        match self {
            Self::Refused { error, .. } => {
                let help = Some(error.help.as_str()).filter(|help| !help.is_empty());
                (&error.details, help)
            }
            Self::ReloadFailed { errors, .. } => (errors, None),
            _ => (&[], None),
        }
    }
}

/// Tells the operator, and returns the exit code. What cannot be written is lost:
/// the exit code still says it.
pub(crate) fn report(error: &CtlError, args: &CtlArgs, console: &mut Console<'_>) -> u8 {
    let code = error.exit_code();
    if code == 0 {
        return code;
    }
    let goes_on = match error {
        CtlError::Broken(_) => what_may_be_done(&args.command),
        _ => what_goes_on(&args.command).filter(|_| matches!(code, 4 | 130)),
    };
    tell_with(error, goes_on, args.json, console);
    code
}

/// Tells the operator of an error that is not the end of the command.
pub(crate) fn tell(error: &CtlError, json: bool, console: &mut Console<'_>) {
    tell_with(error, None, json, console);
}

fn tell_with(error: &CtlError, goes_on: Option<&str>, json: bool, console: &mut Console<'_>) {
    if let CtlError::Refused { json: body, .. } = error
        && json
    {
        let _ = console.json(body).and_then(|()| console.flush());
    }
    let _ = console.err.write_all(render(error, goes_on).as_bytes());
}

fn render(error: &CtlError, goes_on: Option<&str>) -> String {
    let kind = match error {
        // What could be listed has been.
        CtlError::Incomplete { .. } | CtlError::Unjudged { .. } => "warning",
        _ => "error",
    };
    let mut text = format!("{kind}: {error}");
    if let Some(what) = goes_on {
        let _ = write!(text, "; {what}");
    }
    text.push('\n');
    let (details, help) = error.details_and_help();
    for detail in details {
        let _ = writeln!(text, "\n{}", detail.trim_end());
    }
    if let Some(help) = help {
        let gap = if details.is_empty() { "" } else { "\n" };
        let _ = writeln!(text, "{gap}help: {help}");
    }
    text
}

/// The supervisor may have died in the midst of it.
fn what_may_be_done(command: &Command) -> Option<&'static str> {
    match command {
        Command::Reload(reload) if reload.dry_run => None,
        Command::Reload(_) => {
            Some("the reload may have been committed: `wsctl status` when a supervisor is back")
        }
        _ => None,
    }
}

/// Leaving wsctl undoes nothing: the supervisor does what it was told.
fn what_goes_on(command: &Command) -> Option<&'static str> {
    match command {
        Command::Reload(reload) if reload.dry_run => None,
        Command::Reload(_) => Some("the reload goes on, see `wsctl status`"),
        Command::Stop { .. } => Some("the stop goes on"),
        Command::Drain(_) | Command::Undrain { .. } | Command::Maint { .. } => {
            Some("the change may have been made, see `wsctl status`")
        }
        Command::Close(_) => Some("tunnels may have been closed, see `wsctl tunnels`"),
        Command::Status | Command::Tunnels(_) | Command::Events | Command::Completions { .. } => {
            None
        }
    }
}

/// The process's state in ps(1) tells one that is stopped (T) from one that is stuck (D) or busy (R).
fn where_to_look(pid: Option<u32>) -> String {
    pid.map_or_else(
        || "`ps -C wsgate -o pid,stat,args`".to_owned(),
        |pid| format!("`ps -o stat,wchan:32,args -p {pid}`"),
    )
}

fn pids(workers: &[UnjudgedWorker]) -> String {
    let pids: Vec<String> = workers.iter().map(|it| it.pid.to_string()).collect();
    pids.join(", ")
}

fn reason(source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::NotFound => "the socket does not exist".to_owned(),
        io::ErrorKind::ConnectionRefused => "nothing listens on the socket".to_owned(),
        _ => source.to_string(),
    }
}

/// They are worth more than a word: their tunnels live, and the next supervisor takes them over.
fn orphans(socket: &Path) -> String {
    let workers = crate::orphans::serving_on(socket);
    if workers.is_empty() {
        return String::new();
    }
    format!(
        "these workers go on without one: {}; a supervisor that starts takes them over, and `wsgate end-orphans --config FILE` (as their user, or root) ends them; ",
        workers.join(", ")
    )
}

fn excerpt(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let line: String = text.trim().chars().take(200).collect();
    if line.is_empty() {
        line
    } else {
        format!(": {line}")
    }
}

/// Connecting asks for write permission on the socket and search permission on
/// its directories (unix(7)).
fn who_may(socket: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    let of_socket = std::fs::metadata(socket).map(|socket| (socket, 0o020));
    // Not even to be looked at: then it is the directory that keeps others out.
    let of_directory = || Some((std::fs::metadata(socket.parent()?).ok()?, 0o010));
    match of_socket.ok().or_else(of_directory) {
        Some((file, needed)) if file.gid() != 0 && file.mode() & needed != 0 => format!(
            "use sudo, or become a member of the group `{}`",
            group_name(file.gid())
        ),
        Some(_) => "use sudo".to_owned(),
        None => "use sudo, or become a member of the socket's group".to_owned(),
    }
}

/// By /etc/group (group(5)); the number, where the name is kept elsewhere.
fn group_name(gid: u32) -> String {
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    name_of(&groups, gid).map_or_else(|| gid.to_string(), str::to_owned)
}

fn name_of(groups: &str, gid: u32) -> Option<&str> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_shown_by_its_name() {
        let groups = "root:x:0:\nbroken\nwsgate:x:990:ada,bob\n";
        assert_eq!(name_of(groups, 990), Some("wsgate"));
        assert_eq!(name_of(groups, 991), None);
    }

    #[test]
    fn a_reload_whose_answer_never_came_may_have_been_committed() {
        let may = |reload| what_may_be_done(&Command::Reload(reload));
        let said = may(crate::args::ReloadArgs::default());
        assert!(said.is_some_and(|said| said.contains("may have been committed")));
        let dry_run = crate::args::ReloadArgs {
            dry_run: true,
            ..Default::default()
        };
        assert_eq!(may(dry_run), None);
        assert_eq!(what_may_be_done(&Command::Status), None);
    }

    #[test]
    fn a_closed_pipe_is_a_quiet_end() {
        let closed = CtlError::Output(io::ErrorKind::BrokenPipe.into());
        let full = CtlError::Output(io::ErrorKind::StorageFull.into());
        assert_eq!((closed.exit_code(), full.exit_code()), (0, 1));
    }
}
