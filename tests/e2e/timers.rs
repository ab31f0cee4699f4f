//! What ends a tunnel by the clock, and wsgate's own pings, as peers and operators see them.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite::Message;

use crate::configs;
use crate::support::backend::{Echo, handing_over};
use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::raw::{BINARY, CLOSE, PING, PONG, Wire, frame, masked};
use crate::support::wait::{SOON, eventually};
use crate::support::wire::WireEnd;

/// A gateway whose only route has these keys.
async fn gateway(keys: &str, server: &str) -> Gateway {
    let route = format!("[[route]]\nupstream = \"chat\"\n{keys}\n");
    let upstream = configs::upstream("chat", &[server]);
    Gateway::start(&format!("{}{route}{upstream}", configs::LISTENER)).await
}

/// Has a text echoed, whatever pings come before.
async fn say(client: &mut Client, text: &str) {
    client.send(Message::text(text)).await;
    let mut answer = client.receive().await;
    while let Message::Ping(_) = answer {
        answer = client.receive().await;
    }
    assert_eq!(answer, Message::text(text));
}

/// The tunnel's end is told by this word in the log and in the totals.
async fn ended_by(gateway: &Gateway, cause: &str) -> String {
    gateway
        .counted(cause, |totals| totals.tunnels_ended.get(cause) == Some(&1))
        .await;
    let word = format!("cause=\"{cause}\"");
    gateway.logged(&["tunnel ended", &word]).await
}

/// Code and reason of the Close frame that `bytes` are, of a server.
fn close_of(bytes: &[u8]) -> (u16, &str) {
    assert_eq!(bytes[0], 0x80 | CLOSE, "{bytes:?}");
    let reason = std::str::from_utf8(&bytes[4..]).unwrap();
    (u16::from_be_bytes([bytes[2], bytes[3]]), reason)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_answers_pings_stays_and_its_server_sees_none_of_them() {
    let echo = Echo::start().await;
    let gateway = gateway("ping_interval = \"100ms\"", &echo.address).await;
    let mut client = Client::open(&gateway.ws_url("/")).await;
    say(&mut client, "hello").await;
    // More than it would take to give it up; reading is what makes the library answer.
    for _ in 0..10 {
        assert!(matches!(client.receive().await, Message::Ping(_)));
    }
    let round_trip = eventually("a round trip", SOON, async || {
        gateway.tunnels().await[0].round_trip_seconds
    })
    .await;
    assert!((0.0..10.0).contains(&round_trip), "{round_trip}");
    say(&mut client, "still here").await;
    let tunnel = gateway.tunnels().await.remove(0);
    assert_eq!(tunnel.messages_from_client, 2);
    // Two messages and their heads, masked: a pong would have been 14 bytes more.
    assert_eq!(tunnel.bytes_from_client, 6 + 5 + 6 + 10);
    assert_eq!(tunnel.bytes_from_server, 2 + 5 + 2 + 10);
    assert!(echo.faults().is_empty(), "{:?}", echo.faults());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_answers_no_ping_is_closed() {
    let echo = Echo::start().await;
    let gateway = gateway("ping_interval = \"200ms\"", &echo.address).await;
    let (mut client, _) = Wire::tunnel(gateway.address(), "/", "").await;
    let opened = Instant::now();
    let one = client.take(10).await;
    let two = client.take(10).await;
    assert_eq!((one[0], one[1]), (0x80 | PING, 8));
    assert_ne!(one, two);
    let (rest, end) = client.rest().await;
    assert_eq!(
        (close_of(&rest), end),
        ((1011, "ping timeout"), WireEnd::Fin)
    );
    assert!(opened.elapsed() >= Duration::from_millis(550));
    ended_by(&gateway, "ping_timeout").await;
    assert_eq!(echo.session().close.map(|close| close.0), Some(1011));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_pong_that_is_meant_for_wsgate_is_held_back() {
    let (server, mut servers) = handing_over().await;
    let gateway = gateway("ping_interval = \"300ms\"", &server.address).await;
    let (mut client, _) = Wire::tunnel(gateway.address(), "/", "").await;
    let mut server = servers.recv().await.unwrap();
    let ping = client.take(10).await;
    let own = masked(true, PONG, b"unasked!");
    let answer = masked(true, PONG, &ping[2..]);
    let message = masked(true, BINARY, b"after");
    let (begun, rest) = answer.split_at(7);
    client.send([&own, begun].concat()).await;
    assert_eq!(server.take(own.len()).await, own);
    client.send([rest, &message].concat()).await;
    assert_eq!(server.take(message.len()).await, message);
    // The same pong a second time is not wsgate's any more.
    client.send(&answer).await;
    assert_eq!(server.take(answer.len()).await, answer);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_ends_when_it_is_old_enough_however_busy_it_is() {
    let echo = Echo::start().await;
    let gateway = gateway("max_age = \"700ms\"", &echo.address).await;
    let opened = Instant::now();
    let (mut client, _) = Wire::tunnel(gateway.address(), "/", "").await;
    let message = masked(true, BINARY, b"busy");
    let answer = frame(true, BINARY, b"busy");
    let close = loop {
        client.send(&message).await;
        let head = client.take(2).await;
        if head[0] == 0x80 | CLOSE {
            break [head, client.rest().await.0].concat();
        }
        assert_eq!([head, client.take(4).await].concat(), answer);
    };
    assert_eq!(close_of(&close), (1001, "max age"));
    assert!(opened.elapsed() >= Duration::from_millis(700));
    ended_by(&gateway, "max_age").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_nothing_is_given_up_after_the_send_timeout() {
    let (server, mut servers) = handing_over().await;
    let gateway = gateway("send_timeout = \"500ms\"", &server.address).await;
    let (_client, _) = Wire::tunnel(gateway.address(), "/", "").await;
    let mut server = servers.recv().await.unwrap();
    let begun = Instant::now();
    let block = frame(true, BINARY, &[7; 60_000]);
    let flood = async {
        loop {
            if let Err(error) = server.stream.write_all(&block).await {
                return error;
            }
        }
    };
    let refused = tokio::time::timeout(SOON, flood).await;
    assert!(refused.is_ok(), "the server still waits for the client");
    assert!(begun.elapsed() >= Duration::from_millis(500));
    let line = ended_by(&gateway, "send_timeout").await;
    assert!(line.contains("the client took nothing"), "{line}");
}
