//! One end of a tunnel: the client's or the server's.

use std::io;

use mio::net::TcpStream;
use socket2::SockRef;

use crate::check::mix;
use crate::handshake::{Head, LONGEST_HEAD, accept, head_length, key, request, switching};
use crate::stream::flow::{Inflow, Outflow};
use crate::stream::{Desk, Kind, LONG_FRAME, Side};
use crate::wire::Wire;

/// A slow reader's receive buffer, in bytes: most of what it has not read yet is with the gateway and with the sender. Less than
/// a segment of loopback (64 KiB) would make the kernel wait for its timers with each.
const SMALL_BUFFER: usize = 128 * 1024;

/// What a slow reader reads in a turn.
const SIP: usize = 2048;

/// A sender that sends all that goes does so in frames of so many bytes.
const LARGE: usize = 16 * 1024;

/// Others send in a turn from so many to so many bytes.
const PIECE: (u64, u64) = (200, 1400);

#[derive(Debug)]
pub(super) struct End {
    wire: Wire,
    side: Side,
    pub(super) phase: Phase,
    /// Known of a server's end once its request has come.
    pub(super) tunnel: usize,
    kind: Kind,
    pub(super) outflow: Outflow,
    pub(super) inflow: Inflow,
    /// All is said: a FIN follows, or has followed.
    last: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The client's request is not sent.
    Connecting,
    /// A head, as far as it has come.
    Head(Vec<u8>),
    Open,
    /// The other end's FIN has come, after all of its bytes.
    Complete,
    /// It ended otherwise.
    Broken(String),
}

impl End {
    pub(super) fn client(stream: TcpStream, tunnel: usize, kind: Kind) -> Self {
        Self::new(stream, Side::Client, Phase::Connecting).of(tunnel, kind)
    }

    pub(super) fn server(stream: TcpStream) -> Self {
        Self::new(stream, Side::Server, Phase::Head(Vec::new()))
    }

    fn new(stream: TcpStream, side: Side, phase: Phase) -> Self {
        Self {
            wire: Wire::new(stream),
            side,
            phase,
            tunnel: 0,
            kind: Kind::Even,
            outflow: Outflow::new(0, false),
            inflow: Inflow::new(0),
            last: false,
        }
    }

    fn of(mut self, tunnel: usize, kind: Kind) -> Self {
        self.belongs(tunnel, kind);
        self
    }

    fn belongs(&mut self, tunnel: usize, kind: Kind) {
        (self.tunnel, self.kind) = (tunnel, kind);
        self.outflow = Outflow::new(self.outgoing() as u32, self.side == Side::Client);
        self.inflow = Inflow::new(self.incoming() as u32);
        if kind.reads_slowly(self.side) {
            // One that is gone already shows at the first read.
            drop(SockRef::from(self.wire.stream()).set_recv_buffer_size(SMALL_BUFFER));
        }
    }

    /// The numbers of the directions.
    pub(super) const fn outgoing(&self) -> usize {
        self.tunnel * 2 + self.side as usize
    }

    const fn incoming(&self) -> usize {
        self.outgoing() ^ 1
    }

    pub(super) fn note(&mut self, event: &mio::event::Event) {
        self.wire.note(event);
    }

    /// Whether it sends all that goes, and its socket takes no more: then all on the way to the other end is full.
    pub(super) const fn is_held_up(&self) -> bool {
        self.kind.reads_slowly(self.side.other()) && !self.wire.is_flushed()
    }

    /// Of a tunnel that is broken nothing more is wanted.
    pub(super) fn is_done(&self, desk: &Desk) -> bool {
        let complete = self.phase == Phase::Complete && self.last && self.wire.is_flushed();
        complete || desk.broken[self.tunnel]
    }

    /// Goes on with what can go on.
    pub(super) fn serve(&mut self, desk: &mut Desk) {
        let served = self.try_serve(desk, usize::MAX);
        self.broken_by(desk, served);
    }

    /// Its turn to send a piece, and to read if it does so slowly.
    pub(super) fn turn(&mut self, desk: &mut Desk) {
        let turned = self.piece(desk);
        self.broken_by(desk, turned);
        if self.kind.reads_slowly(self.side) {
            let served = self.try_serve(desk, SIP);
            self.broken_by(desk, served);
        }
    }

    /// It sends nothing more.
    pub(super) fn finish(&mut self, desk: &mut Desk) {
        if matches!(self.phase, Phase::Open | Phase::Complete) {
            self.last = true;
            self.wire.read_on();
            self.serve(desk);
        }
    }

    fn broken_by(&mut self, desk: &mut Desk, served: io::Result<()>) {
        if let Err(error) = served
            && !matches!(self.phase, Phase::Broken(_))
        {
            self.phase = Phase::Broken(error.to_string());
            desk.broken[self.tunnel] = true;
            // Whoever is at the other end is to know.
            self.wire.finish();
        }
    }

    /// A reader of any kind reads everything when no more is to come.
    fn try_serve(&mut self, desk: &mut Desk, most: usize) -> io::Result<()> {
        if self.phase == Phase::Connecting {
            self.ask(desk)?;
        }
        self.flush(desk)?;
        let slow = self.kind.reads_slowly(self.side) && self.phase == Phase::Open && !desk.over;
        let mut left = match (slow, most) {
            (false, _) => usize::MAX,
            // Between its turns.
            (true, usize::MAX) => 0,
            (true, most) => most,
        };
        while left > 0 && !matches!(self.phase, Phase::Complete | Phase::Broken(_)) {
            let room = desk.buffer.len().min(left);
            match self.wire.read(&mut desk.buffer[..room])? {
                None => break,
                Some(0) => self.at_eof(desk)?,
                Some(count) => {
                    left -= count;
                    self.take(desk, count)?;
                }
            }
        }
        self.push(desk)
    }

    fn flush(&mut self, desk: &mut Desk) -> io::Result<()> {
        if self.wire.flush()? && self.last && !desk.finished[self.outgoing()] {
            desk.finished[self.outgoing()] = true;
            self.wire.finish();
        }
        Ok(())
    }

    fn ask(&mut self, desk: &Desk) -> io::Result<()> {
        if let Some(error) = self.wire.stream().take_error()? {
            return Err(error);
        }
        if self.wire.stream().peer_addr().is_err() {
            return Ok(());
        }
        let path = format!("/stream/{}", self.tunnel);
        let request = request(&desk.host, &path, &key(self.tunnel as u64));
        self.phase = Phase::Head(Vec::new());
        self.wire.write(request.as_bytes())
    }

    fn at_eof(&mut self, desk: &Desk) -> io::Result<()> {
        if !desk.finished[self.incoming()] {
            return Err(match self.inflow.closed() {
                Some(code) => io::Error::other(format!("close {code}")),
                None => io::Error::other("fin"),
            });
        }
        self.phase = Phase::Complete;
        Ok(())
    }

    fn take(&mut self, desk: &mut Desk, count: usize) -> io::Result<()> {
        let mut at = 0;
        if let Phase::Head(head) = &mut self.phase {
            let before = head.len();
            head.extend_from_slice(&desk.buffer[..count]);
            match head_length(head) {
                None if head.len() > LONGEST_HEAD => return Err(io::Error::other("a long head")),
                None => return Ok(()),
                Some(length) => at = length - before,
            }
            let head = std::mem::take(head);
            self.opened(desk, &head)?;
        }
        let taken = self.inflow.take(&desk.pattern, &mut desk.buffer[at..count]);
        taken.map_err(|_| io::Error::other("a frame that is none"))?;
        desk.arrived(self.incoming(), self.inflow.received());
        Ok(())
    }

    fn opened(&mut self, desk: &mut Desk, head: &[u8]) -> io::Result<()> {
        self.phase = Phase::Open;
        desk.open += 1;
        let head = Head(head);
        match self.side {
            Side::Client => {
                let expected = accept(key(self.tunnel as u64).as_bytes());
                let found = head.field("sec-websocket-accept");
                match head.status() == Some(101) && found == Some(expected.as_bytes()) {
                    true => Ok(()),
                    false => Err(io::Error::other(format!("status {:?}", head.status()))),
                }
            }
            Side::Server => {
                let named = head.request().and_then(|(_, target)| tunnel(target));
                let named = named.filter(|tunnel| *tunnel < desk.kinds.len());
                let (Some(tunnel), Some(key)) = (named, head.field("sec-websocket-key")) else {
                    return Err(io::Error::other("no such request was made"));
                };
                self.belongs(tunnel, desk.kinds[tunnel]);
                self.wire.write(switching(key).as_bytes())
            }
        }
    }

    fn piece(&mut self, desk: &mut Desk) -> io::Result<()> {
        if !self.may_send() || self.kind.reads_slowly(self.side.other()) {
            return Ok(());
        }
        let (least, most) = PIECE;
        let length = least + mix(self.outflow.sent()) % (most - least);
        let frame = if self.kind == Kind::LongFrame {
            LONG_FRAME
        } else {
            length
        };
        self.send(desk, length as usize, frame)?;
        if self.kind.ends_early(self.side) && self.outflow.sent() > 10 * most {
            self.last = true;
            self.flush(desk)?;
        }
        Ok(())
    }

    /// To a slow reader goes all that goes.
    fn push(&mut self, desk: &mut Desk) -> io::Result<()> {
        while desk.runs && self.kind.reads_slowly(self.side.other()) && self.may_send() {
            self.send(desk, LARGE, LARGE as u64)?;
        }
        Ok(())
    }

    fn may_send(&self) -> bool {
        let may = matches!(self.phase, Phase::Open | Phase::Complete);
        may && !self.last && self.wire.is_flushed()
    }

    fn send(&mut self, desk: &mut Desk, length: usize, frame: u64) -> io::Result<()> {
        let bytes = self
            .outflow
            .next(&desk.pattern, length, frame, &mut desk.frame);
        self.wire.write(bytes)?;
        if !self.kind.reads_slowly(self.side.other()) {
            desk.went(self.outgoing(), self.outflow.sent());
        }
        Ok(())
    }
}

/// Of the request's target.
fn tunnel(target: &[u8]) -> Option<usize> {
    let digits = target.strip_prefix(b"/stream/")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}
