use tokio::io::AsyncWriteExt;

use super::rig::{Backend, Rig, config, nobody, server, until};
use crate::Figure;

async fn rig() -> (Rig, Backend) {
    let backend = Backend::new().await;
    (Rig::new(config(vec![server(backend.address, 3)])), backend)
}

const GET: &str = "GET /ws/a HTTP/1.1\r\nHost: test\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn connections_are_kept_alive_on_both_sides() {
    let (rig, mut backend) = rig().await;
    let mut client = rig.sent(GET).await;
    let mut server = backend.accept().await;
    for _ in 0..3 {
        server.head().await;
        server.send(OK).await;
        client.head().await;
        assert_eq!(client.exactly(2).await, "ok");
        until(|| rig.gateway.pool.idle(3) == 1).await;
        client.send(GET).await;
    }
    let mut other = rig.sent(GET).await;
    server.head().await;
    let mut second = backend.accept().await;
    second.head().await;
    second.send(OK).await;
    other.head().await;
    assert_eq!(rig.books.get(Figure::Connections), 2);
}

#[tokio::test]
async fn an_idle_connection_that_died_is_replaced_and_the_body_not_lost() {
    let (rig, mut backend) = rig().await;
    let mut client = rig.sent(GET).await;
    let mut first = backend.accept().await;
    first.head().await;
    first.send(OK).await;
    client.head().await;
    client.exactly(2).await;
    until(|| rig.gateway.pool.idle(3) == 1).await;
    drop(first);
    client
        .send("POST /ws/a HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nbody")
        .await;
    let mut second = backend.accept().await;
    assert!(second.head().await.starts_with("POST "));
    assert_eq!(second.exactly(4).await, "body");
    second.send(OK).await;
    assert!(client.exactly(4).await.starts_with("HTTP"));
}

#[tokio::test]
async fn only_what_may_be_repeated_is_sent_again_after_a_hang_up() {
    let (rig, mut backend) = rig().await;
    let mut client = rig.sent(GET).await;
    let mut server = backend.accept().await;
    server.head().await;
    server.send(OK).await;
    client.head().await;
    client.exactly(2).await;
    until(|| rig.gateway.pool.idle(3) == 1).await;
    // The server takes the request off the kept connection, and hangs up.
    client.send(GET).await;
    server.head().await;
    drop(server);
    let mut again = backend.accept().await;
    again.head().await;
    again.send(OK).await;
    client.head().await;
    client.exactly(2).await;
    until(|| rig.gateway.pool.idle(3) == 1).await;
    client
        .send("POST /ws/a HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n")
        .await;
    again.head().await;
    drop(again);
    assert!(client.head().await.starts_with("HTTP/1.1 502 "));
    assert!(backend.is_unused());
}

#[tokio::test]
async fn a_body_survives_servers_that_refuse() {
    let mut backend = Backend::new().await;
    let rig = Rig::new(config(vec![
        server(nobody().await, 1),
        server(backend.address, 2),
    ]));
    let _client = rig
        .sent("POST /ws HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nbody")
        .await;
    let mut server = backend.accept().await;
    server.head().await;
    assert_eq!(server.exactly(4).await, "body");
}

#[tokio::test]
async fn both_bodies_are_streamed() {
    let (rig, mut backend) = rig().await;
    let mut client = rig
        .sent("PUT /ws HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        .await;
    let mut server = backend.accept().await;
    assert!(
        server
            .head()
            .await
            .contains("Transfer-Encoding: chunked\r\n")
    );
    assert_eq!(server.exactly(8).await, "3\r\none\r\n");
    server
        .send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nein\r\n")
        .await;
    client.head().await;
    assert_eq!(client.exactly(8).await, "3\r\nein\r\n");
    client.send("3\r\ntwo\r\n0\r\n\r\n").await;
    assert_eq!(server.exactly(13).await, "3\r\ntwo\r\n0\r\n\r\n");
    server.send("0\r\n\r\n").await;
    assert_eq!(client.exactly(5).await, "0\r\n\r\n");
}

#[tokio::test]
async fn a_sender_waits_for_a_receiver_that_does_not_read() {
    let (rig, mut backend) = rig().await;
    let client = rig.sent(GET).await;
    let mut server = backend.accept().await;
    server.head().await;
    server
        .send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        .await;
    let block = vec![b'x'; 1 << 16];
    let mut sent = 0_u64;
    // Full when nothing could be sent for a while, with the gateway given every chance to read.
    let patience = std::time::Duration::from_millis(300);
    while let Ok(written) = tokio::time::timeout(patience, server.stream.write(&block)).await {
        sent += written.unwrap() as u64;
        assert!(sent < 100_000_000, "the gateway holds all of it");
    }
    drop(client);
    server.gone().await;
}

#[tokio::test]
async fn a_get_with_a_chunked_body_keeps_it() {
    let (rig, mut backend) = rig().await;
    let _client = rig
        .sent("GET /ws HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n")
        .await;
    let mut server = backend.accept().await;
    server.head().await;
    assert_eq!(server.exactly(11).await, "1\r\nx\r\n0\r\n\r\n");
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let (rig, mut backend) = rig().await;
    let mut client = rig
        .sent(
            "POST /ws HTTP/1.1\r\nHost: test\r\nTE: trailers\r\nConnection: TE\r\nTrailer: X-Sum\r\n\
             Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Sum: 1\r\n\r\n",
        )
        .await;
    let mut server = backend.accept().await;
    let head = server.head().await;
    assert!(
        head.contains("TE: trailers\r\n") && head.contains("Connection: TE\r\n"),
        "{head}"
    );
    let body = server
        .exactly("1\r\nx\r\n0\r\nx-sum: 1\r\n\r\n".len())
        .await;
    assert_eq!(body.to_lowercase(), "1\r\nx\r\n0\r\nx-sum: 1\r\n\r\n");
    server
        .send("HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n1\r\ny\r\n0\r\nX-Sum: 2\r\n\r\n")
        .await;
    client.head().await;
    let body = client
        .exactly("1\r\ny\r\n0\r\nx-sum: 2\r\n\r\n".len())
        .await;
    assert_eq!(body.to_lowercase(), "1\r\ny\r\n0\r\nx-sum: 2\r\n\r\n");
}

#[tokio::test]
async fn an_expectation_is_met() {
    let (rig, mut backend) = rig().await;
    let mut client = rig
        .sent(
            "POST /ws HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n",
        )
        .await;
    let mut server = backend.accept().await;
    assert!(server.head().await.contains("Expect: 100-continue\r\n"));
    server.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("body").await;
    assert_eq!(server.exactly(4).await, "body");
    server.send(OK).await;
    assert!(client.head().await.starts_with("HTTP/1.1 200 OK\r\n"));
}

#[tokio::test]
async fn an_answer_arrives_whole_although_the_server_did_not_want_the_body() {
    let (rig, mut backend) = rig().await;
    let mut client = rig
        .sent("POST /ws HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000000\r\n\r\nbegun")
        .await;
    let mut server = backend.accept().await;
    server.head().await;
    assert_eq!(server.exactly(5).await, "begun");
    let body = "x".repeat(8 << 20);
    let length = body.len();
    let sending = tokio::spawn(async move {
        let head = "HTTP/1.1 413 Content Too Large\r\nContent-Length:";
        server.send(&format!("{head} {length}\r\n\r\n{body}")).await;
    });
    assert!(client.head().await.starts_with("HTTP/1.1 413 "));
    // A slow reader: the gateway finds no room for the end of the answer.
    for _ in 0..length >> 12 {
        client.exactly(1 << 12).await;
        tokio::task::yield_now().await;
    }
    sending.await.unwrap();
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_cut() {
    let (rig, mut backend) = rig().await;
    for framing in ["Content-Length: 9", "Transfer-Encoding: chunked"] {
        let mut client = rig.sent(GET).await;
        let mut server = backend.accept().await;
        server.head().await;
        server
            .send(&format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n3\r\nabc\r\n"))
            .await;
        drop(server);
        client.head().await;
        assert_eq!(client.rest().await.unwrap(), "3\r\nabc\r\n");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_no_clean_end_for_http_1_0_either() {
    let (rig, mut backend) = rig().await;
    let mut client = rig.sent(&GET.replace("1.1", "1.0")).await;
    let mut server = backend.accept().await;
    server.head().await;
    server
        .send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        .await;
    client.head().await;
    assert_eq!(client.exactly(3).await, "abc");
    drop(server);
    assert!(client.rest().await.is_err());
}

#[tokio::test]
async fn http_1_0_is_served_until_the_connection_ends() {
    let (rig, mut backend) = rig().await;
    let mut client = rig.sent("GET /ws HTTP/1.0\r\nHost: test\r\n\r\n").await;
    let mut server = backend.accept().await;
    assert!(server.head().await.starts_with("GET /ws HTTP/1.1\r\n"));
    server
        .send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        .await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.0 200 OK\r\n"), "{head}");
    assert!(!head.to_lowercase().contains("chunked"), "{head}");
    assert_eq!(client.rest().await.unwrap(), "abc");
}

#[tokio::test]
async fn the_answer_to_head_says_the_length_and_has_no_body() {
    let (rig, mut backend) = rig().await;
    let mut client = rig.sent(&GET.replace("GET", "HEAD")).await;
    let mut server = backend.accept().await;
    for _ in 0..2 {
        server.head().await;
        server
            .send("HTTP/1.1 200 OK\r\nContent-Length: 99\r\nX-CaSe: 1\r\n\r\n")
            .await;
        let head = client.head().await;
        assert!(
            head.contains("Content-Length: 99\r\nX-CaSe: 1\r\n"),
            "{head}"
        );
        until(|| rig.gateway.pool.idle(3) == 1).await;
        client.send(&GET.replace("GET", "HEAD")).await;
    }
}

#[tokio::test]
async fn an_absolute_target_is_forwarded_in_origin_form() {
    let (rig, mut backend) = rig().await;
    let _client = rig
        .sent("GET http://test:1/ws?q HTTP/1.1\r\nHost: other\r\n\r\n")
        .await;
    let head = backend.accept().await.head().await;
    assert!(head.starts_with("GET /ws?q HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("Host: test:1\r\n"), "{head}");
}

#[tokio::test]
async fn a_length_besides_chunks_does_not_reach_the_server() {
    let (rig, mut backend) = rig().await;
    let mut client = rig
        .sent(
            "POST /ws HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n\
             0\r\n\r\nGET /ws/smuggled HTTP/1.1\r\nHost: test\r\n\r\n",
        )
        .await;
    let mut server = backend.accept().await;
    let head = server.head().await;
    assert!(!head.contains("Content-Length"), "{head}");
    assert_eq!(server.exactly(5).await, "0\r\n\r\n");
    server.send(OK).await;
    let answer = client.rest().await.unwrap();
    assert!(
        answer.contains("Connection: close\r\n") && answer.ends_with("\r\n\r\nok"),
        "{answer}"
    );
    assert_eq!(rig.books.get(Figure::Requests), 1);
}

#[tokio::test]
async fn what_is_no_http_from_a_server_is_502() {
    let (rig, mut backend) = rig().await;
    for nonsense in [
        "SSH-2.0-x\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    ] {
        let mut client = rig.sent(GET).await;
        let mut server = backend.accept().await;
        server.head().await;
        server.send(nonsense).await;
        assert!(
            client.head().await.starts_with("HTTP/1.1 502 "),
            "{nonsense}"
        );
    }
}

#[tokio::test]
async fn own_refusals_name_reason_and_request() {
    let (rig, backend) = rig().await;
    for (request, status, reason) in [
        (
            "GET /other HTTP/1.1\r\nHost: test\r\n\r\n",
            "404 Not Found",
            "no route for this host and path",
        ),
        (
            "GET /ws HTTP/1.1\r\nHost: x\r\n\r\n",
            "404 Not Found",
            "no route for this host and path",
        ),
        (
            "GET /ws HTTP/1.1\r\n\r\n",
            "400 Bad Request",
            "no Host header field",
        ),
        (
            "GET /ws/../x HTTP/1.1\r\nHost: test\r\n\r\n",
            "400 Bad Request",
            "ambiguous path",
        ),
        (
            "GET /ws/%2e%2E/x HTTP/1.1\r\nHost: test\r\n\r\n",
            "400 Bad Request",
            "ambiguous path",
        ),
        (
            "CONNECT test:1 HTTP/1.1\r\nHost: test\r\n\r\n",
            "405 Method Not Allowed",
            "CONNECT is not served here",
        ),
    ] {
        let mut client = rig.sent(request).await;
        let head = client.head().await;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status}\r\n")),
            "{head}"
        );
        let id = head
            .split("X-Request-Id: ")
            .nth(1)
            .unwrap()
            .split("\r\n")
            .next()
            .unwrap();
        let text = format!("{status}: {reason}\nrequest {id}\n");
        assert_eq!(client.exactly(text.len()).await, text);
    }
    assert_eq!(rig.books.get(Figure::Error(404)), 2);
    assert!(backend.is_unused());
}
