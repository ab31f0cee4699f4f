//! nginx for WebSockets.
//!
//! `worker_connections` is beyond what the descriptors allow, since each tunnel takes two.
//! `multi_accept` makes no difference in any case here, so it is as it is by default.

use std::fmt::Write;

use super::Site;

/// `proxy_buffer_size` is what a tunnel has for each direction.
const LARGE_BUFFERS: &str = "
    proxy_buffer_size 64k;
    proxy_buffers 8 64k;
    proxy_busy_buffers_size 128k;";

pub(super) fn config(site: &Site<'_>, large_buffers: bool) -> String {
    let Site { dir, listen, .. } = site;
    let workers = site.setup.workers;
    let dir = dir.display();
    let servers = site.servers.iter().fold(String::new(), |mut text, server| {
        // Writing to a String does not fail.
        let _ = write!(text, " server {server};");
        text
    });
    let limit = site.shutdown_limit().map_or_else(String::new, |seconds| {
        format!("worker_shutdown_timeout {seconds}s;")
    });
    let buffers = if large_buffers { LARGE_BUFFERS } else { "" };
    format!(
        "daemon off;
worker_processes {workers};
worker_rlimit_nofile 20000;
{limit}
pid {dir}/nginx.pid;
error_log {dir}/error.log error;
events {{
    worker_connections 40000;
}}
http {{
    access_log off;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    tcp_nodelay on;
    map $http_upgrade $connection_upgrade {{
        default upgrade;
        '' close;
    }}
    upstream echo {{{servers} }}
    server {{
        listen {listen} backlog=4096;
        location / {{
            proxy_pass http://echo;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_connect_timeout 5s;
            proxy_read_timeout 1h;
            proxy_send_timeout 1h;{buffers}
        }}
    }}
}}
"
    )
}
