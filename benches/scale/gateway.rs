//! The gateway, as an operator has it: a configuration file, and `wsctl`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use wsgate_protocol::admin::{GatewayState, Reloaded, Status};

use crate::Args;
use crate::host::said;
use crate::keeper::Kept;
use crate::process::eventually;

/// From the start until clients are served, and from the last tunnel's end to the end of its worker.
const LIMIT: Duration = Duration::from_secs(10);

/// Of the first configuration.
const AGE: Duration = Duration::from_secs(3600);

/// For each answer of `wsctl`.
const PATIENCE: &str = "30s";

/// What the new configuration has and the first has not.
const CHANGE: &str = "[[route]]\nhost = \"new.example.com\"\nupstream = \"echo\"\n";

#[derive(Debug)]
pub(crate) struct Gateway {
    kept: Kept,
    program: PathBuf,
    config: String,
    address: SocketAddr,
}

/// What `wsctl` printed, and how long it took from its start to its end.
pub(crate) struct Said {
    pub(crate) text: Vec<u8>,
    pub(crate) took: Duration,
}

impl Gateway {
    /// Starts it and waits until it serves.
    ///
    /// # Errors
    /// If it does not, with its log.
    pub(crate) fn start(args: &Args, servers: &[SocketAddr]) -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("wsgate-scale-").tempdir()?;
        let config = config(args, servers, dir.path());
        let file = dir.path().join("wsgate.toml");
        fs::write(&file, &config)?;
        // `wsctl status` looks twice at a file that is younger than two seconds.
        File::open(&file)?.set_modified(SystemTime::now() - AGE)?;
        let words: [OsString; 3] = ["run".into(), "--config".into(), file.into()];
        let mut gateway = Self {
            kept: Kept::spawn(dir, &args.wsgate, &words)?,
            program: args.wsgate.clone(),
            config,
            address: SocketAddr::from(([0; 4], 0)),
        };
        gateway.address = gateway.serves().map_err(|error| {
            io::Error::other(format!("wsgate does not start: {error}\n{}", gateway.log()))
        })?;
        Ok(gateway)
    }

    fn serves(&self) -> io::Result<SocketAddr> {
        eventually("it serves", LIMIT, || {
            let status = self.status();
            Ok(status.is_ok_and(|status| status.state == GatewayState::Running))
        })?;
        let status = self.status()?;
        let bound = status.listeners.first().map(|it| it.bound.parse());
        bound
            .and_then(Result::ok)
            .ok_or_else(|| io::Error::other("the listener is not bound to an address"))
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// All processes.
    pub(crate) fn processes(&self) -> io::Result<Vec<u32>> {
        self.kept.processes()
    }

    /// `wsctl` with these words.
    ///
    /// # Errors
    /// If it does not end with success.
    pub(crate) fn ctl(&self, words: &[&str]) -> io::Result<Said> {
        let began = Instant::now();
        let output = Command::new(&self.program)
            .args(["ctl", "--timeout", PATIENCE, "--socket"])
            .arg(self.kept.dir().join("admin.sock"))
            .args(words)
            .output()?;
        let took = began.elapsed();
        match output.status.success() {
            true => Ok(Said {
                text: output.stdout,
                took,
            }),
            false => Err(io::Error::other(format!(
                "wsctl {}: {}",
                words.join(" "),
                String::from_utf8_lossy(&output.stderr)
            ))),
        }
    }

    pub(crate) fn status(&self) -> io::Result<Status> {
        Ok(serde_json::from_slice(
            &self.ctl(&["--json", "status"])?.text,
        )?)
    }

    /// Changes the configuration, and has it read.
    ///
    /// # Errors
    /// If there is no new generation, or a warning.
    pub(crate) fn reload(&self) -> io::Result<(Reloaded, Duration)> {
        let changed = format!("{}{CHANGE}", self.config);
        fs::write(self.kept.dir().join("wsgate.toml"), changed)?;
        let said = self.ctl(&["--json", "reload"])?;
        // `unchanged` has no milliseconds.
        let reloaded: Reloaded = serde_json::from_slice(&said.text)?;
        match reloaded.warnings.is_empty() {
            true => Ok((reloaded, said.took)),
            false => Err(io::Error::other(reloaded.warnings.join("; "))),
        }
    }

    /// Until old generations are gone.
    pub(crate) fn wait_for_one_generation(&self) -> io::Result<()> {
        eventually("old generations are gone", LIMIT, || {
            Ok(self.status()?.generations.len() == 1)
        })
    }

    /// Warnings and errors that it has logged; nothing else is.
    pub(crate) fn log(&self) -> String {
        self.kept.log()
    }

    /// That it has logged nothing.
    pub(crate) fn check_log(&self) -> io::Result<()> {
        match self.log().is_empty() {
            true => Ok(()),
            false => Err(io::Error::other("it has logged warnings or errors")),
        }
    }

    pub(crate) fn version(&self) -> io::Result<String> {
        said(&self.program.to_string_lossy(), &["--version"])
    }
}

/// As by default, but that the old generation is to keep its tunnels for as long as this takes, and only trouble is logged.
fn config(args: &Args, servers: &[SocketAddr], dir: &Path) -> String {
    let servers: Vec<String> = servers.iter().map(|it| format!("\"{it}\"")).collect();
    format!(
        "workers = {}

[admin]
socket = \"{}/admin.sock\"

[log]
level = \"warn\"
access = false

[reload]
watch = false

[drain]
grace = \"10h\"

[stop]
grace = \"1s\"

[[listener]]
address = \"127.0.0.1:0\"

[[route]]
upstream = \"echo\"

[upstream.echo]
servers = [{}]

",
        args.workers,
        dir.display(),
        servers.join(", "),
    )
}
