//! Frames as they are on the wire (RFC 6455 section 5.2), without a copy of any payload.
//!
//! It frames and masks. What a payload means, and what a peer may send when, is not its business.

use std::ops::Range;

/// Two bytes, eight of length, four of key.
pub const LONGEST_HEADER: usize = 14;

/// The bit of the first byte that ends a message.
pub const FIN: u8 = 0x80;
/// Opcodes (section 11.8).
pub const BINARY: u8 = 0x2;
/// See [`BINARY`].
pub const CLOSE: u8 = 0x8;
/// See [`BINARY`].
pub const PING: u8 = 0x9;
/// See [`BINARY`].
pub const PONG: u8 = 0xa;

const MASKED: u8 = 0x80;

/// A length whose top bit is set (MUST NOT be).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// FIN, RSV bits and opcode.
    pub first: u8,
    /// The payload's bytes.
    pub length: u64,
    /// The masking key; clients must have one.
    pub key: Option<[u8; 4]>,
}

impl Header {
    /// The opcode.
    #[must_use]
    pub const fn opcode(&self) -> u8 {
        self.first & 0x0f
    }

    /// Ping, pong and Close are (section 5.5).
    #[must_use]
    pub const fn is_control(&self) -> bool {
        self.first & 0x8 != 0
    }

    /// How many bytes [`Self::write_before`] needs.
    #[must_use]
    pub const fn encoded_length(&self) -> usize {
        let key = if self.key.is_some() { 4 } else { 0 };
        2 + extended(short_length(self.length)) + key
    }

    /// Writes the header so that it ends at `end`, where the payload begins, and returns where it begins.
    ///
    /// # Panics
    /// If there is no room for it.
    pub fn write_before(&self, bytes: &mut [u8], end: usize) -> usize {
        let start = end - self.encoded_length();
        let short = short_length(self.length);
        let masked = if self.key.is_some() { MASKED } else { 0 };
        bytes[start] = self.first;
        bytes[start + 1] = short | masked;
        let wide = self.length.to_be_bytes();
        let size = extended(short);
        bytes[start + 2..start + 2 + size].copy_from_slice(&wide[8 - size..]);
        if let Some(key) = self.key {
            bytes[end - 4..end].copy_from_slice(&key);
        }
        start
    }
}

const fn short_length(length: u64) -> u8 {
    match length {
        0..126 => length as u8,
        126..0x1_0000 => 126,
        _ => 127,
    }
}

/// Bytes of extended length that the second byte announces.
const fn extended(second: u8) -> usize {
    match second & !MASKED {
        126 => 2,
        127 => 8,
        _ => 0,
    }
}

/// A part of a frame's payload, or all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The frame that it is of.
    pub header: Header,
    /// Where in the input it is.
    pub range: Range<usize>,
    /// Where in the payload it begins.
    pub offset: u64,
}

impl Chunk {
    /// Whether it has the payload's first byte.
    #[must_use]
    pub const fn begins(&self) -> bool {
        self.offset == 0
    }

    /// Whether nothing of the frame is left after it.
    #[must_use]
    pub const fn ends(&self) -> bool {
        self.offset + (self.range.end - self.range.start) as u64 == self.header.length
    }
}

/// Finds frames in one direction's bytes, in whatever pieces they come.
#[derive(Debug, Default)]
pub struct FrameReader {
    bytes: [u8; LONGEST_HEADER],
    have: u8,
    current: Option<Header>,
    offset: u64,
}

impl FrameReader {
    /// At the first byte after the handshake.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            bytes: [0; LONGEST_HEADER],
            have: 0,
            current: None,
            offset: 0,
        }
    }

    /// The next chunk of `input[*at..]`; `at` moves behind it. `None` when all has been taken.
    /// A chunk is empty only if its frame is.
    ///
    /// # Errors
    /// If a header is malformed. Nothing more can be read then.
    pub fn next(&mut self, input: &[u8], at: &mut usize) -> Result<Option<Chunk>, Malformed> {
        let header = match self.current {
            Some(header) => header,
            None => match self.header(input, at)? {
                Some(header) => *self.current.insert(header),
                None => return Ok(None),
            },
        };
        let left = header.length - self.offset;
        let here = usize::try_from(left).map_or(usize::MAX, |left| left);
        let here = here.min(input.len() - *at);
        if here == 0 && left > 0 {
            return Ok(None);
        }
        let chunk = Chunk {
            header,
            range: *at..*at + here,
            offset: self.offset,
        };
        *at += here;
        self.offset += here as u64;
        if chunk.ends() {
            self.current = None;
            self.offset = 0;
        }
        Ok(Some(chunk))
    }

    fn header(&mut self, input: &[u8], at: &mut usize) -> Result<Option<Header>, Malformed> {
        loop {
            let have = usize::from(self.have);
            let missing = self.needed() - have;
            if missing == 0 {
                self.have = 0;
                return self.parse().map(Some);
            }
            let taken = missing.min(input.len() - *at);
            if taken == 0 {
                return Ok(None);
            }
            self.bytes[have..have + taken].copy_from_slice(&input[*at..*at + taken]);
            self.have += taken as u8;
            *at += taken;
        }
    }

    fn needed(&self) -> usize {
        let second = self.bytes[1];
        if self.have < 2 {
            return 2;
        }
        2 + extended(second) + if second & MASKED == 0 { 0 } else { 4 }
    }

    fn parse(&self) -> Result<Header, Malformed> {
        let [first, second, ref rest @ ..] = self.bytes;
        let size = extended(second);
        let length = match size {
            0 => u64::from(second & !MASKED),
            _ => rest[..size].iter().fold(0, |l, b| l << 8 | u64::from(*b)),
        };
        if length > i64::MAX as u64 {
            return Err(Malformed);
        }
        let key = (second & MASKED != 0)
            .then(|| [rest[size], rest[size + 1], rest[size + 2], rest[size + 3]]);
        Ok(Header { first, length, key })
    }
}

/// Masks or unmasks a part of a payload that begins `offset` bytes into it (section 5.3).
pub fn mask(bytes: &mut [u8], mut key: [u8; 4], offset: u64) {
    key.rotate_left((offset % 4) as usize);
    let [a, b, c, d] = key;
    let word = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for bytes in words {
        *bytes = (u64::from_ne_bytes(*bytes) ^ word).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key.into_iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 4] = [1, 2, 3, 4];

    fn frame(first: u8, key: Option<[u8; 4]>, length: usize) -> Vec<u8> {
        let header = Header {
            first,
            length: length as u64,
            key,
        };
        let mut bytes = vec![0; LONGEST_HEADER + length];
        let start = header.write_before(&mut bytes, LONGEST_HEADER);
        bytes.split_off(start)
    }

    #[test]
    fn headers_are_as_short_as_they_can_be() {
        for (length, size) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            assert_eq!(frame(FIN | BINARY, None, length).len(), size + length);
            assert_eq!(frame(FIN, Some(KEY), length).len(), size + 4 + length);
        }
        assert_eq!(
            frame(FIN | BINARY, Some(KEY), 300)[..8],
            [0x82, 254, 1, 44, 1, 2, 3, 4]
        );
    }

    #[test]
    fn frames_are_found_in_pieces_of_any_size() {
        let lengths = [0_usize, 1, 125, 126, 65_536, 7];
        let bytes: Vec<u8> = lengths
            .iter()
            .flat_map(|length| frame(FIN | BINARY, Some(KEY), *length))
            .collect();
        for piece in [1, 2, 3, 7, 64, 1000, bytes.len()] {
            let mut reader = FrameReader::default();
            let mut payload = 0;
            let mut found = Vec::new();
            for input in bytes.chunks(piece) {
                let mut at = 0;
                while let Some(chunk) = reader.next(input, &mut at).unwrap() {
                    assert_eq!(chunk.begins(), payload == 0);
                    payload += chunk.range.len();
                    if chunk.ends() {
                        found.push(std::mem::take(&mut payload));
                    }
                }
                assert_eq!(at, input.len());
            }
            assert_eq!(found, lengths, "in pieces of {piece}");
        }
    }

    #[test]
    fn a_length_beyond_63_bits_is_malformed() {
        let bytes = [0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0];
        let got = FrameReader::default().next(&bytes, &mut 0);
        assert_eq!(got, Err(Malformed));
    }

    #[test]
    fn masking_in_parts_is_masking_at_once() {
        let plain: Vec<u8> = (0..100).collect();
        let bytewise: Vec<u8> = (0..100).map(|i| i ^ KEY[usize::from(i) % 4]).collect();
        for cut in 0..plain.len() {
            let mut parts = plain.clone();
            let (front, back) = parts.split_at_mut(cut);
            mask(front, KEY, 0);
            mask(back, KEY, cut as u64);
            assert_eq!(parts, bytewise);
        }
    }
}
