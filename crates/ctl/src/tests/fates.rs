//! `reload --dry-run`, `reload --force`, what is held back, and `events`.

use std::future::ready;

use super::*;

const DRY_RUN: &str = r#"{"result":"dry_run","unchanged":false,"handover":true,"fates":{"kept":16,"ending":3,"drained":86,"draining":1,"why":[
  {"reason":"server_removed","listener":"0.0.0.0:80","route":"chat.example.com/ver","upstream":"chat","server":"10.0.12.108:9000","tunnels":84},
  {"reason":{"other_upstream":{"upstream":"v2"}},"listener":"0.0.0.0:80","route":"*/x","upstream":"v1","server":"10.0.0.1:1","tunnels":2}]},
  "unresponsive_workers":[],"milliseconds":3.5,"warnings":["upstream v1 is not used"]}"#;

const HELD: &str = r#"{"handover":true,"fates":{"kept":1,"ending":0,"drained":1,"draining":0,"why":[]},"unresponsive_workers":[],"share":0.5,"max_drained":0.05}"#;

#[tokio::test]
async fn a_dry_run_shows_the_sums_and_then_each_reason() {
    let fake = Fake::always(200, DRY_RUN);
    let outcome = wsctl(&fake.socket(), "reload --dry-run").await;
    assert_eq!(
        (outcome.code, outcome.err.as_str()),
        (0, "warning: upstream v1 is not used\n")
    );
    assert_eq!(
        outcome.out,
        "dry run: 103 tunnels: 16 kept, 86 drained, 1 draining already\n\
         3 of those kept end at once: by a lower idle_timeout or max_age\n\
         route chat.example.com/ver: upstream chat: server 10.0.12.108:9000 removed: 84 tunnels\n\
         route */x: leads to upstream v2 now, which does not have server 10.0.0.1:1: 2 tunnels\n"
    );
    let expected = Seen {
        call: "POST /v1/reload".to_owned(),
        body: r#"{"dry_run":true,"force":false}"#.to_owned(),
    };
    assert_eq!(fake.seen(), [expected]);
    let outcome = wsctl(&fake.socket(), "reload --dry-run --json").await;
    assert_eq!((outcome.code, outcome.out), (0, format!("{DRY_RUN}\n")));
}

#[tokio::test]
async fn workers_that_have_not_judged_make_a_dry_run_incomplete() {
    let silent = r#""unresponsive_workers":[{"pid":7,"tunnels":4},{"pid":9,"tunnels":1}]"#;
    let json = DRY_RUN.replace(r#""unresponsive_workers":[]"#, silent);
    let fake = Fake::always(200, &json);
    let outcome = wsctl(&fake.socket(), "reload --dry-run").await;
    let expected =
        "warning: these workers did not answer within 1 s, their tunnels are not judged: 7, 9\n";
    assert_eq!(outcome.code, 1);
    assert!(outcome.err.ends_with(expected), "{}", outcome.err);
    assert!(
        outcome.out.starts_with("dry run: 103 tunnels"),
        "{}",
        outcome.out
    );
}

#[tokio::test]
async fn what_is_held_back_says_why_and_how_to_go_on() {
    let json = format!(
        r#"{{"error":{{"code":"reload_held","message":"the reload is held back","help":"`wsctl reload --force`","details":["route a removed: 1 tunnel"],"held":{HELD}}}}}"#
    );
    let fake = Fake::always(409, &json);
    let outcome = wsctl(&fake.socket(), "reload").await;
    assert_eq!((outcome.code, outcome.out.as_str()), (1, ""));
    let expected = "error: the reload is held back\n\nroute a removed: 1 tunnel\n\nhelp: `wsctl reload --force`\n";
    assert_eq!(outcome.err, expected);
    let outcome = wsctl(&fake.socket(), "reload --force --json").await;
    assert_eq!((outcome.code, outcome.out), (1, format!("{json}\n")));
    assert_eq!(fake.seen()[1].body, r#"{"dry_run":false,"force":true}"#);
}

/// Two events, cut in the middle of a line, with comments and an event that nobody knows.
fn stream() -> Vec<String> {
    let server = r#"{"id":1,"at":"2001-02-03T14:03:22.123Z","event":"server","upstream":"chat","server":"a:1","was":"ready","state":"maint"}"#;
    let unknown = r#"{"id":2,"at":"2001-02-03T14:03:22.123Z","event":"eclipse"}"#;
    let ended = r#"{"id":3,"at":"2001-02-03T14:03:23.123Z","event":"worker","state":"ended","pid":7,"slot":0,"generation":2,"how":"signal 9","tunnels":4}"#;
    let text = format!(
        ": events of wsgate\n\nid: 1\nevent: server\ndata: {server}\n\n:\n\nid: 2\nevent: eclipse\ndata: {unknown}\n\nid: 3\nevent: worker\ndata: {ended}\n\n"
    );
    let (one, two) = text.split_at(90);
    vec![one.to_owned(), two.to_owned()]
}

#[tokio::test]
async fn each_event_is_a_line_and_the_end_is_told() {
    let fake = Fake::start(|_| Reply::Chunks("content-type: text/event-stream\r\n", stream()));
    let outcome = wsctl(&fake.socket(), "events").await;
    assert_eq!(
        outcome.out,
        "2001-02-03 14:03:22 UTC  server chat/a:1 is maint, was ready\n\
         {\"id\":2,\"at\":\"2001-02-03T14:03:22.123Z\",\"event\":\"eclipse\"}\n\
         2001-02-03 14:03:23 UTC  worker 7 (slot 0, generation 2) has ended: signal 9, 4 tunnels lost\n"
    );
    assert_eq!(outcome.code, 3);
    assert!(
        outcome
            .err
            .starts_with("error: the supervisor has ended, at "),
        "{}",
        outcome.err
    );
    let cut = Fake::start(|_| Reply::CutShort(stream()));
    let outcome = wsctl(&cut.socket(), "events --json").await;
    assert_eq!((outcome.code, outcome.out.lines().count()), (3, 3));
    assert!(outcome.out.starts_with(r#"{"id":1,"#), "{}", outcome.out);
}

#[tokio::test]
async fn an_interrupt_is_how_events_end() {
    let fake = Fake::start(|_| Reply::Silence);
    let screen = Screen::default();
    let outcome = wsctl_on(&fake.socket(), "events", screen, ready(())).await;
    assert_eq!((outcome.code, outcome.err.as_str()), (0, ""));
}

#[tokio::test]
async fn status_shows_what_is_held_back() {
    let held = format!(
        r#""held_reload":{{"at":"2030-05-01T12:00:00.000Z",{},"generations""#,
        &HELD[1..]
    );
    let json = super::status::STATUS.replacen("\"generations\"", &held, 1);
    let fake = Fake::always(200, &json);
    let outcome = wsctl(&fake.socket(), "status").await;
    let line = "the reload is held back: it would drain 1 of 2 tunnels (50%), and reload.max_drained is 5% (5m ago)\n";
    assert!(outcome.out.contains(line), "{}", outcome.out);
    assert!(
        outcome.out.contains("run `wsctl reload --dry-run`"),
        "{}",
        outcome.out
    );
}
