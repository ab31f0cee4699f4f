//! Every key of the design is either read or refused by name.

use super::{SMALL, errors, read, valid};

/// Lines for the top of the file.
const AT_THE_TOP: &[&str] = &[
    "include = ['conf.d/*.toml']",
    "workers = 'auto'",
    "workers = 2",
];

/// A section and a key of it that is read.
const READ: &[(&str, &str)] = &[
    ("admin", "socket = '/run/wsgate/admin.sock'"),
    ("admin", "http = '127.0.0.1:9180'"),
    ("log", "level = 'info'"),
    ("log", "format = 'text'"),
    ("log", "file = '/var/log/x'"),
    ("log", "access = true"),
    ("reload", "watch = true"),
    ("reload", "max_drained = '0.5%'"),
    ("drain", "handover = true"),
    ("drain", "grace = '10m'"),
    ("drain", "close_rate = 100"),
    ("drain", "close_code = 1012"),
    ("drain", "orphan_grace = '10m'"),
    ("drain", "generations = 4"),
    ("stop", "accept_for = '0s'"),
    ("stop", "grace = '30s'"),
    ("watchdog", "timeout = '10s'"),
    ("watchdog", "timeout = 'off'"),
    ("watchdog", "timeout = '0s'"),
    ("watchdog", "timeout = 0"),
    ("limits", "tunnels = 'auto'"),
    ("limits", "tunnels = 100"),
    ("limits", "handshake_timeout = '10s'"),
    ("limits", "header_bytes = '16KiB'"),
    ("limits", "header_bytes = 16384"),
    ("route", "host = 'chat.example.com'"),
    ("route", "host = ['a.example.com', '*.b.example.com']"),
    ("route", "path = '/ver'"),
    ("route", "path = '=/ver'"),
    ("route", "path = '/ver*'"),
    ("route", "idle_timeout = '2h'"),
    ("route", "send_timeout = '15s'"),
    ("route", "max_age = '24h'"),
    ("route", "ping_interval = '50s'"),
    ("upstream", "balance = 'least-tunnels'"),
    ("upstream", "balance = 'round-robin'"),
    ("upstream", "connect_timeout = '4s'"),
    ("upstream", "retries = 2"),
    ("upstream", "source = '10.0.0.5'"),
    ("upstream", "source = ['10.0.0.5', '2001:db8::5']"),
];

/// A section, a key of it that later versions read, and what is refused.
const LATER: &[(&str, &str, &str)] = &[
    ("", "user = 'wsgate'", "`user`"),
    (
        "log",
        "access = '/var/log/a.log'",
        "`access` as a file of its own",
    ),
    ("limits", "tunnels_per_client = 0", "`tunnels_per_client`"),
    (
        "limits",
        "handshakes_per_second = 0",
        "`handshakes_per_second`",
    ),
    ("listener", "proxy_protocol = false", "`proxy_protocol`"),
    (
        "listener",
        "trusted_proxies = ['10.0.0.0/8']",
        "`trusted_proxies`",
    ),
    (
        "listener",
        "tls = [{ chain = 'a.pem', key = 'a.key' }]",
        "`tls`",
    ),
    ("route", "origins = ['https://a']", "`origins`"),
    ("route", "strip_prefix = false", "`strip_prefix`"),
    ("route", "access = '/var/log/a.log'", "`access`"),
    ("route", "[route.headers]\nhost = '$host'", "`headers`"),
    ("route", "files = '/srv'", "`files`"),
    ("upstream", "balance = 'random-two'", "balance `random-two`"),
    ("upstream", "balance = 'client-ip'", "balance `client-ip`"),
    ("upstream", "balance = 'hash'", "balance `hash`"),
    (
        "upstream",
        "balance = 'sticky-cookie'",
        "balance `sticky-cookie`",
    ),
    ("upstream", "hash = { header = 'X-Room' }", "`hash`"),
    ("upstream", "discover = { dns = 'a:1' }", "`discover`"),
    ("upstream", "tls = { name = 'a' }", "`tls`"),
    ("upstream", "slow_start = '30s'", "`slow_start`"),
    ("upstream", "[upstream.chat.health]\npath = '/'", "`health`"),
    ("upstream", "[upstream.chat.drain]\ngrace = '1m'", "`drain`"),
    ("server", "max_tunnels = 5000", "`max_tunnels`"),
    ("server", "backup = false", "`backup`"),
];

/// The smallest file with `line` in one of its sections.
fn with(section: &str, line: &str) -> String {
    let server = "'127.0.0.1:9001'";
    let base = SMALL.replace('"', "'");
    match section {
        "" => format!("{line}\n{base}"),
        "listener" => base.replace("8080'", &format!("8080'\n{line}")),
        "route" => base.replace("= 'chat'", &format!("= 'chat'\n{line}")),
        "upstream" => format!("{base}{line}\n"),
        "server" => base.replace(server, &format!("{{ address = {server}, {line} }}")),
        section => format!("{base}[{section}]\n{line}\n"),
    }
}

#[test]
fn every_key_of_this_version_is_read() {
    for line in AT_THE_TOP {
        valid(&with("", line));
    }
    for (section, line) in READ {
        valid(&with(section, line));
    }
    valid(&with("server", "weight = 2"));
}

#[test]
fn every_key_of_later_versions_is_refused_by_name() {
    for (section, line, name) in LATER {
        let errors = errors(&with(section, line));
        assert_eq!(errors.len(), 1, "{errors}");
        let error = errors.iter().next().unwrap();
        assert_eq!(
            error.message,
            format!("{name} is not supported yet"),
            "{section}"
        );
        assert!(error.help.is_some() && error.line().is_some(), "{error}");
    }
}

#[test]
fn a_route_with_files_or_an_upstream_with_discover_lacks_nothing_else() {
    let text = SMALL.replace("upstream = \"chat\"", "files = '/srv'");
    assert_eq!(errors(&text).len(), 1);
    let text = SMALL.replace(
        "servers = [\"127.0.0.1:9001\"]",
        "discover = { dns = 'a:1' }",
    );
    assert_eq!(errors(&text).len(), 1);
}

#[test]
fn an_unknown_key_is_refused_everywhere() {
    for section in [
        "", "admin", "log", "reload", "drain", "stop", "limits", "listener", "route", "upstream",
        "server",
    ] {
        let text = with(section, "zebra = 1");
        assert!(read(&text).is_err(), "{section}");
        let errors = errors(&text);
        assert_eq!(errors.len(), 1, "{errors}");
        let error = errors.iter().next().unwrap();
        assert_eq!(error.message, "unknown key `zebra`");
        assert!(
            error
                .help
                .as_deref()
                .is_some_and(|help| help.starts_with("known")),
            "{error}"
        );
    }
}
