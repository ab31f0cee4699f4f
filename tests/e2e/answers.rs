//! What the gateway answers itself: a reason and a request id, in few words.

use std::time::{Duration, Instant};

use http::StatusCode;
use tokio_tungstenite::tungstenite::Message;

use crate::configs;
use crate::support::backend::{self, Echo, Raw, answering, mirror};
use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::raw::{self, Head, Wire, ask, get};
use crate::support::wait::{SOON, until};
use crate::support::wire::WireEnd;

/// An error of the gateway's own: its reason, and a request id that the log has too.
async fn assert_own_error(gateway: &Gateway, head: &Head, body: &str, status: u16) {
    assert_eq!(head.status(), status, "{head:?} {body}");
    let content_type = head.header("content-type").unwrap();
    assert!(content_type.starts_with("text/plain"), "{content_type}");
    let id = request_id(body);
    gateway.logged(&[&id, &status.to_string()]).await;
    let counted = gateway.status().await.totals.errors;
    assert!(counted[&status.to_string()] >= 1, "{counted:?}");
}

/// The request id in an error's text: its only word with digits in it that is no number.
fn request_id(body: &str) -> String {
    let words = body.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    let mut ids =
        words.filter(|word| word.len() >= 8 && word.contains(|c: char| c.is_ascii_digit()));
    ids.next_back()
        .unwrap_or_else(|| panic!("no request id: {body:?}"))
        .to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_101_that_is_not_the_answer_to_this_handshake_becomes_502() {
    fn without(head: &Head, line: &str) -> String {
        let answer = raw::switching(head, "");
        let lines = answer
            .split_inclusive("\r\n")
            .filter(|text| !text.starts_with(line));
        lines.collect()
    }
    let wrong: [fn(&Head) -> String; 5] = [
        |head| without(head, "Sec-WebSocket-Accept"),
        |head| without(head, "Upgrade"),
        |head| without(head, "Connection"),
        |head| raw::switching(head, "").replace("Upgrade: websocket", "Upgrade: h2c"),
        |head| {
            let answer = without(head, "Sec-WebSocket-Accept");
            answer.replace(
                "\r\n\r\n",
                "\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOg=\r\n\r\n",
            )
        },
    ];
    for (number, answer) in wrong.into_iter().enumerate() {
        // Of its own key the fixed Accept would be right.
        let key = "AAAAAAAAAAAAAAAAAAAAAA==";
        let server = answering(answer).await;
        let gateway = Gateway::start(&configs::simple(&[&server.address])).await;
        let mut wire = Wire::connect(gateway.address()).await;
        let (head, text) = ask(&mut wire, &raw::upgrade("/", "").replace(raw::KEY, key)).await;
        assert_eq!(head.status(), 502, "no. {number}: {text}");
        assert_own_error(&gateway, &head, &text, 502).await;
        assert!(gateway.tunnels().await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_route_is_404() {
    let server = backend::http(mirror).await;
    let config = format!(
        "{}[[route]]\nhost = \"chat.example.com\"\npath = \"/ver\"\nupstream = \"chat\"\n{}",
        configs::LISTENER,
        configs::upstream("chat", &[&server.address]),
    );
    let gateway = Gateway::start(&config).await;
    for (path, host) in [
        ("/ver", "example.com"),
        ("/", "chat.example.com"),
        ("/version", "chat.example.com"),
    ] {
        let mut wire = Wire::connect(gateway.address()).await;
        let (head, text) = ask(&mut wire, &get(path, host)).await;
        assert_own_error(&gateway, &head, &text, 404).await;
        let (head, _) = ask(&mut wire, &get("/ver/1", "CHAT.example.com:8080")).await;
        assert_eq!(head.status(), 200, "the connection is still in order");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_does_not_end_is_408() {
    let server = backend::http(mirror).await;
    let config = configs::with("[limits]\nhandshake_timeout = \"1s\"", &[&server.address]);
    let gateway = Gateway::start(&config).await;
    for begun in ["", "GET / HTTP/1.1\r\nHost: x\r\nX-Slow"] {
        let mut wire = Wire::connect(gateway.address()).await;
        wire.send(begun).await;
        let began = Instant::now();
        let (answer, end) = wire.rest().await;
        let took = began.elapsed();
        assert!(
            took >= Duration::from_millis(900) && took < SOON,
            "{took:?}"
        );
        assert_eq!(end, WireEnd::Fin);
        let answer = String::from_utf8(answer).unwrap();
        // Nothing was asked, so nothing need be answered.
        assert!(
            begun.is_empty() || answer.starts_with("HTTP/1.1 408 "),
            "{answer:?}"
        );
    }
    gateway.logged(&["408"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_are_wrong_or_too_long_are_refused() {
    let server = backend::http(mirror).await;
    let config = configs::with("[limits]\nheader_bytes = \"8KiB\"", &[&server.address]);
    let gateway = Gateway::start(&config).await;
    let long = format!(
        "GET / HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n",
        "x".repeat(20_000)
    );
    for (request, status) in [("NONSENSE\r\n\r\n", 400), (long.as_str(), 431)] {
        let mut wire = Wire::connect(gateway.address()).await;
        wire.send(request).await;
        assert_eq!(wire.head().await.status(), status, "{}", &request[..8]);
        gateway.logged(&[&status.to_string()]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_version_of_websocket_is_426_with_the_right_one() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&configs::simple(&[&echo.address])).await;
    let mut wire = Wire::connect(gateway.address()).await;
    let request = raw::upgrade("/", "").replace("Version: 13", "Version: 8");
    let (head, text) = ask(&mut wire, &request).await;
    assert_own_error(&gateway, &head, &text, 426).await;
    assert_eq!(head.header("sec-websocket-version").as_deref(), Some("13"));
    assert!(echo.sessions().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_server_that_can_be_reached_is_502() {
    let (one, two) = (backend::nobody().await, backend::nobody().await);
    let gateway = Gateway::start(&configs::simple(&[&one, &two])).await;
    for request in [get("/", "x"), raw::upgrade("/", "")] {
        let mut wire = Wire::connect(gateway.address()).await;
        let (head, text) = ask(&mut wire, &request).await;
        assert_own_error(&gateway, &head, &text, 502).await;
    }
    let upstream = gateway.status().await.upstreams.remove(0);
    let failures: u64 = upstream
        .servers
        .iter()
        .map(|server| server.connect_failures)
        .sum();
    assert!(failures >= 2, "{upstream:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_breaks_off_is_502() {
    let server = Raw::start(|stream| async move {
        let mut wire = Wire::new(stream);
        wire.try_head().await;
    })
    .await;
    let gateway = Gateway::start(&configs::simple(&[&server.address])).await;
    for request in [get("/", "x"), raw::upgrade("/", "")] {
        let mut wire = Wire::connect(gateway.address()).await;
        let (head, text) = ask(&mut wire, &request).await;
        assert_own_error(&gateway, &head, &text, 502).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_take_the_connection_is_504() {
    // With its queue full, a listening socket ignores what else comes (tcp(7), listen(2)).
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut queued = Vec::new();
    let pause = Duration::from_millis(200);
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, pause) {
        queued.push(stream);
    }
    let upstream = format!(
        "[upstream.chat]\nservers = [\"{address}\"]\nconnect_timeout = \"300ms\"\nretries = 0\n"
    );
    let gateway = Gateway::start(&format!(
        "{}{}{upstream}",
        configs::LISTENER,
        configs::ROUTE
    ))
    .await;
    for request in [get("/", "x"), raw::upgrade("/", "")] {
        let mut wire = Wire::connect(gateway.address()).await;
        let began = Instant::now();
        let (head, text) = ask(&mut wire, &request).await;
        assert_own_error(&gateway, &head, &text, 504).await;
        assert!(
            began.elapsed() >= Duration::from_millis(250),
            "{:?}",
            began.elapsed()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_limit_of_tunnels_a_client_is_told_when_to_come_back() {
    let echo = Echo::start().await;
    let config = configs::with("workers = 2\n[limits]\ntunnels = 3", &[&echo.address]);
    let gateway = Gateway::start(&config).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(Client::open(&gateway.ws_url("/")).await);
    }
    for _ in 0..4 {
        // Whichever worker gets it: the limit is the gateway's.
        let mut wire = Wire::connect(gateway.address()).await;
        let (head, text) = ask(&mut wire, &raw::upgrade("/", "")).await;
        assert_own_error(&gateway, &head, &text, 503).await;
        assert!(head.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
    }
    held.pop().unwrap().close(1000, "").await;
    until("there is room again", SOON, async || {
        gateway.tunnels().await.len() == 2
    })
    .await;
    Client::open(&gateway.ws_url("/"))
        .await
        .echo(Message::text("in"))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_smuggled_by_two_lengths_is_refused() {
    let server = backend::http(mirror).await;
    let gateway = Gateway::start(&configs::simple(&[&server.address])).await;
    let mut wire = Wire::connect(gateway.address()).await;
    // RFC 9112 section 6.3: either refused, or the length ignored and the connection closed.
    wire.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n123456")
        .await;
    let head = wire.head().await;
    assert_eq!(head.status(), StatusCode::BAD_REQUEST.as_u16());
    assert_eq!(server.connections(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_of_tunnels_holds_when_all_come_at_once() {
    let echo = Echo::start().await;
    let config = configs::with("workers = 2\n[limits]\ntunnels = 40", &[&echo.address]);
    let gateway = Gateway::start(&config).await;
    let url = gateway.ws_url("/");
    let opening = (0..80).map(|_| Client::try_open(&url));
    let opened = futures_util::future::join_all(opening).await;
    let open = opened.iter().filter(|client| client.is_ok()).count();
    // Two workers at the same moment may each leave the last places to the other.
    assert!((36..=40).contains(&open), "{open} tunnels, 40 at most");
}
