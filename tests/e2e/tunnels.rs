//! What goes through a tunnel: every byte, unchanged, in both directions.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use crate::configs;
use crate::support::backend::{Echo, Raw};
use crate::support::client::Client;
use crate::support::gateway::{Gateway, Launch};
use crate::support::raw::{self, BINARY, CONTINUATION, PING, PONG, TEXT, Wire, frame, masked};
use crate::support::wait::{SOON, eventually, until, within};
use crate::support::wire::WireEnd;

const MIB: usize = 1 << 20;

/// Lengths on both sides of every border of RFC 6455 section 5.2, and large ones.
const LENGTHS: [usize; 9] = [0, 1, 125, 126, 127, 65_535, 65_536, MIB, 16 * MIB];

/// Bytes without a pattern that a lost or doubled block would fit into.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

/// A gateway before a raw server that shakes hands and hands its connection to the test.
async fn with_raw_server() -> (Gateway, Raw, mpsc::Receiver<Wire>) {
    let (sender, receiver) = mpsc::channel(8);
    let server = Raw::start(move |stream| {
        let sender = sender.clone();
        async move {
            let mut wire = Wire::new(stream);
            let Some(head) = wire.try_head().await else {
                return;
            };
            wire.send(raw::switching(&head, "")).await;
            let _ = sender.send(wire).await;
        }
    })
    .await;
    let gateway = Gateway::start(&configs::simple(&[&server.address])).await;
    (gateway, server, receiver)
}

/// The server's side of the next tunnel.
async fn accepted(receiver: &mut mpsc::Receiver<Wire>) -> Wire {
    within("a tunnel reaches the server", SOON, receiver.recv())
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn binary_messages_of_all_lengths_come_back_unchanged() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&configs::simple(&[&echo.address])).await;
    let mut client = Client::open(&gateway.ws_url("/")).await;
    for length in LENGTHS {
        client.echo(Message::binary(noise(length))).await;
    }
    assert!(client.close(1000, "").await.is_polite(1000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_messages_of_all_lengths_come_back_unchanged() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&configs::simple(&[&echo.address])).await;
    let mut client = Client::open(&gateway.ws_url("/")).await;
    for length in LENGTHS {
        let text: String = "für 16 MiB ✓ ".chars().cycle().take(length / 2).collect();
        client.echo(Message::text(text)).await;
    }
    assert!(client.close(1000, "").await.is_polite(1000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tunnels_do_not_mix_their_messages() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&configs::with("workers = 2", &[&echo.address])).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(Client::open(&gateway.ws_url("/")).await);
    }
    for round in 0..10 {
        for (number, client) in clients.iter_mut().enumerate() {
            client
                .send(Message::text(format!("{number}/{round}")))
                .await;
        }
        for (number, client) in clients.iter_mut().enumerate() {
            let message = client.receive().await;
            assert_eq!(message, Message::text(format!("{number}/{round}")));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fragmented_message_comes_back_whole() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&configs::simple(&[&echo.address])).await;
    let mut client = Client::open(&gateway.ws_url("/")).await;
    let parts = [&b"frag"[..], b"", b"men", b"ted"];
    for (number, part) in parts.into_iter().enumerate() {
        let opcode = if number == 0 {
            Data::Text
        } else {
            Data::Continue
        };
        let last = number + 1 == parts.len();
        let frame = Frame::message(part, OpCode::Data(opcode), last);
        client.send(Message::Frame(frame)).await;
        client.send(Message::Ping("between".into())).await;
    }
    let mut texts = Vec::new();
    while texts.is_empty() {
        match client.receive().await {
            Message::Pong(payload) => assert_eq!(payload, "between"),
            message => texts.push(message),
        }
    }
    assert_eq!(texts, [Message::text("fragmented")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_reach_the_server_as_they_were_sent() {
    let (gateway, _server, mut tunnels) = with_raw_server().await;
    let (mut client, _) = Wire::tunnel(gateway.address(), "/", "").await;
    let mut server = accepted(&mut tunnels).await;
    let sent = [
        masked(false, TEXT, b"one, "),
        masked(true, PING, b"ping"),
        masked(false, CONTINUATION, b"two, "),
        masked(true, CONTINUATION, b"three"),
        masked(true, BINARY, &noise(300)),
        masked(true, BINARY, &noise(70_000)),
        masked(true, PONG, b""),
    ]
    .concat();
    // In pieces that end inside of heads, masks and payloads.
    for piece in sent.chunks(7).take(60) {
        client.send(piece).await;
    }
    client.send(&sent[60 * 7..]).await;
    assert!(server.take(sent.len()).await == sent);
    let status = eventually("the messages are counted", SOON, async || {
        let tunnels = gateway.tunnels().await;
        let tunnel = tunnels.into_iter().next()?;
        (tunnel.bytes_from_client == sent.len() as u64).then_some(tunnel)
    })
    .await;
    assert_eq!((status.messages_from_client, status.unframed), (3, false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_reach_the_client_as_they_were_sent() {
    let (gateway, _server, mut tunnels) = with_raw_server().await;
    let (mut client, _) = Wire::tunnel(gateway.address(), "/", "").await;
    let mut server = accepted(&mut tunnels).await;
    let sent = [
        frame(false, BINARY, &noise(126)),
        frame(true, PING, b"in between"),
        frame(true, CONTINUATION, &noise(65_536)),
        frame(true, TEXT, b""),
    ]
    .concat();
    for piece in sent.chunks(11).take(20) {
        server.send(piece).await;
    }
    server.send(&sent[20 * 11..]).await;
    assert!(client.take(sent.len()).await == sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ping_is_answered_by_the_other_peer_and_not_by_the_gateway() {
    let (gateway, _server, mut tunnels) = with_raw_server().await;
    let (mut client, _) = Wire::tunnel(gateway.address(), "/", "").await;
    let mut server = accepted(&mut tunnels).await;
    let ping = masked(true, PING, b"are you there");
    client.send(&ping).await;
    assert_eq!(server.take(ping.len()).await, ping);
    // The first thing that the client hears is what the server says, and it says no pong.
    let word = frame(true, TEXT, b"no pong yet");
    let pong = frame(true, PONG, b"are you there");
    server.send(&word).await;
    assert_eq!(client.take(word.len()).await, word);
    server.send(&pong).await;
    assert_eq!(client.take(pong.len()).await, pong);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_subprotocol_is_the_servers_choice() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&configs::simple(&[&echo.address])).await;
    let offer = [("sec-websocket-protocol", "chat.v1, chat.v2")];
    let client = Client::with_headers(&gateway.ws_url("/"), &offer)
        .await
        .unwrap();
    assert_eq!(
        client.response.headers()["sec-websocket-protocol"],
        "chat.v2"
    );
    assert_eq!(
        echo.session().headers["sec-websocket-protocol"],
        "chat.v1, chat.v2"
    );
    let tunnels = gateway.tunnels().await;
    assert_eq!(tunnels[0].subprotocol.as_deref(), Some("chat.v2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extensions_are_agreed_between_client_and_server() {
    const OFFER: &str = "permessage-deflate; client_max_window_bits, x-other";
    const AGREED: &str = "permessage-deflate; server_no_context_takeover";
    let server = Raw::start(|stream| async move {
        let mut wire = Wire::new(stream);
        let head = wire.head().await;
        assert_eq!(
            head.header("sec-websocket-extensions").as_deref(),
            Some(OFFER)
        );
        let extra = format!("Sec-WebSocket-Extensions: {AGREED}\r\n");
        wire.send(raw::switching(&head, &extra)).await;
        wire.rest().await;
    })
    .await;
    let gateway = Gateway::start(&configs::simple(&[&server.address])).await;
    let extra = format!("Sec-WebSocket-Extensions: {OFFER}\r\n");
    let (_client, head) = Wire::tunnel(gateway.address(), "/", &extra).await;
    assert_eq!(
        head.header("sec-websocket-extensions").as_deref(),
        Some(AGREED)
    );
}

/// A code, and the longest reason that a control frame can hold.
fn closes() -> Vec<(u16, String)> {
    let mut closes: Vec<(u16, String)> = [1000, 1001, 1003, 1008, 1011, 1012, 3000, 4999]
        .into_iter()
        .map(|code| (code, format!("reason-of-{code}")))
        .collect();
    closes.push((4000, String::new()));
    closes.push((4001, "x".repeat(123)));
    closes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clients_close_reaches_the_server_unchanged() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&configs::simple(&[&echo.address])).await;
    for (number, (code, reason)) in closes().into_iter().enumerate() {
        let client = Client::open(&gateway.ws_url("/")).await;
        let end = client.close(code, &reason).await;
        assert!(end.is_polite(code), "{code}: {end:?}");
        let session = eventually("the server sees the end", SOON, async || {
            echo.sessions()
                .into_iter()
                .nth(number)
                .filter(|session| session.wire.is_some())
        })
        .await;
        assert_eq!(session.close, Some((code, reason)));
    }
    let all = closes().len() as u64;
    gateway
        .counted("all have ended by the client", |totals| {
            totals.tunnels_ended["client"] == all
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_servers_close_reaches_the_client_unchanged() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&configs::simple(&[&echo.address])).await;
    for (code, reason) in closes() {
        let url = gateway.ws_url(&format!("/close/{code}/{reason}"));
        let mut client = Client::open(&url).await;
        client.echo(Message::text("close now")).await;
        let end = client.end(SOON).await;
        assert!(end.is_polite(code), "{code}: {end:?}");
        assert_eq!(end.close, Some((code, reason)));
    }
    let all = closes().len() as u64;
    gateway
        .counted("all have ended by the server", |totals| {
            totals.tunnels_ended["server"] == all
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_without_a_code_stays_without_one() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&configs::simple(&[&echo.address])).await;
    let mut client = Client::open(&gateway.ws_url("/")).await;
    client.ws.close(None).await.unwrap();
    let end = client.end(SOON).await;
    assert!(end.is_polite(1005), "{end:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_has_finished_still_hears_the_server() {
    let (gateway, _server, mut tunnels) = with_raw_server().await;
    let (mut client, _) = Wire::tunnel(gateway.address(), "/", "").await;
    let mut server = accepted(&mut tunnels).await;
    client.send(masked(true, TEXT, b"my last word")).await;
    client.finish().await;
    let (heard, end) = server.rest().await;
    assert_eq!(heard, masked(true, TEXT, b"my last word"));
    assert_eq!(end, WireEnd::Fin);
    let answer = frame(true, BINARY, &noise(100_000));
    server.send(&answer).await;
    assert!(client.take(answer.len()).await == answer);
    server.finish().await;
    assert_eq!(client.rest().await, (Vec::new(), WireEnd::Fin));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_has_finished_still_hears_the_client() {
    let (gateway, _server, mut tunnels) = with_raw_server().await;
    let (mut client, _) = Wire::tunnel(gateway.address(), "/", "").await;
    let mut server = accepted(&mut tunnels).await;
    server.finish().await;
    assert_eq!(client.rest().await, (Vec::new(), WireEnd::Fin));
    let word = masked(true, BINARY, &noise(100_000));
    client.send(&word).await;
    client.finish().await;
    let (heard, end) = server.rest().await;
    assert!(heard == word);
    assert_eq!(end, WireEnd::Fin);
    until("the tunnel is gone", SOON, async || {
        gateway.tunnels().await.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_ends_the_tunnel_on_both_sides() {
    let (gateway, _server, mut tunnels) = with_raw_server().await;
    let (client, _) = Wire::tunnel(gateway.address(), "/", "").await;
    let mut server = accepted(&mut tunnels).await;
    client.reset();
    server.rest().await;
    let (mut client, _) = Wire::tunnel(gateway.address(), "/", "").await;
    accepted(&mut tunnels).await.reset();
    client.rest().await;
    let ended = eventually("both ends are counted", SOON, async || {
        let ended = gateway.status().await.totals.tunnels_ended;
        (ended.values().sum::<u64>() == 2).then_some(ended)
    })
    .await;
    assert_eq!(ended.get("client_reset"), Some(&1), "{ended:?}");
    assert_eq!(ended.get("server_reset"), Some(&1), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unix_sockets_serve_on_both_sides() {
    let launch = Launch::new(&format!(
        "[[listener]]\naddress = \"unix:{{dir}}/in.sock\"\n{}{}",
        configs::ROUTE,
        configs::upstream("chat", &["unix:{dir}/out.sock"]),
    ));
    let dir = tempfile::tempdir().unwrap();
    let echo = Echo::start_unix(&dir.path().join("out.sock"));
    let gateway = launch.file("x", "").start().await;
    std::os::unix::fs::symlink(dir.path().join("out.sock"), gateway.dir().join("out.sock"))
        .unwrap();
    let mut client = Client::open_unix(&gateway.dir().join("in.sock"), "/").await;
    for length in LENGTHS {
        client.echo(Message::binary(noise(length))).await;
    }
    let tunnels = gateway.tunnels().await;
    assert_eq!(tunnels.len(), 1);
    assert_eq!(tunnels[0].client, "unix");
    assert!(tunnels[0].server.starts_with("unix:"), "{tunnels:?}");
    let end = client.close(4000, "over unix").await;
    assert!(end.is_polite(4000), "{end:?}");
    until("the server sees the end", SOON, async || {
        echo.session().wire.is_some()
    })
    .await;
    assert_eq!(echo.session().close, Some((4000, "over unix".to_owned())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_in_one_packet_with_the_101_are_not_lost() {
    let word = frame(true, TEXT, b"first");
    let sent = word.clone();
    let server = Raw::start(move |stream| {
        let sent = sent.clone();
        async move {
            let mut wire = Wire::new(stream);
            let head = wire.head().await;
            let mut bytes = raw::switching(&head, "").into_bytes();
            bytes.extend(sent);
            wire.send(bytes).await;
            wire.rest().await;
        }
    })
    .await;
    let gateway = Gateway::start(&configs::simple(&[&server.address])).await;
    let (mut client, _) = Wire::tunnel(gateway.address(), "/", "").await;
    assert_eq!(client.take(word.len()).await, word);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_in_one_packet_with_the_handshake_are_not_lost() {
    let (gateway, _server, mut tunnels) = with_raw_server().await;
    let word = masked(true, TEXT, b"too early, but well meant");
    let mut client = Wire::connect(gateway.address()).await;
    client
        .send([raw::upgrade("/", "").as_bytes(), &word].concat())
        .await;
    assert_eq!(client.head().await.status(), 101);
    let mut server = accepted(&mut tunnels).await;
    assert_eq!(server.take(word.len()).await, word);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_frames_are_relayed_and_marked() {
    let (gateway, _server, mut tunnels) = with_raw_server().await;
    let (mut client, _) = Wire::tunnel(gateway.address(), "/", "").await;
    let mut server = accepted(&mut tunnels).await;
    // Reserved bits and opcodes, and no mask.
    let garbage = [b"\xff\xff\xff\xff".to_vec(), noise(5000)].concat();
    client.send(&garbage).await;
    assert!(server.take(garbage.len()).await == garbage);
    server.send(&garbage).await;
    assert!(client.take(garbage.len()).await == garbage);
    until("the tunnel is marked", SOON, async || {
        gateway.tunnels().await.iter().all(|tunnel| tunnel.unframed)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_without_a_byte_ends_politely() {
    let echo = Echo::start().await;
    let route = "[[route]]\nupstream = \"chat\"\nidle_timeout = \"1s\"\n";
    let config = format!(
        "{}{route}{}",
        configs::LISTENER,
        configs::upstream("chat", &[&echo.address])
    );
    let gateway = Gateway::start(&config).await;
    let mut client = Client::open(&gateway.ws_url("/")).await;
    client.echo(Message::text("the last word")).await;
    let spoke = std::time::Instant::now();
    let end = client.end(SOON).await;
    assert!(
        spoke.elapsed() >= Duration::from_millis(900),
        "{:?}",
        spoke.elapsed()
    );
    assert!(
        end.close.is_some() && end.wire == Some(WireEnd::Fin),
        "{end:?}"
    );
    until("the end is counted", SOON, async || {
        gateway.status().await.totals.tunnels_ended.get("idle") == Some(&1)
    })
    .await;
    assert!(echo.session().close.is_some(), "{:?}", echo.session());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_holds_its_server_back() {
    const MOST: usize = 64 * MIB;
    let (gateway, _server, mut tunnels) = with_raw_server().await;
    let (mut client, _) = Wire::tunnel(gateway.address(), "/", "").await;
    let mut server = accepted(&mut tunnels).await;
    let block = frame(true, BINARY, &noise(MIB));
    let mut written = 0;
    while written < MOST {
        let part = &block[written % block.len()..];
        let write = tokio::time::timeout(Duration::from_secs(1), server.stream.write(part));
        match write.await {
            Ok(count) => written += count.unwrap(),
            Err(_) => break,
        }
    }
    // What the kernel keeps for four sockets, and not what the gateway could.
    assert!(
        written < MOST,
        "the gateway took {written} bytes for a client that reads nothing"
    );
    server.finish().await;
    let (heard, end) = client.rest().await;
    assert_eq!((heard.len(), end), (written, WireEnd::Fin));
    assert!(
        heard
            .chunks(block.len())
            .all(|chunk| *chunk == block[..chunk.len()])
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnels_id_stands_in_the_log_at_its_begin_and_at_its_end() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&configs::simple(&[&echo.address])).await;
    let mut client = Client::open(&gateway.ws_url("/room/7?token=secret")).await;
    client.echo(Message::text("hello")).await;
    let tunnel = gateway.tunnels().await.remove(0);
    assert_eq!(tunnel.path, "/room/7");
    gateway.logged(&[&tunnel.id, &echo.address]).await;
    client.close(1000, "").await;
    until("two lines have the id", SOON, async || {
        let log = gateway.log();
        log.lines().filter(|line| line.contains(&tunnel.id)).count() >= 2
    })
    .await;
    assert!(
        !gateway.log().contains("secret"),
        "a query may hold what no log should"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_during_its_handshake_leaves_nothing_behind() {
    let (sender, mut receiver) = mpsc::channel(1);
    let server = Raw::start(move |mut stream| {
        let sender = sender.clone();
        async move {
            // Says nothing, and waits for the end.
            let mut bytes = Vec::new();
            let _ = stream.read_to_end(&mut bytes).await;
            sender.send(bytes).await.unwrap();
        }
    })
    .await;
    let gateway = Gateway::start(&configs::simple(&[&server.address])).await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send(raw::upgrade("/", "")).await;
    until("the server is asked", SOON, async || {
        server.connections() == 1
    })
    .await;
    client.reset();
    within("the server is left as well", SOON, receiver.recv())
        .await
        .unwrap();
    assert!(gateway.tunnels().await.is_empty());
}
