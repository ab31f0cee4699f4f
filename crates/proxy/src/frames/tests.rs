//! The tracker against a parser that has all bytes at once.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// One frame. Clients' frames are masked with a key that depends on the length.
pub(crate) fn frame(sender: Side, first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = if sender == Side::Client { 0x80 } else { 0 };
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..=125 => bytes.push(mask | length as u8),
        length @ 126..=0xffff => {
            bytes.push(mask | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        length => {
            bytes.push(mask | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    if sender == Side::Server {
        bytes.extend(payload);
        return bytes;
    }
    let key = [7, payload.len() as u8, 0xa5, 0x3c];
    bytes.extend(key);
    bytes.extend(
        payload
            .iter()
            .zip(key.iter().cycle())
            .map(|(byte, key)| byte ^ key),
    );
    bytes
}

/// All that a tracker tells.
#[derive(Debug, PartialEq, Eq)]
struct View {
    messages: u32,
    at_boundary: bool,
    until_boundary: u64,
    close_code: Option<u16>,
    unframed: bool,
}

impl View {
    fn of(tracker: &Tracker, messages: u32) -> Self {
        Self {
            messages,
            at_boundary: tracker.at_boundary(),
            until_boundary: tracker.until_boundary(),
            close_code: tracker.close_code(),
            unframed: tracker.unframed(),
        }
    }
}

/// What the first two bytes say is wrong, in the order of the RFC.
fn breaks(first: u8, second: u8, sender: Side, in_message: bool) -> bool {
    let (fin, opcode) = (first >> 7 == 1, first & 15);
    let (masked, length) = (second >> 7 == 1, second & 127);
    let control = opcode >= 8;
    let reserved = matches!(opcode, 3..=7 | 11..=15);
    let order = (opcode == 0 && !in_message) || (matches!(opcode, 1 | 2) && in_message);
    let control_shape = control && (!fin || length > 125);
    let close_shape = opcode == 8 && length == 1;
    let mask = masked != (sender == Side::Client);
    reserved || order || control_shape || close_shape || mask
}

/// The plain parser: `bytes` from their beginning.
fn parse(mut bytes: &[u8], sender: Side) -> View {
    let mut view = View {
        messages: 0,
        at_boundary: true,
        until_boundary: 0,
        close_code: None,
        unframed: false,
    };
    let mut in_message = false;
    let broken = |view| View {
        at_boundary: false,
        until_boundary: 0,
        unframed: true,
        ..view
    };
    let inside = |view, left| View {
        at_boundary: false,
        until_boundary: left,
        ..view
    };
    while !bytes.is_empty() {
        let [first, second, rest @ ..] = bytes else {
            return inside(view, 1);
        };
        if breaks(*first, *second, sender, in_message) {
            return broken(view);
        }
        let (extended, key) = match second & 127 {
            126 => (2, 4 * usize::from(second >> 7)),
            127 => (8, 4 * usize::from(second >> 7)),
            _ => (0, 4 * usize::from(second >> 7)),
        };
        let short = if extended == 0 {
            u64::from(second & 127)
        } else {
            0
        };
        if rest.len() < extended + key {
            return inside(view, (extended + key - rest.len()) as u64 + short);
        }
        let length = rest[..extended]
            .iter()
            .fold(short, |sum, byte| sum << 8 | u64::from(*byte));
        let least = [(0, 0), (2, 126), (8, 65536)]
            .iter()
            .find(|(n, _)| *n == extended);
        if length < least.unwrap().1 || length >> 63 == 1 {
            return broken(view);
        }
        let key = &rest[extended..extended + key];
        let payload = &rest[extended + key.len()..];
        if (payload.len() as u64) < length {
            return inside(view, length - payload.len() as u64);
        }
        let (payload, after) = payload.split_at(length as usize);
        if first & 15 == 8 {
            let code: Vec<u8> = if key.is_empty() {
                payload.to_vec()
            } else {
                payload
                    .iter()
                    .zip(key.iter().cycle())
                    .map(|(byte, key)| byte ^ key)
                    .collect()
            };
            view.close_code = Some(match code[..] {
                [high, low, ..] => u16::from_be_bytes([high, low]),
                _ => 1005,
            });
            return view;
        }
        if first & 15 < 8 {
            in_message = first >> 7 == 0;
            view.messages += u32::from(!in_message);
        }
        bytes = after;
    }
    view
}

/// Cuts `bytes` at `cuts` and compares after every piece.
fn agrees(bytes: &[u8], sender: Side, mut cuts: Vec<usize>) {
    cuts.push(bytes.len());
    cuts.iter_mut().for_each(|cut| *cut %= bytes.len() + 1);
    cuts.sort_unstable();
    let (mut tracker, mut messages, mut at) = (Tracker::new(sender), 0, 0);
    for cut in cuts {
        messages += tracker.advance(&bytes[at..cut]).messages;
        at = cut;
        assert_eq!(
            View::of(&tracker, messages),
            parse(&bytes[..at], sender),
            "after {at} bytes"
        );
    }
}

fn side() -> impl Strategy<Value = Side> {
    prop_oneof![Just(Side::Client), Just(Side::Server)]
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![
        4 => 0..8_usize,
        2 => 120..130_usize,
        1 => 65530..65540_usize,
    ];
    (length, any::<u8>()).prop_map(|(length, byte)| vec![byte; length])
}

/// A message in fragments, each of which a ping may precede.
fn message() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
    (1..=2_u8, 0..8_u8, vec((payload(), any::<bool>()), 1..4)).prop_map(|(opcode, rsv, parts)| {
        let last = parts.len() - 1;
        let mut frames = Vec::new();
        for (n, (payload, ping)) in parts.into_iter().enumerate() {
            if ping {
                frames.push((0x89, payload[..payload.len().min(125)].to_vec()));
            }
            let opcode = if n == 0 { opcode } else { 0 };
            let fin = if n == last { 0x80 } else { 0 };
            frames.push((fin | rsv << 4 | opcode, payload));
        }
        frames
    })
}

proptest! {
    #[test]
    fn lawful_frames_are_followed_however_they_are_cut(
        sender in side(),
        messages in vec(message(), 0..5),
        code in proptest::option::of(proptest::option::of(any::<u16>())),
        cuts in vec(any::<usize>(), 0..12),
    ) {
        let mut bytes: Vec<u8> =
            messages.iter().flatten().flat_map(|(first, payload)| frame(sender, *first, payload)).collect();
        if let Some(code) = code {
            bytes.extend(frame(sender, 0x88, &code.map(u16::to_be_bytes).into_iter().flatten().collect::<Vec<_>>()));
        }
        let mut tracker = Tracker::new(sender);
        let seen = tracker.advance(&bytes);
        prop_assert_eq!(seen.messages as usize, messages.len());
        prop_assert_eq!(tracker.close_code(), code.map(|code| code.unwrap_or(NO_STATUS)));
        prop_assert!(tracker.at_boundary());
        agrees(&bytes, sender, cuts);
    }

    #[test]
    fn frames_with_a_wrong_byte_are_judged_however_they_are_cut(
        sender in side(),
        messages in vec(message(), 1..4),
        wrong in (any::<usize>(), any::<u8>()),
        cuts in vec(any::<usize>(), 0..12),
    ) {
        let mut bytes: Vec<u8> =
            messages.iter().flatten().flat_map(|(first, payload)| frame(sender, *first, payload)).collect();
        // Near a frame's beginning, where it may do harm.
        let at = wrong.0 % bytes.len().min(40);
        bytes[at] = wrong.1;
        agrees(&bytes, sender, cuts);
    }

    #[test]
    fn any_bytes_are_judged_however_they_are_cut(
        sender in side(),
        bytes in vec(any::<u8>(), 0..300),
        cuts in vec(any::<usize>(), 0..12),
    ) {
        agrees(&bytes, sender, cuts);
    }

    #[test]
    fn reading_what_is_certain_ends_exactly_at_the_frames_end(
        sender in side(),
        first in payload(),
        start in any::<usize>(),
    ) {
        let one = frame(sender, 0x82, &first);
        let both = [one.clone(), frame(sender, 0x81, b"next")].concat();
        let mut at = start % one.len();
        let mut tracker = Tracker::new(sender);
        tracker.advance(&both[..at]);
        while !tracker.at_boundary() {
            let more = tracker.until_boundary() as usize;
            prop_assert!(more > 0);
            tracker.advance(&both[at..at + more]);
            at += more;
        }
        prop_assert!(at == one.len() || at == 0);
    }
}

#[test]
fn each_kind_of_breakage_is_seen() {
    let cases: [(&str, Side, &[u8]); 13] = [
        ("reserved data opcode", Side::Server, &[0x83, 0]),
        ("reserved control opcode", Side::Server, &[0x8b, 0]),
        ("fragmented ping", Side::Server, &[0x09, 0]),
        ("long ping", Side::Server, &[0x89, 126]),
        ("fragmented Close", Side::Server, &[0x08, 0]),
        ("Close with half a code", Side::Server, &[0x88, 1]),
        ("continuation of nothing", Side::Server, &[0x80, 0]),
        ("new message within one", Side::Server, &[0x01, 0, 0x81, 0]),
        ("masked server", Side::Server, &[0x81, 0x80]),
        ("client without mask", Side::Client, &[0x81, 0]),
        (
            "length not minimal, 2 bytes",
            Side::Server,
            &[0x81, 126, 0, 125],
        ),
        (
            "length not minimal, 8 bytes",
            Side::Server,
            &[0x81, 127, 0, 0, 0, 0, 0, 0, 255, 255],
        ),
        (
            "length with its top bit",
            Side::Server,
            &[0x81, 127, 0x80, 0, 0, 0, 0, 1, 0, 0],
        ),
    ];
    for (what, sender, bytes) in cases {
        let mut tracker = Tracker::new(sender);
        tracker.advance(&bytes[..bytes.len() - 1]);
        assert!(!tracker.unframed(), "{what}: too early");
        tracker.advance(&bytes[bytes.len() - 1..]);
        assert!(tracker.unframed(), "{what}");
        assert!(!tracker.at_boundary(), "{what}");
    }
}

#[test]
fn extension_bits_are_no_breakage() {
    let mut tracker = Tracker::new(Side::Client);
    let seen = tracker.advance(&frame(Side::Client, 0xf1, b"compressed"));
    assert_eq!(seen.messages, 1);
    assert!(tracker.at_boundary() && !tracker.unframed());
}

#[test]
fn what_follows_a_close_frame_is_ignored() {
    let mut tracker = Tracker::new(Side::Client);
    tracker.advance(&frame(Side::Client, 0x88, &4321_u16.to_be_bytes()));
    assert_eq!(tracker.advance(&[0xff; 40]), Seen::default());
    assert!(tracker.closed() && tracker.at_boundary() && !tracker.unframed());
    assert_eq!(tracker.close_code(), Some(4321));
}

#[test]
fn a_close_frame_counts_only_as_a_whole() {
    let bytes = frame(Side::Client, 0x88, b"\x03\xe8bye");
    let mut tracker = Tracker::new(Side::Client);
    tracker.advance(&bytes[..bytes.len() - 1]);
    assert_eq!(tracker.close_code(), None);
    tracker.advance(&bytes[bytes.len() - 1..]);
    assert_eq!(tracker.close_code(), Some(1000));
}

#[test]
fn a_tracker_is_small() {
    assert!(size_of::<Tracker>() <= 32, "{} bytes", size_of::<Tracker>());
}
