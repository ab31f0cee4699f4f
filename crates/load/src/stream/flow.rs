//! The bytes of one direction: what is sent, in which frames, and the check of what arrives.
//!
//! A direction's payload bytes are blocks of [`BLOCK`] bytes, each with its number, whatever frames and pieces they come
//! in: a byte that is missing, doubled or out of place shows wherever it is.

use crate::check::{Checker, Faults, Pattern};
use crate::fleet::masking_key;
use crate::frame::{
    BINARY, CLOSE, Chunk, FIN, FrameReader, Header, LONGEST_HEADER, Malformed, mask,
};

/// Bytes of each numbered block.
pub const BLOCK: usize = 256;

/// What one end sends.
#[derive(Debug)]
pub(super) struct Outflow {
    id: u32,
    masked: bool,
    frames: u64,
    /// Of the frame that has begun, and how much of that has been sent.
    frame: Header,
    offset: u64,
    sent: u64,
}

impl Outflow {
    pub(super) const fn new(id: u32, masked: bool) -> Self {
        Self {
            id,
            masked,
            frames: 0,
            frame: Header {
                first: FIN | BINARY,
                length: 0,
                key: None,
            },
            offset: 0,
            sent: 0,
        }
    }

    /// Payload bytes so far.
    pub(super) const fn sent(&self) -> u64 {
        self.sent
    }

    /// The next `length` bytes of payload as they go over the wire, at most `out` has room for behind a header; a new frame, of `frame`
    /// bytes, begins where the last one has ended.
    pub(super) fn next<'a>(
        &mut self,
        pattern: &Pattern,
        length: usize,
        frame: u64,
        out: &'a mut [u8],
    ) -> &'a [u8] {
        let begins = self.offset == self.frame.length;
        if begins {
            self.begin(frame);
        }
        let left = usize::try_from(self.frame.length - self.offset).unwrap_or(usize::MAX);
        let end = LONGEST_HEADER + length.min(left).min(out.len() - LONGEST_HEADER);
        let payload = &mut out[LONGEST_HEADER..end];
        self.fill(pattern, payload);
        if let Some(key) = self.frame.key {
            mask(payload, key, self.offset);
        }
        self.offset += payload.len() as u64;
        self.sent += payload.len() as u64;
        let start = match begins {
            true => self.frame.write_before(out, LONGEST_HEADER),
            false => LONGEST_HEADER,
        };
        &out[start..end]
    }

    fn begin(&mut self, length: u64) {
        let key = masking_key(self.id, self.frames);
        self.frame.length = length;
        self.frame.key = self.masked.then_some(key);
        self.frames += 1;
        self.offset = 0;
    }

    fn fill(&self, pattern: &Pattern, mut payload: &mut [u8]) {
        let mut at = self.sent;
        let mut block = [0; BLOCK];
        while !payload.is_empty() {
            let inside = (at % BLOCK as u64) as usize;
            let count = payload.len().min(BLOCK - inside);
            pattern.write(&mut block, self.id, at / BLOCK as u64);
            let (front, rest) = payload.split_at_mut(count);
            front.copy_from_slice(&block[inside..inside + count]);
            payload = rest;
            at += count as u64;
        }
    }
}

/// What one end receives.
#[derive(Debug)]
pub(super) struct Inflow {
    reader: FrameReader,
    checker: Checker,
    received: u64,
    /// Payload of a Close.
    closed: Option<Vec<u8>>,
}

impl Inflow {
    /// For what the direction of this number sends.
    pub(super) const fn new(id: u32) -> Self {
        Self {
            reader: FrameReader::new(),
            checker: Checker::new(Some(id)),
            received: 0,
            closed: None,
        }
    }

    pub(super) const fn received(&self) -> u64 {
        self.received
    }

    pub(super) const fn faults(&self) -> &Faults {
        self.checker.faults()
    }

    /// The code of a Close, 1005 without one.
    pub(super) fn closed(&self) -> Option<u16> {
        self.closed
            .as_ref()
            .map(|payload| match payload.as_slice() {
                [high, low, ..] => u16::from_be_bytes([*high, *low]),
                _ => 1005,
            })
    }

    /// Checks what has been read.
    pub(super) fn take(&mut self, pattern: &Pattern, bytes: &mut [u8]) -> Result<(), Malformed> {
        let mut at = 0;
        while let Some(chunk) = self.reader.next(bytes, &mut at)? {
            let payload = &mut bytes[chunk.range.clone()];
            if let Some(key) = chunk.header.key {
                mask(payload, key, chunk.offset);
            }
            match chunk.header.is_control() {
                true => self.control(&chunk, payload),
                // No other is ever sent.
                false if chunk.header.first != FIN | BINARY => return Err(Malformed),
                false => self.check(pattern, payload),
            }
        }
        Ok(())
    }

    fn control(&mut self, chunk: &Chunk, payload: &[u8]) {
        if chunk.header.opcode() == CLOSE {
            let closed = self.closed.get_or_insert_default();
            closed.extend_from_slice(payload);
        }
    }

    fn check(&mut self, pattern: &Pattern, mut payload: &[u8]) {
        while !payload.is_empty() {
            let inside = self.received % BLOCK as u64;
            let count = payload.len().min(BLOCK - inside as usize);
            let (front, rest) = payload.split_at(count);
            self.checker.part(pattern, BLOCK as u64, inside, front);
            self.received += count as u64;
            payload = rest;
        }
    }
}
