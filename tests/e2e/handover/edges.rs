//! Tunnels that cannot move now, or not to there; and what is no tunnel, or not yet.

use http::Method;
use tokio::sync::mpsc::{self, Receiver};
use tokio_tungstenite::tungstenite::Message;
use wsgate_protocol::admin::{NotMoved, TunnelState};

use super::{HEAD, all_move, old_ones_gone, with_keys};
use crate::configs;
use crate::support::backend::{Echo, Raw, handing_over};
use crate::support::client::Client;
use crate::support::gateway::{Gateway, Launch};
use crate::support::raw::{BINARY, Head, Wire, get, masked, switching};
use crate::support::wait::{SOON, until};
use crate::support::wire::WireEnd;

#[tokio::test]
async fn a_tunnel_in_its_polite_close_stays_and_its_worker_goes_when_it_has_ended() {
    let (server, mut ends) = handing_over().await;
    let config = |number| configs::numbered(HEAD, &[&server.address], number);
    let gateway = Gateway::start(&config(1)).await;
    let (mut closing, _) = Wire::tunnel(gateway.address(), "/", "").await;
    let _closing_server = ends.recv().await.unwrap();
    let id = gateway.tunnels().await[0].id.clone();
    let (mut other, _) = Wire::tunnel(gateway.address(), "/", "").await;
    let mut other_server = ends.recv().await.unwrap();
    // It has two seconds to come to the end of its frame.
    closing
        .send(&masked(true, BINARY, b"half of it")[..9])
        .await;
    let path = format!("/v1/tunnels/{id}");
    gateway.call(Method::DELETE, &path, "").await;
    until("its close has begun", SOON, async || {
        let tunnels = gateway.tunnels().await;
        tunnels.iter().any(|it| it.state == TunnelState::Closing)
    })
    .await;
    gateway.edit(&config(2));
    let reloaded = gateway.reloaded().await;
    let stays = NotMoved {
        reason: "the polite close is under way".to_owned(),
        tunnels: 1,
    };
    assert_eq!((reloaded.moved, &reloaded.stays), (1, &vec![stays]));
    for tunnel in gateway.tunnels().await {
        let is_closing = tunnel.id == id;
        assert_eq!(tunnel.generation, if is_closing { 1 } else { 2 });
        assert_eq!(tunnel.handovers, u64::from(!is_closing));
        let why = is_closing.then_some("the polite close is under way");
        assert_eq!(tunnel.stays.as_deref(), why, "{tunnel:?}");
    }
    old_ones_gone(&gateway).await;
    gateway.holds(1).await;
    assert_eq!(gateway.status().await.totals.tunnels_ended["admin"], 1);
    let message = masked(true, BINARY, b"on");
    other.send(&message).await;
    assert_eq!(other_server.take(message.len()).await, message);
}

/// A server whose connections are handed out with their first request's head.
async fn by_hand() -> (Raw, Receiver<(Head, Wire)>) {
    let (sender, requests) = mpsc::channel(1);
    let server = Raw::start(move |stream| {
        let sender = sender.clone();
        async move {
            let mut wire = Wire::new(stream);
            if let Some(head) = wire.try_head().await {
                sender.send((head, wire)).await.unwrap();
            }
        }
    });
    (server.await, requests)
}

async fn an_answer_streams_during_a_reload(handover: bool) {
    let (server, mut requests) = by_hand().await;
    let head = format!("{HEAD}[drain]\nhandover = {handover}\n");
    let config = |number| configs::numbered(&head, &[&server.address], number);
    let gateway = Gateway::start(&config(1)).await;
    let tunnel = tokio::spawn({
        let address = gateway.address().to_owned();
        async move { Wire::tunnel(&address, "/", "").await.0 }
    });
    let (head, mut server_end) = requests.recv().await.unwrap();
    server_end.send(switching(&head, "")).await;
    let mut tunnel = tunnel.await.unwrap();
    let mut asking = Wire::connect(gateway.address()).await;
    asking.send(get("/stream", "localhost")).await;
    let (_, mut answering) = requests.recv().await.unwrap();
    answering
        .send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\none \r\n")
        .await;
    assert_eq!(asking.head().await.status(), 200);
    assert_eq!(asking.chunk().await, b"one ");

    gateway.edit(&config(2));
    let reloaded = gateway.reloaded().await;
    assert_eq!(reloaded.moved, u64::from(handover), "{reloaded:?}");
    assert_eq!(
        reloaded.draining_generations, 1,
        "the old one has the answer"
    );
    let listed = gateway.tunnels().await;
    assert_eq!(listed[0].generation, if handover { 2 } else { 1 });
    answering.send("3\r\ntwo\r\n0\r\n\r\n").await;
    assert_eq!(asking.chunk().await, b"two");
    assert_eq!(asking.chunk().await, b"");
    assert_eq!(asking.rest().await, (vec![], WireEnd::Fin));
    let message = masked(true, BINARY, b"on");
    tunnel.send(&message).await;
    assert_eq!(server_end.take(message.len()).await, message);
    if !handover {
        assert_eq!(gateway.status().await.generations.len(), 2);
        drop((tunnel, server_end));
    }
    old_ones_gone(&gateway).await;
}

#[tokio::test]
async fn an_answer_that_streams_during_a_handover_is_finished_by_the_old_worker() {
    an_answer_streams_during_a_reload(true).await;
}

#[tokio::test]
async fn an_answer_that_streams_during_a_reload_is_finished_without_handover_as_well() {
    an_answer_streams_during_a_reload(false).await;
}

#[tokio::test]
async fn a_handshake_that_is_answered_after_the_reload_moves_at_once() {
    let (server, mut requests) = by_hand().await;
    let config = |number| configs::numbered(HEAD, &[&server.address], number);
    let gateway = Gateway::start(&config(1)).await;
    let mut opening = Vec::new();
    for _ in 0..3 {
        let address = gateway.address().to_owned();
        opening.push(tokio::spawn(async move {
            Wire::tunnel(&address, "/", "").await.0
        }));
    }
    let mut asked = Vec::new();
    for _ in 0..3 {
        asked.push(requests.recv().await.unwrap());
    }
    gateway.edit(&config(2));
    let reloaded = gateway.reloaded().await;
    assert_eq!((reloaded.moved, reloaded.stays), (0, vec![]));
    assert_eq!(reloaded.draining_generations, 1);
    for (head, server_end) in &mut asked {
        server_end.send(switching(head, "")).await;
    }
    let clients = futures_util::future::join_all(opening).await;
    old_ones_gone(&gateway).await;
    let listed = gateway.tunnels().await;
    assert_eq!(listed.len(), 3);
    for tunnel in &listed {
        assert_eq!((tunnel.generation, tunnel.handovers), (2, 1), "{tunnel:?}");
        assert_eq!(tunnel.deadline_at, None);
    }
    let message = masked(true, BINARY, b"on");
    for client in clients {
        client.unwrap().send(&message).await;
    }
    for (_, server_end) in &mut asked {
        assert_eq!(server_end.take(message.len()).await, message);
    }
}

/// Tunnels of each of the two old workers, of which one new one takes what it has room for.
const EACH: usize = 55;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_stays_and_drains_and_nobody_is_broken() {
    let echo = Echo::start().await;
    let head = |workers| {
        format!("workers = {workers}\n[reload]\nwatch = false\n[drain]\ngrace = \"10m\"\n")
    };
    let config = |workers| configs::with(&head(workers), &[&echo.address]);
    let gateway = Launch::new(&config(2)).descriptors(400).start().await;
    let url = gateway.ws_url("/");
    let mut clients = Vec::new();
    while clients.len() < 2 * EACH {
        // The kernel chooses the worker, and one may be full before the other.
        if let Ok(client) = Client::try_open(&url).await {
            clients.push(client);
        }
    }
    gateway.edit(&config(1));
    let reloaded = gateway.reloaded().await;
    let all = clients.len() as u64;
    assert_eq!(reloaded.stays.len(), 1, "{reloaded:?}");
    let NotMoved { reason, tunnels } = &reloaded.stays[0];
    assert!(reason.contains("as many as its file descriptors allow"));
    assert_eq!((reloaded.moved + tunnels, *tunnels > 30), (all, true));
    let listed = gateway.tunnels().await;
    assert_eq!(listed.len() as u64, all);
    for tunnel in &listed {
        let stays = tunnel.generation == 1;
        assert_eq!(tunnel.stays.as_ref(), stays.then_some(reason), "{tunnel:?}");
        assert_eq!(tunnel.deadline_at.is_some(), stays);
    }
    for client in &mut clients {
        client.echo(Message::text("still here")).await;
    }
    // A place for a new client is one that somebody has left.
    let moved: Vec<String> = listed
        .iter()
        .filter(|it| it.generation == 2)
        .map(|it| it.client.clone())
        .collect();
    let leaves = clients
        .iter()
        .position(|it| moved.contains(&it.local_address()));
    clients.swap_remove(leaves.unwrap()).close(1000, "").await;
    gateway.holds(all - 1).await;
    Client::open(&url).await.echo(Message::text("new")).await;
    for client in &mut clients {
        client.echo(Message::text("and still")).await;
    }
}

#[tokio::test]
async fn tunnels_between_unix_sockets_move() {
    let dir = tempfile::tempdir().unwrap();
    let echo = Echo::start_unix(&dir.path().join("echo.sock"));
    let front = dir.path().join("front.sock");
    let config = |number| {
        configs::numbered(HEAD, &[&echo.address], number)
            .replace("127.0.0.1:0", &format!("unix:{}", front.display()))
    };
    let gateway = Gateway::start(&config(1)).await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(Client::open_unix(&front, "/").await);
    }
    for number in 2..5 {
        all_move(&gateway, &config(number), 8).await;
        for client in &mut clients {
            client.echo(Message::text("on")).await;
        }
    }
    for client in clients {
        assert!(client.close(1000, "").await.is_polite(1000));
    }
    gateway.holds(0).await;
}

/// Live tunnels; the limit has room for one more.
const LIVE: u64 = 60;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_of_tunnels_is_neither_exceeded_nor_reached_too_soon_while_they_move() {
    let echo = Echo::start().await;
    let config = |number| {
        let head = format!("{HEAD}[limits]\ntunnels = {}\n", LIVE + 1);
        configs::numbered(&head, &[&echo.address], number)
    };
    let gateway = Gateway::start(&config(1)).await;
    let url = gateway.ws_url("/");
    let mut clients = Vec::new();
    for _ in 0..LIVE {
        clients.push(Client::open(&url).await);
    }
    let reloads = async {
        for number in 2..14 {
            gateway.edit(&config(number));
            let reloaded = gateway.reloaded().await;
            assert!(reloaded.moved >= LIVE, "{reloaded:?}");
        }
    };
    let mut rounds = 0;
    let knocks = async {
        loop {
            let last = Client::try_open(&url).await;
            let last = last.expect("there is room for one more");
            let error = Client::try_open(&url).await.map(|_| "served");
            assert!(
                matches!(&error, Err(error) if error.contains("503")),
                "beyond the limit: {error:?}"
            );
            last.close(1000, "").await;
            gateway.holds(LIVE).await;
            rounds += 1;
        }
    };
    tokio::select! {
        () = reloads => {}
        () = knocks => {}
    }
    assert!(rounds >= 5, "{rounds} rounds only");
    let ended = gateway.status().await.totals.tunnels_ended;
    assert_eq!(ended["worker_stop"], 0, "{ended:?}");
    for client in &mut clients {
        client.echo(Message::text("on")).await;
    }
}

#[tokio::test]
async fn a_tunnel_that_has_moved_has_one_line_for_its_begin_and_one_for_its_end() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&with_keys("", &echo.address, 1)).await;
    let mut client = Client::open(&gateway.ws_url("/")).await;
    for number in 2..5 {
        all_move(&gateway, &with_keys("", &echo.address, number), 1).await;
    }
    client.echo(Message::text("four")).await;
    let id = gateway.tunnels().await.remove(0).id;
    client.close(1000, "").await;
    let line = gateway.logged(&["tunnel ended", &id]).await;
    assert!(line.contains("handovers=3"), "{line}");
    assert!(line.contains("gen 4"), "{line}");
    gateway.holds(0).await;
    let log = gateway.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(&id)).collect();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(lines[0].contains("tunnel opened"));
}
