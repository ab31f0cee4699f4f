//! The polite close between real sockets: what peers get, and that nobody gets a reset.

use std::time::Instant;

use super::*;
use crate::Cause;
use crate::frames::tests::frame;
use crate::tunnel::rig::*;

const RESTART: &str = "reload";

/// Takes the Close frame at the server and ends the server's connection.
async fn server_takes_close(peers: &mut Peers) {
    let farewell = read_to_end(&mut peers.server).await;
    assert_eq!(close_frame(Side::Client, &farewell), (1012, RESTART.into()));
    end_of_sending(&mut peers.server).await;
}

#[tokio::test]
async fn both_peers_of_a_quiet_tunnel_get_a_close_frame_and_a_fin() {
    let mut rig = Rig::start().await;
    rig.peers.drain_now(1012, RESTART);
    let farewell = read_to_end(&mut rig.peers.client).await;
    assert_eq!(close_frame(Side::Server, &farewell), (1012, RESTART.into()));
    server_takes_close(&mut rig.peers).await;
    assert!(rig.peers.record.closing());
    let ending = rig.end().await;
    assert_eq!((ending.cause, ending.note), (Cause::Drain, None));
    assert_eq!((ending.client_code, ending.server_code), (None, None));
}

#[tokio::test]
async fn the_frame_under_way_is_finished_and_no_other_begun() {
    let mut rig = Rig::start().await;
    let message = frame(Side::Server, 0x82, &noise(1, 200_000));
    let (begun, rest) = message.split_at(70_001);
    send(&mut rig.peers.server, begun).await;
    assert_eq!(read(&mut rig.peers.client, begun.len()).await, begun);
    rig.peers.drain_now(1012, RESTART);
    until(|| rig.peers.record.closing()).await;
    server_takes_close_later(&mut rig.peers, rest).await;
    let got = read_to_end(&mut rig.peers.client).await;
    let (bytes, farewell) = got.split_at(rest.len());
    assert!(bytes == rest);
    assert_eq!(close_frame(Side::Server, farewell), (1012, RESTART.into()));
    let record = rig.peers.record.clone();
    assert_eq!(rig.end().await.note, None);
    assert_eq!(record.from_server(), (message.len() as u64, 1));
}

/// The rest of a frame, and more that nobody will get.
async fn server_takes_close_later(peers: &mut Peers, rest: &[u8]) {
    send(&mut peers.server, rest).await;
    send(&mut peers.server, &frame(Side::Server, 0x81, b"too late")).await;
    server_takes_close(peers).await;
}

#[tokio::test]
async fn a_header_under_way_is_finished_too() {
    let mut rig = Rig::start().await;
    let message = frame(Side::Client, 0x81, &noise(2, 300));
    send(&mut rig.peers.client, &message[..1]).await;
    assert_eq!(read(&mut rig.peers.server, 1).await, message[..1]);
    rig.peers.drain_now(1012, RESTART);
    until(|| rig.peers.record.closing()).await;
    for piece in message[1..].chunks(3) {
        send(&mut rig.peers.client, piece).await;
    }
    send(&mut rig.peers.client, &message).await;
    let got = read_to_end(&mut rig.peers.server).await;
    let (bytes, farewell) = got.split_at(message.len() - 1);
    assert!(bytes == &message[1..]);
    assert_eq!(close_frame(Side::Client, farewell).0, 1012);
    assert_eq!(rig.end().await.note, None);
}

#[tokio::test]
async fn a_close_frame_may_come_between_fragments() {
    let mut rig = Rig::start().await;
    let fragment = frame(Side::Server, 0x01, b"only the begin");
    send(&mut rig.peers.server, &fragment).await;
    assert_eq!(read(&mut rig.peers.client, fragment.len()).await, fragment);
    rig.peers.drain_now(1012, RESTART);
    let farewell = read_to_end(&mut rig.peers.client).await;
    assert_eq!(close_frame(Side::Server, &farewell).0, 1012);
    assert_eq!(rig.end().await.note, None);
}

#[tokio::test]
async fn a_peers_own_close_frame_is_followed_by_none() {
    let mut rig = Rig::start().await;
    let own = frame(Side::Server, 0x88, b"\x03\xe9");
    send(&mut rig.peers.server, &own).await;
    assert_eq!(read(&mut rig.peers.client, own.len()).await, own);
    rig.peers.drain_now(1012, RESTART);
    assert_eq!(read_to_end(&mut rig.peers.client).await, b"");
    server_takes_close(&mut rig.peers).await;
    let ending = rig.end().await;
    assert_eq!(
        (ending.cause, ending.server_code),
        (Cause::Server, Some(1001))
    );
    assert_eq!((ending.client_code, ending.note), (None, None));
}

#[tokio::test]
async fn a_client_that_goes_on_sending_gets_its_close_frame_all_the_same() {
    let mut rig = Rig::start().await;
    let (mut input, mut output) = rig.peers.client.split();
    let flood = async {
        let message = frame(Side::Client, 0x82, &noise(3, 50_000));
        while tokio::io::AsyncWriteExt::write_all(&mut output, &message)
            .await
            .is_ok()
        {}
    };
    let server = async {
        until(|| rig.peers.record.from_client().1 > 3).await;
        rig.peers.record.orders.set(
            crate::record::By::Server,
            Some(crate::Deadline {
                at: Instant::now(),
                code: 1012,
                reason: RESTART.into(),
            }),
        );
    };
    let swallow = async {
        let got = read_to_end(&mut rig.peers.server).await;
        let message = frame(Side::Client, 0x82, &noise(3, 50_000));
        assert_eq!(
            close_frame(Side::Client, &got[got.len() - got.len() % message.len()..]).0,
            1012
        );
    };
    let client = async {
        let mut got = Vec::new();
        within(tokio::io::AsyncReadExt::read_to_end(&mut input, &mut got))
            .await
            .unwrap();
        assert_eq!(close_frame(Side::Server, &got), (1012, RESTART.into()));
    };
    tokio::select! {
        () = flood => panic!("a reset"),
        _ = async { tokio::join!(server, swallow, client) } => {}
    }
    assert_eq!(rig.end().await.cause, Cause::Drain);
}

#[tokio::test]
async fn a_close_frame_survives_input_that_nobody_wants() {
    let mut rig = Rig::start().await;
    let begun = Instant::now();
    rig.peers.drain_now(1012, RESTART);
    until(|| rig.peers.record.closing()).await;
    send(&mut rig.peers.client, &noise(5, 100_000)).await;
    send(&mut rig.peers.server, &noise(6, 100_000)).await;
    end_of_sending(&mut rig.peers.client).await;
    end_of_sending(&mut rig.peers.server).await;
    // The gateway's sockets are gone before anyone reads: unread input would have made them reset.
    let ending = within(rig.relay).await.unwrap();
    assert_eq!((ending.cause, ending.note), (Cause::Drain, None));
    assert!(begun.elapsed() < CLOSE_WAIT, "both ended by themselves");
    let farewell = read_to_end(&mut rig.peers.client).await;
    assert_eq!(close_frame(Side::Server, &farewell).0, 1012);
    let farewell = read_to_end(&mut rig.peers.server).await;
    assert_eq!(close_frame(Side::Client, &farewell).0, 1012);
}

#[tokio::test]
async fn a_frame_that_does_not_end_is_cut_after_two_seconds() {
    let mut rig = Rig::start().await;
    let message = frame(Side::Server, 0x82, &[7; 100]);
    send(&mut rig.peers.server, &message[..60]).await;
    assert_eq!(read(&mut rig.peers.client, 60).await, message[..60]);
    let begun = Instant::now();
    rig.peers.drain_now(1012, RESTART);
    // The other direction does not wait for this one.
    let farewell = read_to_end(&mut rig.peers.server).await;
    assert_eq!(close_frame(Side::Client, &farewell).0, 1012);
    assert!(begun.elapsed() < CLOSE_WAIT);
    assert_eq!(read_to_end(&mut rig.peers.client).await, b"");
    assert!(begun.elapsed() >= CLOSE_WAIT);
    assert_eq!(rig.end().await.note, Some(NO_BOUNDARY));
}

#[tokio::test]
async fn a_peer_that_takes_nothing_and_never_ends_holds_nobody_for_long() {
    let message = frame(Side::Server, 0x82, &noise(4, 500_000)).leak();
    let wish = Wish {
        ahead_from_server: message,
        small_buffers: true,
        ..Wish::default()
    };
    let rig = Rig::with(wish).await;
    until(|| rig.peers.record.from_server().0 > 0).await;
    let begun = Instant::now();
    rig.peers.drain_now(1012, RESTART);
    let ending = within(rig.relay).await.unwrap();
    assert_eq!((ending.cause, ending.note), (Cause::Drain, Some(NOT_TAKEN)));
    let waited = begun.elapsed();
    assert!(
        waited >= 2 * CLOSE_WAIT && waited < 4 * CLOSE_WAIT,
        "{waited:?}"
    );
}

#[tokio::test]
async fn where_framing_is_broken_the_fin_comes_alone() {
    let mut rig = Rig::start().await;
    send(&mut rig.peers.server, b"no frames").await;
    assert_eq!(read(&mut rig.peers.client, 9).await, b"no frames");
    rig.peers.drain_now(1012, RESTART);
    assert_eq!(read_to_end(&mut rig.peers.client).await, b"");
    server_takes_close(&mut rig.peers).await;
    assert!(rig.peers.record.unframed());
    assert_eq!(rig.end().await.note, Some(UNFRAMED));
}

#[tokio::test]
async fn a_direction_that_has_ended_already_is_left_alone() {
    let mut rig = Rig::start().await;
    end_of_sending(&mut rig.peers.client).await;
    assert_eq!(read_to_end(&mut rig.peers.server).await, b"");
    rig.peers.drain_now(1012, RESTART);
    let farewell = read_to_end(&mut rig.peers.client).await;
    assert_eq!(close_frame(Side::Server, &farewell).0, 1012);
    end_of_sending(&mut rig.peers.server).await;
    let ending = rig.end().await;
    assert_eq!((ending.cause, ending.note), (Cause::Client, None));
}

#[test]
fn a_reason_too_long_for_a_control_frame_is_cut_between_characters() {
    let bytes = Farewell::new(1012, &"ä".repeat(100)).to_client();
    let (code, reason) = close_frame(Side::Server, &bytes);
    assert_eq!((code, reason), (1012, "ä".repeat(61)));
}

#[test]
fn keys_differ() {
    let farewell = Farewell::new(1012, RESTART);
    let (one, other) = (farewell.to_server(), farewell.to_server());
    assert_ne!(one[2..6], other[2..6]);
    assert_eq!(
        close_frame(Side::Client, &one),
        close_frame(Side::Client, &other)
    );
}
