//! `wsctl close`: one call for each tunnel, and what came of each.

use super::tunnels::tunnel;
use super::*;

const UNKNOWN: &str = r#"{"error":{"code":"unknown_tunnel","message":"there is no tunnel \"gone\"","help":"look again"}}"#;

/// Has every tunnel but `gone`.
fn gateway() -> Fake {
    Fake::start(|seen| {
        if seen.call.ends_with("/gone") {
            Reply::Json(404, UNKNOWN.to_owned())
        } else {
            Reply::Json(200, tunnel(1, "closing"))
        }
    })
}

#[tokio::test]
async fn code_and_reason_are_sent_and_the_tunnel_is_shown() {
    let fake = gateway();
    let line = "close 6b-1-1 --code 4001 --reason enough";
    let outcome = wsctl(&fake.socket(), line).await;
    assert_eq!((outcome.code, outcome.err.as_str()), (0, ""));
    assert_eq!(
        outcome.out,
        "0000000000000001 closes: 192.0.2.7:1 to chat/127.0.0.1:9001, open for 3m 20s\n"
    );
    let expected = Seen {
        call: "DELETE /v1/tunnels/6b-1-1".to_owned(),
        body: r#"{"code":4001,"reason":"enough"}"#.to_owned(),
    };
    assert_eq!(fake.seen(), [expected]);
}

#[tokio::test]
async fn what_is_not_given_is_left_to_the_gateway() {
    let fake = gateway();
    assert_eq!(wsctl(&fake.socket(), "close a/b").await.code, 0);
    let expected = Seen {
        call: "DELETE /v1/tunnels/a%2Fb".to_owned(),
        body: "{}".to_owned(),
    };
    assert_eq!(fake.seen(), [expected]);
}

#[tokio::test]
async fn one_that_is_refused_does_not_keep_the_others_open() {
    let fake = gateway();
    let outcome = wsctl(&fake.socket(), "close a gone b").await;
    assert_eq!((outcome.code, outcome.out.lines().count()), (1, 2));
    assert_eq!(
        outcome.err,
        "error: there is no tunnel \"gone\"\nhelp: look again\nerror: 1 of 3 tunnels were not closed\n"
    );
    assert_eq!(fake.seen().len(), 3);
}

#[tokio::test]
async fn the_only_one_is_refused_in_its_own_words() {
    let fake = gateway();
    let outcome = wsctl(&fake.socket(), "close gone").await;
    assert_eq!((outcome.code, outcome.out.as_str()), (1, ""));
    assert_eq!(
        outcome.err,
        "error: there is no tunnel \"gone\"\nhelp: look again\n"
    );
}

#[tokio::test]
async fn with_json_each_answer_is_a_line() {
    let fake = gateway();
    let outcome = wsctl(&fake.socket(), "close a gone --json").await;
    assert_eq!(outcome.code, 1);
    let expected = format!("{}\n{UNKNOWN}\n", tunnel(1, "closing"));
    assert_eq!(outcome.out, expected);
}

#[tokio::test]
async fn nobody_is_asked_after_the_supervisor_has_gone() {
    let fake = Fake::start(|_| Reply::Gone);
    let outcome = wsctl(&fake.socket(), "close a b c").await;
    assert_eq!(outcome.code, 1);
    assert_eq!(fake.seen().len(), 1);
    let outcome = wsctl(&fake.socket(), "close a b c").await;
    assert_eq!((outcome.code, outcome.err.lines().count()), (3, 1));
}

#[tokio::test]
async fn giving_up_says_what_may_have_been_done() {
    let fake = Fake::start(|_| Reply::Silence);
    let outcome = wsctl(&fake.socket(), "close a --timeout 50ms").await;
    assert_eq!(outcome.code, 4);
    assert_eq!(
        outcome.err,
        "error: gave up after 50ms; tunnels may have been closed, see `wsctl tunnels`\n"
    );
}
