//! What every file may hold: listeners, routes and upstreams.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{POSITIVE, Placed, narrow};
use crate::decode::{Section, Spot, Value};
use crate::error::Complaint;
use crate::{
    Balance, HostPattern, Listener, PathPattern, Route, Server, ServerAddress, Upstream, address,
    pattern,
};

/// One `[[route]]` with the places of what it refers to.
#[derive(Debug)]
pub(crate) struct DraftRoute {
    pub(crate) route: Route,
    pub(crate) spot: Spot,
    /// `None` if it is missing or wrong, which is noted already.
    pub(crate) upstream: Option<Spot>,
    /// Of its `ping_interval`, if it has one.
    pub(crate) ping: Option<Spot>,
    /// Whether hosts and path are as written: not if one of them was wrong.
    pub(crate) matches: bool,
}

pub(super) fn listener(mut section: Section<'_>) -> Option<Placed<Listener>> {
    let mut spot = section.spot();
    let address = section.optional("address", |it| {
        spot = it.spot();
        it.read(address::listen)
    });
    section.require(
        "address",
        &[],
        "write for example address = \"0.0.0.0:8080\"",
    );
    section.finish(&["proxy_protocol", "trusted_proxies", "tls"]);
    let value = Listener { address: address? };
    Some(Placed { value, spot })
}

pub(super) fn route(mut section: Section<'_>) -> DraftRoute {
    let spot = section.spot();
    let hosts = section.read("host", Some(Vec::new()), |it| hosts(it).map(Some));
    let mut path_is_right = true;
    let path = section.read("path", None, |it| {
        let path = it.read(pattern::path);
        path_is_right = path.is_ok();
        path.map(Some)
    });
    let mut upstream_spot = None;
    let upstream = section.optional("upstream", |it| {
        let name = it.text()?.to_owned();
        upstream_spot = Some(it.spot());
        Ok(name)
    });
    let minute = Duration::from_secs(60);
    let idle_timeout = section.read("idle_timeout", 60 * minute, always);
    let send_timeout = section.read("send_timeout", minute, always);
    let no_age = "leave `max_age` out: tunnels may live as long as they like";
    let max_age = section.optional("max_age", |it| timer(it, no_age));
    let no_pings = "leave `ping_interval` out: wsgate sends no pings then";
    let mut ping_spot = None;
    let ping_interval = section.optional("ping_interval", |it| {
        ping_spot = Some(it.spot());
        timer(it, no_pings)
    });
    section.require(
        "upstream",
        &["files"],
        "write upstream = \"NAME\" with the name of an [upstream.NAME]",
    );
    section.finish(&["origins", "strip_prefix", "access", "headers", "files"]);
    DraftRoute {
        matches: hosts.is_some() && path_is_right,
        route: Route {
            hosts: hosts.unwrap_or_default(),
            path: path.unwrap_or_else(|| PathPattern::Segments(String::new())),
            upstream: upstream.unwrap_or_default(),
            idle_timeout,
            send_timeout,
            max_age,
            ping_interval,
            number: 0,
        },
        spot,
        upstream: upstream_spot,
        ping: ping_spot,
    }
}

/// A timer that every tunnel has.
fn always(value: &Value<'_>) -> Result<Duration, Complaint> {
    timer(value, "it cannot be turned off; at most \"365d\"")
}

/// `without`: the help for who wants none.
fn timer(value: &Value<'_>, without: &str) -> Result<Duration, Complaint> {
    match value.as_nothing() {
        Some(nothing) => Err(value.cannot_be(&nothing, without)),
        None => value.duration(POSITIVE),
    }
}

/// A host or several; each wrong one is noted.
fn hosts(value: &Value<'_>) -> Result<Vec<HostPattern>, Complaint> {
    let empty = || {
        Complaint::new(
            "`host` is empty",
            "leave it out: the route is for any host then",
        )
    };
    one_or_several(value, pattern::host, "host", empty)
}

/// What `read` makes of a text, or of each text of a list; each wrong one is noted.
fn one_or_several<T: PartialEq + Display>(
    value: &Value<'_>,
    read: impl Fn(&str) -> Result<T, Complaint>,
    what: &str,
    empty: impl FnOnce() -> Complaint,
) -> Result<Vec<T>, Complaint> {
    let Some(items) = value.items() else {
        return Ok(vec![value.read(read)?]);
    };
    if items.is_empty() {
        return Err(empty());
    }
    let mut found = Vec::new();
    for item in &items {
        match item.read(&read) {
            Ok(it) if found.contains(&it) => item.complain(Complaint::new(
                format!("{what} `{it}` is named twice"),
                "remove one of the two",
            )),
            Ok(it) => found.push(it),
            Err(complaint) => item.complain(complaint),
        }
    }
    Ok(found)
}

pub(super) fn upstream(name: &str, value: &Value<'_>) -> Placed<(String, Upstream)> {
    let title = format!("[upstream.{name}]");
    let help = "write `[upstream.NAME]` and below it what the servers are";
    if !is_name(name) {
        value.complain_of_key(Complaint::new(
            format!("`{name}` cannot be the name of an upstream"),
            "use up to 64 letters, digits and the characters - _ .",
        ));
    }
    let upstream = value.section(&title, help).map(upstream_fields);
    Placed {
        value: (name.to_owned(), upstream.unwrap_or_else(no_upstream)),
        spot: value.key.clone(),
    }
}

/// It stands in commands (`UPSTREAM/SERVER`), in URLs and in metrics.
fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (1..=64).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with('.')
}

/// In place of one that is no section, which is noted.
fn no_upstream() -> Upstream {
    Upstream {
        balance: Balance::RoundRobin,
        connect_timeout: POSITIVE,
        retries: 0,
        source: Vec::new(),
        servers: Vec::new(),
    }
}

fn upstream_fields(mut section: Section<'_>) -> Upstream {
    let timeout = Duration::from_secs(4);
    let servers = section.read("servers", Vec::new(), servers);
    let scoped = servers.iter().any(has_scope);
    let upstream = Upstream {
        balance: section.read("balance", Balance::RoundRobin, balance),
        connect_timeout: section.read("connect_timeout", timeout, |it| it.duration(POSITIVE)),
        retries: section.read("retries", 2, |it| it.number(0..=100).map(narrow)),
        source: section.read("source", Vec::new(), |it| sources(it, scoped)),
        servers,
    };
    section.require(
        "servers",
        &["discover"],
        "write for example servers = [\"127.0.0.1:9001\"]",
    );
    section.finish(&["hash", "discover", "tls", "slow_start", "health", "drain"]);
    upstream
}

fn balance(value: &Value<'_>) -> Result<Balance, Complaint> {
    const NOW: [(&str, Balance); 2] = [
        ("round-robin", Balance::RoundRobin),
        ("least-tunnels", Balance::LeastTunnels),
    ];
    match value.as_text() {
        Some(text @ ("random-two" | "client-ip" | "hash" | "sticky-cookie")) => {
            let what = format!("balance `{text}`");
            let help = "write \"round-robin\" or \"least-tunnels\"";
            Err(Complaint::not_supported(&what, help))
        }
        _ => value.word(&NOW),
    }
}

/// Whether it is written with the number of an interface, as `[fe80::2%3]:9000`.
fn has_scope(server: &Server) -> bool {
    matches!(&server.address, ServerAddress::Ip(SocketAddr::V6(it)) if it.scope_id() != 0)
}

/// An own address or several. `scoped`: whether a server says on which link it is.
fn sources(value: &Value<'_>, scoped: bool) -> Result<Vec<IpAddr>, Complaint> {
    let empty = || {
        Complaint::new(
            "`source` is empty",
            "leave it out: the kernel chooses the address then",
        )
    };
    let read = |text: &str| address::source(text, scoped);
    one_or_several(value, read, "source", empty)
}

fn servers(value: &Value<'_>) -> Result<Vec<Server>, Complaint> {
    let help = "write servers = [\"127.0.0.1:9001\"]";
    let Some(items) = value.items() else {
        let help = match value.as_text() {
            Some(text) if address::server(text).is_ok() => {
                format!("write servers = [\"{text}\"]")
            }
            _ => help.to_owned(),
        };
        return Err(value.wrong("a list", help));
    };
    if items.is_empty() {
        return Err(Complaint::new("an upstream has at least one server", help));
    }
    let mut servers: Vec<Server> = Vec::new();
    for item in &items {
        let Some(server) = server(item) else { continue };
        let name = server.address.to_string();
        // Host names know no case.
        let same = |other: &Server| other.address.to_string().eq_ignore_ascii_case(&name);
        if servers.iter().any(same) {
            let message = format!("server `{name}` is named twice in this upstream");
            let help = "remove one of the two; a larger share is a `weight`";
            item.complain(Complaint::new(message, help));
        } else {
            servers.push(server);
        }
    }
    Ok(servers)
}

/// `"10.0.0.1:9000"` or `{ address = "10.0.0.1:9000", weight = 2 }`.
fn server(value: &Value<'_>) -> Option<Server> {
    let help = "write \"127.0.0.1:9001\" or { address = \"127.0.0.1:9001\", weight = 2 }";
    if !value.is_table() {
        let address = if value.is_text() {
            value.read(address::server)
        } else {
            Err(value.wrong("a list of addresses", help))
        };
        return match address {
            Ok(address) => Some(Server {
                address,
                weight: 1,
                number: 0,
            }),
            Err(complaint) => {
                value.complain(complaint);
                None
            }
        };
    }
    let mut section = value.section("servers", help)?;
    let address = section.optional("address", |it| it.read(address::server));
    let weight = section.read("weight", 1, |it| it.number(1..=1000).map(narrow));
    section.require("address", &[], help);
    section.finish(&["max_tunnels", "backup"]);
    Some(Server {
        address: address?,
        weight,
        number: 0,
    })
}
