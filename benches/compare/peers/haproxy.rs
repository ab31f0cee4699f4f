//! HAProxy for WebSockets.
//!
//! `maxconn` and `maxpipes` are what 20,000 descriptors allow: it refuses to start with more. Each tunnel
//! takes two of them, and so does each pipe. `splice-auto` splices where it sees bulk.

use std::fmt::Write;

use super::Site;

pub(super) fn config(site: &Site<'_>, splice: bool) -> String {
    let Site { dir, listen, .. } = site;
    let workers = site.setup.workers;
    let dir = dir.display();
    let servers = site.servers.iter().enumerate();
    let servers = servers.fold(String::new(), |mut text, (number, server)| {
        // Writing to a String does not fail.
        let _ = write!(text, "\n    server echo{number} {server}");
        text
    });
    let limit = site.shutdown_limit().map_or_else(String::new, |seconds| {
        format!("\n    hard-stop-after {seconds}s")
    });
    let (pipes, splice) = match splice {
        true => ("\n    maxpipes 400", "\n    option splice-auto"),
        false => ("", ""),
    };
    format!(
        "global
    maxconn 9500
    nbthread {workers}{pipes}
    stats socket {dir}/admin.sock mode 600 level admin expose-fd listeners{limit}

defaults
    mode http
    option forwardfor{splice}
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    timeout http-request 10s
    timeout tunnel 1h

frontend clients
    bind {listen} backlog 4096
    maxconn 9500
    default_backend echo

backend echo
    balance roundrobin{servers}
"
    )
}
