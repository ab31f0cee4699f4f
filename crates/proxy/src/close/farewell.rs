//! The Close frame that wsgate sends (RFC 6455 section 5.5.1).

use std::hash::{BuildHasher, RandomState};

use bytes::Bytes;

/// FIN and the opcode of Close.
const CLOSE: u8 = 0x88;
const MASKED: u8 = 0x80;

/// A control frame's payload ends at 125 bytes, two of which are the code.
const LONGEST_REASON: usize = 123;

/// What the peers of a tunnel that wsgate ends are told.
#[derive(Debug)]
pub(crate) struct Farewell {
    payload: Vec<u8>,
}

impl Farewell {
    /// A reason that is too long is cut between characters.
    pub(crate) fn new(code: u16, reason: &str) -> Self {
        let mut end = reason.len().min(LONGEST_REASON);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let mut payload = code.to_be_bytes().to_vec();
        payload.extend_from_slice(&reason.as_bytes()[..end]);
        Self { payload }
    }

    /// The frame as a server sends it.
    pub(crate) fn to_client(&self) -> Bytes {
        let mut frame = vec![CLOSE, self.payload.len() as u8];
        frame.extend_from_slice(&self.payload);
        frame.into()
    }

    /// The frame as a client sends it: masked.
    pub(crate) fn to_server(&self) -> Bytes {
        let key = masking_key();
        let mut frame = vec![CLOSE, MASKED | self.payload.len() as u8];
        frame.extend_from_slice(&key);
        frame.extend(
            self.payload
                .iter()
                .zip(key.iter().cycle())
                .map(|(byte, key)| byte ^ key),
        );
        frame.into()
    }
}

/// Section 5.3 wants a key that nobody can predict. The standard library's hasher
/// is seeded from the kernel's random numbers, and differs at each call.
pub(crate) fn masking_key() -> [u8; 4] {
    let [a, b, c, d, ..] = RandomState::new().hash_one(()).to_ne_bytes();
    [a, b, c, d]
}
