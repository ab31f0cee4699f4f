//! Drains: what an old generation still does, how its tunnels end, and how wsgate stops.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, Full};
use rustix::process::Signal;
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::Message;
use wsgate_protocol::admin::{GatewayState, GenerationState, Stopping, TunnelState};

use crate::configs;
use crate::support::backend::{self, Echo, Raw, handing_over};
use crate::support::client::{Client, Sequenced};
use crate::support::gateway::{Gateway, stderr};
use crate::support::process::{self, Process};
use crate::support::raw::{BINARY, CLOSE, Wire, frame, get};
use crate::support::wait::{SOON, all_along, eventually, until, within};
use crate::support::wire::WireEnd;

/// Two servers' worth of tunnels to a gateway with this grace, then a reload.
async fn reloaded_with(grace: &str, tunnels: usize) -> (Gateway, Echo, Vec<Client>) {
    let echo = Echo::start().await;
    let head = configs::draining(grace, 100);
    let gateway = Gateway::start(&configs::numbered(&head, &[&echo.address], 1)).await;
    let mut clients = Vec::new();
    for _ in 0..tunnels {
        clients.push(Client::open(&gateway.ws_url("/")).await);
    }
    gateway.holds(tunnels as u64).await;
    gateway.edit(&configs::numbered(&head, &[&echo.address], 2));
    gateway.reloaded().await;
    (gateway, echo, clients)
}

/// Waits until the active generation is the only one, and no other process is left.
async fn only_one_generation(gateway: &Gateway, limit: Duration) {
    until("the old generation is gone", limit, async || {
        let status = gateway.status().await;
        status.generations.len() == 1
            && process::children(gateway.pid).len() == status.workers.len()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_workers_without_a_tunnel_are_gone_at_once() {
    let (gateway, _echo, _) = reloaded_with("10m", 0).await;
    only_one_generation(&gateway, Duration::from_secs(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_drained_tunnel_shows_its_deadline() {
    let (gateway, _echo, clients) = reloaded_with("10m", 5).await;
    let tunnels = gateway.tunnels_where("state=draining&generation=1").await;
    assert_eq!(tunnels.len(), clients.len());
    for tunnel in &tunnels {
        let left = tunnel.deadline_in_seconds.unwrap();
        assert!((590.0..=600.0).contains(&left), "{tunnel:?}");
        assert!(
            tunnel.deadline_at.as_ref().unwrap().ends_with('Z'),
            "{tunnel:?}"
        );
    }
    let status = gateway.status().await;
    let old = &status.generations[0];
    assert_eq!(
        (old.generation, old.state, old.tunnels),
        (1, GenerationState::Draining, 5)
    );
    assert!(old.deadline_in_seconds.unwrap() <= 600.0);
    assert!(status.generations[1].deadline_at.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_ends_with_its_last_tunnel() {
    let (gateway, _echo, clients) = reloaded_with("10m", 12).await;
    let held = gateway.tunnels_where("generation=1").await;
    let mut left: Vec<(u32, String)> = held
        .into_iter()
        .map(|tunnel| (tunnel.worker, tunnel.client))
        .collect();
    for client in clients {
        let address = client.local_address();
        let worker = left
            .iter()
            .find(|(_, client)| *client == address)
            .unwrap()
            .0;
        let process = Process::open(worker).unwrap();
        assert!(!process.has_ended(), "it still holds a tunnel");
        left.retain(|(_, client)| *client != address);
        assert!(client.close(1000, "").await.is_polite(1000));
        if left.iter().all(|(other, _)| *other != worker) {
            until("the worker ends", Duration::from_secs(3), async || {
                process.has_ended()
            })
            .await;
        }
    }
    only_one_generation(&gateway, SOON).await;
    assert_eq!(gateway.status().await.totals.worker_restarts, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_its_deadline_a_tunnel_is_closed_politely_on_both_sides() {
    let (gateway, echo, clients) = reloaded_with("2s", 4).await;
    let began = Instant::now();
    for client in clients {
        let tunnel = Sequenced::run(client, "x".to_owned(), Duration::from_millis(20));
        let outcome = tunnel.ended(SOON).await;
        assert!(outcome.end.is_polite(1012), "{outcome:?}");
        assert!(outcome.faults.is_empty(), "{outcome:?}");
    }
    let took = began.elapsed();
    assert!((1.5..4.0).contains(&took.as_secs_f64()), "{took:?}");
    only_one_generation(&gateway, Duration::from_secs(4)).await;
    for session in echo.sessions() {
        assert_eq!(
            session.close.as_ref().map(|close| close.0),
            Some(1012),
            "{session:?}"
        );
        assert_eq!(session.wire, Some(WireEnd::Fin), "{session:?}");
    }
    let ended = gateway.status().await.totals.tunnels_ended;
    assert_eq!(ended.get("drain"), Some(&4), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_close_code_is_the_configurations() {
    let echo = Echo::start().await;
    let head =
        "[reload]\nwatch = false\n[drain]\nhandover = false\ngrace = \"500ms\"\nclose_code = 4242";
    let gateway = Gateway::start(&configs::numbered(head, &[&echo.address], 1)).await;
    let mut client = Client::open(&gateway.ws_url("/")).await;
    gateway.edit(&configs::numbered(head, &[&echo.address], 2));
    gateway.reloaded().await;
    let end = client.end(SOON).await;
    assert!(end.is_polite(4242), "{end:?}");
}

/// A gateway with a grace of 1 s before a raw server that has begun a frame, and a
/// reload. Returns what is left of the frame to send.
struct MidFrame {
    gateway: Gateway,
    _server: Raw,
    client: Wire,
    server: Wire,
    whole: Vec<u8>,
    rest: Vec<u8>,
}

async fn in_the_middle_of_a_frame() -> MidFrame {
    let (server, mut receiver) = handing_over().await;
    let head = configs::draining("1s", 100);
    let gateway = Gateway::start(&configs::numbered(&head, &[&server.address], 1)).await;
    let (client, _) = Wire::tunnel(gateway.address(), "/", "").await;
    let mut far = within("a tunnel", SOON, receiver.recv()).await.unwrap();
    let whole = frame(true, BINARY, &[7; 1000]);
    let (begin, rest) = whole.split_at(500);
    far.send(begin).await;
    gateway.edit(&configs::numbered(&head, &[&server.address], 2));
    gateway.reloaded().await;
    let rest = rest.to_vec();
    MidFrame {
        gateway,
        _server: server,
        client,
        server: far,
        whole,
        rest,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_close_frame_waits_for_the_end_of_the_frame_before_it() {
    let mut middle = in_the_middle_of_a_frame().await;
    until("its close has begun", SOON, async || {
        let tunnels = middle.gateway.tunnels().await;
        tunnels
            .iter()
            .any(|tunnel| tunnel.state == TunnelState::Closing)
    })
    .await;
    middle.server.send(&middle.rest).await;
    // And nothing of the next frame passes.
    middle.server.send(frame(true, BINARY, b"too late")).await;
    let (heard, end) = middle.client.rest().await;
    assert_eq!(end, WireEnd::Fin);
    let (first, close) = heard.split_at(middle.whole.len());
    assert!(first == middle.whole);
    assert_eq!(close[0], 0x80 | CLOSE, "{close:?}");
    assert_eq!(usize::from(close[1]), close.len() - 2, "{close:?}");
    assert_eq!(close[2..4], 1012_u16.to_be_bytes(), "{close:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_that_does_not_end_ends_in_a_fin_and_never_in_a_close_frame_inside_it() {
    let mut middle = in_the_middle_of_a_frame().await;
    let began = Instant::now();
    let (heard, end) = middle.client.rest().await;
    let took = began.elapsed();
    assert_eq!(end, WireEnd::Fin);
    assert_eq!(heard, middle.whole[..500]);
    // The grace of 1 s, and 2 s for a boundary that does not come.
    assert!((2.0..6.0).contains(&took.as_secs_f64()), "{took:?}");
    only_one_generation(&middle.gateway, SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_under_way_is_finished_by_the_old_generation() {
    let (release, released) = watch::channel(false);
    let server = backend::http(move |_| {
        let mut released = released.clone();
        async move {
            released.wait_for(|released| *released).await.unwrap();
            Response::new(Full::new(Bytes::from("worth waiting for")).boxed_unsync())
        }
    })
    .await;
    let head = configs::draining("10m", 100);
    let gateway = Gateway::start(&configs::numbered(&head, &[&server.address], 1)).await;
    let mut wire = Wire::connect(gateway.address()).await;
    wire.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    until("the server is asked", SOON, async || {
        server.connections() == 1
    })
    .await;
    gateway.edit(&configs::numbered(&head, &[&server.address], 2));
    gateway.reloaded().await;
    release.send(true).unwrap();
    let head = wire.head().await;
    assert_eq!(head.status(), 200);
    assert_eq!(wire.body(&head).await, b"worth waiting for");
    // The connection is no reason to stay.
    assert_eq!(wire.rest().await, (Vec::new(), WireEnd::Fin));
    only_one_generation(&gateway, Duration::from_secs(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_does_not_keep_an_old_worker() {
    let server =
        backend::http(async |_| Response::new(Full::new(Bytes::from("hello")).boxed_unsync()))
            .await;
    let head = configs::draining("10m", 100);
    let gateway = Gateway::start(&configs::numbered(&head, &[&server.address], 1)).await;
    let mut wire = Wire::connect(gateway.address()).await;
    wire.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let answer = wire.head().await;
    wire.body(&answer).await;
    gateway.edit(&configs::numbered(&head, &[&server.address], 2));
    gateway.reloaded().await;
    assert_eq!(wire.rest().await, (Vec::new(), WireEnd::Fin));
    only_one_generation(&gateway, Duration::from_secs(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_generations_drain_at_once() {
    let echo = Echo::start().await;
    let head = configs::draining("10m", 100);
    let gateway = Gateway::start(&configs::numbered(&head, &[&echo.address], 1)).await;
    let mut clients = Vec::new();
    for number in 2..6 {
        clients.push(Client::open(&gateway.ws_url("/")).await);
        gateway.edit(&configs::numbered(&head, &[&echo.address], number));
        assert_eq!(gateway.reloaded().await.draining_generations, number - 1);
    }
    for client in &mut clients {
        client.echo(Message::text("still here")).await;
    }
    let active = gateway.status().await.generations;
    let active = active
        .iter()
        .filter(|generation| generation.state == GenerationState::Active);
    assert_eq!(active.count(), 1);
    for client in clients {
        client.close(1000, "").await;
    }
    only_one_generation(&gateway, SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_for_the_drain_ends_with_it() {
    let (gateway, echo, mut clients) = reloaded_with("10m", 1).await;
    let head = configs::draining("10m", 100);
    gateway.edit(&configs::numbered(&head, &[&echo.address], 3));
    let late = gateway
        .ctl(&["reload", "--wait-drained", "--timeout", "1s"])
        .await;
    assert_eq!(late.status.code(), Some(4), "{}", stderr(&late));
    gateway.edit(&configs::numbered(&head, &[&echo.address], 4));
    let waiting = gateway.ctl(&["reload", "--wait-drained"]);
    tokio::pin!(waiting);
    let early = tokio::time::timeout(Duration::from_secs(1), &mut waiting).await;
    assert!(early.is_err(), "there is a tunnel to wait for: {early:?}");
    clients.pop().unwrap().close(1000, "").await;
    let output = within("the wait ends", SOON, waiting).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(gateway.status().await.generations.len(), 1);
}

/// A gateway whose tunnels may stay for this long when it stops.
async fn stopping_within(grace: &str) -> (Gateway, Echo, Client) {
    let echo = Echo::start().await;
    let head = format!("workers = 2\n[stop]\ngrace = \"{grace}\"");
    let gateway = Gateway::start(&configs::with(&head, &[&echo.address])).await;
    let mut client = Client::open(&gateway.ws_url("/")).await;
    client.echo(Message::text("hello")).await;
    (gateway, echo, client)
}

async fn refuses_clients(gateway: &Gateway) {
    until("no client gets in", SOON, async || {
        Client::try_open(&gateway.ws_url("/")).await.is_err()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_leaves_tunnels_their_grace() {
    for signal in [Signal::TERM, Signal::QUIT, Signal::INT] {
        let (gateway, _echo, mut client) = stopping_within("2s").await;
        let began = Instant::now();
        gateway.signal(signal);
        refuses_clients(&gateway).await;
        assert_eq!(gateway.status().await.state, GatewayState::Stopping);
        client.echo(Message::text("still here")).await;
        let end = client.end(SOON).await;
        assert!(end.is_polite(1012), "{end:?}");
        let status = gateway.exited(Duration::from_secs(5)).await;
        assert!(status.success(), "{status}");
        let took = began.elapsed();
        assert!((1.5..6.0).contains(&took.as_secs_f64()), "{took:?}");
        assert!(!gateway.socket().exists(), "the admin socket is removed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_with_nothing_to_wait_for_is_over_at_once() {
    let (gateway, _echo, client) = stopping_within("10m").await;
    gateway.signal(Signal::TERM);
    refuses_clients(&gateway).await;
    assert!(client.close(1000, "").await.is_polite(1000));
    let status = gateway.exited(Duration::from_secs(3)).await;
    assert!(status.success(), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_interrupt_stops_at_once_and_politely() {
    let (gateway, _echo, mut client) = stopping_within("10m").await;
    gateway.signal(Signal::INT);
    refuses_clients(&gateway).await;
    client.echo(Message::text("still here")).await;
    gateway.signal(Signal::INT);
    let end = client.end(Duration::from_secs(4)).await;
    assert!(end.is_polite(1012), "{end:?}");
    assert!(gateway.exited(Duration::from_secs(5)).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_now_closes_politely() {
    let (gateway, echo, mut client) = stopping_within("10m").await;
    let output = gateway.ctl(&["stop", "--now", "--json"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let stopping: Stopping = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(stopping.pid, gateway.pid);
    let end = client.end(Duration::from_secs(4)).await;
    assert!(end.is_polite(1012), "{end:?}");
    assert!(gateway.exited(Duration::from_secs(5)).await.success());
    until("the server sees the end", SOON, async || {
        echo.session().wire.is_some()
    })
    .await;
    assert_eq!(echo.session().close.map(|close| close.0), Some(1012));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_says_nothing_does_not_hold_up_a_stop() {
    let (gateway, _echo, client) = stopping_within("10m").await;
    // It reads nothing and answers no Close.
    let output = gateway.ctl(&["stop", "--now"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(gateway.exited(Duration::from_secs(6)).await.success());
    drop(client);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_generations_stop_as_well() {
    let (gateway, _echo, mut clients) = reloaded_with("10m", 3).await;
    gateway.ctl(&["stop", "--now"]).await;
    for client in &mut clients {
        let end = client.end(SOON).await;
        assert!(end.is_polite(1012), "{end:?}");
    }
    assert!(gateway.exited(Duration::from_secs(5)).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_signals_are_logged_and_never_fatal() {
    let (gateway, _echo, mut client) = stopping_within("10m").await;
    for signal in [Signal::USR1, Signal::USR2, Signal::PIPE, Signal::ALARM] {
        gateway.signal(signal);
    }
    gateway.logged(&["USR2"]).await;
    client.echo(Message::text("still here")).await;
    assert_eq!(gateway.status().await.state, GatewayState::Running);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_ignore_the_signals_of_a_terminal() {
    let (gateway, _echo, mut client) = stopping_within("10m").await;
    let workers = gateway.active_workers().await;
    for worker in &workers {
        for signal in [
            Signal::INT,
            Signal::TERM,
            Signal::HUP,
            Signal::QUIT,
            Signal::USR1,
        ] {
            process::signal(worker.pid, signal);
        }
    }
    client.echo(Message::text("still here")).await;
    all_along("the workers live", Duration::from_millis(500), async || {
        process::children(gateway.pid).len() == workers.len()
    })
    .await;
    assert_eq!(gateway.status().await.totals.worker_restarts, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_accept_for_the_last_clients_still_get_in() {
    let echo = Echo::start().await;
    let port = backend::nobody().await;
    let head = format!(
        "[stop]\naccept_for = \"2s\"\ngrace = \"1s\"\n[admin]\nsocket = \"{{dir}}/admin.sock\"\nhttp = \"{port}\"\n"
    );
    let gateway = Gateway::start(&configs::with(&head, &[&echo.address])).await;
    let ready = async || {
        let answer = crate::support::admin::over_tcp(&port, http::Method::GET, "/readyz").await;
        answer.unwrap().status
    };
    assert_eq!(ready().await, 200);
    gateway.signal(Signal::TERM);
    eventually("not ready any more", SOON, async || {
        (ready().await == 503).then_some(())
    })
    .await;
    Client::open(&gateway.ws_url("/"))
        .await
        .echo(Message::text("just in time"))
        .await;
    assert!(gateway.exited(SOON).await.success());
}

/// More than a worker accepts in one go.
const WAITING: usize = 300;

/// A gateway of one worker and two listeners whose worker is stopped while requests wait
/// in the second one's accept queue.
async fn with_requests_in_the_queue() -> (Gateway, Echo, u32, Vec<Wire>, String) {
    let echo = Echo::start().await;
    let head = "workers = 1\n[reload]\nwatch = false\n[drain]\norphan_grace = \"1s\"\n";
    let one = configs::with(head, &[&echo.address]);
    let gateway = Gateway::start(&format!(
        "{one}\n{}",
        configs::LISTENER.replace("127.0.0.1", "127.0.0.2")
    ))
    .await;
    let worker = gateway.active_workers().await[0].pid;
    process::signal(worker, Signal::STOP);
    let mut waiting = Vec::new();
    for _ in 0..WAITING {
        let mut wire = Wire::connect(gateway.bound(1)).await;
        wire.send(get("/", "any")).await;
        waiting.push(wire);
    }
    (gateway, echo, worker, waiting, one)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_at_a_removed_listener_is_answered() {
    let (gateway, _echo, worker, waiting, one) = with_requests_in_the_queue().await;
    gateway.edit(&one);
    gateway.reloaded().await;
    process::signal(worker, Signal::CONT);
    for mut wire in waiting {
        assert!(wire.head().await.status() > 0);
    }
    only_one_generation(&gateway, SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_when_the_gateway_stops_is_answered() {
    let (gateway, _echo, worker, waiting, _) = with_requests_in_the_queue().await;
    gateway.signal(Signal::TERM);
    gateway.logged(&["wsgate stops"]).await;
    process::signal(worker, Signal::CONT);
    for mut wire in waiting {
        assert!(wire.head().await.status() > 0);
    }
    assert!(gateway.exited(SOON).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_when_a_worker_without_a_supervisor_drains_is_answered() {
    let (gateway, _echo, worker, waiting, _) = with_requests_in_the_queue().await;
    gateway.kill_supervisor().await;
    process::signal(worker, Signal::CONT);
    for mut wire in waiting {
        assert!(wire.head().await.status() > 0);
    }
}
