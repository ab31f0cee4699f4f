use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use super::rig::{Backend, LONG, Rig, config, handshake, server, switching, tunnel, until, within};
use crate::{ClosePlan, Figure};

const GET: &str = "GET /ws HTTP/1.1\r\nHost: test\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

async fn rig() -> (Rig, Backend) {
    let backend = Backend::new().await;
    (Rig::new(config(vec![server(backend.address, 3)])), backend)
}

fn plan(windows: Vec<(Instant, Instant)>) -> ClosePlan {
    ClosePlan {
        code: 1012,
        reason: "test".into(),
        windows,
    }
}

fn later() -> ClosePlan {
    let now = Instant::now();
    plan(vec![(now + LONG, now + 2 * LONG)])
}

#[tokio::test]
async fn after_a_stop_nothing_is_accepted_and_what_was_accepted_is_served() {
    let (rig, mut backend) = rig().await;
    let mut client = rig.sent(GET).await;
    let mut server = backend.accept().await;
    let (address, gateway) = (rig.address(), rig.gateway.clone());
    rig.acceptor.stop();
    assert!(TcpStream::connect(address).await.is_err());
    server.head().await;
    server.send(OK).await;
    client.head().await;
    assert_eq!(client.exactly(2).await, "ok");
    drop(client);
    within(gateway.empty()).await;
}

#[tokio::test]
async fn retiring_finishes_requests_in_flight_and_closes_idle_connections() {
    let (rig, mut backend) = rig().await;
    let mut idle = rig.sent(GET).await;
    let mut server = backend.accept().await;
    server.head().await;
    server.send(OK).await;
    idle.head().await;
    idle.exactly(2).await;
    until(|| rig.gateway.pool.idle(3) == 1).await;
    let mut busy = rig.sent(GET).await;
    server.head().await;
    rig.gateway.retire(&plan(Vec::new()));
    assert_eq!(idle.rest().await.unwrap(), "");
    server.send(OK).await;
    let answer = busy.rest().await.unwrap();
    assert!(answer.contains("Connection: close\r\n"), "{answer}");
    assert!(answer.ends_with("ok"), "{answer}");
    server.gone().await;
    drop((idle, busy));
    within(rig.gateway.empty()).await;
}

#[tokio::test]
async fn a_connection_that_has_sent_nothing_yet_is_served_once_after_retiring() {
    let (rig, mut backend) = rig().await;
    let mut client = rig.client().await;
    until(|| rig.books.get(Figure::Connections) == 1).await;
    rig.gateway.retire(&plan(Vec::new()));
    client.send(GET).await;
    let mut server = backend.accept().await;
    server.head().await;
    server.send(OK).await;
    let answer = client.rest().await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("Connection: close\r\n"), "{answer}");
}

#[tokio::test]
async fn a_handshake_in_flight_opens_and_gets_the_last_moment() {
    let (rig, mut backend) = rig().await;
    let mut client = rig.sent(&handshake("")).await;
    let mut server = backend.accept().await;
    server.head().await;
    let plan = later();
    rig.gateway.retire(&plan);
    server.send(&switching("")).await;
    let head = client.head().await;
    assert!(
        head.starts_with("HTTP/1.1 101 ") && !head.contains("close"),
        "{head}"
    );
    until(|| !rig.gateway.tunnels().is_empty()).await;
    let deadline = rig.gateway.tunnels()[0].deadline().unwrap();
    assert_eq!(deadline.at, plan.windows[0].1);
    assert_eq!(rig.books.get(Figure::RouteDraining(7)), 1);
}

#[tokio::test]
async fn a_handshake_in_flight_that_is_declined_ends_its_connection() {
    let (rig, mut backend) = rig().await;
    let mut client = rig.sent(&handshake("")).await;
    let mut server = backend.accept().await;
    server.head().await;
    rig.gateway.retire(&later());
    server
        .send("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        .await;
    let answer = client.rest().await.unwrap();
    assert!(answer.contains("Connection: close\r\n"), "{answer}");
    drop(client);
    within(rig.gateway.empty()).await;
}

#[tokio::test]
async fn a_retired_gateway_is_empty_when_its_last_tunnel_has_ended() {
    let (rig, mut backend) = rig().await;
    let (client, server) = tunnel(&rig, &mut backend).await;
    rig.gateway.retire(&later());
    let wait = tokio::time::timeout(Duration::from_millis(50), rig.gateway.empty());
    assert!(wait.await.is_err(), "a tunnel is left");
    drop((client, server));
    within(rig.gateway.empty()).await;
    assert!(rig.gateway.tunnels().is_empty());
}

#[tokio::test]
async fn a_drained_servers_tunnels_end_and_others_stay() {
    let (mut first, mut second) = (Backend::new().await, Backend::new().await);
    let rig = Rig::new(config(vec![
        server(first.address, 1),
        server(second.address, 2),
    ]));
    let (mut drained, mut drained_server) = tunnel(&rig, &mut first).await;
    let (mut kept, mut kept_server) = tunnel(&rig, &mut second).await;
    until(|| rig.gateway.tunnels().len() == 2).await;
    rig.gateway.drain_server(1, &plan(Vec::new()));
    drained.gone().await;
    drained_server.gone().await;
    kept.send("still").await;
    assert_eq!(kept_server.exactly(5).await, "still");
    drop((drained, drained_server));
    until(|| rig.gateway.tunnels().len() == 1).await;
    assert_eq!(rig.books.get(Figure::ServerDraining(1)), 0);
}

#[tokio::test]
async fn clients_on_a_unix_socket_are_served() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let (rig, mut backend) = rig().await;
    let path = std::env::temp_dir().join(format!("wsgate-proxy-front-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let acceptor = rig
        .gateway
        .accept("unix", crate::Listening::Unix(listener))
        .unwrap();
    let mut client = tokio::net::UnixStream::connect(&path).await.unwrap();
    client
        .write_all(handshake("X-Real-IP: 192.0.2.7\r\n").as_bytes())
        .await
        .unwrap();
    let mut server = backend.accept().await;
    let head = server.head().await;
    assert!(
        head.contains("X-Real-IP: 192.0.2.7\r\n") && !head.contains("Forwarded"),
        "{head}"
    );
    server.send(&switching("")).await;
    let mut answer = [0; 12];
    within(client.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101");
    until(|| !rig.gateway.tunnels().is_empty()).await;
    assert_eq!(rig.gateway.tunnels()[0].client, crate::Peer::Unix);
    acceptor.stop();
    assert!(tokio::net::UnixStream::connect(&path).await.is_err());
    std::fs::remove_file(&path).unwrap();
}
