//! What goes wrong has its exit code, and says what to do.

use std::future::pending;
use std::time::Duration;

use super::*;

const INVALID: &str = r#"{"error":{"code":"config_invalid","message":"the configuration has 2 mistakes","help":"mend the file and reload again","details":["error: unknown key `lisen`\n --> a.toml:3:1\n","error: no such upstream\n --> a.toml:9:5\n"]}}"#;

#[tokio::test]
async fn a_missing_socket_is_no_supervisor() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("none.sock");
    for line in [
        "status",
        "tunnels",
        "reload",
        "stop",
        "drain a/b:1",
        "close a",
    ] {
        let outcome = wsctl(&socket, line).await;
        assert_eq!((outcome.code, outcome.out.as_str()), (3, ""), "{line}");
        let expected = format!(
            "error: no supervisor answers at {}: the socket does not exist; start it with \
             `systemctl start wsgate` or `wsgate run --config FILE`, or name its socket with --socket\n",
            socket.display()
        );
        assert_eq!(outcome.err, expected, "{line}");
    }
}

#[tokio::test]
async fn a_socket_that_nobody_listens_on_is_no_supervisor() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("old.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let outcome = wsctl(&socket, "status").await;
    assert_eq!(outcome.code, 3);
    assert!(
        outcome.err.contains("nothing listens on the socket"),
        "{}",
        outcome.err
    );
    assert_eq!(outcome.err.lines().count(), 1);
}

#[tokio::test]
async fn every_mistake_of_a_configuration_is_shown() {
    let fake = Fake::always(422, INVALID);
    let outcome = wsctl(&fake.socket(), "reload").await;
    assert_eq!((outcome.code, outcome.out.as_str()), (1, ""));
    assert_eq!(
        outcome.err,
        "error: the configuration has 2 mistakes\n\
         \nerror: unknown key `lisen`\n --> a.toml:3:1\n\
         \nerror: no such upstream\n --> a.toml:9:5\n\
         \nhelp: mend the file and reload again\n"
    );
    assert_eq!(
        fake.seen(),
        [Seen {
            call: "POST /v1/reload".to_owned(),
            body: String::new()
        }]
    );
}

#[tokio::test]
async fn with_json_a_refusal_is_the_apis_own_json() {
    let fake = Fake::always(422, INVALID);
    let outcome = wsctl(&fake.socket(), "reload --json").await;
    assert_eq!((outcome.code, outcome.out), (1, format!("{INVALID}\n")));
}

#[tokio::test]
async fn an_answer_that_is_no_json_is_shown_with_its_status() {
    let fake = Fake::always(500, "out of paper");
    let outcome = wsctl(&fake.socket(), "status").await;
    assert_eq!(outcome.code, 1);
    assert_eq!(
        outcome.err,
        "error: the supervisor answered 500 Internal Server Error: out of paper\n"
    );
}

#[tokio::test]
async fn an_answer_of_another_version_fails() {
    let fake = Fake::always(200, r#"{"version":"9"}"#);
    let outcome = wsctl(&fake.socket(), "status").await;
    assert_eq!(outcome.code, 1);
    assert!(
        outcome
            .err
            .contains("the answer to /v1/status is not what this wsctl understands")
    );
}

#[tokio::test]
async fn a_supervisor_that_hangs_up_fails_the_command() {
    let fake = Fake::start(|_| Reply::HangUp);
    let outcome = wsctl(&fake.socket(), "reload").await;
    assert_eq!(outcome.code, 1);
    assert!(
        outcome
            .err
            .starts_with("error: the supervisor ended the connection without a full answer")
    );
}

#[tokio::test]
async fn a_supervisor_that_is_silent_runs_into_the_timeout() {
    let fake = Fake::start(|_| Reply::Silence);
    let outcome = wsctl(&fake.socket(), "reload --timeout 50ms").await;
    assert_eq!(outcome.code, 4);
    assert_eq!(
        outcome.err,
        "error: gave up after 50ms; the reload goes on, see `wsctl status`\n"
    );
    let outcome = wsctl(&fake.socket(), "status --timeout 50ms").await;
    assert_eq!(
        (outcome.code, outcome.err.as_str()),
        (4, "error: gave up after 50ms\n")
    );
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_that_does_not_answer_is_named_after_ten_seconds() {
    let fake = Fake::start(|_| Reply::Silence);
    let socket = fake.socket();
    let (pid, path) = (std::process::id(), socket.display());
    let expected = format!(
        "error: the supervisor (pid {pid}) does not answer at {path}: nothing came for 10s; \
         `ps -o stat,wchan:32,args -p {pid}` and the end of its log tell more, and --timeout waits longer"
    );
    let (asked, changed) = (
        "\n",
        "; the change may have been made, see `wsctl status`\n",
    );
    for (line, end) in [
        ("status", asked),
        ("tunnels", asked),
        ("drain a/b", changed),
        ("undrain a/b", changed),
        ("maint a/b", changed),
    ] {
        let begun = tokio::time::Instant::now();
        let outcome = wsctl(&socket, line).await;
        assert_eq!(outcome.code, 4, "{line}");
        assert_eq!(outcome.err, format!("{expected}{end}"), "{line}");
        assert!(begun.elapsed() >= Duration::from_secs(10), "{line}");
    }
}

#[tokio::test(start_paused = true)]
async fn reload_and_stop_wait_for_as_long_as_it_takes() {
    for line in ["reload", "stop"] {
        let fake = Fake::start(|_| Reply::Silence);
        let socket = fake.socket();
        let waited = tokio::time::timeout(Duration::from_secs(3_600), wsctl(&socket, line)).await;
        assert!(waited.is_err(), "{line}: {waited:?}");
    }
}

#[tokio::test]
async fn an_interrupt_ends_a_wait() {
    let (asked, interrupt) = tokio::sync::oneshot::channel();
    let mut asked = Some(asked);
    let fake = Fake::start(move |_| {
        // The user presses Ctrl-C once the request has arrived.
        if let Some(asked) = asked.take() {
            asked.send(()).unwrap();
        }
        Reply::Silence
    });
    let interrupt = async { interrupt.await.unwrap() };
    let outcome = wsctl_on(&fake.socket(), "reload", Screen::default(), interrupt).await;
    assert_eq!(outcome.code, 130);
    assert_eq!(
        outcome.err,
        "error: interrupted; the reload goes on, see `wsctl status`\n"
    );
}

/// A reader that has left, as `head` does.
struct Closed;

impl std::io::Write for Closed {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_reader_that_has_left_is_a_quiet_end_but_hides_no_failure() {
    for (status, json, expected) in [
        (
            200,
            r#"{"result":"unchanged","generation":3,"active_since":"2001-02-03T14:03:22.000Z","draining_tunnels":0,"draining_generations":0,"deadline_at":null}"#,
            0,
        ),
        (422, INVALID, 1),
    ] {
        let fake = Fake::always(status, json);
        let socket = fake.socket();
        let line = [
            "wsctl",
            "--json",
            "--socket",
            socket.to_str().unwrap(),
            "reload",
        ];
        let args = Wsctl::try_parse_from(line).unwrap().args;
        let (mut out, mut err) = (Closed, Vec::new());
        let mut console = Console {
            out: &mut out,
            err: &mut err,
            width: None,
            colour: false,
            bar: false,
        };
        assert_eq!(
            crate::execute(&args, &mut console, pending()).await,
            expected
        );
        assert_eq!(err.is_empty(), expected == 0);
    }
}
