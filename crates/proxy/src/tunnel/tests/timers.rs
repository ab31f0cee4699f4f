//! What ends a tunnel by the clock, and wsgate's own pings.

use super::*;

const SHORT: Duration = Duration::from_millis(150);

async fn rig(timeouts: Timeouts) -> Rig {
    Rig::with(Wish {
        timeouts,
        ..Wish::default()
    })
    .await
}

async fn pinging() -> Rig {
    rig(Timeouts {
        ping: Some(SHORT),
        ..TIMEOUTS
    })
    .await
}

/// The next ping, as the client gets it.
async fn ping(rig: &mut Rig) -> Vec<u8> {
    let ping = read(&mut rig.peers.client, 10).await;
    assert_eq!(ping[..2], [0x89, 8]);
    ping
}

fn pong(ping: &[u8]) -> Vec<u8> {
    frame(Side::Client, 0x8a, &ping[2..])
}

#[tokio::test]
async fn a_tunnel_that_is_old_enough_ends() {
    let mut rig = rig(Timeouts {
        max_age: Some(SHORT),
        ..TIMEOUTS
    })
    .await;
    let opened = rig.peers.record.opened;
    let farewell = read_to_end(&mut rig.peers.client).await;
    assert!(opened.elapsed() >= SHORT);
    assert_eq!(
        close_frame(Side::Server, &farewell),
        (1001, "max age".into())
    );
    assert_eq!(rig.end().await.cause, Cause::MaxAge);
}

#[tokio::test]
async fn an_operators_close_has_its_own_word() {
    let mut rig = Rig::start().await;
    let order = Deadline {
        at: Instant::now(),
        code: 4000,
        reason: "go".into(),
    };
    rig.peers.record.orders.set(By::Admin, Some(order));
    let farewell = read_to_end(&mut rig.peers.client).await;
    assert_eq!(close_frame(Side::Server, &farewell), (4000, "go".into()));
    assert_eq!(rig.end().await.cause, Cause::Admin);
}

/// Sends until the tunnel takes no more.
async fn stuff(stream: &TcpStream) {
    let message = frame(Side::Server, 0x82, &noise(8, 60_000));
    while tokio::time::timeout(SHORT / 3, stream.writable())
        .await
        .is_ok()
    {
        let _ = stream.try_write(&message);
    }
}

#[tokio::test]
async fn a_client_that_takes_nothing_ends_the_tunnel() {
    let mut rig = Rig::with(Wish {
        timeouts: Timeouts {
            send: SHORT,
            ..TIMEOUTS
        },
        small_buffers: true,
        ..Wish::default()
    })
    .await;
    stuff(&rig.peers.server).await;
    let got = read_to_end(&mut rig.peers.server).await;
    assert_eq!(
        close_frame(Side::Client, &got),
        (1001, "client took nothing".into())
    );
    let ending = rig.end().await;
    let expected = (Cause::SendTimeout, Some("the client took nothing"));
    assert_eq!((ending.cause, ending.note), expected);
}

#[tokio::test]
async fn a_slow_reader_is_not_one_that_takes_nothing() {
    let rig = Rig::with(Wish {
        timeouts: Timeouts {
            send: SHORT * 2,
            ..TIMEOUTS
        },
        small_buffers: true,
        ..Wish::default()
    })
    .await;
    let much = frame(Side::Server, 0x82, &noise(9, 150_000));
    let record = rig.peers.record.clone();
    let (mut client, mut server) = (rig.peers.client, rig.peers.server);
    let sender = async {
        send(&mut server, &much).await;
        server
    };
    let reader = async {
        let mut got = Vec::new();
        while got.len() < much.len() {
            tokio::time::sleep(SHORT / 10).await;
            got.extend(read(&mut client, 1500.min(much.len() - got.len())).await);
        }
        (client, got)
    };
    let (server, (client, got)) = within(async { tokio::join!(sender, reader) }).await;
    assert!(got == much);
    assert!(
        record.opened.elapsed() > SHORT * 4,
        "slower than the timeout"
    );
    assert!(!record.closing());
    drop((server, client));
    assert_ne!(within(rig.relay).await.unwrap().cause, Cause::SendTimeout);
}

#[tokio::test]
async fn a_receiver_is_stuck_if_its_side_acknowledges_nothing_and_not_before_its_time() {
    let (tunnel, peers) = build(Wish::default()).await;
    let mut lane = Lane::new(Side::Server, b"waiting");
    let begun = Instant::now();
    let limit = Duration::from_secs(4);
    let mut at = |quarters: u32, held: u64| {
        peers.counts.held.store(held, Relaxed);
        let now = begun + limit / 4 * quarters;
        lane.is_stuck(&tunnel.client, &*peers.counts, limit, now)
    };
    // The first look cannot tell whether something was taken before.
    assert!(!at(1, 900));
    assert!(!at(2, 900) && !at(3, 900) && !at(4, 900));
    // Something was, between these two looks.
    assert!(!at(5, 899));
    assert!(!at(6, 899) && !at(7, 899) && !at(8, 899));
    assert!(at(9, 899));
}

#[tokio::test]
async fn a_receiver_that_has_nothing_to_take_may_wait() {
    let mut rig = rig(Timeouts {
        send: SHORT,
        max_age: Some(SHORT * 4),
        ..TIMEOUTS
    })
    .await;
    let farewell = read_to_end(&mut rig.peers.client).await;
    assert_eq!(close_frame(Side::Server, &farewell).1, "max age");
    rig.end().await;
}

#[tokio::test]
async fn a_silent_client_is_pinged_and_its_pong_goes_no_further() {
    let mut rig = pinging().await;
    let record = rig.peers.record.clone();
    for _ in 0..4 {
        let ping = ping(&mut rig).await;
        send(&mut rig.peers.client, &pong(&ping)).await;
    }
    until(|| record.round_trip().is_some()).await;
    assert!(record.opened.elapsed() >= SHORT * 4);
    send(&mut rig.peers.client, b"x").await;
    assert_eq!(read(&mut rig.peers.server, 1).await, b"x", "no pong before");
    until(|| record.from_client().0 == 1).await;
    assert_eq!(record.from_server(), (0, 0), "pings are nobody's bytes");
    rig.end().await;
}

#[tokio::test]
async fn two_unanswered_pings_end_the_tunnel() {
    let mut rig = pinging().await;
    let opened = rig.peers.record.opened;
    ping(&mut rig).await;
    ping(&mut rig).await;
    let farewell = read_to_end(&mut rig.peers.client).await;
    assert_eq!(
        close_frame(Side::Server, &farewell),
        (1011, "ping timeout".into())
    );
    assert!(opened.elapsed() >= SHORT * 3);
    let farewell = read_to_end(&mut rig.peers.server).await;
    assert_eq!(close_frame(Side::Client, &farewell).0, 1011);
    assert_eq!(rig.end().await.cause, Cause::PingTimeout);
}

#[tokio::test]
async fn a_client_that_talks_is_not_pinged() {
    let mut rig = pinging().await;
    let opened = rig.peers.record.opened;
    let message = frame(Side::Client, 0x82, b"x");
    // Longer than it takes to give up a silent one.
    while opened.elapsed() < SHORT * 5 {
        send(&mut rig.peers.client, &message).await;
        assert_eq!(read(&mut rig.peers.server, message.len()).await, message);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let hello = frame(Side::Server, 0x81, b"hello");
    send(&mut rig.peers.server, &hello).await;
    assert_eq!(read(&mut rig.peers.client, hello.len()).await, hello);
    rig.end().await;
}

#[tokio::test]
async fn pings_and_their_pongs_do_not_keep_a_tunnel_from_being_idle() {
    let mut rig = rig(Timeouts {
        idle: SHORT * 3,
        ping: Some(SHORT / 2),
        ..TIMEOUTS
    })
    .await;
    let farewell = loop {
        let next = read(&mut rig.peers.client, 2).await;
        if next[0] != 0x89 {
            break [next, read_to_end(&mut rig.peers.client).await].concat();
        }
        let payload = read(&mut rig.peers.client, 8).await;
        let pong = frame(Side::Client, 0x8a, &payload);
        send(&mut rig.peers.client, &pong).await;
    };
    assert_eq!(close_frame(Side::Server, &farewell).1, "idle timeout");
    let farewell = read_to_end(&mut rig.peers.server).await;
    assert_eq!(close_frame(Side::Client, &farewell).1, "idle timeout");
    assert_eq!(rig.end().await.cause, Cause::Idle);
}

#[tokio::test]
async fn a_ping_waits_for_the_end_of_the_frame() {
    let mut rig = pinging().await;
    let message = frame(Side::Server, 0x82, &noise(10, 300));
    let (begun, rest) = message.split_at(200);
    send(&mut rig.peers.server, begun).await;
    assert_eq!(read(&mut rig.peers.client, 200).await, begun);
    // Twice the interval without a ping inside of the frame.
    tokio::time::sleep(SHORT * 2).await;
    let next = frame(Side::Server, 0x81, b"next");
    send(&mut rig.peers.server, &[rest, &next].concat()).await;
    assert_eq!(read(&mut rig.peers.client, rest.len()).await, rest);
    ping(&mut rig).await;
    assert_eq!(read(&mut rig.peers.client, next.len()).await, next);
    rig.end().await;
}

#[tokio::test]
async fn a_client_that_cannot_be_heard_is_not_given_up() {
    let rig = Rig::with(Wish {
        timeouts: Timeouts {
            ping: Some(SHORT / 2),
            ..TIMEOUTS
        },
        small_buffers: true,
        ..Wish::default()
    })
    .await;
    // The server reads nothing, so wsgate reads nothing of the client.
    let message = frame(Side::Client, 0x82, &noise(11, 2_000_000));
    let record = rig.peers.record.clone();
    let (mut client, mut server) = (rig.peers.client, rig.peers.server);
    let sender = async move {
        send(&mut client, &message).await;
        (client, message)
    };
    let reader = async {
        tokio::time::sleep(SHORT * 4).await;
        assert!(!record.closing());
        let mut got = Vec::new();
        while got.len() < 2_000_014 {
            got.extend(read(&mut server, 10_001.min(2_000_014 - got.len())).await);
        }
        got
    };
    let ((client, sent), got) = within(async { tokio::join!(sender, reader) }).await;
    assert!(sent == got);
    assert!(!record.closing());
    drop((client, server));
    within(rig.relay).await.unwrap();
}

#[tokio::test]
async fn half_a_tunnel_is_not_pinged() {
    let mut rig = pinging().await;
    end_of_sending(&mut rig.peers.client).await;
    assert_eq!(read_to_end(&mut rig.peers.server).await, b"");
    tokio::time::sleep(SHORT * 4).await;
    send(&mut rig.peers.server, b"late").await;
    end_of_sending(&mut rig.peers.server).await;
    assert_eq!(read_to_end(&mut rig.peers.client).await, b"late");
    assert_eq!(rig.end().await.cause, Cause::Client);
}

#[tokio::test]
async fn what_is_no_websocket_is_not_pinged() {
    let mut rig = pinging().await;
    send(&mut rig.peers.server, b"raw bytes").await;
    assert_eq!(read(&mut rig.peers.client, 9).await, b"raw bytes");
    tokio::time::sleep(SHORT * 4).await;
    send(&mut rig.peers.server, b"more").await;
    assert_eq!(read(&mut rig.peers.client, 4).await, b"more");
    rig.end().await;
}

#[tokio::test]
async fn no_ping_follows_the_servers_close_frame() {
    let message = frame(Side::Server, 0x82, &noise(12, 60_000));
    let close = frame(Side::Server, 0x88, &1000_u16.to_be_bytes());
    let ahead = [message, close.clone()].concat();
    let total = ahead.len();
    let mut rig = Rig::with(Wish {
        timeouts: Timeouts {
            ping: Some(SHORT),
            ..TIMEOUTS
        },
        small_buffers: true,
        ahead_from_server: ahead.leak(),
        ..Wish::default()
    })
    .await;
    // The ping becomes due inside of the message, which the client does not take.
    tokio::time::sleep(SHORT * 2).await;
    let got = read(&mut rig.peers.client, total).await;
    assert_eq!(got[total - close.len()..], close);
    end_of_sending(&mut rig.peers.client).await;
    end_of_sending(&mut rig.peers.server).await;
    assert_eq!(read_to_end(&mut rig.peers.client).await, b"");
    rig.end().await;
}

#[tokio::test]
async fn a_slow_reader_that_answers_every_ping_it_sees_is_alive() {
    const FRAMES: usize = 100;
    let rig = pinging().await;
    let (mut client, mut server) = (rig.peers.client, rig.peers.server);
    let one = frame(Side::Server, 0x82, &noise(13, 100_000));
    let much = one.repeat(FRAMES);
    let sender = async {
        send(&mut server, &much).await;
        server
    };
    let reader = async {
        let mut frames = 0;
        while frames < FRAMES {
            let head = read(&mut client, 2).await;
            if head[0] == 0x89 {
                let payload = read(&mut client, 8).await;
                send(&mut client, &frame(Side::Client, 0x8a, &payload)).await;
                continue;
            }
            assert_eq!(head, one[..2], "after {frames} frames");
            assert!(read(&mut client, one.len() - 2).await == one[2..]);
            frames += 1;
            tokio::time::sleep(SHORT / 6).await;
        }
        client
    };
    let (server, client) = within(async { tokio::join!(sender, reader) }).await;
    assert!(!rig.peers.record.closing());
    drop((server, client));
    assert_ne!(within(rig.relay).await.unwrap().cause, Cause::PingTimeout);
}
