//! The relay between real sockets.

mod timers;

use std::sync::atomic::Ordering::Relaxed;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::rig::*;
use super::*;
use crate::frames::tests::frame;
use crate::record::By;

/// Sends in pieces of all sizes.
async fn send_in_pieces(
    mut stream: impl tokio::io::AsyncWrite + Unpin,
    bytes: &[u8],
    mut seed: usize,
) {
    let mut rest = bytes;
    while !rest.is_empty() {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let size = 1 + (seed >> 33) % [10, 1500, 70_000, 200_000][(seed >> 20) % 4];
        let (piece, after) = rest.split_at(size.min(rest.len()));
        stream.write_all(piece).await.unwrap();
        rest = after;
    }
    stream.shutdown().await.unwrap();
}

async fn collect(mut stream: impl tokio::io::AsyncRead + Unpin) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

/// Reads little by little, and lets others run in between.
async fn collect_slowly(mut stream: impl tokio::io::AsyncRead + Unpin) -> Vec<u8> {
    let (mut bytes, mut piece) = (Vec::new(), vec![0; 3000]);
    loop {
        match stream.read(&mut piece).await.unwrap() {
            0 => return bytes,
            count => bytes.extend(&piece[..count]),
        }
        tokio::task::yield_now().await;
    }
}

/// Sends both ways at once and checks what arrives.
async fn exchange(rig: &mut Rig, up: &[u8], down: &[u8], slowly: bool) {
    let (client_in, client_out) = rig.peers.client.split();
    let (server_in, server_out) = rig.peers.server.split();
    let (at_server, at_client, (), ()) = within(async {
        let read = |stream| async move {
            match slowly {
                true => collect_slowly(stream).await,
                false => collect(stream).await,
            }
        };
        tokio::join!(
            read(server_in),
            read(client_in),
            send_in_pieces(client_out, up, 1),
            send_in_pieces(server_out, down, 2),
        )
    })
    .await;
    assert!(
        at_server == up,
        "the server got {} of {} bytes",
        at_server.len(),
        up.len()
    );
    assert!(
        at_client == down,
        "the client got {} of {} bytes",
        at_client.len(),
        down.len()
    );
}

#[tokio::test]
async fn every_byte_arrives_both_ways_at_once() {
    let (up, down) = (noise(1, 6_000_000), noise(2, 5_000_001));
    let mut rig = Rig::start().await;
    exchange(&mut rig, &up, &down, false).await;
    let (record, counts) = (rig.peers.record.clone(), rig.peers.counts.clone());
    let ending = rig.end().await;
    assert!(matches!(ending.cause, Cause::Client | Cause::Server));
    assert_eq!(record.from_client().0, 6_000_000);
    assert_eq!(record.from_server().0, 5_000_001);
    assert_eq!(counts.client_bytes.load(Relaxed), 6_000_000);
    assert_eq!(counts.server_bytes.load(Relaxed), 5_000_001);
    assert!(record.unframed());
}

#[tokio::test]
async fn slow_readers_behind_small_buffers_get_every_byte() {
    let (up, down) = (noise(3, 1_000_000), noise(4, 1_200_000));
    let mut rig = Rig::with(Wish {
        small_buffers: true,
        ..Wish::default()
    })
    .await;
    exchange(&mut rig, &up, &down, true).await;
    rig.end().await;
}

#[tokio::test]
async fn what_was_read_ahead_comes_first() {
    let wish = Wish {
        ahead_from_client: b"early up, ",
        ahead_from_server: b"early down, ",
        ..Wish::default()
    };
    let mut rig = Rig::with(wish).await;
    send(&mut rig.peers.client, b"late up").await;
    send(&mut rig.peers.server, b"late down").await;
    assert_eq!(read(&mut rig.peers.server, 17).await, b"early up, late up");
    assert_eq!(
        read(&mut rig.peers.client, 21).await,
        b"early down, late down"
    );
    until(|| rig.peers.record.from_client().0 == 17).await;
    until(|| rig.peers.record.from_server().0 == 21).await;
    rig.end().await;
}

#[tokio::test]
async fn after_the_client_has_ended_the_server_can_still_send() {
    let mut rig = Rig::start().await;
    send(&mut rig.peers.client, b"last words").await;
    end_of_sending(&mut rig.peers.client).await;
    assert_eq!(read_to_end(&mut rig.peers.server).await, b"last words");
    let much = noise(5, 3_000_000);
    let (mut server, mut client) = (rig.peers.server, rig.peers.client);
    let sender = async move {
        send(&mut server, &much).await;
        drop(server);
        much
    };
    let (sent, got) = tokio::join!(sender, read_to_end(&mut client));
    assert!(sent == got);
    assert_eq!(within(rig.relay).await.unwrap().cause, Cause::Client);
}

#[tokio::test]
async fn after_the_server_has_ended_the_client_can_still_send() {
    let mut rig = Rig::start().await;
    end_of_sending(&mut rig.peers.server).await;
    assert_eq!(read_to_end(&mut rig.peers.client).await, b"");
    send(&mut rig.peers.client, b"still here").await;
    assert_eq!(read(&mut rig.peers.server, 10).await, b"still here");
    assert_eq!(rig.end().await.cause, Cause::Server);
}

#[tokio::test]
async fn unix_streams_are_relayed_with_their_half_close() {
    let (mut peer, server) = tokio::net::UnixStream::pair().unwrap();
    let (mut tunnel, mut peers) = build(Wish::default()).await;
    tunnel.server = Socket::Unix(server);
    let relay = tokio::spawn(relay(tunnel));
    send(&mut peers.client, b"up").await;
    end_of_sending(&mut peers.client).await;
    let mut got = Vec::new();
    within(peer.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got, b"up");
    within(peer.write_all(b"down")).await.unwrap();
    drop(peer);
    assert_eq!(read_to_end(&mut peers.client).await, b"down");
    assert_eq!(within(relay).await.unwrap().cause, Cause::Client);
}

/// Writes until neither side of the tunnel has moved for a while.
async fn fill(stream: &TcpStream, ends: &mut Ends) -> usize {
    let piece = noise(6, 32 * 1024);
    let (mut sent, mut quiet) = (0, 0);
    while quiet < 50 {
        let before = (sent, ends.to_client.pending_bytes());
        if let Ok(count) = stream.try_write(&piece) {
            sent += count;
        }
        poll_fn(|cx| Poll::Ready(ends.relay(cx, |_| ())))
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        let moved = before != (sent, ends.to_client.pending_bytes());
        quiet = if moved { 0 } else { quiet + 1 };
    }
    sent
}

#[tokio::test]
async fn a_reader_that_stops_stops_its_sender_after_one_buffer() {
    let (tunnel, mut peers) = build(Wish {
        small_buffers: true,
        ..Wish::default()
    })
    .await;
    let mut ends = Ends::new(tunnel);
    let sent = within(fill(&peers.server, &mut ends)).await;
    let pending = ends.to_client.pending_bytes();
    assert!(
        0 < pending && pending <= lane::BUFFER,
        "{pending} bytes pending"
    );
    // What is not pending is in the kernel's buffers, which are small here.
    assert!(sent < 400_000, "{sent} bytes taken from the server");
    // The other direction goes on.
    send(&mut peers.client, b"up").await;
    within(poll_fn(|cx| {
        ends.relay(cx, |_| ()).unwrap();
        if peers.record.from_client().0 == 2 {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }))
    .await;
    assert_eq!(read(&mut peers.server, 2).await, b"up");
    // Nothing is lost once the reader goes on, and nothing is kept.
    let reader = read(&mut peers.client, sent);
    tokio::select! {
        got = reader => assert!(got.len() == sent),
        () = poll_fn(|cx| { ends.relay(cx, |_| ()).unwrap(); Poll::Pending }) => unreachable!(),
    }
    assert_eq!(ends.to_client.pending_bytes(), 0);
}

#[tokio::test]
async fn messages_are_counted_in_both_books() {
    let mut rig = Rig::start().await;
    let up = [
        frame(Side::Client, 0x81, b"a"),
        frame(Side::Client, 0x89, b"ping"),
    ]
    .concat();
    let down = [
        frame(Side::Server, 0x02, b"fragment"),
        frame(Side::Server, 0x80, b"end"),
    ]
    .concat();
    send(&mut rig.peers.client, &up).await;
    send(&mut rig.peers.server, &down).await;
    assert_eq!(read(&mut rig.peers.server, up.len()).await, up);
    assert_eq!(read(&mut rig.peers.client, down.len()).await, down);
    let record = rig.peers.record.clone();
    until(|| record.from_client().1 == 1 && record.from_server().1 == 1).await;
    assert_eq!(rig.peers.counts.client_messages.load(Relaxed), 1);
    assert_eq!(rig.peers.counts.server_messages.load(Relaxed), 1);
    assert!(!record.unframed());
    rig.end().await;
}

#[tokio::test]
async fn the_first_close_frame_tells_who_ended_it() {
    let mut rig = Rig::start().await;
    let close = frame(Side::Server, 0x88, b"\x0f\xa1");
    let answer = frame(Side::Client, 0x88, b"");
    send(&mut rig.peers.server, &close).await;
    assert_eq!(read(&mut rig.peers.client, close.len()).await, close);
    send(&mut rig.peers.client, &answer).await;
    assert_eq!(read(&mut rig.peers.server, answer.len()).await, answer);
    // Neither is followed by a frame of wsgate's own.
    end_of_sending(&mut rig.peers.client).await;
    assert_eq!(read_to_end(&mut rig.peers.server).await, b"");
    end_of_sending(&mut rig.peers.server).await;
    assert_eq!(read_to_end(&mut rig.peers.client).await, b"");
    let ending = rig.end().await;
    let expected = Ending {
        cause: Cause::Server,
        client_code: Some(1005),
        server_code: Some(4001),
        note: None,
    };
    assert_eq!(ending, expected);
}

#[tokio::test]
async fn peers_that_do_not_end_after_both_close_frames_are_ended() {
    let (tunnel, _peers) = build(Wish::default()).await;
    let mut relay = Relay::new(Course::new(tunnel));
    relay
        .ends
        .to_client
        .tracker
        .advance(&frame(Side::Server, 0x88, b""));
    relay
        .ends
        .to_server
        .tracker
        .advance(&frame(Side::Client, 0x88, b""));
    let mut timer = pin!(sleep_until(relay.next_look().into()));
    let poll = poll_fn(|cx| Poll::Ready(relay.poll(cx, timer.as_mut()))).await;
    assert!(poll.is_pending());
    assert!(relay.closed.is_some());
    let closed = relay.linger_end().unwrap() - CLOSED_WAIT;
    assert_eq!(timer.deadline().into_std(), closed + CLOSED_WAIT);
    assert!(
        relay
            .due(closed + CLOSED_WAIT - Duration::from_millis(1))
            .is_none()
    );
    assert!(matches!(
        relay.due(closed + CLOSED_WAIT),
        Some(Stop::Lingering)
    ));
}

#[tokio::test]
async fn a_tunnel_is_idle_from_its_last_byte() {
    let idle_timeout = Duration::from_secs(100);
    let (tunnel, peers) = build(Wish {
        timeouts: Timeouts {
            idle: idle_timeout,
            ..TIMEOUTS
        },
        ..Wish::default()
    })
    .await;
    let mut relay = Relay::new(Course::new(tunnel));
    let opened = peers.record.opened;
    assert!(relay.due(opened + Duration::from_secs(99)).is_none());
    assert!(matches!(
        relay.due(opened + Duration::from_secs(100)),
        Some(Stop::Idle)
    ));
    peers.record.last_byte_ms.store(50_000, Relaxed);
    assert!(relay.due(opened + Duration::from_secs(149)).is_none());
    assert!(matches!(
        relay.due(opened + Duration::from_secs(150)),
        Some(Stop::Idle)
    ));
    assert_eq!(relay.next_look(), opened + Duration::from_secs(150));
}

#[tokio::test]
async fn an_idle_timeout_beyond_all_clocks_is_none() {
    let (tunnel, peers) = build(Wish {
        timeouts: Timeouts {
            idle: Duration::MAX,
            ..TIMEOUTS
        },
        ..Wish::default()
    })
    .await;
    let mut relay = pin!(relay(tunnel));
    assert!(is_pending(relay.as_mut()));
    peers.drain_at(None);
    assert!(is_pending(relay.as_mut()));
}

#[tokio::test]
async fn bytes_keep_a_tunnel_from_being_idle() {
    let idle_timeout = Duration::from_millis(600);
    let mut rig = Rig::with(Wish {
        timeouts: Timeouts {
            idle: idle_timeout,
            ..TIMEOUTS
        },
        ..Wish::default()
    })
    .await;
    let opened = rig.peers.record.opened;
    while opened.elapsed() < idle_timeout * 3 {
        send(&mut rig.peers.server, &frame(Side::Server, 0x89, b"")).await;
        assert_eq!(read(&mut rig.peers.client, 2).await, [0x89, 0]);
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    let last = Instant::now();
    let farewell = read_to_end(&mut rig.peers.client).await;
    assert_eq!(
        close_frame(Side::Server, &farewell),
        (1001, "idle timeout".into())
    );
    assert!(last.elapsed() > idle_timeout / 2);
    let farewell = read_to_end(&mut rig.peers.server).await;
    assert_eq!(
        close_frame(Side::Client, &farewell),
        (1001, "idle timeout".into())
    );
    let ending = rig.end().await;
    assert_eq!((ending.cause, ending.note), (Cause::Idle, None));
}

#[tokio::test]
async fn half_a_tunnel_can_be_idle_too() {
    let idle_timeout = Duration::from_millis(100);
    let mut rig = Rig::with(Wish {
        timeouts: Timeouts {
            idle: idle_timeout,
            ..TIMEOUTS
        },
        ..Wish::default()
    })
    .await;
    end_of_sending(&mut rig.peers.client).await;
    assert_eq!(read_to_end(&mut rig.peers.server).await, b"");
    let farewell = read_to_end(&mut rig.peers.client).await;
    assert_eq!(close_frame(Side::Server, &farewell).0, 1001);
    assert_eq!(rig.end().await.cause, Cause::Client);
}

#[tokio::test]
async fn a_servers_reset_reaches_the_client_as_a_close_frame_behind_all_its_bytes() {
    let mut rig = Rig::start().await;
    let message = frame(Side::Server, 0x82, &noise(7, 30_000));
    send(&mut rig.peers.server, &message).await;
    let record = rig.peers.record.clone();
    until(|| record.from_server().1 == 1).await;
    reset(rig.peers.server);
    let got = read_to_end(&mut rig.peers.client).await;
    let (bytes, farewell) = got.split_at(message.len());
    assert!(bytes == message);
    assert_eq!(
        close_frame(Side::Server, farewell),
        (1011, "server connection lost".into())
    );
    drop(rig.peers.client);
    let ending = within(rig.relay).await.unwrap();
    assert_eq!((ending.cause, ending.note), (Cause::ServerReset, None));
    assert!(record.closing());
}

#[tokio::test]
async fn a_clients_reset_reaches_the_server_as_a_masked_close_frame() {
    let mut rig = Rig::start().await;
    reset(rig.peers.client);
    let got = read_to_end(&mut rig.peers.server).await;
    assert_eq!(
        close_frame(Side::Client, &got),
        (1001, "client connection lost".into())
    );
    drop(rig.peers.server);
    let ending = within(rig.relay).await.unwrap();
    assert_eq!((ending.cause, ending.note), (Cause::ClientReset, None));
}

#[tokio::test]
async fn a_reset_inside_a_frame_ends_in_a_fin_alone() {
    let mut rig = Rig::start().await;
    let message = frame(Side::Server, 0x82, &[1; 100]);
    send(&mut rig.peers.server, &message[..50]).await;
    assert_eq!(read(&mut rig.peers.client, 50).await, message[..50]);
    reset(rig.peers.server);
    assert_eq!(read_to_end(&mut rig.peers.client).await, b"");
    drop(rig.peers.client);
    let ending = within(rig.relay).await.unwrap();
    assert_eq!(ending.cause, Cause::ServerReset);
    assert!(ending.note.unwrap().contains("inside a frame"));
}

#[tokio::test]
async fn what_a_lost_peer_had_sent_is_delivered_to_a_slow_reader() {
    let message = frame(Side::Server, 0x82, &noise(8, 60_000));
    let wish = Wish {
        ahead_from_server: message.clone().leak(),
        small_buffers: true,
        ..Wish::default()
    };
    let mut rig = Rig::with(wish).await;
    until(|| rig.peers.record.from_server().0 > 0).await;
    let second = frame(Side::Server, 0x81, b"not even read yet");
    send(&mut rig.peers.server, &second).await;
    reset(rig.peers.server);
    // While bytes are pending nothing is read: only a failing write tells of the reset.
    let record = rig.peers.record.clone();
    within(async {
        while !record.closing() {
            send(&mut rig.peers.client, &frame(Side::Client, 0x81, b"lost")).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    assert_eq!(record.from_server().1, 0);
    let got = read_to_end(&mut rig.peers.client).await;
    let (bytes, farewell) = got.split_at(message.len() + second.len());
    assert!(bytes == [message, second].concat());
    assert_eq!(close_frame(Side::Server, farewell).0, 1011);
    drop(rig.peers.client);
    let ending = within(rig.relay).await.unwrap();
    assert_eq!((ending.cause, ending.note), (Cause::ServerReset, None));
}

#[tokio::test]
async fn the_earlier_of_two_deadlines_closes() {
    let mut rig = Rig::start().await;
    let order = |ms, reason: &str| {
        let at = Instant::now() + Duration::from_millis(ms);
        Some(Deadline {
            at,
            code: 1012,
            reason: reason.into(),
        })
    };
    let set = Instant::now();
    rig.peers.drain_at(order(60_000, "reload"));
    rig.peers
        .record
        .orders
        .set(By::Server, order(150, "server drained"));
    let farewell = read_to_end(&mut rig.peers.client).await;
    assert!(set.elapsed() >= Duration::from_millis(150));
    assert_eq!(
        close_frame(Side::Server, &farewell),
        (1012, "server drained".into())
    );
    assert_eq!(rig.end().await.cause, Cause::Drain);
}

#[tokio::test]
async fn a_reset_after_a_close_frame_is_still_that_peers_own_end() {
    let mut rig = Rig::start().await;
    let close = frame(Side::Client, 0x88, b"\x03\xe8");
    send(&mut rig.peers.client, &close).await;
    assert_eq!(read(&mut rig.peers.server, close.len()).await, close);
    reset(rig.peers.client);
    assert_eq!(read_to_end(&mut rig.peers.server).await, b"");
    drop(rig.peers.server);
    let ending = within(rig.relay).await.unwrap();
    assert_eq!(
        (ending.cause, ending.client_code),
        (Cause::Client, Some(1000))
    );
}

#[tokio::test]
async fn a_deadline_that_is_cleared_does_not_close() {
    let mut rig = Rig::start().await;
    let at = Instant::now() + Duration::from_millis(150);
    rig.peers.drain_at(Some(Deadline {
        at,
        code: 1012,
        reason: "reload".into(),
    }));
    assert!(rig.peers.record.deadline().is_some());
    send(&mut rig.peers.client, b"\x81").await;
    assert_eq!(read(&mut rig.peers.server, 1).await, b"\x81");
    rig.peers.drain_at(None);
    tokio::time::sleep_until((at + Duration::from_millis(100)).into()).await;
    send(&mut rig.peers.client, b"\x80").await;
    assert_eq!(read(&mut rig.peers.server, 1).await, b"\x80");
    assert!(!rig.peers.record.closing());
    // Nor does it keep a later one from closing.
    send(&mut rig.peers.client, &[0; 4]).await;
    assert_eq!(read(&mut rig.peers.server, 4).await, [0; 4]);
    rig.peers.drain_now(1012, "reload");
    let farewell = read_to_end(&mut rig.peers.server).await;
    assert_eq!(
        close_frame(Side::Client, &farewell),
        (1012, "reload".into())
    );
    assert_eq!(rig.end().await.cause, Cause::Drain);
}

#[tokio::test]
async fn an_idle_tunnel_is_small() {
    let (tunnel, _peers) = build(Wish::default()).await;
    let size = size_of_val(&run(Course::new(tunnel)));
    // With its sockets and its timer. Buffers and what a polite close needs are elsewhere.
    // The features of tokio that other crates of a build ask for make the timer 8 bytes larger.
    assert!(size <= 392, "{size} bytes");
}
