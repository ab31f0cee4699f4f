//! `wsgate demo`: the gateway with the embedded chat servers behind it.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use wsgate_supervisor::Options;

/// Where the demo listens unless `--listen` says otherwise: the next free port from there.
const DEFAULT_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);

#[derive(clap::Args)]
pub(crate) struct DemoArgs {
    /// Where to listen [default: 127.0.0.1:8080, or the next free port].
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
}

/// Runs until Ctrl-C.
pub(crate) fn run(args: &DemoArgs) -> ExitCode {
    match try_run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => super::complain(&*error, 1),
    }
}

fn try_run(args: &DemoArgs) -> Result<(), Box<dyn std::error::Error>> {
    let listen = match args.listen {
        Some(wanted) => wsgate_demo::check_free(wanted)?,
        None => wsgate_demo::free_port(DEFAULT_LISTEN)?,
    };
    let servers = wsgate_demo::start(&["chat-a", "chat-b"])?;
    let directory = Directory::create()?;
    let (config, socket) = (
        directory.0.join("wsgate.toml"),
        directory.0.join("admin.sock"),
    );
    std::fs::write(
        &config,
        wsgate_demo::config(listen, &socket, servers.addresses()),
    )?;
    introduce(listen, &config, &socket)?;
    wsgate_supervisor::run(&Options {
        config,
        stop_at_first_interrupt: true,
    })?;
    drop(servers);
    Ok(())
}

fn introduce(listen: SocketAddr, config: &Path, socket: &Path) -> io::Result<()> {
    let program = std::env::current_exe()?;
    let ctl = format!("{} ctl --socket {}", quoted(&program), quoted(socket));
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "Open this page in two tabs, and chat:  http://{listen}/"
    )?;
    writeln!(out)?;
    writeln!(out, "The configuration is {}", config.display())?;
    writeln!(
        out,
        "  Try: change `balance`, and save. wsgate reloads by itself; your sockets stay. Those of a server that you remove end after the grace."
    )?;
    writeln!(out, "In another terminal:")?;
    for command in ["status", "tunnels", "reload"] {
        writeln!(out, "  {ctl} {command}")?;
    }
    writeln!(out, "Ctrl-C ends the demo.")?;
    writeln!(out)?;
    out.flush()
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = text
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "/._-+".contains(c));
    if plain {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// A directory of the demo's own, gone with it.
struct Directory(PathBuf);

impl Directory {
    fn create() -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let path = std::env::temp_dir().join(format!("wsgate-demo-{}", std::process::id()));
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|error| {
            let text = format!(
                "cannot make {} for the demo: {error} (TMPDIR names another place)",
                path.display()
            );
            io::Error::new(error.kind(), text)
        })?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            super::say(
                &mut io::stderr(),
                &format!("{} not removed: {error}", self.0.display()),
            );
        }
    }
}
