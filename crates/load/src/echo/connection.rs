//! One peer of the echo server, from its request to its end.

use std::io;

use mio::net::TcpStream;

use crate::check::Checker;
use crate::echo::Desk;
use crate::frame::{
    BINARY, CLOSE, Chunk, FIN, FrameReader, Header, LONGEST_HEADER, PING, PONG, mask,
};
use crate::handshake::{Head, LONGEST_HEAD, head_length, switching};
use crate::wire::Wire;

/// Reads in a row before others have their turn.
const ROUNDS: usize = 16;

const OK: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n";
const BAD_REQUEST: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
/// Close with 1002, protocol error.
const PROTOCOL_ERROR: &[u8] = &[FIN | CLOSE, 2, 0x03, 0xea];

#[derive(Debug)]
pub(super) struct Connection {
    wire: Wire,
    phase: Phase,
    reader: FrameReader,
}

/// What the server makes of what comes.
#[derive(Debug)]
enum Phase {
    /// The request's head, as far as it has come.
    Head(Vec<u8>),
    Echo,
    Sink(Box<Sink>),
    /// All is said: a FIN follows what is still to be written, and what comes is forgotten.
    Done {
        finished: bool,
    },
}

/// What is to become of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing until its next event.
    Wait,
    /// It has more, but it is the others' turn.
    Again,
    End,
}

impl Connection {
    pub(super) const fn new(stream: TcpStream) -> Self {
        Self {
            wire: Wire::new(stream),
            phase: Phase::Head(Vec::new()),
            reader: FrameReader::new(),
        }
    }

    pub(super) fn note(&mut self, event: &mio::event::Event) {
        self.wire.note(event);
    }

    /// Reads and answers as long as the peer takes the answers. An error is the peer's and ends it.
    pub(super) fn serve(&mut self, desk: &mut Desk) -> Next {
        self.try_serve(desk).unwrap_or(Next::End)
    }

    fn try_serve(&mut self, desk: &mut Desk) -> io::Result<Next> {
        for _ in 0..ROUNDS {
            if !self.wire.flush()? {
                return Ok(Next::Wait);
            }
            self.finish_if_done();
            match self.wire.read(&mut desk.buffer[LONGEST_HEADER..])? {
                None => return Ok(Next::Wait),
                Some(0) => return Ok(Next::End),
                Some(count) => self.take(desk, LONGEST_HEADER + count)?,
            }
        }
        Ok(Next::Again)
    }

    fn finish_if_done(&mut self) {
        if let Phase::Done { finished } = &mut self.phase
            && !std::mem::replace(finished, true)
        {
            self.wire.finish();
        }
    }

    /// What was read is in the desk's buffer, behind the room for a header.
    fn take(&mut self, desk: &mut Desk, end: usize) -> io::Result<()> {
        let mut at = LONGEST_HEADER;
        if let Phase::Head(head) = &mut self.phase {
            let before = head.len();
            head.extend_from_slice(&desk.buffer[at..end]);
            let Some(length) = head_length(head) else {
                return self.wait_for_more();
            };
            at += length - before;
            self.answer(length)?;
        }
        self.frames(desk, at, end)
    }

    fn wait_for_more(&mut self) -> io::Result<()> {
        match &self.phase {
            Phase::Head(head) if head.len() > LONGEST_HEAD => self.last(BAD_REQUEST),
            _ => Ok(()),
        }
    }

    fn answer(&mut self, length: usize) -> io::Result<()> {
        let Phase::Head(bytes) = std::mem::replace(&mut self.phase, Phase::Echo) else {
            return Ok(());
        };
        let head = Head(&bytes[..length]);
        let Some((_, target)) = head.request() else {
            return self.last(BAD_REQUEST);
        };
        match head.field("sec-websocket-key") {
            None => self.last(OK),
            Some(key) => {
                if let Some(sink) = Sink::of(target) {
                    self.phase = Phase::Sink(Box::new(sink));
                }
                self.wire.write(switching(key).as_bytes())
            }
        }
    }

    fn frames(&mut self, desk: &mut Desk, mut at: usize, end: usize) -> io::Result<()> {
        while !matches!(self.phase, Phase::Done { .. }) {
            match self.reader.next(&desk.buffer[..end], &mut at) {
                Ok(None) => break,
                Ok(Some(chunk)) => self.chunk(desk, &chunk)?,
                Err(_) => self.last(PROTOCOL_ERROR)?,
            }
        }
        Ok(())
    }

    fn chunk(&mut self, desk: &mut Desk, chunk: &Chunk) -> io::Result<()> {
        let header = &chunk.header;
        let Some(key) = header.key.filter(|_| is_lawful(header)) else {
            return self.last(PROTOCOL_ERROR);
        };
        mask(&mut desk.buffer[chunk.range.clone()], key, chunk.offset);
        match &mut self.phase {
            _ if header.opcode() == PONG => Ok(()),
            Phase::Sink(sink) if !header.is_control() => sink.take(desk, chunk, &mut self.wire),
            _ => self.echo(desk, chunk),
        }
    }

    /// The header is written over the bytes before the payload: they have been read.
    fn echo(&mut self, desk: &mut Desk, chunk: &Chunk) -> io::Result<()> {
        let mut start = chunk.range.start;
        if chunk.begins() {
            let header = Header {
                first: match chunk.header.opcode() {
                    PING => FIN | PONG,
                    _ => chunk.header.first,
                },
                key: None,
                ..chunk.header
            };
            start = header.write_before(&mut desk.buffer, start);
        }
        self.wire.write(&desk.buffer[start..chunk.range.end])?;
        if chunk.header.opcode() == CLOSE && chunk.ends() {
            self.phase = Phase::Done { finished: false };
        }
        Ok(())
    }

    fn last(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.phase = Phase::Done { finished: false };
        self.wire.write(bytes)
    }
}

/// Whether a client may send such a frame at all (sections 5.2 and 5.5).
fn is_lawful(header: &Header) -> bool {
    match header.opcode() {
        0..=BINARY => true,
        CLOSE..=PONG => header.first & FIN != 0 && header.length <= 125,
        _ => false,
    }
}

/// What a sink has had so far.
#[derive(Debug)]
struct Sink {
    every: Option<u64>,
    checker: Checker,
    ack: Ack,
    acked: u64,
}

/// The payload of the message that a sink answers with: totals, each 8 bytes little-endian.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ack {
    /// Messages that came whole.
    pub messages: u64,
    /// Payload bytes of all messages.
    pub bytes: u64,
    /// Messages with any fault.
    pub faults: u64,
}

impl Ack {
    /// Its bytes in a payload.
    pub const LENGTH: usize = 24;

    fn payload(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        let words = [self.messages, self.bytes, self.faults];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// What a payload says.
    #[must_use]
    pub fn read(payload: &[u8]) -> Option<Self> {
        let payload: &[u8; Self::LENGTH] = payload.try_into().ok()?;
        let (words, _) = payload.as_chunks::<8>();
        let [messages, bytes, faults] = [words[0], words[1], words[2]].map(u64::from_le_bytes);
        Some(Self {
            messages,
            bytes,
            faults,
        })
    }
}

impl Sink {
    fn of(target: &[u8]) -> Option<Self> {
        let query = target.strip_prefix(b"/sink")?;
        let bytes = query.strip_prefix(b"?bytes=");
        let every = bytes.and_then(|bytes| std::str::from_utf8(bytes).ok()?.parse().ok());
        Some(Self {
            every,
            checker: Checker::new(None),
            ack: Ack::default(),
            acked: 0,
        })
    }

    fn take(&mut self, desk: &mut Desk, chunk: &Chunk, wire: &mut Wire) -> io::Result<()> {
        let part = &desk.buffer[chunk.range.clone()];
        self.checker
            .part(&desk.pattern, chunk.header.length, chunk.offset, part);
        self.ack.bytes += part.len() as u64;
        self.ack.messages += u64::from(chunk.ends());
        let due = match self.every {
            None => chunk.ends(),
            Some(every) => self.ack.bytes - self.acked >= every,
        };
        if !due {
            return Ok(());
        }
        self.acked = self.ack.bytes;
        let faults = self.checker.faults();
        self.ack.faults = faults.lost + faults.doubled + faults.reordered + faults.corrupted;
        let mut frame = [0; 2 + Ack::LENGTH];
        frame[..2].copy_from_slice(&[FIN | BINARY, Ack::LENGTH as u8]);
        frame[2..].copy_from_slice(&self.ack.payload());
        wire.write(&frame)
    }
}
