//! Plain HTTP through the gateway, and upgrades as far as they are HTTP.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::configs;
use crate::support::backend::{self, Echo, Raw, answering, body, mirror};
use crate::support::gateway::Gateway;
use crate::support::raw::{self, Wire, ask, get};
use crate::support::wait::{SOON, within};

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
        "PUT / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        sent.len()
    );
    // Both directions at once: the server echoes while it reads.
    let (mut reading, mut writing) = wire.stream.split();
    let write = async {
        writing.write_all(head.as_bytes()).await.unwrap();
        writing.write_all(&sent).await.unwrap();
    };
    let mut got = Vec::new();
    let read = reading.read_to_end(&mut got);
    let both = async { tokio::join!(write, read) };
    within("the body comes back", SOON, both).await.1.unwrap();
    let head = got.len() - sent.len();
    assert!(got.starts_with(b"HTTP/1.1 200 ") && got[..head].ends_with(b"\r\n\r\n"));
    assert!(got[head..] == sent);
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
