//! The operator closes single tunnels, and nothing else.

use std::time::Duration;

use http::Method;
use rustix::process::Signal;
use tokio_tungstenite::tungstenite::Message;
use wsgate_protocol::admin::{
    CLOSE_CODE, CLOSE_REASON, ErrorBody, GenerationState, Tunnel, TunnelState, UNRESPONSIVE_HEADER,
};

use crate::configs;
use crate::support::admin::Answer;
use crate::support::backend::{Echo, Raw, handing_over};
use crate::support::client::{Client, Sequenced};
use crate::support::gateway::{self, Gateway, stderr, stdout};
use crate::support::process;
use crate::support::raw::{BINARY, CLOSE, Wire, frame};
use crate::support::wait::{SOON, eventually, until, within};
use crate::support::wire::WireEnd;

/// A gateway of two workers with so many tunnels, and the tunnel of the first client.
async fn with_tunnels(count: usize) -> (Gateway, Echo, Vec<Client>, Tunnel) {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&configs::with("workers = 2", &[&echo.address])).await;
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(Client::open(&gateway.ws_url("/")).await);
    }
    gateway.holds(count as u64).await;
    let tunnel = tunnel_of(&gateway, &clients[0]).await;
    (gateway, echo, clients, tunnel)
}

async fn tunnel_of(gateway: &Gateway, client: &Client) -> Tunnel {
    let query = format!("client={}", client.local_address());
    let mut tunnels = gateway.tunnels_where(&query).await;
    assert_eq!(tunnels.len(), 1, "{tunnels:?}");
    tunnels.remove(0)
}

async fn close(gateway: &Gateway, id: &str, body: &str) -> Answer {
    let path = format!("/v1/tunnels/{id}");
    gateway.call(Method::DELETE, &path, body).await
}

async fn ended_by_admin(gateway: &Gateway, count: u64) {
    let status = gateway
        .counted("the close is counted", |totals| {
            totals.tunnels_ended["admin"] == count
        })
        .await;
    let ended: u64 = status.totals.tunnels_ended.values().sum();
    assert_eq!(ended, count, "{:?}", status.totals.tunnels_ended);
}

/// A gateway before a raw server, and a tunnel between two peers that say only what the
/// test does.
async fn between_raw_peers() -> (Gateway, Raw, Wire, Wire) {
    let (server, mut receiver) = handing_over().await;
    let gateway = Gateway::start(&configs::simple(&[&server.address])).await;
    let (client, _) = Wire::tunnel(gateway.address(), "/", "").await;
    let far = within("a tunnel", SOON, receiver.recv()).await.unwrap();
    (gateway, server, client, far)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_peers_get_the_close_frame_and_then_a_fin() {
    let (gateway, _server, mut client, mut far) = between_raw_peers().await;
    let tunnel = gateway.tunnels().await.remove(0);
    let answer = close(
        &gateway,
        &tunnel.id,
        r#"{"code":4001,"reason":"zu viel ✓"}"#,
    )
    .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let payload = [&4001_u16.to_be_bytes()[..], "zu viel ✓".as_bytes()].concat();
    let expected = frame(true, CLOSE, &payload);
    assert_eq!(client.rest().await, (expected, WireEnd::Fin));
    let (heard, end) = far.rest().await;
    assert_eq!(end, WireEnd::Fin);
    let (head, masked) = heard.split_at(6);
    assert_eq!(head[0], 0x80 | CLOSE, "{heard:?}");
    assert_eq!(usize::from(head[1]), 0x80 | payload.len(), "{heard:?}");
    let unmasked: Vec<u8> = (masked.iter().zip(head[2..].iter().cycle()))
        .map(|(byte, key)| byte ^ key)
        .collect();
    assert_eq!(unmasked, payload);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_close_changes_nothing_of_the_first() {
    let (gateway, _server, mut client, mut far) = between_raw_peers().await;
    let tunnel = gateway.tunnels().await.remove(0);
    let whole = frame(true, BINARY, &[7; 1000]);
    let (begin, rest) = whole.split_at(500);
    far.send(begin).await;
    client.take(begin.len()).await;
    // The close waits for the end of the frame.
    for body in [r#"{"code":4001}"#, r#"{"code":4002}"#] {
        let answer = close(&gateway, &tunnel.id, body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        until("it closes", SOON, async || {
            gateway.tunnels_where("state=closing").await.len() == 1
        })
        .await;
    }
    far.send(rest).await;
    let (heard, end) = client.rest().await;
    let (first, close) = heard.split_at(rest.len());
    assert!(first == rest);
    assert_eq!(close[2..4], 4001_u16.to_be_bytes(), "{close:?}");
    assert_eq!(end, WireEnd::Fin);
    drop((client, far));
    ended_by_admin(&gateway, 1).await;
    let upstreams = gateway.status().await.upstreams;
    assert_eq!(upstreams[0].servers[0].draining_tunnels, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_is_answered_logged_and_counted_and_touches_no_other_tunnel() {
    let (gateway, echo, mut clients, tunnel) = with_tunnels(6).await;
    let answer = close(&gateway, &tunnel.id, "").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let closed: Tunnel = answer.json();
    assert_eq!(
        (closed.id, closed.client, closed.worker),
        (tunnel.id.clone(), clients[0].local_address(), tunnel.worker)
    );
    assert_ne!(closed.state, TunnelState::Open, "the close has begun");
    let end = clients.remove(0).end(SOON).await;
    assert!(end.is_polite(CLOSE_CODE), "{end:?}");
    assert_eq!(end.close, Some((1001, CLOSE_REASON.to_owned())));
    let id = format!("id={:?}", tunnel.id);
    gateway
        .logged(&["tunnel ended", &id, "cause=\"admin\""])
        .await;
    let pid = format!("pid={}", std::process::id());
    gateway
        .logged(&["admin: close of a tunnel", &pid, "uid=", &id, "code=1001"])
        .await;
    ended_by_admin(&gateway, 1).await;
    for client in &mut clients {
        client.echo(Message::text("untouched")).await;
    }
    assert_eq!(gateway.tunnels_where("state=open").await.len(), 5);
    let session = eventually("the server sees the end", SOON, async || {
        let mut sessions = echo.sessions().into_iter();
        sessions.find(|session| session.wire.is_some())
    })
    .await;
    let close = Some((1001, CLOSE_REASON.to_owned()));
    assert_eq!((session.close, session.wire), (close, Some(WireEnd::Fin)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_message_is_damaged_by_a_close() {
    let (gateway, echo, mut clients, tunnel) = with_tunnels(1).await;
    let client = clients.remove(0);
    let busy = Sequenced::run(client, "x".to_owned(), Duration::from_millis(1));
    gateway
        .counted("it is busy", |totals| totals.messages_from_servers > 50)
        .await;
    let answer = close(&gateway, &tunnel.id, r#"{"code":1012}"#).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let outcome = busy.ended(SOON).await;
    assert!(outcome.end.is_polite(1012), "{outcome:?}");
    assert!(outcome.faults.is_empty(), "{outcome:?}");
    assert_eq!(echo.faults(), Vec::<String>::new());
    ended_by_admin(&gateway, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_of_an_old_generation_can_be_closed_too() {
    let echo = Echo::start().await;
    let head = configs::draining("10m", 100);
    let gateway = Gateway::start(&configs::numbered(&head, &[&echo.address], 1)).await;
    let mut old = Client::open(&gateway.ws_url("/")).await;
    let mut stays = Client::open(&gateway.ws_url("/")).await;
    gateway.holds(2).await;
    gateway.edit(&configs::numbered(&head, &[&echo.address], 2));
    gateway.reloaded().await;
    let mut new = Client::open(&gateway.ws_url("/")).await;
    let tunnel = tunnel_of(&gateway, &old).await;
    assert_eq!(
        (tunnel.generation, tunnel.state),
        (1, TunnelState::Draining)
    );
    let answer = close(&gateway, &tunnel.id, r#"{"code":1008,"reason":""}"#).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let end = old.end(SOON).await;
    assert!(end.is_polite(1008), "{end:?}");
    // It is the operator's close, and not its drain's.
    ended_by_admin(&gateway, 1).await;
    stays.echo(Message::text("until its deadline")).await;
    new.echo(Message::text("untouched")).await;
    let tunnel = tunnel_of(&gateway, &stays).await;
    close(&gateway, &tunnel.id, "").await;
    assert!(stays.end(SOON).await.is_polite(CLOSE_CODE));
    until("its generation is gone", SOON, async || {
        let generations = gateway.status().await.generations;
        generations.len() == 1 && generations[0].state == GenerationState::Active
    })
    .await;
    new.echo(Message::text("untouched")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_that_cannot_be_is_refused_and_changes_nothing() {
    let (gateway, _echo, mut clients, tunnel) = with_tunnels(2).await;
    let long = format!(r#"{{"reason":"{}"}}"#, "x".repeat(124));
    for (id, body, status, code) in [
        ("6b0176c5-0-1", "", 404, "unknown_tunnel"),
        ("%20", "", 404, "unknown_tunnel"),
        (&tunnel.id, r#"{"code":1006}"#, 400, "invalid_request"),
        (&tunnel.id, r#"{"code":65537}"#, 400, "invalid_request"),
        (&tunnel.id, r#"{"rate":1}"#, 400, "invalid_request"),
        (&tunnel.id, &long, 400, "invalid_request"),
        ("", "", 404, "not_found"),
    ] {
        let answer = close(&gateway, id, body).await;
        assert_eq!(answer.status, status, "{id} {body}: {}", answer.text());
        let error = answer.json::<ErrorBody>().error;
        assert_eq!(error.code, code, "{error:?}");
        assert!(!error.message.is_empty() && !error.help.is_empty());
    }
    let path = format!("/v1/tunnels/{}", tunnel.id);
    let answer = gateway.get(&path).await;
    assert_eq!(answer.status, 405);
    assert_eq!(answer.headers["allow"], "DELETE");
    for client in &mut clients {
        client.echo(Message::text("untouched")).await;
    }
    ended_by_admin(&gateway, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_does_not_answer_is_named() {
    let (gateway, _echo, mut clients, tunnel) = with_tunnels(20).await;
    let frozen = tunnel.worker;
    let all = gateway.tunnels().await;
    let other = all.iter().find(|it| it.worker != frozen).unwrap();
    process::signal(frozen, Signal::STOP);
    for id in [tunnel.id.as_str(), "6b0176c5-0-1"] {
        let answer = close(&gateway, id, "").await;
        assert_eq!(answer.status, 504, "{}", answer.text());
        assert_eq!(answer.error_code().as_deref(), Some("unresponsive"));
        assert_eq!(answer.headers[UNRESPONSIVE_HEADER], frozen.to_string());
    }
    // Who answers is obeyed.
    let answer = close(&gateway, &other.id, "").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    process::signal(frozen, Signal::CONT);
    ended_by_admin(&gateway, 1).await;
    clients[0].echo(Message::text("not even told")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wsctl_closes_each_and_says_so() {
    let (gateway, _echo, mut clients, first) = with_tunnels(3).await;
    let second = tunnel_of(&gateway, &clients[1]).await;
    let third = tunnel_of(&gateway, &clients[2]).await;
    let output = gateway.ctl(&["tunnels", "--json", "--id", &third.id]).await;
    let listed: Vec<Tunnel> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((listed.len(), &listed[0].id), (1, &third.id));
    let args = ["close", &first.id, &second.id, "--code", "4000"];
    let output = gateway.ctl(&args).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    for (line, tunnel) in lines.iter().zip([&first, &second]) {
        let begin = format!("{} closes: {} to chat/", tunnel.id, tunnel.client);
        assert!(line.starts_with(&begin), "{text}");
    }
    for client in &mut clients[..2] {
        let end = client.end(SOON).await;
        assert!(end.is_polite(4000), "{end:?}");
    }
    ended_by_admin(&gateway, 2).await;
    let output = gateway
        .ctl(&[
            "close",
            "6b0176c5-0-1",
            &third.id,
            "--reason",
            "last of all",
        ])
        .await;
    assert_eq!(output.status.code(), Some(1), "one is unknown");
    assert!(stdout(&output).contains(&third.id), "{}", stdout(&output));
    let said = stderr(&output);
    for part in ["6b0176c5-0-1", "help:", "1 of 2 tunnels were not closed"] {
        assert!(said.contains(part), "{part} in:\n{said}");
    }
    let end = clients[2].end(SOON).await;
    assert_eq!(end.close, Some((1001, "last of all".to_owned())));
    ended_by_admin(&gateway, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wsctl_close_has_the_exit_codes_of_all_commands() {
    let (gateway, _echo, mut clients, tunnel) = with_tunnels(1).await;
    let long = "x".repeat(124);
    for (args, code) in [
        (&["close", "6b0176c5-0-1"][..], 1),
        (&["close", "6b0176c5-0-1", "--json"], 1),
        (&["close"], 2),
        (&["close", &tunnel.id, "--code", "1005"], 2),
        (&["close", &tunnel.id, "--reason", &long], 2),
    ] {
        let output = gateway.ctl(args).await;
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        assert!(!stderr(&output).is_empty(), "{args:?}");
    }
    let output = gateway::ctl(&["--socket", "/no/such/admin.sock", "close", "a"]).await;
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    clients[0].echo(Message::text("untouched")).await;
}
