//! What is sifted out of a client's bytes, however they are cut into reads.

use proptest::prelude::*;

use super::*;
use crate::frames::Side;
use crate::frames::tests::frame;

const SECOND: Duration = Duration::from_secs(1);

fn pings() -> (Pings, Instant) {
    let now = Instant::now();
    (Pings::new(SECOND, now), now)
}

/// The pong to a ping of wsgate.
fn pong(ping: &[u8]) -> Vec<u8> {
    frame(Side::Client, 0x8a, &ping[2..])
}

/// What the server gets of bytes that come in such pieces, up to the end of file.
fn sifted(pings: &mut Pings, pieces: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut tracker = Tracker::new(Side::Client);
    let mut got = Vec::new();
    for piece in pieces {
        let kept = pings.sift(&tracker, &piece);
        tracker.advance(&kept);
        got.extend_from_slice(&kept);
    }
    got.extend(pings.release());
    got
}

#[test]
fn a_ping_has_eight_bytes_that_differ_each_time() {
    let (mut pings, now) = pings();
    let (one, two) = (pings.frame(now), pings.frame(now));
    assert_eq!(one[..2], [0x89, 8]);
    assert_ne!(one, two);
}

#[test]
fn a_silent_client_is_asked_twice_and_then_given_up() {
    let (mut pings, begun) = pings();
    let at = |seconds: u32| begun + SECOND * seconds;
    pings.ask(at(1) - Duration::from_millis(1));
    assert!(!pings.is_due());
    for seconds in [1, 2] {
        assert_eq!(pings.next_look(), Some(at(seconds)));
        assert!(!pings.are_hopeless(at(seconds)));
        pings.ask(at(seconds));
        assert!(pings.is_due());
        assert_eq!(pings.next_look(), None, "it waits for its boundary");
        pings.frame(at(seconds));
    }
    assert!(!pings.are_hopeless(at(3) - Duration::from_millis(1)));
    assert!(pings.are_hopeless(at(3)));
}

#[test]
fn a_servers_unanswered_ping_counts_as_one_of_wsgates() {
    let (mut pings, begun) = pings();
    let down = Tally {
        pings: 1,
        ..Tally::default()
    };
    pings.note(Tally::default(), down);
    for seconds in [1, 2] {
        pings.ask(begun + SECOND * seconds);
        assert!(!pings.is_due());
    }
    assert!(pings.are_hopeless(begun + SECOND * 3));
    let up = Tally {
        pongs: 1,
        ..Tally::default()
    };
    pings.sift(&Tracker::new(Side::Client), b"\x8a");
    pings.note(up, Tally::default());
    assert!(!pings.are_hopeless(begun + SECOND * 1000));
    pings.ask(begun + SECOND * 1000);
    assert!(pings.is_due());
}

#[test]
fn any_byte_of_the_client_is_a_sign_of_life() {
    let (mut pings, begun) = pings();
    pings.frame(begun + SECOND);
    pings.frame(begun + SECOND * 2);
    pings.ask(begun + SECOND * 3);
    let tracker = Tracker::new(Side::Client);
    assert_eq!(*pings.sift(&tracker, b"\x82"), *b"\x82");
    assert!(!pings.is_due());
    let next = pings.next_look().unwrap();
    assert!(next > begun + SECOND && !pings.are_hopeless(next));
}

#[test]
fn the_round_trip_is_from_the_last_ping_to_its_pong() {
    let (mut pings, begun) = pings();
    let micros = AtomicU32::new(0);
    let old = pings.frame(begun);
    let ping = pings.frame(Instant::now());
    assert_eq!(sifted(&mut pings, [pong(&old)]), b"");
    pings.publish(&micros);
    assert_eq!(micros.load(Ordering::Relaxed), 0, "nobody knows whose");
    assert_eq!(sifted(&mut pings, [pong(&ping)]), b"");
    pings.publish(&micros);
    let micros = micros.into_inner();
    assert!((1..60_000_000).contains(&micros), "{micros}");
}

#[test]
fn a_pong_is_taken_once_and_not_after_a_later_one() {
    let (mut pings, now) = pings();
    let (one, two) = (pings.frame(now), pings.frame(now));
    assert_eq!(sifted(&mut pings, [pong(&two)]), b"");
    assert_eq!(sifted(&mut pings, [pong(&two)]), pong(&two));
    assert_eq!(sifted(&mut pings, [pong(&one)]), pong(&one));
}

#[test]
fn nothing_is_held_while_no_pong_is_awaited() {
    let (mut pings, _) = pings();
    assert_eq!(sifted(&mut pings, [vec![0x8a]]), [0x8a]);
    let tracker = Tracker::new(Side::Client);
    assert!(matches!(
        pings.sift(&tracker, b"\x8a"),
        Cow::Borrowed(b"\x8a")
    ));
}

#[test]
fn what_is_held_back_is_shorter_than_a_pong_and_comes_out_at_the_end() {
    let (mut pings, now) = pings();
    let ping = pings.frame(now);
    let pong = pong(&ping);
    for length in 1..pong.len() {
        let tracker = Tracker::new(Side::Client);
        assert!(pings.sift(&tracker, &pong[..length]).is_empty());
        assert_eq!(pings.release(), pong[..length]);
    }
}

#[test]
fn a_pong_inside_a_payload_or_behind_broken_framing_is_none() {
    let (mut pings, now) = pings();
    let ping = pings.frame(now);
    let inside = frame(Side::Client, 0x82, &[pong(&ping), pong(&ping)].concat());
    assert_eq!(sifted(&mut pings, [inside.clone()]), inside);
    let broken = [b"GET /".to_vec(), pong(&ping)].concat();
    assert_eq!(sifted(&mut pings, [broken.clone()]), broken);
    let closed = [frame(Side::Client, 0x88, b""), pong(&ping)].concat();
    assert_eq!(sifted(&mut pings, [closed.clone()]), closed);
}

#[derive(Clone, Debug)]
enum Item {
    Ours,
    Frame(u8, Vec<u8>),
}

fn item() -> impl Strategy<Value = Item> {
    let payload = || proptest::collection::vec(any::<u8>(), 0..200);
    let short = || proptest::collection::vec(any::<u8>(), 0..20);
    prop_oneof![
        Just(Item::Ours),
        payload().prop_map(|payload| Item::Frame(0x82, payload)),
        short().prop_map(|payload| Item::Frame(0x8a, payload)),
        proptest::array::uniform8(any::<u8>())
            .prop_map(|payload| Item::Frame(0x8a, payload.to_vec())),
        short().prop_map(|payload| Item::Frame(0x89, payload)),
    ]
}

proptest! {
    #[test]
    fn exactly_the_pongs_for_wsgate_are_taken_out(
        items in proptest::collection::vec(item(), 0..12),
        cuts in proptest::collection::vec(1_usize..40, 1..20),
    ) {
        let (mut pings, now) = pings();
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        for item in items {
            match item {
                Item::Ours => bytes.extend(pong(&pings.frame(now))),
                Item::Frame(first, payload) => {
                    let frame = frame(Side::Client, first, &payload);
                    bytes.extend_from_slice(&frame);
                    expected.extend(frame);
                }
            }
        }
        let mut pieces = Vec::new();
        let mut rest = &*bytes;
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at((*cut).min(rest.len()));
            pieces.push(piece.to_vec());
            rest = after;
        }
        prop_assert_eq!(sifted(&mut pings, pieces), expected);
    }
}
