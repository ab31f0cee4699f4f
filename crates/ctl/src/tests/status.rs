//! The tables of `wsctl status`.

use std::future::pending;

use super::*;

pub(super) const STATUS: &str = r#"{
  "version": "0.1.0", "pid": 4242, "state": "running",
  "started_at": "2030-05-01T10:00:00.000Z", "uptime_seconds": 7500.25,
  "config": {"file": "/etc/wsgate/wsgate.toml", "sha256": "a1b2c3d4e5f6", "active_since": "2030-05-01T11:53:00.000Z", "file_differs": true},
  "last_reload": {"at": "2030-05-01T12:00:00.000Z", "by": "watch", "result": "failed",
    "message": "the configuration has 1 mistake", "errors": ["error: unknown key `lisen`\n --> wsgate.toml:3:1\n"]},
  "generations": [
    {"generation": 3, "state": "draining", "started_at": "2030-05-01T10:00:00.000Z", "age_seconds": 7500.0,
     "deadline_at": "2030-05-01T12:05:48.000Z", "deadline_in_seconds": 48.2, "workers": 1, "tunnels": 84},
    {"generation": 4, "state": "active", "started_at": "2030-05-01T11:53:00.000Z", "age_seconds": 720.0,
     "deadline_at": null, "deadline_in_seconds": null, "workers": 2, "tunnels": 10}],
  "workers": [
    {"pid": 4301, "slot": 1, "generation": 3, "state": "unresponsive", "serves_slots": [], "tunnels": 84,
     "memory_bytes": 52428800, "cpu_seconds": 12.5, "last_heard_seconds": 3.2},
    {"pid": 4310, "slot": 0, "generation": 4, "state": "active", "serves_slots": [1], "tunnels": 10,
     "memory_bytes": 20971520, "cpu_seconds": 0.4, "last_heard_seconds": 0.1}],
  "vacant_slots": [{"slot": 1, "deaths": 2, "restart_in_seconds": 0.4, "served_by": 4310}],
  "listeners": [{"address": "127.0.0.1:0", "bound": "127.0.0.1:8080", "sockets": 2}],
  "upstreams": [{"name": "chat", "balance": "least-tunnels", "servers": [
    {"address": "127.0.0.1:9001", "weight": 1, "state": "drain", "tunnels": 84, "draining_tunnels": 84, "opened": 900, "connect_failures": 0, "configured": true},
    {"address": "unix:/run/x.sock", "weight": 2, "state": "ready", "tunnels": 10, "draining_tunnels": 0, "opened": 300, "connect_failures": 7, "configured": false}]}],
  "totals": {"tunnels": 94, "tunnels_opened": 1200, "tunnels_ended": {"client_closed": 1000, "deadline": 106, "reset": 0},
    "connections": 1300, "requests": 40, "errors": {"404": 3}, "bytes_from_clients": 12582912, "bytes_from_servers": 340,
    "messages_from_clients": 10000, "messages_from_servers": 1, "reloads": 4, "reloads_failed": 1, "worker_restarts": 1, "log_lines_dropped": 0},
  "of_a_later_version": 1
}"#;

const SHOWN: &str = "\
wsgate 0.1.0 is running: pid 4242, up 2h 5m
config /etc/wsgate/wsgate.toml (a1b2c3d4), active for 12m
the file on disk differs: run `wsgate check`
last reload 5m ago by watch: failed, the configuration has 1 mistake
  wsgate.toml:3:1: unknown key `lisen`

GENERATION  STATE       AGE  DEADLINE IN  WORKERS  TUNNELS
3           draining  2h 5m          48s        1       84
4           active      12m            -        2       10

SLOT  GEN  WORKER PID  STATE                TUNNELS    MEMORY   CPU  ALSO SERVES
1     3    4301        unresponsive for 3s       84  50.0 MiB   13s
0     4    4310        active                    10  20.0 MiB  0.4s  slot 1

VACANT SLOT  DEATHS IN A ROW  RESTART IN  SERVED BY
1                          2        0.4s  pid 4310

LISTENER     BOUND           SOCKETS
127.0.0.1:0  127.0.0.1:8080        2

UPSTREAM/SERVER        STATE                 WEIGHT  TUNNELS  DRAINING  OPENED  CONNECT FAILURES
chat/127.0.0.1:9001    drain                      1       84        84     900                 0
chat/unix:/run/x.sock  ready, not in config       2       10         0     300                 7

94 tunnels: 1200 opened, 1106 ended (client_closed: 1000, deadline: 106)
from clients 12.0 MiB in 10000 messages, from servers 340 B in 1 message
1300 connections, 40 plain requests, 3 errors (404: 3)
4 reloads (1 failed), 1 worker restart
";

#[tokio::test]
async fn status_shows_everything_to_a_pipe_in_plain_columns() {
    let fake = Fake::always(200, STATUS);
    let outcome = wsctl(&fake.socket(), "status").await;
    assert_eq!((outcome.code, outcome.err.as_str()), (0, ""));
    assert_eq!(outcome.out, SHOWN);
}

#[tokio::test]
async fn what_crashes_is_stuck_or_limited_is_shown() {
    let status = STATUS
        .replace(r#""deaths": 2,"#, r#""deaths": 5, "crash_looping": true,"#)
        .replace(r#""worker_restarts": 1"#, r#""worker_restarts": 1, "workers_stuck": 2"#)
        .replace(
            r#""of_a_later_version": 1"#,
            r#""limits": {"tunnels": 18508, "tunnels_by": "descriptors", "descriptors_per_worker": 20000}"#,
        );
    let fake = Fake::always(200, &status);
    let outcome = wsctl(&fake.socket(), "status").await;
    assert_eq!((outcome.code, outcome.err.as_str()), (0, ""));
    for shown in [
        "0.4s, crashes again and again  pid 4310",
        "1 worker restart (2 stuck)\n",
        "room for 18508 tunnels by the file descriptors, 20000 descriptors a worker\n",
    ] {
        assert!(outcome.out.contains(shown), "{shown}: {}", outcome.out);
    }
}

#[tokio::test]
async fn of_many_mistakes_the_first_are_shown_and_the_others_counted() {
    let one = r#""error: unknown key `lisen`\n --> wsgate.toml:3:1\n""#;
    let many = [
        one,
        r#","error: cannot be read""#,
        &format!(",{one}").repeat(5),
    ]
    .concat();
    let status = STATUS
        .replace(one, &many)
        .replace("/etc/wsgate/wsgate.toml", "/srv/w.toml");
    let fake = Fake::always(200, &status);
    let outcome = wsctl(&fake.socket(), "status").await;
    let (_, shown) = outcome.out.split_once("1 mistake\n").unwrap();
    let line = "  wsgate.toml:3:1: unknown key `lisen`\n";
    let expected = format!(
        "{line}  cannot be read\n{}  and 2 more: run `wsgate check --config /srv/w.toml`\n\n",
        line.repeat(3)
    );
    assert!(shown.starts_with(&expected), "{shown}");
}

#[tokio::test]
async fn a_file_that_differs_is_to_be_reloaded_unless_it_has_mistakes() {
    let failed = STATUS.split_once("\"result\": \"failed\"").unwrap().1;
    let failed = failed.split_once('}').unwrap().0;
    let unchanged = r#","generation":4,"active_since":"2030-05-01T11:53:00.000Z","draining_tunnels":0,"draining_generations":0,"deadline_at":null"#;
    let status = STATUS
        .replace(failed, unchanged)
        .replace(r#""result": "failed""#, r#""result": "unchanged""#);
    let fake = Fake::always(200, &status);
    let outcome = wsctl(&fake.socket(), "status").await;
    assert_eq!(outcome.code, 0, "{}", outcome.err);
    let expected = "the file on disk differs: run `wsctl reload`\n\
        last reload 5m ago by watch: unchanged, generation 4 runs this content\n\n";
    assert!(outcome.out.contains(expected), "{}", outcome.out);
}

#[tokio::test]
async fn status_fits_a_narrow_terminal_and_cuts_no_word() {
    let fake = Fake::always(200, STATUS);
    for width in [60, 72, 80, 100] {
        let screen = Screen {
            width: Some(width),
            colour: false,
        };
        let outcome = wsctl_on(&fake.socket(), "status", screen, pending()).await;
        let tables = outcome.out.split_once("GENERATION").unwrap().1;
        let tables = tables.split_once("94 tunnels").unwrap().0;
        let widest = tables.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(width.into()), "{width}: {tables}");
        for word in ["chat/unix:/run/x.sock", "unresponsive", "127.0.0.1:8080"] {
            assert!(tables.contains(word), "{width}: {tables}");
        }
    }
}

#[tokio::test]
async fn a_terminal_gets_colours_and_the_same_words() {
    let fake = Fake::always(200, STATUS);
    let screen = Screen {
        width: None,
        colour: true,
    };
    let outcome = wsctl_on(&fake.socket(), "status", screen, pending()).await;
    assert!(
        outcome
            .out
            .starts_with("wsgate 0.1.0 is \u{1b}[32mrunning\u{1b}[0m: pid 4242")
    );
    let mut plain = String::new();
    for (index, part) in outcome.out.split('\u{1b}').enumerate() {
        plain += if index == 0 {
            part
        } else {
            part.split_once('m').unwrap().1
        };
    }
    let words =
        |text: &str| -> Vec<String> { text.split_whitespace().map(str::to_owned).collect() };
    assert_eq!(words(&plain), words(SHOWN));
}

#[tokio::test]
async fn with_json_status_is_the_apis_own_json() {
    let fake = Fake::always(200, STATUS);
    let outcome = wsctl(&fake.socket(), "status --json").await;
    assert_eq!((outcome.code, outcome.out), (0, format!("{STATUS}\n")));
}
