//! The gateways and their configurations, as their experts would set them up for WebSockets.

mod haproxy;
mod nginx;
mod wsgate;

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::ValueEnum;
use rustix::process::Signal;

use crate::args::Args;
use crate::process;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Peer {
    Wsgate,
    Nginx,
    #[value(name = "nginx-64k")]
    Nginx64k,
    Haproxy,
    HaproxySplice,
}

impl Peer {
    pub(crate) const ALL: [Self; 5] = [
        Self::Wsgate,
        Self::Nginx,
        Self::Nginx64k,
        Self::Haproxy,
        Self::HaproxySplice,
    ];
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wsgate => "wsgate",
            Self::Nginx => "nginx",
            Self::Nginx64k => "nginx, 64k buffers",
            Self::Haproxy => "HAProxy",
            Self::HaproxySplice => "HAProxy, splice",
        })
    }
}

/// What differs from case to case.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    /// Worker processes, or threads.
    pub(crate) workers: usize,
    /// How long tunnels may stay after a reload, if not for as long as they like.
    pub(crate) shutdown_limit: Option<Duration>,
    /// Of wsgate: whether tunnels move to the new workers at a reload.
    pub(crate) handover: bool,
}

/// What a configuration is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) listen: SocketAddr,
    pub(crate) servers: &'a [SocketAddr],
    pub(crate) setup: &'a Setup,
}

impl Site<'_> {
    /// Whole seconds.
    fn shutdown_limit(&self) -> Option<u64> {
        self.setup.shutdown_limit.map(|limit| limit.as_secs())
    }
}

/// Looks whether the programs are there.
///
/// # Errors
/// If one is not, with the packages to be installed.
pub(crate) fn find_programs(peers: &[Peer]) -> io::Result<()> {
    let mut programs: Vec<&str> = peers.iter().filter_map(|peer| peer.package()).collect();
    programs.dedup();
    programs.retain(|program| !is_there(program));
    if programs.is_empty() {
        return Ok(());
    }
    let list = programs.join(" ");
    Err(io::Error::other(format!(
        "not installed: {list}. On Debian: apt-get install --no-install-recommends {list}; or leave them out with --peers"
    )))
}

fn is_there(program: &str) -> bool {
    let asked = Command::new(program).arg("-v").output();
    asked.is_ok_and(|output| output.status.success())
}

impl Peer {
    /// The Debian package, which is the program's name as well.
    const fn package(self) -> Option<&'static str> {
        match self {
            Self::Wsgate => None,
            Self::Nginx | Self::Nginx64k => Some("nginx"),
            Self::Haproxy | Self::HaproxySplice => Some("haproxy"),
        }
    }

    pub(crate) fn config(self, site: &Site<'_>) -> String {
        match self {
            Self::Wsgate => wsgate::config(site, 0),
            Self::Nginx => nginx::config(site, false),
            Self::Nginx64k => nginx::config(site, true),
            Self::Haproxy => haproxy::config(site, false),
            Self::HaproxySplice => haproxy::config(site, true),
        }
    }

    pub(crate) fn command(self, args: &Args, dir: &Path) -> (PathBuf, Vec<OsString>) {
        let config = OsString::from(dir.join("config"));
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        match self {
            Self::Wsgate => (
                args.wsgate.clone(),
                [words(&["run", "--config"]), vec![config]].concat(),
            ),
            Self::Nginx | Self::Nginx64k => (
                "nginx".into(),
                [
                    words(&["-p"]),
                    vec![dir.into()],
                    words(&["-c"]),
                    vec![config],
                ]
                .concat(),
            ),
            // Master and worker, in the foreground: as its unit file of Debian starts it.
            Self::Haproxy | Self::HaproxySplice => (
                "haproxy".into(),
                [words(&["-W", "-db", "-f"]), vec![config]].concat(),
            ),
        }
    }

    /// Processes that each configuration has, besides the main one.
    pub(crate) const fn processes(self, setup: &Setup) -> usize {
        match self {
            Self::Wsgate | Self::Nginx | Self::Nginx64k => setup.workers,
            // Its workers are threads.
            Self::Haproxy | Self::HaproxySplice => 1,
        }
    }

    /// Makes the process `main` read its configuration again. For wsgate there has to be a change in it, or
    /// nothing is done; `times` makes one.
    pub(crate) fn reload(
        self,
        main: u32,
        program: &Path,
        site: &Site<'_>,
        times: u32,
    ) -> io::Result<()> {
        match self {
            Self::Wsgate => return wsgate::reload(program, site, times),
            // What `nginx -s reload` sends.
            Self::Nginx | Self::Nginx64k => process::signal(main, Signal::HUP),
            Self::Haproxy | Self::HaproxySplice => process::signal(main, Signal::USR2),
        }
        Ok(())
    }
}
