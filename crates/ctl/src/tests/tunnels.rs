//! `wsctl tunnels`: streamed, filtered, and honest about what is missing.

use std::future::pending;

use super::*;

pub(super) fn tunnel(number: u64, state: &str) -> String {
    let deadline = if state == "draining" { "48.2" } else { "null" };
    format!(
        r#"{{"id":"{number:016x}","client":"192.0.2.7:{number}","listener":"0.0.0.0:80","host":"h","path":"/c[\"]","route":"chat","upstream":"chat","server":"127.0.0.1:9001","worker":7,"slot":0,"generation":3,"state":"{state}","deadline_at":null,"deadline_in_seconds":{deadline},"opened_at":"2030-05-01T10:00:00.000Z","age_seconds":200.0,"idle_seconds":0.52,"bytes_from_client":340,"bytes_from_server":2048,"messages_from_client":3,"messages_from_server":4,"subprotocol":null,"unframed":{}{}}}"#,
        number == 2,
        // Older workers do not say.
        if number == 2 { r#","handovers":2"# } else { "" }
    )
}

fn array(tunnels: &[String]) -> String {
    format!("[{}]", tunnels.join(","))
}

/// A body in pieces of seven bytes.
fn in_pieces(body: &str) -> Vec<String> {
    body.as_bytes()
        .chunks(7)
        .map(|piece| String::from_utf8(piece.to_vec()).unwrap())
        .collect()
}

fn three() -> String {
    array(&[
        tunnel(1, "open"),
        tunnel(2, "draining"),
        tunnel(30_000, "closing"),
    ])
}

#[tokio::test]
async fn tunnels_are_shown_in_columns_and_counted() {
    let fake = Fake::start(|_| Reply::Chunks("", in_pieces(&three())));
    let outcome = wsctl(&fake.socket(), "tunnels").await;
    assert_eq!((outcome.code, outcome.err.as_str()), (0, "3 tunnels\n"));
    assert_eq!(
        outcome.out,
        "\
ID                CLIENT           ROUTE  SERVER          GEN  STATE            AGE  IDLE     IN      OUT  MESSAGES IN/OUT  HANDOVERS
0000000000000001  192.0.2.7:1      chat   127.0.0.1:9001    3  open          3m 20s  0.5s  340 B  2.0 KiB              3/4          0
0000000000000002  192.0.2.7:2      chat   127.0.0.1:9001    3  draining 48s  3m 20s  0.5s  340 B  2.0 KiB         unframed          2
0000000000007530  192.0.2.7:30000  chat   127.0.0.1:9001    3  closing       3m 20s  0.5s  340 B  2.0 KiB              3/4          0
"
    );
}

#[tokio::test]
async fn a_narrow_terminal_leaves_out_columns_and_says_which() {
    let fake = Fake::start(|_| Reply::Chunks("", in_pieces(&three())));
    let screen = Screen {
        width: Some(80),
        colour: false,
    };
    let outcome = wsctl_on(&fake.socket(), "tunnels", screen, pending()).await;
    assert_eq!(
        outcome.out,
        "\
ID                CLIENT           SERVER          STATE            AGE     IN
0000000000000001  192.0.2.7:1      127.0.0.1:9001  open          3m 20s  340 B
0000000000000002  192.0.2.7:2      127.0.0.1:9001  draining 48s  3m 20s  340 B
0000000000007530  192.0.2.7:30000  127.0.0.1:9001  closing       3m 20s  340 B
"
    );
    assert_eq!(
        outcome.err,
        "3 tunnels (no room for: HANDOVERS, MESSAGES IN/OUT, IDLE, GEN, ROUTE, OUT)\n"
    );
}

#[tokio::test]
async fn the_columns_of_a_long_list_stay_where_they_are() {
    let tunnels: Vec<String> = (0..1_234)
        .map(|number| tunnel(9_999 - number, "open"))
        .collect();
    let fake = Fake::start(move |_| Reply::Chunks("", vec![array(&tunnels)]));
    let outcome = wsctl(&fake.socket(), "tunnels").await;
    assert_eq!(outcome.err, "1234 tunnels\n");
    let route = outcome.out.find("ROUTE").unwrap();
    let lines: Vec<&str> = outcome.out.lines().collect();
    assert_eq!(lines.len(), 1_235, "one head only");
    for line in &lines[1..] {
        assert_eq!(&line[route..route + 6], "chat  ", "{line}");
    }
}

#[tokio::test]
async fn with_json_the_array_passes_through_unchanged() {
    // Not even right JSON: nothing is read into it.
    let body = "[ {\"id\": 1} ,\n oops ]";
    let fake = Fake::start(move |_| Reply::Chunks("", in_pieces(body)));
    let outcome = wsctl(&fake.socket(), "tunnels --json").await;
    assert_eq!((outcome.code, outcome.out), (0, format!("{body}\n")));
}

#[tokio::test]
async fn a_worker_that_does_not_answer_is_named() {
    for line in ["tunnels", "tunnels --json"] {
        let headers = "Wsgate-Unresponsive-Workers: 41,42\r\n";
        let fake = Fake::start(move |_| Reply::Chunks(headers, vec![three()]));
        let outcome = wsctl(&fake.socket(), line).await;
        assert_eq!(outcome.code, 1);
        assert!(outcome.out.contains("192.0.2.7:30000"), "{}", outcome.out);
        let warning = "warning: these workers did not answer within 1 s, their tunnels are not listed: 41,42\n";
        assert!(outcome.err.ends_with(warning), "{}", outcome.err);
    }
}

#[tokio::test]
async fn a_list_cut_short_fails_after_what_has_come() {
    for (line, shown) in [
        ("tunnels", "192.0.2.7:1 "),
        ("tunnels --json", "192.0.2.7:1\""),
    ] {
        let body = three();
        let half = body[..body.len() / 2].to_owned();
        let fake = Fake::start(move |_| Reply::CutShort(vec![half.clone()]));
        let outcome = wsctl(&fake.socket(), line).await;
        assert_eq!(outcome.code, 1, "{line}");
        assert!(outcome.out.contains(shown), "{line}: {}", outcome.out);
        assert!(
            outcome
                .err
                .starts_with("error: the supervisor ended the connection"),
            "{}",
            outcome.err
        );
    }
}

#[tokio::test]
async fn no_tunnels_are_counted_too() {
    let fake = Fake::always(200, "[]");
    let outcome = wsctl(&fake.socket(), "tunnels").await;
    assert_eq!(
        (outcome.code, outcome.out.as_str(), outcome.err.as_str()),
        (0, "", "0 tunnels\n")
    );
}

#[tokio::test]
async fn filters_become_a_query() {
    let fake = Fake::always(200, "[]");
    let line = "tunnels --server unix:/run/a&b --older-than 1h --state draining --generation 3";
    wsctl(&fake.socket(), line).await;
    assert_eq!(
        fake.seen()[0].call,
        "GET /v1/tunnels?generation=3&older_than=3600.0&server=unix%3A%2Frun%2Fa%26b&state=draining"
    );
}
