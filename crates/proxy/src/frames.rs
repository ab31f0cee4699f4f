//! Where frames begin and end in one direction of a tunnel (RFC 6455 section 5.2).
//!
//! A tracker follows the bytes that were *written* to the receiver, so its position
//! is what the receiver has seen, not what wsgate holds. It reads headers and the
//! status code of a Close frame, and jumps over every other payload.
//!
//! It never keeps, changes or judges a payload, and never stops a tunnel: where framing
//! breaks it says so once and follows no further. RSV bits are left alone, since
//! extensions that only the two peers know of use them (permessage-deflate).

#[cfg(test)]
pub(crate) mod tests;

use serde::{Deserialize, Serialize};

/// Status code for a Close frame without one (RFC 6455 section 7.4.1). Never sent.
pub(crate) const NO_STATUS: u16 = 1005;

/// Two bytes, eight of length, four of key.
const LONGEST_HEADER: usize = 14;

const FIN: u8 = 0x80;
const OPCODE: u8 = 0x0f;
const MASKED: u8 = 0x80;
const LENGTH: u8 = 0x7f;
const CONTINUATION: u8 = 0x0;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;

/// One of the two peers of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// It opened the handshake, and masks.
    Client,
    /// It answered, and does not mask.
    Server,
}

/// The position in one direction's frames. 32 bytes: every tunnel holds two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracker {
    /// Payload bytes of the current frame that are still to come.
    left: u64,
    /// The current frame's header, as far as `have` says; whole while in its payload.
    header: [u8; LONGEST_HEADER],
    have: u8,
    sender: Side,
    phase: Phase,
    /// Between the fragments of a message (section 5.4).
    in_message: bool,
    code: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Phase {
    Header,
    Payload,
    /// Whatever follows a Close frame is ignored: its sender has promised to send nothing
    /// more (section 5.5.1) and its receiver looks at nothing more. That is no reason to
    /// call the whole tunnel unframed, and nothing is left that a boundary is needed for.
    Closed,
    Unframed,
}

/// What ended within the bytes of one [`Tracker::advance`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Text and binary messages, however many fragments they had.
    pub messages: u32,
    /// Ping frames.
    pub pings: u32,
    /// Pong frames.
    pub pongs: u32,
}

impl Tracker {
    /// At the first byte after the handshake. Clients mask, servers do not (section 5.1).
    pub const fn new(sender: Side) -> Self {
        Self {
            left: 0,
            header: [0; LONGEST_HEADER],
            have: 0,
            sender,
            phase: Phase::Header,
            in_message: false,
            code: 0,
        }
    }

    /// Moves on by bytes that were written to the receiver.
    pub fn advance(&mut self, mut bytes: &[u8]) -> Seen {
        let mut seen = Seen::default();
        while !bytes.is_empty() {
            bytes = match self.phase {
                Phase::Header if self.have == 0 => match self.skip_whole(bytes, &mut seen) {
                    [] => break,
                    rest => self.take_header(rest, &mut seen),
                },
                Phase::Header => self.take_header(bytes, &mut seen),
                Phase::Payload => self.skip_payload(bytes, &mut seen),
                Phase::Closed | Phase::Unframed => break,
            };
        }
        seen
    }

    /// Whether it can have come about by following `sender`'s bytes: it comes from another process.
    pub(crate) fn is_sound(&self, sender: Side) -> bool {
        let [first, second, ..] = self.header;
        let key = if second & MASKED == 0 { 0 } else { 4 };
        let header = if self.have < 2 {
            2
        } else {
            2 + extended(second) + key
        };
        let is_close = first & OPCODE == CLOSE;
        let inside = match self.phase {
            Phase::Header => usize::from(self.have) < header,
            Phase::Payload => {
                self.left > 0 && !(is_close && self.left > u64::from(second & LENGTH))
            }
            Phase::Closed | Phase::Unframed => true,
        };
        inside && self.sender == sender
    }

    /// Whether a frame of wsgate's own could be written here without breaking another.
    pub(crate) fn at_boundary(&self) -> bool {
        match self.phase {
            Phase::Header => self.have == 0,
            Phase::Closed => true,
            Phase::Payload | Phase::Unframed => false,
        }
    }

    /// How many more bytes belong to the current frame for certain: reading so many, again and
    /// again, leads to its end and never past it. 0 at a boundary, and where no boundary
    /// will come because framing broke.
    pub(crate) fn until_boundary(&self) -> u64 {
        match self.phase {
            Phase::Header if self.have == 0 => 0,
            Phase::Header => self.header_left() as u64 + self.short_length().unwrap_or(0),
            Phase::Payload => self.left,
            Phase::Closed | Phase::Unframed => 0,
        }
    }

    /// Whether a Close frame has gone by as a whole.
    pub(crate) fn closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// The status code of that Close frame; [`NO_STATUS`] if it had none.
    pub(crate) fn close_code(&self) -> Option<u16> {
        self.closed().then(|| match self.header[1] & LENGTH {
            0 => NO_STATUS,
            _ => self.code,
        })
    }

    /// Whether the sender broke RFC 6455 framing.
    pub(crate) fn unframed(&self) -> bool {
        self.phase == Phase::Unframed
    }

    /// From a boundary on, jumps over messages of one frame each that are whole in `bytes` and
    /// shorter than 64 KiB: nearly all traffic. What follows (control frames, fragments, a frame
    /// that goes on beyond `bytes`, broken framing) is left to the steps below.
    fn skip_whole<'a>(&self, mut bytes: &'a [u8], seen: &mut Seen) -> &'a [u8] {
        if self.in_message {
            return bytes;
        }
        let (mask, key) = match self.sender {
            Side::Client => (MASKED, 4),
            Side::Server => (0, 0),
        };
        while let [first, second, rest @ ..] = bytes {
            // FIN, and text or binary.
            if !matches!(first & (FIN | OPCODE), 0x81 | 0x82) {
                break;
            }
            let whole = match (second ^ mask, rest) {
                (length @ 0..=125, _) => key + usize::from(length),
                (126, [high, low, ..]) => match u16::from_be_bytes([*high, *low]) {
                    // Not in its shortest form.
                    0..=125 => break,
                    length => 2 + key + usize::from(length),
                },
                // Wrongly masked, or a length of eight bytes.
                _ => break,
            };
            let Some(rest) = rest.get(whole..) else { break };
            bytes = rest;
            seen.messages += 1;
        }
        bytes
    }

    fn take_header<'a>(&mut self, bytes: &'a [u8], seen: &mut Seen) -> &'a [u8] {
        let have = usize::from(self.have);
        let (taken, rest) = bytes.split_at(self.header_left().min(bytes.len()));
        self.header[have..have + taken.len()].copy_from_slice(taken);
        self.have += taken.len() as u8;
        if self.have == 2 && !self.is_lawful() {
            self.phase = Phase::Unframed;
        } else if self.header_left() == 0 {
            self.begin_payload(seen);
        }
        rest
    }

    fn begin_payload(&mut self, seen: &mut Seen) {
        let Some(length) = self.payload_length() else {
            self.phase = Phase::Unframed;
            return;
        };
        self.left = length;
        self.phase = Phase::Payload;
        if length == 0 {
            self.end_frame(seen);
        }
    }

    fn skip_payload<'a>(&mut self, bytes: &'a [u8], seen: &mut Seen) -> &'a [u8] {
        let here = usize::try_from(self.left).map_or(bytes.len(), |left| left.min(bytes.len()));
        let (payload, rest) = bytes.split_at(here);
        if self.header[0] & OPCODE == CLOSE {
            self.read_code(payload);
        }
        self.left -= here as u64;
        if self.left == 0 {
            self.end_frame(seen);
        }
        rest
    }

    /// The code is the first two bytes of the payload, in network order (section 5.5.1).
    fn read_code(&mut self, payload: &[u8]) {
        let length = u64::from(self.header[1] & LENGTH);
        let at = (length - self.left) as usize;
        let key = match self.sender {
            Side::Client => [self.header[2], self.header[3]],
            Side::Server => [0; 2],
        };
        for (byte, key) in payload.iter().zip(key.iter().skip(at)) {
            self.code = self.code << 8 | u16::from(byte ^ key);
        }
    }

    fn end_frame(&mut self, seen: &mut Seen) {
        let first = self.header[0];
        self.have = 0;
        self.phase = Phase::Header;
        match first & OPCODE {
            CLOSE => self.phase = Phase::Closed,
            CONTINUATION..=BINARY => {
                self.in_message = first & FIN == 0;
                seen.messages += u32::from(!self.in_message);
            }
            PING => seen.pings += 1,
            PONG => seen.pongs += 1,
            _ => {}
        }
    }

    /// What the first two bytes can break: opcode, fragmentation, mask, a control frame's shape.
    fn is_lawful(&self) -> bool {
        let [first, second] = [self.header[0], self.header[1]];
        let length = second & LENGTH;
        let shape = match first & OPCODE {
            CONTINUATION => self.in_message,
            1..=BINARY => !self.in_message,
            // Section 5.5.1: a Close frame with a body begins it with a two-byte code.
            CLOSE => first & FIN != 0 && length <= 125 && length != 1,
            PING..=PONG => first & FIN != 0 && length <= 125,
            _ => false,
        };
        shape && (second & MASKED != 0) == (self.sender == Side::Client)
    }

    /// Bytes missing of the header, as far as what is there tells.
    fn header_left(&self) -> usize {
        let have = usize::from(self.have);
        if have < 2 {
            return 2 - have;
        }
        let second = self.header[1];
        let key = if second & MASKED == 0 { 0 } else { 4 };
        2 + extended(second) + key - have
    }

    /// The payload's length where the second byte tells it.
    fn short_length(&self) -> Option<u64> {
        let second = self.header[1];
        (self.have >= 2 && extended(second) == 0).then(|| u64::from(second & LENGTH))
    }

    /// `None` if it is not in its shortest form or has its top bit set: both MUST NOT be.
    fn payload_length(&self) -> Option<u64> {
        let [_, second, h2, h3, h4, h5, h6, h7, h8, h9, ..] = self.header;
        let (length, least) = match second & LENGTH {
            126 => (u64::from(u16::from_be_bytes([h2, h3])), 126),
            127 => (
                u64::from_be_bytes([h2, h3, h4, h5, h6, h7, h8, h9]),
                1 << 16,
            ),
            short => (u64::from(short), 0),
        };
        (least..=i64::MAX as u64)
            .contains(&length)
            .then_some(length)
    }
}

/// Bytes of extended length that the second byte announces.
const fn extended(second: u8) -> usize {
    match second & LENGTH {
        126 => 2,
        127 => 8,
        _ => 0,
    }
}
