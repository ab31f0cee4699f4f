//! What is no tunnel: plain HTTP through the gateway, and what the gateway answers itself.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use crate::configs;
use crate::support::backend::{self, Body, Echo, Raw};
use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::raw::{self, Head, Wire};
use crate::support::wait::{SOON, until, within};
use crate::support::wire::WireEnd;

fn body(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed_unsync()
}

/// Answers with what it was asked, as it arrived.
async fn mirror(request: Request<Incoming>) -> Response<Body> {
    let (parts, incoming) = request.into_parts();
    let got = incoming.collect().await.unwrap().to_bytes();
    let mut text = format!("{} {} {} bytes\n", parts.method, parts.uri, got.len());
    for (name, value) in &parts.headers {
        text.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
    }
    Response::builder()
        .header("x-server", "mirror")
        .body(body(text))
        .unwrap()
}

/// Sends one request and reads its whole answer.
async fn ask(wire: &mut Wire, request: &str) -> (Head, String) {
    wire.send(request).await;
    let head = wire.head().await;
    let body = wire.body(&head).await;
    (head, String::from_utf8(body).unwrap())
}

fn get(path: &str, host: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")
}

/// A server whose answer to an upgrade is made by `answer`.
async fn answering(answer: impl Fn(&Head) -> String + Clone + Send + 'static) -> Raw {
    Raw::start(move |stream| {
        let answer = answer.clone();
        async move {
            let mut wire = Wire::new(stream);
            if let Some(head) = wire.try_head().await {
                wire.send(answer(&head)).await;
                wire.rest().await;
            }
        }
    })
    .await
}

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
async fn requests_keep_their_connections_on_both_sides() {
    let server = backend::http(mirror).await;
    let gateway = Gateway::start(&configs::with("workers = 1", &[&server.address])).await;
    let mut wire = Wire::connect(gateway.address()).await;
    for number in 0..5 {
        let path = format!("/path/{number}?q=a%20b");
        let (head, text) = ask(&mut wire, &get(&path, "localhost")).await;
        assert_eq!(head.status(), 200);
        assert_eq!(head.header("x-server").as_deref(), Some("mirror"));
        assert!(text.starts_with(&format!("GET {path} 0 bytes\n")), "{text}");
    }
    assert_eq!(server.connections(), 1);
    assert_eq!(gateway.status().await.totals.requests, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_connection_that_its_server_closed_is_not_used_again() {
    // Answers once, and closes although it said nothing of it.
    let server = Raw::start(|stream| async move {
        let mut wire = Wire::new(stream);
        wire.head().await;
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .await;
    })
    .await;
    let gateway = Gateway::start(&configs::with("workers = 1", &[&server.address])).await;
    let mut wire = Wire::connect(gateway.address()).await;
    for _ in 0..5 {
        let (head, text) = ask(&mut wire, &get("/", "localhost")).await;
        assert_eq!((head.status(), text.as_str()), (200, "ok"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_body_is_streamed() {
    let (sender, mut parts) = mpsc::channel(8);
    let server = backend::http(move |request: Request<Incoming>| {
        let sender = sender.clone();
        async move {
            let mut incoming = request.into_body();
            while let Some(frame) = incoming.frame().await {
                let data = frame.unwrap().into_data().unwrap();
                sender.send(data).await.unwrap();
            }
            Response::new(body("all there"))
        }
    })
    .await;
    let gateway = Gateway::start(&configs::simple(&[&server.address])).await;
    let mut wire = Wire::connect(gateway.address()).await;
    wire.send("POST /up HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    for part in ["first", "second", "third"] {
        wire.send(format!("{:x}\r\n{part}\r\n", part.len())).await;
        // The next part is sent only when this one has arrived.
        let got = within("a part arrives", SOON, parts.recv()).await;
        assert_eq!(got.as_deref(), Some(part.as_bytes()));
    }
    wire.send("0\r\n\r\n").await;
    let head = wire.head().await;
    assert_eq!(wire.body(&head).await, b"all there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answers_body_is_streamed() {
    let (sender, receiver) = mpsc::channel::<&str>(1);
    let receiver = Arc::new(Mutex::new(Some(receiver)));
    let server = backend::http(move |_| {
        let receiver = receiver.lock().unwrap().take().unwrap();
        async move {
            let parts = stream::unfold(receiver, async |mut receiver| {
                let part = receiver.recv().await?;
                Some((Ok(Frame::data(Bytes::from(part))), receiver))
            });
            Response::new(StreamBody::new(parts).boxed_unsync())
        }
    })
    .await;
    let gateway = Gateway::start(&configs::simple(&[&server.address])).await;
    let mut wire = Wire::connect(gateway.address()).await;
    wire.send(get("/down", "x")).await;
    let head = wire.head().await;
    assert_eq!(head.header("transfer-encoding").as_deref(), Some("chunked"));
    for part in ["event: 1", "event: 2", "event: 3"] {
        sender.send(part).await.unwrap();
        assert_eq!(wire.chunk().await, part.as_bytes());
    }
    drop(sender);
    assert!(wire.chunk().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_without_a_body_leave_their_connection_in_order() {
    let server = backend::http(|request: Request<Incoming>| async move {
        let answer = Response::builder();
        let answer = match request.uri().path() {
            "/204" => answer.status(204).body(body("")),
            "/304" => answer.status(304).header("etag", "\"7\"").body(body("")),
            _ => answer
                .header("x-method", request.method().as_str())
                .body(body("0123456789")),
        };
        answer.unwrap()
    })
    .await;
    let gateway = Gateway::start(&configs::simple(&[&server.address])).await;
    let mut wire = Wire::connect(gateway.address()).await;
    for _ in 0..2 {
        wire.send("HEAD /page HTTP/1.1\r\nHost: x\r\n\r\n").await;
        let head = wire.head().await;
        assert_eq!(head.header("content-length").as_deref(), Some("10"));
        assert_eq!(head.header("x-method").as_deref(), Some("HEAD"));
        for (path, status) in [("/204", 204), ("/304", 304)] {
            wire.send(get(path, "x")).await;
            assert_eq!(wire.head().await.status(), status);
        }
        let (head, text) = ask(&mut wire, &get("/page", "x")).await;
        assert_eq!((head.status(), text.as_str()), (200, "0123456789"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_several_megabytes_passes_both_ways() {
    let server = backend::http(|request: Request<Incoming>| async move {
        Response::new(
            request
                .into_body()
                .map_err(|_| unreachable!())
                .boxed_unsync(),
        )
    })
    .await;
    let gateway = Gateway::start(&configs::simple(&[&server.address])).await;
    let sent: Vec<u8> = (0..8_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut wire = Wire::connect(gateway.address()).await;
    let head = format!(
        "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        sent.len()
    );
    wire.send(head).await;
    // Both directions at once: the server echoes while it reads.
    let (mut reading, mut writing) = tokio::io::split(wire.stream);
    let body = sent.clone();
    let writer = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        writing.write_all(&body).await.unwrap();
        writing
    });
    let mut got = Vec::new();
    let read = async {
        use tokio::io::AsyncReadExt;
        let mut buffer = vec![0; 65_536];
        while !got.ends_with(b"\r\n0\r\n\r\n") {
            let count = reading.read(&mut buffer).await.unwrap();
            assert!(count > 0, "the end, after {} bytes", got.len());
            got.extend_from_slice(&buffer[..count]);
        }
    };
    within("the body comes back", SOON, read).await;
    writer.await.unwrap();
    assert!(unchunked(&got) == sent);
}

/// The body of an answer in chunks, head and all.
fn unchunked(answer: &[u8]) -> Vec<u8> {
    let position = |bytes: &[u8], pattern: &[u8]| {
        bytes
            .windows(pattern.len())
            .position(|window| window == pattern)
            .unwrap()
    };
    let mut rest = &answer[position(answer, b"\r\n\r\n") + 4..];
    let mut body = Vec::new();
    loop {
        let line = position(rest, b"\r\n");
        let size = std::str::from_utf8(&rest[..line]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&rest[line + 2..line + 2 + size]);
        rest = &rest[line + 2 + size + 2..];
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_expects_100_is_told_to_go_on() {
    let server = backend::http(mirror).await;
    let gateway = Gateway::start(&configs::simple(&[&server.address])).await;
    let mut wire = Wire::connect(gateway.address()).await;
    wire.send("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        .await;
    assert_eq!(wire.head().await.status(), 100);
    let (head, text) = ask(&mut wire, "body").await;
    assert_eq!(head.status(), 200);
    assert!(text.starts_with("POST / 4 bytes"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hop_by_hop_headers_end_at_the_gateway() {
    let server = backend::http(|request| async move {
        let mut answer = mirror(request).await;
        let headers = answer.headers_mut();
        headers.insert("connection", "x-secret-of-the-server".parse().unwrap());
        headers.insert("x-secret-of-the-server", "1".parse().unwrap());
        headers.insert("keep-alive", "timeout=5".parse().unwrap());
        headers.insert("proxy-authenticate", "Basic".parse().unwrap());
        answer
    })
    .await;
    let gateway = Gateway::start(&configs::simple(&[&server.address])).await;
    let mut wire = Wire::connect(gateway.address()).await;
    let request = "GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, X-Mine\r\nX-Mine: 1\r\n\
        Keep-Alive: timeout=9\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\nX-End: to-end\r\n\r\n";
    let (head, text) = ask(&mut wire, request).await;
    let text = text.to_ascii_lowercase();
    for gone in ["x-mine", "keep-alive:", "proxy-connection", "upgrade"] {
        assert!(!text.contains(gone), "{gone} reached the server: {text}");
    }
    assert!(text.contains("x-end: to-end"), "{text}");
    for gone in ["x-secret-of-the-server", "keep-alive"] {
        assert_eq!(head.header(gone), None, "{gone} reached the client");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_names_only_websocket_to_the_server() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&configs::simple(&[&echo.address])).await;
    let extra =
        "Connection: X-Mine, keep-alive\r\nX-Mine: 1\r\nX-End: to-end\r\nOrigin: http://a\r\n";
    let (_wire, head) = Wire::tunnel(gateway.address(), "/p?q=1", extra).await;
    assert_eq!(
        head.header("upgrade").unwrap().to_ascii_lowercase(),
        "websocket"
    );
    let session = echo.session();
    assert_eq!(session.target, "/p?q=1");
    let connection = session.headers["connection"]
        .to_str()
        .unwrap()
        .to_ascii_lowercase();
    assert_eq!(connection, "upgrade");
    assert_eq!(session.headers["host"], "localhost");
    assert_eq!(session.headers["origin"], "http://a");
    assert_eq!(session.headers["x-end"], "to-end");
    assert!(!session.headers.contains_key("x-mine"), "{session:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_to_anything_else_is_a_plain_request() {
    let server = backend::http(mirror).await;
    let gateway = Gateway::start(&configs::simple(&[&server.address])).await;
    for other in [
        "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
        "Upgrade: TLS/1.3\r\nConnection: upgrade\r\n",
        "Upgrade: websocket\r\n",
    ] {
        let mut wire = Wire::connect(gateway.address()).await;
        let request = format!("GET /it HTTP/1.1\r\nHost: x\r\n{other}\r\n");
        let (head, text) = ask(&mut wire, &request).await;
        assert_eq!(head.status(), 200, "{other}");
        let text = text.to_ascii_lowercase();
        assert!(text.starts_with("get /it"), "{text}");
        assert!(
            !text.contains("upgrade") && !text.contains("http2-settings"),
            "{text}"
        );
    }
    assert!(gateway.tunnels().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_servers_no_to_an_upgrade_is_passed_on() {
    let server = answering(|_| {
        "HTTP/1.1 403 Forbidden\r\nX-Why: closed\r\nContent-Length: 4\r\n\r\nno!\n".to_owned()
    })
    .await;
    let gateway = Gateway::start(&configs::simple(&[&server.address])).await;
    let mut wire = Wire::connect(gateway.address()).await;
    let (head, text) = ask(&mut wire, &raw::upgrade("/", "")).await;
    assert_eq!((head.status(), text.as_str()), (403, "no!\n"));
    assert_eq!(head.header("x-why").as_deref(), Some("closed"));
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
async fn the_longest_path_of_the_closest_host_wins() {
    async fn named(name: &'static str) -> Raw {
        backend::http(move |_| async move { Response::new(body(name)) }).await
    }
    let names = [
        "any",
        "any-deep",
        "wild",
        "exact",
        "exact-deep",
        "alone",
        "prefix",
    ];
    let routes = [
        "path = \"/\"",
        "path = \"/a/b\"",
        "host = \"*.example.com\"",
        "host = [\"chat.example.com\", \"talk.example.com\"]",
        "host = \"chat.example.com\"\npath = \"/a/b\"",
        "host = \"chat.example.com\"\npath = \"=/a\"",
        "host = \"chat.example.com\"\npath = \"/pre*\"",
    ];
    let mut servers = Vec::new();
    let mut config = configs::LISTENER.to_owned();
    for (name, route) in names.into_iter().zip(routes) {
        let server = named(name).await;
        config += &format!("[[route]]\n{route}\nupstream = \"{name}\"\n");
        config += &configs::upstream(name, &[&server.address]);
        servers.push(server);
    }
    let gateway = Gateway::start(&config).await;
    let mut wire = Wire::connect(gateway.address()).await;
    for (host, path, expected) in [
        ("localhost", "/", "any"),
        ("localhost", "/a/b?x", "any-deep"),
        ("localhost", "/a/b/c", "any-deep"),
        ("localhost", "/a/bc", "any"),
        ("example.com", "/", "any"),
        ("x.y.example.com", "/a/b", "wild"),
        ("talk.example.com", "/zzz", "exact"),
        ("chat.example.com:80", "/a/b/c", "exact-deep"),
        ("chat.example.com", "/a", "alone"),
        ("chat.example.com", "/a/x", "exact"),
        ("Chat.Example.com", "/prefixed", "prefix"),
    ] {
        let (head, text) = ask(&mut wire, &get(path, host)).await;
        assert_eq!(
            (head.status(), text.as_str()),
            (200, expected),
            "{host}{path}"
        );
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
async fn a_server_that_cannot_be_reached_is_made_up_for_by_another() {
    let echo = Echo::start().await;
    let (one, two) = (backend::nobody().await, backend::nobody().await);
    let gateway = Gateway::start(&configs::simple(&[&one, &two, &echo.address])).await;
    for _ in 0..6 {
        let mut client = Client::open(&gateway.ws_url("/")).await;
        client.echo(Message::text("hello")).await;
    }
    assert_eq!(echo.sessions().len(), 6);
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
async fn servers_take_turns_by_their_weights() {
    let (one, two) = (Echo::start().await, Echo::start().await);
    let config = format!(
        "workers = 1\n{}{}[upstream.chat]\nbalance = \"round-robin\"\nservers = [\"{}\", {{ address = \"{}\", weight = 3 }}]\n",
        configs::LISTENER,
        configs::ROUTE,
        one.address,
        two.address,
    );
    let gateway = Gateway::start(&config).await;
    let mut clients = Vec::new();
    for _ in 0..12 {
        clients.push(Client::open(&gateway.ws_url("/")).await);
    }
    assert_eq!((one.sessions().len(), two.sessions().len()), (3, 9));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_with_the_fewest_tunnels_is_next_whichever_worker_asks() {
    let (one, two) = (Echo::start().await, Echo::start().await);
    let config = format!(
        "workers = 2\n{}{}[upstream.chat]\nbalance = \"least-tunnels\"\nservers = [\"{}\", \"{}\"]\n",
        configs::LISTENER,
        configs::ROUTE,
        one.address,
        two.address,
    );
    let gateway = Gateway::start(&config).await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(Client::open(&gateway.ws_url("/")).await);
    }
    assert_eq!((one.open(), two.open()), (5, 5));
    // All of one server's leave: the next ones all go there.
    let tunnels = gateway
        .tunnels_where(&format!("server={}", one.address))
        .await;
    assert_eq!(tunnels.len(), 5);
    let leaving: Vec<String> = tunnels.into_iter().map(|tunnel| tunnel.client).collect();
    let (gone, stay): (Vec<_>, Vec<_>) = clients
        .into_iter()
        .partition(|client| leaving.contains(&client.local_address()));
    for client in gone {
        client.close(1000, "").await;
    }
    until("they are gone", SOON, async || one.open() == 0).await;
    until("the gateway knows", SOON, async || {
        gateway.tunnels().await.len() == stay.len()
    })
    .await;
    let mut back = Vec::new();
    for _ in 0..5 {
        back.push(Client::open(&gateway.ws_url("/")).await);
    }
    assert_eq!((one.open(), two.open()), (5, 5));
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
