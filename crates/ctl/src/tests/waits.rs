//! `reload --wait-drained` and `stop`: they end when it is done, not before.

use std::collections::VecDeque;

use super::*;

const RELOADED: &str = r#"{"result":"reloaded","generation":4,"milliseconds":12.34,"draining_tunnels":84,"draining_generations":1,"deadline_at":"2001-02-03T14:03:22.000Z","warnings":["close_rate is too low for the grace"]}"#;
const OUTCOME: &str = "generation 4 is active after 12.3 ms; older generations hold 84 tunnels until 2001-02-03 14:03:22 UTC at the latest\n";
const STOPPING: &str = r#"{"pid":999999,"tunnels":84,"deadline_in_seconds":600.0}"#;

/// A status with these generations, each as number and tunnels; the last is active.
fn status(pid: u32, generations: &[(u64, u64)]) -> String {
    let generations: Vec<String> = generations
        .iter()
        .map(|(generation, tunnels)| {
            format!(
                r#"{{"generation":{generation},"state":"draining","started_at":"","age_seconds":1.0,"deadline_at":null,"deadline_in_seconds":48.4,"workers":2,"tunnels":{tunnels}}}"#
            )
        })
        .collect();
    format!(
        r#"{{"version":"0","pid":{pid},"state":"running","started_at":"","uptime_seconds":1.0,"config":{{"file":"","sha256":"","active_since":"","file_differs":false}},"last_reload":null,"generations":[{}],"workers":[],"vacant_slots":[],"listeners":[],"upstreams":[],"totals":{{"tunnels":7,"tunnels_opened":0,"tunnels_ended":{{}},"connections":0,"requests":0,"errors":{{}},"bytes_from_clients":0,"bytes_from_servers":0,"messages_from_clients":0,"messages_from_servers":0,"reloads":0,"reloads_failed":0,"worker_restarts":0,"log_lines_dropped":0}}}}"#,
        generations.join(",")
    )
}

/// One answer after the other, and silence then.
fn script(replies: impl Into<VecDeque<Reply>>) -> Fake {
    let mut replies = replies.into();
    Fake::start(move |_| replies.pop_front().unwrap_or(Reply::Silence))
}

fn ok(json: impl Into<String>) -> Reply {
    Reply::Json(200, json.into())
}

#[tokio::test]
async fn a_reload_says_what_older_generations_hold() {
    let fake = Fake::always(200, RELOADED);
    let outcome = wsctl(&fake.socket(), "reload").await;
    assert_eq!((outcome.code, outcome.out.as_str()), (0, OUTCOME));
    assert_eq!(
        outcome.err,
        "warning: close_rate is too low for the grace\n"
    );
}

#[tokio::test]
async fn an_unchanged_configuration_is_done() {
    let json = r#"{"result":"unchanged","generation":3,"active_since":"2001-02-03T14:03:22.000Z","draining_tunnels":0,"draining_generations":0,"deadline_at":null}"#;
    let fake = Fake::always(200, json);
    let outcome = wsctl(&fake.socket(), "reload").await;
    assert_eq!(outcome.code, 0);
    assert_eq!(
        outcome.out,
        "unchanged: generation 3 (active since 2001-02-03 14:03:22 UTC) runs this content\n"
    );
    let outcome = wsctl(&fake.socket(), "reload --json").await;
    assert_eq!((outcome.code, outcome.out), (0, format!("{json}\n")));
}

#[tokio::test]
async fn an_unchanged_configuration_tells_what_older_generations_hold() {
    let json = r#"{"result":"unchanged","generation":3,"active_since":"2001-02-03T14:03:22.000Z","draining_tunnels":16,"draining_generations":2,"deadline_at":"2001-02-03T14:13:22.000Z"}"#;
    let fake = Fake::always(200, json);
    let outcome = wsctl(&fake.socket(), "reload").await;
    assert_eq!(
        outcome.out,
        "unchanged: generation 3 (active since 2001-02-03 14:03:22 UTC) runs this content; \
         older generations hold 16 tunnels until 2001-02-03 14:13:22 UTC at the latest\n"
    );
}

#[tokio::test]
async fn a_wait_for_drained_ends_when_all_older_generations_are_gone() {
    let fake = script([
        ok(RELOADED),
        ok(status(1, &[(2, 4), (3, 80), (4, 0)])),
        ok(status(1, &[(3, 0), (4, 0)])),
        // A newer one, of somebody else's reload, is not waited for.
        ok(status(1, &[(4, 9), (5, 9)])),
    ]);
    let outcome = wsctl(&fake.socket(), "reload --wait-drained").await;
    assert_eq!(outcome.code, 0, "{}", outcome.err);
    assert_eq!(fake.seen().len(), 4);
    assert!(outcome.out.starts_with(OUTCOME), "{}", outcome.out);
    let last = outcome.out.strip_prefix(OUTCOME).unwrap();
    assert!(
        last.starts_with("all older generations are gone after "),
        "{last}"
    );
    assert!(
        outcome.err.contains("84 tunnels left, deadline in 48s\n"),
        "{}",
        outcome.err
    );
}

#[tokio::test]
async fn a_wait_for_drained_waits_for_tunnels_that_lost_their_way_as_well() {
    let lost = |tunnels| {
        let active = format!(r#""state":"active","draining_tunnels":{tunnels}"#);
        status(1, &[(4, 90)]).replace(r#""state":"draining""#, &active)
    };
    let fake = script([ok(RELOADED), ok(lost(84)), ok(lost(1)), ok(lost(0))]);
    let outcome = wsctl(&fake.socket(), "reload --wait-drained").await;
    assert_eq!(outcome.code, 0, "{}", outcome.err);
    assert_eq!(fake.seen().len(), 4);
    assert!(outcome.err.contains("84 tunnels left"), "{}", outcome.err);
}

#[tokio::test]
async fn an_unchanged_configuration_tells_what_drains_without_an_older_generation() {
    let json = r#"{"result":"unchanged","generation":3,"active_since":"2001-02-03T14:03:22.000Z","draining_tunnels":1,"draining_generations":0,"deadline_at":"2001-02-03T14:13:22.000Z"}"#;
    let fake = Fake::always(200, json);
    let outcome = wsctl(&fake.socket(), "reload").await;
    let end = "runs this content; 1 tunnel drains until 2001-02-03 14:13:22 UTC at the latest\n";
    assert!(outcome.out.ends_with(end), "{}", outcome.out);
}

#[tokio::test]
async fn a_wait_for_drained_that_takes_too_long_runs_into_the_timeout() {
    let fake = Fake::start(|seen| match seen.call.as_str() {
        "POST /v1/reload" => ok(RELOADED),
        _ => ok(status(1, &[(3, 80), (4, 0)])),
    });
    let outcome = wsctl(
        &fake.socket(),
        "reload --wait-drained --timeout 300ms --json",
    )
    .await;
    assert_eq!((outcome.code, outcome.out), (4, format!("{RELOADED}\n")));
    assert!(
        outcome
            .err
            .ends_with("error: gave up after 300ms; the reload goes on, see `wsctl status`\n")
    );
}

#[tokio::test]
async fn a_supervisor_lost_during_a_wait_is_no_supervisor() {
    let fake = script([ok(RELOADED), Reply::Gone]);
    let outcome = wsctl(&fake.socket(), "reload --wait-drained").await;
    assert_eq!(outcome.code, 3, "{outcome:?}");
    assert_eq!(outcome.out, OUTCOME);
}

#[tokio::test]
async fn stop_waits_until_the_supervisor_is_gone() {
    let fake = script([
        ok(STOPPING),
        ok(status(999_999, &[(3, 7)])),
        Reply::Json(
            503,
            r#"{"error":{"code":"stopping","message":"m","help":"h"}}"#.to_owned(),
        ),
        Reply::HangUp,
        Reply::Gone,
    ]);
    let outcome = wsctl(&fake.socket(), "stop --now").await;
    assert_eq!(outcome.code, 0, "{}", outcome.err);
    let first = "wsgate (pid 999999) is stopping: 84 tunnels left, for 10m at the latest\n";
    let last = outcome.out.strip_prefix(first).unwrap();
    assert!(last.starts_with("wsgate has stopped after "), "{last}");
    assert_eq!(outcome.err, "7 tunnels left, deadline in 48s\n");
    let seen = fake.seen();
    assert_eq!(seen.len(), 5);
    assert_eq!(
        (seen[0].call.as_str(), seen[0].body.as_str()),
        ("POST /v1/stop", r#"{"now":true}"#)
    );
}

#[tokio::test]
async fn stop_is_over_when_another_supervisor_answers() {
    let fake = script([ok(STOPPING), ok(status(999_998, &[(3, 7)]))]);
    let outcome = wsctl(&fake.socket(), "stop --json").await;
    assert_eq!((outcome.code, outcome.out), (0, format!("{STOPPING}\n")));
}
