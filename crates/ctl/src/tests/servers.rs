//! drain, undrain, maint and completions.

use super::*;

fn changed(was: &str, state: &str, rest: &str) -> String {
    format!(
        r#"{{"upstream":"chat","server":"unix:/run/x.sock","was":"{was}","state":"{state}","tunnels":12{rest}}}"#
    )
}

#[tokio::test]
async fn drain_says_how_long_the_tunnels_may_stay() {
    let rest = r#","deadline_at":"2001-02-03T14:03:22.000Z","deadline_in_seconds":600.0,"warnings":["the rate is too low for the grace"]"#;
    let fake = Fake::always(200, &changed("ready", "drain", rest));
    let line = "drain chat/unix:/run/x.sock --grace 10m --close-rate 50";
    let outcome = wsctl(&fake.socket(), line).await;
    assert_eq!(outcome.code, 0);
    assert_eq!(
        outcome.out,
        "chat/unix:/run/x.sock drains: it gets nothing new, its 12 tunnels may stay \
         until 2001-02-03 14:03:22 UTC at the latest, 10m from now (was ready)\n"
    );
    assert_eq!(outcome.err, "warning: the rate is too low for the grace\n");
    let expected = Seen {
        call: "PUT /v1/upstreams/chat/servers/unix%3A%2Frun%2Fx.sock".to_owned(),
        body: r#"{"state":"drain","grace_seconds":600.0,"close_rate":50}"#.to_owned(),
    };
    assert_eq!(fake.seen(), [expected]);
}

#[tokio::test]
async fn undrain_and_maint_send_the_state_alone() {
    let rest = r#","deadline_at":null,"deadline_in_seconds":null,"warnings":[]"#;
    for (command, was, state, expected) in [
        (
            "undrain",
            "drain",
            "ready",
            "is ready: it gets new tunnels and requests (was drain)",
        ),
        (
            "maint",
            "maint",
            "maint",
            "is in maint: it gets nothing new, its 12 tunnels may stay (as before)",
        ),
    ] {
        let fake = Fake::always(200, &changed(was, state, rest));
        let outcome = wsctl(&fake.socket(), &format!("{command} chat/unix:/run/x.sock")).await;
        assert_eq!(outcome.out, format!("chat/unix:/run/x.sock {expected}\n"));
        assert_eq!(outcome.code, 0);
        assert_eq!(fake.seen()[0].body, format!(r#"{{"state":"{state}"}}"#));
    }
}

#[tokio::test]
async fn a_server_without_tunnels_is_said_to_have_none() {
    for (state, word) in [("drain", "drains"), ("maint", "is in maint")] {
        let rest = r#","deadline_at":null,"deadline_in_seconds":null,"warnings":[]"#;
        let json = changed("ready", state, rest).replace(r#""tunnels":12"#, r#""tunnels":0"#);
        let fake = Fake::always(200, &json);
        let outcome = wsctl(&fake.socket(), &format!("{state} chat/unix:/run/x.sock")).await;
        let expected = format!(
            "chat/unix:/run/x.sock {word}: it gets nothing new and holds no tunnels (was ready)\n"
        );
        assert_eq!(outcome.out, expected);
    }
}

#[tokio::test]
async fn with_json_a_change_is_the_apis_own_json() {
    let json = changed("ready", "maint", r#","new_field":1,"warnings":[]"#);
    let fake = Fake::always(200, &json);
    let outcome = wsctl(&fake.socket(), "maint chat/unix:/run/x.sock --json").await;
    assert_eq!((outcome.code, outcome.out), (0, json + "\n"));
}

#[tokio::test]
async fn completions_need_no_supervisor() {
    let outcome = wsctl("/nonexistent/admin.sock".as_ref(), "completions bash").await;
    assert_eq!(outcome.code, 0);
    assert!(
        outcome.out.contains("complete -F _wsctl"),
        "{}",
        outcome.out
    );
    assert!(outcome.out.contains("--wait-drained"));
}
