//! Streams against themselves, and through a relay that does its work badly.

#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use wsgate_load::stream::{Kind, Open, Report, Streams};

const KINDS: [Kind; 7] = [
    Kind::Even,
    Kind::SlowClient,
    Kind::SlowServer,
    Kind::SlowBoth,
    Kind::LongFrame,
    Kind::ClientDone,
    Kind::ServerDone,
];

/// Long enough for what is half closed to be so.
const TIME: Duration = Duration::from_millis(1500);

/// Streams through `way`, which gets the servers' address.
fn streamed(kinds: &[Kind], way: impl FnOnce(SocketAddr) -> SocketAddr) -> Report {
    let streams = Streams::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let target = way(streams.address());
    let running = streams.start(Open {
        targets: vec![target],
        host: "a.example".to_owned(),
        kinds: kinds.to_vec(),
        per_second: 50.0,
    });
    running.opened().unwrap();
    running.phase().begin(1);
    thread::park_timeout(TIME);
    running.finish().unwrap()
}

/// Relays one connection after the other, each direction in a thread; `spoil` gets what was read, and how many bytes were before it,
/// and says whether it goes on.
fn relay(to: SocketAddr, spoil: fn(u64, &mut Vec<u8>) -> bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect(to).unwrap());
            let (back, forth) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || copy(client, server, |_, _| true));
            thread::spawn(move || copy(back, forth, spoil));
        }
    });
    address
}

fn copy(mut from: TcpStream, mut to: TcpStream, spoil: fn(u64, &mut Vec<u8>) -> bool) {
    let (mut buffer, mut before) = ([0; 4096], 0);
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let mut bytes = buffer[..count].to_vec();
        if !spoil(before, &mut bytes) {
            break;
        }
        before += count as u64;
        if to.write_all(&bytes).is_err() {
            return;
        }
    }
    // The other side may be gone.
    drop(to.shutdown(Shutdown::Write));
}

/// The piece in which byte 200,000 is.
fn is_the_one(before: u64, bytes: &[u8]) -> bool {
    (before..before + bytes.len() as u64).contains(&200_000)
}

#[test]
fn every_kind_arrives_whole() {
    let kinds: Vec<Kind> = KINDS.into_iter().cycle().take(21).collect();
    let report = streamed(&kinds, |servers| servers);
    report.sound().unwrap();
    assert_eq!((report.tunnels, report.slow), (21, 12));
    assert_eq!(report.held_up, report.slow, "{report:?}");
    assert!(report.sent.iter().all(|sent| *sent > 1_000_000));
    assert_eq!(report.sent, report.received);
    assert!(report.delays[&1].summary().count > 100);
}

#[test]
fn a_byte_that_is_turned_is_told() {
    let report = streamed(&[Kind::SlowClient], |servers| {
        relay(servers, |before, bytes| {
            if is_the_one(before, bytes) {
                bytes[0] ^= 1;
            }
            true
        })
    });
    let problem = report.sound().unwrap_err();
    assert!(
        report.faults.corrupted > 0 || !report.broken.is_empty(),
        "{problem}"
    );
}

#[test]
fn bytes_that_are_missing_are_told() {
    let report = streamed(&[Kind::SlowClient], |servers| {
        relay(servers, |before, bytes| {
            if is_the_one(before, bytes) {
                bytes.pop();
            }
            true
        })
    });
    assert!(
        report.faults.any() || !report.broken.is_empty(),
        "{report:?}"
    );
}

#[test]
fn a_long_frame_without_its_last_bytes_is_unequal() {
    let report = streamed(&[Kind::LongFrame], |servers| {
        relay(servers, |before, bytes| {
            if before > 10_000 {
                bytes.clear();
            }
            true
        })
    });
    assert_eq!(report.unequal, 1, "{report:?}");
    assert!(report.received[1] < report.sent[1]);
}

#[test]
fn a_tunnel_that_ends_too_early_is_named() {
    let report = streamed(&[Kind::Even], |servers| {
        relay(servers, |before, _| before <= 10_000)
    });
    let first = report.broken.first().cloned().unwrap_or_default();
    assert!(first.starts_with("Even 0, client:"), "{report:?}");
}
