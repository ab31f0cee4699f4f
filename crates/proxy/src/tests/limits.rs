use std::net::SocketAddr;
use std::time::Duration;

use super::rig::{Backend, Rig, config, handshake, server, switching, tunnel, until};
use crate::{Figure, ServerState};

#[tokio::test]
async fn at_the_limit_handshakes_get_503_and_plain_requests_do_not() {
    let mut backend = Backend::new().await;
    let mut config = config(vec![server(backend.address, 3)]);
    config.limits.tunnels = Some(1);
    let rig = Rig::new(config);
    let (client, server) = tunnel(&rig, &mut backend).await;
    let head = rig.sent(&handshake("")).await.head().await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert!(head.contains("Retry-After: 1\r\n"), "{head}");
    let _plain = rig.sent("GET /ws HTTP/1.1\r\nHost: test\r\n\r\n").await;
    backend.accept().await.head().await;
    drop((client, server));
    until(|| rig.books.get(Figure::Tunnels) == 0).await;
    tunnel(&rig, &mut backend).await;
}

#[tokio::test]
async fn the_descriptors_of_the_process_are_a_limit_too() {
    let backend = Backend::new().await;
    let config = config(vec![server(backend.address, 3)]);
    let rig = Rig::with(config, |settings| settings.tunnels_here = 0);
    let head = rig.sent(&handshake("")).await.head().await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
}

#[tokio::test]
async fn servers_that_are_not_ready_get_nothing_new() {
    let (mut first, mut second) = (Backend::new().await, Backend::new().await);
    let config = config(vec![server(first.address, 1), server(second.address, 2)]);
    let rig = Rig::with(config, |settings| {
        settings.states = vec![(1, ServerState::Maint)]
    });
    tunnel(&rig, &mut second).await;
    tunnel(&rig, &mut second).await;
    rig.gateway.set_servers(&[(2, ServerState::Drain)]);
    tunnel(&rig, &mut first).await;
    rig.gateway
        .set_servers(&[(1, ServerState::Drain), (2, ServerState::Maint)]);
    let head = rig.sent(&handshake("")).await.head().await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert!(head.contains("Retry-After: 1\r\n"), "{head}");
    assert!(first.is_unused() && second.is_unused());
}

#[tokio::test]
async fn a_head_that_does_not_come_in_time_gets_408() {
    let backend = Backend::new().await;
    let mut config = config(vec![server(backend.address, 3)]);
    config.limits.handshake_timeout = Duration::from_millis(100);
    let rig = Rig::new(config);
    for begun in ["", "GET /ws HTT", "GET /ws HTTP/1.1\r\nHost: test\r\n"] {
        let mut client = rig.sent(begun).await;
        let answer = client.rest().await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"),
            "{answer}"
        );
        assert!(answer.contains("Connection: close\r\n"), "{answer}");
        let id = answer
            .split("X-Request-Id: ")
            .nth(1)
            .unwrap()
            .split("\r\n")
            .next()
            .unwrap();
        assert!(answer.ends_with(&format!("request {id}\n")), "{answer}");
    }
    assert_eq!(rig.books.get(Figure::Error(408)), 3);
}

#[tokio::test]
async fn an_idle_connection_is_closed_silently() {
    let mut backend = Backend::new().await;
    let mut config = config(vec![server(backend.address, 3)]);
    config.limits.handshake_timeout = Duration::from_millis(100);
    let rig = Rig::new(config);
    let mut client = rig.sent("GET /ws HTTP/1.1\r\nHost: test\r\n\r\n").await;
    let mut server = backend.accept().await;
    server.head().await;
    server.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert!(client.head().await.starts_with("HTTP/1.1 204 "));
    assert_eq!(client.rest().await.unwrap(), "");
    assert_eq!(rig.books.get(Figure::Error(408)), 0);
}

#[tokio::test]
async fn a_head_that_is_too_long_gets_431_and_a_bad_one_400() {
    let backend = Backend::new().await;
    let mut config = config(vec![server(backend.address, 3)]);
    config.limits.header_bytes = 1000;
    let rig = Rig::new(config);
    let long = format!(
        "GET /ws HTTP/1.1\r\nHost: test\r\nX: {}\r\n\r\n",
        "x".repeat(1000)
    );
    for (request, status) in [
        (&*long, 431),
        (&long[..1010], 431),
        ("GET /ws HTTP/1.1\r\nHost : test\r\n\r\n", 400),
        ("\x16\x03\x01 hello\r\n\r\n", 400),
    ] {
        let mut client = rig.sent(request).await;
        let answer = client.rest().await.unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
        until(|| rig.books.get(Figure::Error(status)) > 0).await;
    }
    assert!(backend.is_unused());
}

#[tokio::test]
async fn a_connect_that_times_out_is_504() {
    let backend = Backend::new().await;
    // The kernel completes no connection to a full queue, and answers none: a listener
    // with a queue of one, and that is taken.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket
        .bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into())
        .unwrap();
    socket.listen(0).unwrap();
    let full = socket.local_addr().unwrap().as_socket().unwrap();
    let _taken = std::net::TcpStream::connect(full).unwrap();
    let mut config = config(vec![server(full, 1)]);
    config.upstreams.get_mut("up").unwrap().connect_timeout = Duration::from_millis(200);
    let rig = Rig::new(config);
    let head = rig.sent(&handshake("")).await.head().await;
    assert!(head.starts_with("HTTP/1.1 504 "), "{head}");
    assert_eq!(rig.books.get(Figure::ServerConnectFailures(1)), 1);
    drop(backend);
}

#[tokio::test]
async fn clients_that_come_together_are_spread_over_the_servers() {
    let (mut first, mut second) = (Backend::new().await, Backend::new().await);
    let mut config = config(vec![server(first.address, 1), server(second.address, 2)]);
    config.upstreams.get_mut("up").unwrap().balance = wsgate_config::Balance::LeastTunnels;
    let rig = Rig::with(config, |settings| {
        settings.states = vec![(2, ServerState::Maint)];
    });
    let _tunnels = (
        tunnel(&rig, &mut first).await,
        tunnel(&rig, &mut first).await,
    );
    rig.gateway.set_servers(&[]);
    // None of four is answered before the last has come: three to the server without
    // tunnels, and one to that with two.
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(rig.sent(&handshake("")).await);
    }
    let mut servers = vec![first.accept().await];
    for _ in 0..3 {
        servers.push(second.accept().await);
    }
    for server in &mut servers {
        server.head().await;
        server.send(&switching("")).await;
    }
    for client in &mut clients {
        assert!(client.head().await.starts_with("HTTP/1.1 101 "));
    }
    assert!(first.is_unused() && second.is_unused());
}

#[tokio::test]
async fn an_error_answer_is_not_destroyed_by_what_the_client_still_sends() {
    let backend = Backend::new().await;
    let rig = Rig::new(config(vec![server(backend.address, 3)]));
    let head = format!(
        "GET /ws HTTP/1.1\r\nHost: test\r\nX: {}",
        "x".repeat(4 << 20)
    );
    let mut client = rig.sent(&head).await;
    let answer = client.rest().await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}
