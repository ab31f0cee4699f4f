use tokio::io::AsyncWriteExt;
use wsgate_config::ServerAddress;

use super::rig::{
    ACCEPT, Backend, KEY, Rig, config, handshake, nobody, server, switching, tunnel, until, within,
};
use crate::Figure;

async fn rig() -> (Rig, Backend) {
    let backend = Backend::new().await;
    (Rig::new(config(vec![server(backend.address, 3)])), backend)
}

#[tokio::test]
async fn a_tunnel_opens_and_carries_bytes_both_ways() {
    let (rig, mut backend) = rig().await;
    let (mut client, mut server) = tunnel(&rig, &mut backend).await;
    client.send("ping").await;
    assert_eq!(server.exactly(4).await, "ping");
    server.send("pong").await;
    assert_eq!(client.exactly(4).await, "pong");
    let tunnels = rig.gateway.tunnels();
    let [record] = &*tunnels else {
        panic!("one tunnel: {tunnels:?}")
    };
    assert_eq!((&*record.host, &*record.path), ("test", "/ws/room"));
    assert_eq!((&*record.route.name, record.route.number), ("test/ws", 7));
    let to = &record.server;
    assert_eq!((&*to.upstream, to.number), ("up", 3));
    assert_eq!(*to.name, backend.address.to_string());
    assert_eq!((&*record.id, &*record.listener), ("t-0-1", "unix:front"));
    assert_eq!(
        record.client,
        crate::Peer::Tcp(client.stream.local_addr().unwrap())
    );
    assert_eq!(rig.books.get(Figure::ServerOpened(3)), 1);
    assert_eq!(rig.books.get(Figure::Requests), 0);
    drop((client, server));
    until(|| rig.books.get(Figure::Tunnels) == 0).await;
    assert!(rig.gateway.tunnels().is_empty());
}

#[tokio::test]
async fn the_request_passes_with_its_own_fields_and_new_hop_by_hop_ones() {
    let (rig, mut backend) = rig().await;
    let _client = rig
        .sent(&handshake(
            "Connection: X-Mine\r\nX-Mine: 1\r\nKeep-Alive: timeout=9\r\nCOOKIE: a=b\r\nOrigin: http://o\r\n\
             X-Forwarded-For: 192.0.2.1\r\nSec-WebSocket-Extensions: permessage-deflate\r\n",
        ))
        .await;
    let head = backend.accept().await.head().await;
    let mut lines: Vec<&str> = head.trim_end().split("\r\n").collect();
    assert_eq!(lines.remove(0), "GET /ws/room?token=secret HTTP/1.1");
    lines.sort_unstable();
    let key = format!("Sec-WebSocket-Key: {KEY}");
    let expected = [
        "COOKIE: a=b",
        "Connection: Upgrade",
        "Host: Test:8080",
        "Origin: http://o",
        "Sec-WebSocket-Extensions: permessage-deflate",
        &key,
        "Sec-WebSocket-Version: 13",
        "Upgrade: websocket",
        "X-Forwarded-For: 192.0.2.1, 127.0.0.1",
        "X-Real-Ip: 127.0.0.1",
    ];
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn the_101_passes_with_its_own_fields() {
    let (rig, mut backend) = rig().await;
    let mut client = rig
        .sent(&handshake("Sec-WebSocket-Protocol: a, chat\r\n"))
        .await;
    let mut server = backend.accept().await;
    server.head().await;
    server
        .send(&switching(
            "Sec-WebSocket-Protocol: chat\r\nset-COOKIE: s=1\r\nDate: d\r\nKeep-Alive: x\r\n",
        ))
        .await;
    let head = client.head().await;
    let mut lines: Vec<&str> = head.trim_end().split("\r\n").collect();
    assert_eq!(lines.remove(0), "HTTP/1.1 101 Switching Protocols");
    lines.sort_unstable();
    let accept = format!("Sec-WebSocket-Accept: {ACCEPT}");
    let expected = [
        "Connection: Upgrade",
        "Date: d",
        &accept,
        "Sec-WebSocket-Protocol: chat",
        "Upgrade: websocket",
        "set-COOKIE: s=1",
    ];
    assert_eq!(lines, expected);
    until(|| !rig.gateway.tunnels().is_empty()).await;
    assert_eq!(
        rig.gateway.tunnels()[0].subprotocol.as_deref(),
        Some("chat")
    );
}

#[tokio::test]
async fn bytes_sent_right_behind_the_heads_are_not_lost() {
    let (rig, mut backend) = rig().await;
    let mut client = rig.sent(&(handshake("") + "early")).await;
    let mut server = backend.accept().await;
    server.head().await;
    server.send(&(switching("") + "swift")).await;
    assert_eq!(server.exactly(5).await, "early");
    client.head().await;
    assert_eq!(client.exactly(5).await, "swift");
}

#[tokio::test]
async fn a_101_for_another_key_is_502() {
    let (rig, mut backend) = rig().await;
    let mut client = rig.sent(&handshake("")).await;
    let mut server = backend.accept().await;
    server.head().await;
    let wrong = switching("").replace(ACCEPT, "AAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    server.send(&wrong).await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
    assert!(head.contains("X-Request-Id: t-0-1\r\n"), "{head}");
    let text = "502 Bad Gateway: the server's handshake is not valid\nrequest t-0-1\n";
    assert_eq!(client.exactly(text.len()).await, text);
    server.gone().await;
    assert_eq!(rig.books.get(Figure::Error(502)), 1);
    assert_eq!(rig.books.get(Figure::TunnelsOpened), 0);
}

#[tokio::test]
async fn another_answer_than_101_is_the_clients_with_its_body() {
    let (rig, mut backend) = rig().await;
    let mut client = rig.sent(&handshake("")).await;
    let mut server = backend.accept().await;
    server.head().await;
    server
        .send("HTTP/1.1 401 Who Are You\r\nWWW-Authenticate: Basic\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwho?\r\n0\r\n\r\n")
        .await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 401 Who Are You\r\n"), "{head}");
    assert!(head.contains("WWW-Authenticate: Basic\r\n"), "{head}");
    assert_eq!(client.exactly(14).await, "4\r\nwho?\r\n0\r\n\r\n");
    // The connection is good for another try.
    client.send(&handshake("")).await;
    let mut server = backend.accept().await;
    server.head().await;
    server.send(&switching("")).await;
    assert!(client.head().await.starts_with("HTTP/1.1 101 "));
}

#[tokio::test]
async fn a_dead_server_is_passed_over() {
    let mut backend = Backend::new().await;
    let servers = vec![
        server(nobody().await, 1),
        server(nobody().await, 2),
        server(backend.address, 3),
    ];
    let rig = Rig::new(config(servers));
    tunnel(&rig, &mut backend).await;
    assert_eq!(rig.books.get(Figure::ServerConnectFailures(1)), 1);
    assert_eq!(rig.books.get(Figure::ServerConnectFailures(2)), 1);
    assert_eq!(rig.books.get(Figure::ServerConnectFailures(3)), 0);
}

#[tokio::test]
async fn every_address_of_a_name_is_tried() {
    // `localhost` may be ::1 first, where nobody listens.
    let mut backend = Backend::new().await;
    let mut named = server(backend.address, 1);
    named.address = ServerAddress::Name("localhost".to_owned(), backend.address.port());
    let rig = Rig::new(config(vec![named]));
    tunnel(&rig, &mut backend).await;
}

#[tokio::test]
async fn a_server_may_be_a_unix_socket() {
    let path = std::env::temp_dir().join(format!("wsgate-proxy-back-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let mut local = server(nobody().await, 1);
    local.address = ServerAddress::Unix(path.clone());
    let rig = Rig::new(config(vec![local]));
    let mut client = rig.sent(&handshake("")).await;
    let (mut server, _) = within(listener.accept()).await.unwrap();
    within(server.write_all(switching("").as_bytes()))
        .await
        .unwrap();
    assert!(client.head().await.starts_with("HTTP/1.1 101 "));
    std::fs::remove_file(&path).unwrap();
}

#[tokio::test]
async fn a_server_that_hangs_up_without_a_word_is_passed_over() {
    let (mut mute, mut backend) = (Backend::new().await, Backend::new().await);
    let rig = Rig::new(config(vec![
        server(mute.address, 1),
        server(backend.address, 2),
    ]));
    let mut client = rig.sent(&handshake("")).await;
    mute.accept().await.head().await;
    let mut server = backend.accept().await;
    server.head().await;
    server.send(&switching("")).await;
    assert!(client.head().await.starts_with("HTTP/1.1 101 "));
}

#[tokio::test]
async fn a_server_that_hangs_up_within_its_answer_is_502() {
    let (mut broken, backend) = (Backend::new().await, Backend::new().await);
    let rig = Rig::new(config(vec![
        server(broken.address, 1),
        server(backend.address, 2),
    ]));
    let mut client = rig.sent(&handshake("")).await;
    let mut peer = broken.accept().await;
    peer.head().await;
    peer.send("HTTP/1.1 101 Swi").await;
    drop(peer);
    assert!(client.head().await.starts_with("HTTP/1.1 502 "));
    assert!(backend.is_unused());
}

#[tokio::test]
async fn retries_end_with_502() {
    let servers = vec![server(nobody().await, 1), server(nobody().await, 2)];
    let mut config = config(servers);
    config.upstreams.get_mut("up").unwrap().retries = 0;
    let rig = Rig::new(config);
    let mut client = rig.sent(&handshake("")).await;
    assert!(client.head().await.starts_with("HTTP/1.1 502 "));
    assert_eq!(rig.books.get(Figure::ServerConnectFailures(1)), 1);
    assert_eq!(rig.books.get(Figure::ServerConnectFailures(2)), 0);
}

#[tokio::test]
async fn another_version_gets_426_with_the_right_one() {
    let (rig, backend) = rig().await;
    let request = handshake("").replace("Version: 13", "Version: 8");
    let head = rig.sent(&request).await.head().await;
    assert!(head.starts_with("HTTP/1.1 426 "), "{head}");
    assert!(head.contains("Sec-Websocket-Version: 13\r\n"), "{head}");
    assert!(head.contains("Upgrade: websocket\r\n"), "{head}");
    assert!(head.contains("Connection: Upgrade\r\n"), "{head}");
    assert!(backend.is_unused());
}

#[tokio::test]
async fn a_handshake_that_is_none_gets_400() {
    let (rig, backend) = rig().await;
    for (request, reason) in [
        (handshake("").replace(KEY, "short"), "Sec-WebSocket-Key"),
        (handshake("Content-Length: 2\r\n") + "xx", "no body"),
    ] {
        let mut client = rig.sent(&request).await;
        assert!(client.head().await.starts_with("HTTP/1.1 400 "));
        let text = client.exactly(60).await;
        assert!(text.contains(reason), "{text}");
    }
    assert!(backend.is_unused());
}

#[tokio::test]
async fn another_upgrade_is_answered_as_if_it_were_none() {
    let (rig, mut backend) = rig().await;
    let mut client = rig
        .sent(
            "GET /ws HTTP/1.1\r\nHost: test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
             HTTP2-Settings: AAMAAABk\r\n\r\n",
        )
        .await;
    let mut server = backend.accept().await;
    let head = server.head().await.to_lowercase();
    assert!(
        !head.contains("upgrade") && !head.contains("http2"),
        "{head}"
    );
    server
        .send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        .await;
    assert!(client.head().await.starts_with("HTTP/1.1 200 OK\r\n"));
    assert_eq!(client.exactly(2).await, "ok");
    client.send("GET /ws HTTP/1.1\r\nHost: test\r\n\r\n").await;
    server.head().await;
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_handshake_with_it() {
    let (rig, mut backend) = rig().await;
    let client = rig.sent(&handshake("")).await;
    let mut server = backend.accept().await;
    server.head().await;
    drop(client);
    server.gone().await;
    assert_eq!(rig.books.get(Figure::Error(502)), 0);
    within(rig.gateway.empty()).await;
}

#[tokio::test]
async fn a_request_of_http_1_0_is_no_handshake() {
    let (rig, mut backend) = rig().await;
    let _client = rig
        .sent(&handshake("").replace("HTTP/1.1", "HTTP/1.0"))
        .await;
    let head = backend.accept().await.head().await;
    assert!(head.starts_with("GET /ws/room?token=secret HTTP/1.1\r\n"));
    assert!(!head.contains("Upgrade"), "{head}");
}
