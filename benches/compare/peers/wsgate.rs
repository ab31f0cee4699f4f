//! wsgate, with nothing but what the others have too.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use super::Site;

/// `change` makes one configuration differ from another.
pub(super) fn config(site: &Site<'_>, change: u32) -> String {
    let Site { dir, listen, .. } = site;
    let workers = site.setup.workers;
    let servers: Vec<String> = site
        .servers
        .iter()
        .map(|server| format!("\"{server}\""))
        .collect();
    let grace = site
        .shutdown_limit()
        .map_or_else(String::new, |seconds| format!("grace = \"{seconds}s\"\n"));
    let handover = site.setup.handover;
    format!(
        "workers = {workers}

[[listener]]
address = \"{listen}\"

[[route]]
upstream = \"echo\"
idle_timeout = \"1h\"

[upstream.echo]
servers = [{}]

[reload]
watch = false

[drain]
handover = {handover}
{grace}close_rate = {}

[stop]
grace = \"1s\"

[admin]
socket = \"{}/admin.sock\"

[log]
level = \"warn\"
access = false
",
        servers.join(", "),
        100 + change,
        dir.display()
    )
}

/// Writes another configuration and has it read.
pub(super) fn reload(program: &Path, site: &Site<'_>, times: u32) -> io::Result<()> {
    fs::write(site.dir.join("config"), config(site, times))?;
    let output = Command::new(program)
        .args(["ctl", "--socket"])
        .arg(site.dir.join("admin.sock"))
        .arg("reload")
        .output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "wsctl reload: {}",
            String::from_utf8_lossy(&output.stderr)
        ))),
    }
}
