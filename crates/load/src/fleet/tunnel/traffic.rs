//! What goes over an open tunnel: messages and their answers, pings, the Close of either side.

use std::time::Instant;

use super::{Phase, Tunnel};
use crate::echo::Ack;
use crate::fleet::desk::{Desk, masking_key};
use crate::frame::{BINARY, CLOSE, Chunk, FIN, Header, LONGEST_HEADER, PING, PONG, mask};
use crate::job::Mode;
use crate::report::End;

/// What the fleet closes with: 1000.
pub(super) const NORMAL: [u8; 2] = 1000_u16.to_be_bytes();

/// Code for a Close without one (RFC 6455 section 7.4.1).
const NO_STATUS: u16 = 1005;

/// Payloads that are kept until they are whole: control frames' and acks.
const LONGEST_KEPT: usize = 125;

impl Tunnel {
    pub(super) fn frames(&mut self, desk: &mut Desk, mut at: usize, end: usize) -> Result<(), End> {
        loop {
            match self.reader.next(&desk.buffer[..end], &mut at) {
                Ok(None) => return Ok(()),
                Ok(Some(chunk)) => self.chunk(desk, &chunk)?,
                Err(_) => return Err(End::BadFrame),
            }
        }
    }

    fn chunk(&mut self, desk: &mut Desk, chunk: &Chunk) -> Result<(), End> {
        let header = &chunk.header;
        // Nothing may follow a Close (section 5.5.1), and a server masks nothing (section 5.1).
        if header.key.is_some() || header.first & FIN == 0 || self.peer_closed.is_some() {
            return Err(End::BadFrame);
        }
        match (header.opcode(), desk.open.mode) {
            (BINARY, Mode::Echo) => self.echoed(desk, chunk),
            (BINARY | CLOSE..=PONG, _) => self.keep(desk, chunk),
            _ => Err(End::BadFrame),
        }
    }

    fn echoed(&mut self, desk: &mut Desk, chunk: &Chunk) -> Result<(), End> {
        let part = &desk.buffer[chunk.range.clone()];
        let before = self.checker.next();
        self.checker
            .part(&desk.pattern, chunk.header.length, chunk.offset, part);
        if !chunk.ends() {
            return Ok(());
        }
        self.counted(desk, before, self.checker.next(), chunk.header.length)
    }

    /// Answers from `before` to `after` came, for payloads of `size` bytes.
    fn counted(&mut self, desk: &mut Desk, before: u64, after: u64, size: u64) -> Result<(), End> {
        // More than were sent can only be corruption, which the checker has counted.
        let came = after.min(self.sent) - before.min(self.sent);
        desk.tally.messages += came;
        desk.tally.bytes += came * size;
        desk.tally.flying -= came;
        if let Some((_, sent, phase)) = self.probe.take_if(|(sequence, ..)| *sequence < after) {
            let phases = [phase, desk.phase.number()];
            desk.tally.round_trip(phases, sent.elapsed());
        }
        self.end_of_life(desk)
    }

    pub(super) fn end_of_life(&mut self, desk: &mut Desk) -> Result<(), End> {
        let over = desk
            .orders
            .life
            .is_some_and(|life| self.answered(desk) >= life);
        if over && self.is_open() {
            return self.send_close(desk, &NORMAL, true);
        }
        Ok(())
    }

    /// Frames whose whole payload is needed.
    fn keep(&mut self, desk: &mut Desk, chunk: &Chunk) -> Result<(), End> {
        if chunk.header.length > LONGEST_KEPT as u64 {
            return Err(End::BadFrame);
        }
        self.kept
            .extend_from_slice(&desk.buffer[chunk.range.clone()]);
        if !chunk.ends() {
            return Ok(());
        }
        let payload = std::mem::take(&mut self.kept);
        let answered = match chunk.header.opcode() {
            PING => self.send(FIN | PONG, &payload),
            CLOSE => self.closed(desk, &payload),
            BINARY => self.acked(desk, &payload),
            _ => Ok(()),
        };
        self.kept = payload;
        self.kept.clear();
        answered
    }

    fn closed(&mut self, desk: &mut Desk, payload: &[u8]) -> Result<(), End> {
        self.peer_closed = Some(match payload {
            [high, low, ..] => u16::from_be_bytes([*high, *low]),
            _ => NO_STATUS,
        });
        match self.is_open() {
            true => self.send_close(desk, payload, false),
            false => Ok(()),
        }
    }

    fn acked(&mut self, desk: &mut Desk, payload: &[u8]) -> Result<(), End> {
        let ack = Ack::read(payload).ok_or(End::BadFrame)?;
        let before = std::mem::replace(&mut self.last_ack, ack);
        desk.tally.faults.corrupted += ack.faults.saturating_sub(before.faults);
        let after = ack.messages.max(before.messages);
        self.counted(desk, before.messages, after, desk.orders.size as u64)
    }

    /// Sends what the window, the fleet's orders and the socket allow.
    pub(super) fn pump(&mut self, desk: &mut Desk) -> Result<(), End> {
        while self.phase == Phase::Open
            && self.sent < self.allowed
            && desk.orders.left > 0
            && self.sent - self.answered(desk) < desk.orders.window
        {
            let Some(wire) = self.wire.as_mut().filter(|wire| wire.is_flushed()) else {
                break;
            };
            if self.probe.is_none() {
                self.probe = Some((self.sent, Instant::now(), desk.phase.number()));
            }
            let written = wire.write(desk.message(self.number, self.sent));
            self.sent += 1;
            self.sent_bytes += desk.orders.size as u64;
            desk.orders.left -= 1;
            desk.tally.flying += 1;
            written.map_err(|error| self.failed(&error))?;
        }
        Ok(())
    }

    pub(super) fn send_close(
        &mut self,
        desk: &mut Desk,
        payload: &[u8],
        ours: bool,
    ) -> Result<(), End> {
        self.phase = Phase::Closing { ours };
        desk.tally.opened -= 1;
        self.deadline = Some(desk.wait(self.index));
        self.send(FIN | CLOSE, payload)
    }

    /// A control frame.
    fn send(&mut self, first: u8, payload: &[u8]) -> Result<(), End> {
        let mut frame = [0; LONGEST_HEADER + LONGEST_KEPT];
        let end = LONGEST_HEADER + payload.len();
        let key = masking_key(self.number, self.sent ^ u64::from(first));
        frame[LONGEST_HEADER..end].copy_from_slice(payload);
        mask(&mut frame[LONGEST_HEADER..end], key, 0);
        let header = Header {
            first,
            length: payload.len() as u64,
            key: Some(key),
        };
        let start = header.write_before(&mut frame, LONGEST_HEADER);
        match &mut self.wire {
            Some(wire) => wire
                .write(&frame[start..end])
                .map_err(|error| self.failed(&error)),
            None => Ok(()),
        }
    }
}
