//! Files without mistakes.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wsgate_config::{
    Balance, Config, DEFAULT_ADMIN_SOCKET, HostPattern, ListenAddress, LogFormat, LogLevel,
    PathPattern, ServerAddress, Share, Sources, load, parse,
};

use super::{SMALL, read, valid};

const EVERYTHING: &str = r#"
include = []
workers = 3
listener = [{ address = "[::]:80" }, { address = "unix:/run/x.sock" }]

[admin]
socket = "/tmp/admin.sock"
http = "127.0.0.1:9180"

[log]
level = "debug"
format = "json"
file = "/var/log/wsgate.log"
access = false

[reload]
watch = false
max_drained = "12.5%"

[drain]
handover = false
grace = "1h 30m"
close_rate = 1_000
close_code = 4000
generations = 4

[watchdog]
timeout = "3s"

[stop]
accept_for = "5s"
grace = "0s"

[limits]
tunnels = 50000
handshake_timeout = "1500ms"
header_bytes = "32kB"

[[route]]
host = ["Chat.Example.com", "*.example.org"]
path = "=/ver"
upstream = "chat"
idle_timeout = "2h"
send_timeout = "15s"
max_age = "1d"
ping_interval = "50s"

[[route]]
path = "/api/"
upstream = "chat"

[upstream.chat]
balance = "least-tunnels"
connect_timeout = "1s"
retries = 0
source = ["10.0.0.5", "2001:db8::5"]
servers = [
  "10.0.0.1:9000", "chat.internal:9000", "unix:/run/chat.sock",
  { address = "[::1]:9000", weight = 2 },
]
"#;

#[test]
fn the_smallest_file_has_the_documented_defaults() {
    let config = valid(SMALL);
    assert!(config.workers >= 1);
    assert_eq!(config.admin.socket, Path::new(DEFAULT_ADMIN_SOCKET));
    assert_eq!(config.admin.http, None);
    assert_eq!(config.log.level, LogLevel::Info);
    assert_eq!(config.log.format, LogFormat::Text);
    assert_eq!(config.log.file, None);
    assert!(config.log.access && config.reload.watch);
    assert_eq!(config.reload.max_drained, Share::ALL);
    assert!(config.drain.handover);
    assert_eq!(config.drain.grace, Duration::from_secs(600));
    assert_eq!(config.drain.close_rate, 100);
    assert_eq!(config.drain.close_code, 1012);
    assert_eq!(config.drain.orphan_grace, None);
    assert_eq!(config.drain.generations, 0);
    assert_eq!(config.watchdog.timeout, Some(Duration::from_secs(10)));
    assert_eq!(config.stop.accept_for, Duration::ZERO);
    assert_eq!(config.stop.grace, Duration::from_secs(30));
    assert_eq!(config.limits.tunnels, None);
    assert_eq!(config.limits.handshake_timeout, Duration::from_secs(10));
    assert_eq!(config.limits.header_bytes, 16_384);
    let route = &config.routes[0];
    assert!(route.hosts.is_empty());
    assert_eq!(route.path, PathPattern::Segments(String::new()));
    assert_eq!(route.idle_timeout, Duration::from_secs(3600));
    assert_eq!(route.send_timeout, Duration::from_secs(60));
    assert_eq!((route.max_age, route.ping_interval), (None, None));
    let upstream = &config.upstreams["chat"];
    assert_eq!(upstream.balance, Balance::RoundRobin);
    assert_eq!(upstream.connect_timeout, Duration::from_secs(4));
    assert_eq!(upstream.retries, 2);
    assert!(upstream.source.is_empty());
    assert_eq!(upstream.servers[0].weight, 1);
}

#[test]
fn every_value_that_is_written_arrives() {
    let config = valid(EVERYTHING);
    assert_eq!(config.workers, 3);
    let listeners: Vec<_> = config
        .listeners
        .iter()
        .map(|it| it.address.clone())
        .collect();
    assert_eq!(
        listeners,
        [
            ListenAddress::Tcp("[::]:80".parse().unwrap()),
            ListenAddress::Unix(PathBuf::from("/run/x.sock")),
        ]
    );
    assert_eq!(config.admin.socket, Path::new("/tmp/admin.sock"));
    assert_eq!(config.admin.http, "127.0.0.1:9180".parse().ok());
    assert_eq!(config.log.level, LogLevel::Debug);
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(
        config.log.file.as_deref(),
        Some(Path::new("/var/log/wsgate.log"))
    );
    assert!(!config.log.access && !config.reload.watch);
    assert_eq!(config.reload.max_drained.to_string(), "12.5%");
    assert!(!config.drain.handover);
    assert_eq!(config.drain.grace, Duration::from_secs(5400));
    assert_eq!(
        (config.drain.close_rate, config.drain.close_code),
        (1000, 4000)
    );
    assert_eq!(config.drain.generations, 4);
    assert_eq!(config.watchdog.timeout, Some(Duration::from_secs(3)));
    assert_eq!(config.stop.accept_for, Duration::from_secs(5));
    assert_eq!(config.stop.grace, Duration::ZERO);
    assert_eq!(config.limits.tunnels, Some(50_000));
    assert_eq!(config.limits.handshake_timeout, Duration::from_millis(1500));
    assert_eq!(config.limits.header_bytes, 32_000);
    let hosts = &config.routes[0].hosts;
    assert_eq!(hosts[0], HostPattern::Exact("chat.example.com".to_owned()));
    assert_eq!(hosts[1], HostPattern::Below("example.org".to_owned()));
    assert_eq!(config.routes[0].path, PathPattern::Exact("/ver".to_owned()));
    assert_eq!(config.routes[0].idle_timeout, Duration::from_secs(7200));
    assert_eq!(config.routes[0].send_timeout, Duration::from_secs(15));
    assert_eq!(
        config.routes[0].max_age,
        Some(Duration::from_secs(24 * 3600))
    );
    assert_eq!(
        config.routes[0].ping_interval,
        Some(Duration::from_secs(50))
    );
    assert_eq!(
        config.routes[1].path,
        PathPattern::Segments("/api".to_owned())
    );
    let upstream = &config.upstreams["chat"];
    assert_eq!(upstream.balance, Balance::LeastTunnels);
    assert_eq!(
        (upstream.connect_timeout, upstream.retries),
        (Duration::from_secs(1), 0)
    );
    let source: [IpAddr; 2] = ["10.0.0.5", "2001:db8::5"].map(|ip| ip.parse().unwrap());
    assert_eq!(upstream.source, source);
    let servers: Vec<_> = upstream
        .servers
        .iter()
        .map(|it| (it.address.to_string(), it.weight))
        .collect();
    let expected = [
        ("10.0.0.1:9000", 1),
        ("chat.internal:9000", 1),
        ("unix:/run/chat.sock", 1),
        ("[::1]:9000", 2),
    ];
    assert_eq!(
        servers,
        expected.map(|(name, weight)| (name.to_owned(), weight))
    );
    assert!(matches!(
        upstream.servers[1].address,
        ServerAddress::Name(..)
    ));
}

#[test]
fn a_single_source_needs_no_list() {
    let config = valid(&format!("{SMALL}source = '127.0.0.2'\n"));
    let source: IpAddr = "127.0.0.2".parse().unwrap();
    assert_eq!(config.upstreams["chat"].source, [source]);
}

#[test]
fn a_configuration_survives_its_way_to_the_workers() {
    for text in [SMALL, EVERYTHING] {
        let config = valid(text);
        let json = serde_json::to_vec(&config).unwrap();
        assert_eq!(serde_json::from_slice::<Config>(&json).unwrap(), config);
    }
}

#[test]
fn comments_and_the_order_of_sections_are_no_change() {
    let moved = "[upstream.chat] # here\nservers = ['127.0.0.1:9001']\n\
        [[route]]\nupstream = 'chat'\nidle_timeout = '60m'\n[[listener]]\naddress = '0.0.0.0:8080'\n";
    assert_eq!(valid(moved), valid(SMALL));
}

#[test]
fn windows_line_ends_and_a_byte_order_mark_do_no_harm() {
    let text = format!("\u{feff}{}", SMALL.replace('\n', "\r\n"));
    assert_eq!(valid(&text), valid(SMALL));
}

#[test]
fn an_upstream_that_no_route_leads_to_is_a_warning() {
    let loaded = read(&format!("{SMALL}[upstream.old]\nservers = ['a:1']\n")).unwrap();
    assert_eq!(
        loaded.warnings,
        ["wsgate.toml:10:11: no route leads to upstream `old`"]
    );
    assert!(read(SMALL).unwrap().warnings.is_empty());
}

#[test]
fn pings_that_come_after_the_idle_timeout_are_a_warning() {
    let with = |timers: &str| {
        let text = SMALL.replace("= \"chat\"", &format!("= \"chat\"\n{timers}"));
        read(&text).unwrap().warnings
    };
    for timers in [
        "ping_interval = '1h'",
        "ping_interval = '2h'\nidle_timeout = '1h'",
    ] {
        let warnings = with(timers);
        assert_eq!(
            warnings,
            [
                "wsgate.toml:7:17: `ping_interval` is no shorter than `idle_timeout` (1h): \
              a silent tunnel is closed before its client is pinged"
            ]
        );
    }
    assert!(with("ping_interval = '59m'").is_empty());
    assert!(with("idle_timeout = '1s'").is_empty());
}

#[test]
fn the_installed_example_is_valid_and_shows_the_defaults() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../etc/wsgate.toml");
    let loaded = load(&example).unwrap();
    assert_eq!(loaded.config, valid(SMALL));
    assert!(loaded.warnings.is_empty());
}

#[test]
fn what_the_example_has_commented_out_is_valid_too() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../etc/wsgate.toml");
    let text = std::fs::read_to_string(example).unwrap();
    let is_setting = |line: &&str| {
        line.strip_prefix("# ").is_some_and(|rest| {
            rest.split(" = ")
                .next()
                .is_some_and(|key| key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
                && rest.contains(" = ")
        })
    };
    let shown: Vec<&str> = text.lines().filter(is_setting).collect();
    let mut whole = text.clone();
    for line in &shown {
        whole = whole.replace(line, &line[2..]);
    }
    let mut config = parse(Sources::from_text("wsgate.toml", whole))
        .unwrap()
        .config;
    assert_eq!(shown.len(), 32, "{shown:#?}");
    assert!(config.log.file.take().is_some() && config.admin.http.take().is_some());
    assert!(config.drain.orphan_grace.take().is_some());
    let route = &mut config.routes[0];
    route.hosts.clear();
    assert!(route.max_age.take().is_some() && route.ping_interval.take().is_some());
    let sources = config.upstreams.values_mut().map(|it| &mut it.source);
    assert!(sources.map(std::mem::take).all(|source| source.len() == 2));
    assert_eq!(config, valid(SMALL));
}
