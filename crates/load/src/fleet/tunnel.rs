//! One tunnel of a fleet: its handshake, its messages, its end. The place outlives the
//! connection, which may be opened again.

mod traffic;

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use mio::{Interest, Registry, Token};

use crate::check::Checker;
use crate::connect::connect;
use crate::echo::Ack;
use crate::fleet::desk::Desk;
use crate::fleet::tunnel::traffic::NORMAL;
use crate::frame::FrameReader;
use crate::handshake::{Head, LONGEST_HEAD, accept, head_length, key, request};
use crate::job::Mode;
use crate::machine;
use crate::report::{End, Ending};
use crate::wire::Wire;

#[derive(Debug)]
pub(crate) struct Tunnel {
    index: usize,
    wire: Option<Wire>,
    phase: Phase,
    /// Asked for at once: a connection that was reset may not know it any more.
    local: Option<SocketAddr>,
    number: u32,
    began: Instant,
    /// When it may send its request, if it holds it back.
    held: Option<Instant>,
    /// When its wait is over, where it waits for something.
    deadline: Option<Instant>,
    reader: FrameReader,
    checker: Checker,
    kept: Vec<u8>,
    /// The code of the peer's Close.
    peer_closed: Option<u16>,
    sent: u64,
    sent_bytes: u64,
    /// Of a sink.
    last_ack: Ack,
    /// It may send so many in all.
    allowed: u64,
    /// Reaching so many answers is to be told.
    goal: Option<u64>,
    /// One message in flight, when it went, and in which phase.
    probe: Option<(u64, Instant, u8)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Gone,
    Connecting,
    /// The request is sent; the answer, as far as it has come.
    Asking(Vec<u8>),
    Open,
    /// A Close has been sent, by the fleet's own will or as an answer.
    Closing {
        ours: bool,
    },
}

/// What a fleet has to know of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Opened,
    /// It has all the answers that it was to get.
    Reached,
    Ended(End),
}

impl Tunnel {
    pub(crate) fn new(index: usize) -> Self {
        Self {
            index,
            wire: None,
            phase: Phase::Gone,
            local: None,
            number: 0,
            began: Instant::now(),
            held: None,
            deadline: None,
            reader: FrameReader::new(),
            checker: Checker::new(None),
            kept: Vec::new(),
            peer_closed: None,
            sent: 0,
            sent_bytes: 0,
            last_ack: Ack::default(),
            allowed: 0,
            goal: None,
            probe: None,
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    pub(crate) fn note(&mut self, event: &mio::event::Event) {
        if let Some(wire) = &mut self.wire {
            wire.note(event);
        }
    }

    /// Begins a connection. The tunnel must be gone.
    pub(crate) fn connect(&mut self, registry: &Registry, desk: &mut Desk) -> Option<Change> {
        let began = Instant::now();
        let (target, source) = desk.turn();
        desk.tally.live += 1;
        let held = !desk.open.held.is_zero();
        let opened = connect(target, source, held).and_then(|mut stream| {
            let interest = Interest::READABLE | Interest::WRITABLE;
            registry.register(&mut stream, Token(self.index), interest)?;
            Ok(stream)
        });
        *self = Self {
            phase: Phase::Connecting,
            number: desk.number(),
            began,
            kept: std::mem::take(&mut self.kept),
            ..Self::new(self.index)
        };
        self.checker = Checker::new(Some(self.number));
        match opened {
            Ok(stream) => {
                self.local = stream.local_addr().ok();
                self.wire = Some(Wire::new(stream));
                self.deadline = Some(desk.wait(self.index));
                None
            }
            Err(error) => Some(self.end(desk, of_error(&error, &self.phase))),
        }
    }

    /// Reads and answers as far as it goes.
    pub(crate) fn serve(&mut self, desk: &mut Desk) -> Option<Change> {
        let was_open = !matches!(self.phase, Phase::Connecting | Phase::Asking(_));
        match self.advance(desk) {
            Err(end) => {
                let end = self.last_words(desk, end);
                Some(self.end(desk, end))
            }
            Ok(()) if !was_open && self.is_open() => Some(Change::Opened),
            Ok(()) if self.goal.is_some_and(|goal| self.answered(desk) >= goal) => {
                self.goal = None;
                Some(Change::Reached)
            }
            Ok(()) => None,
        }
    }

    /// It may send so many more. Told at [`Change::Reached`] if wanted.
    pub(crate) fn allow(&mut self, desk: &mut Desk, messages: u64, tell: bool) -> Option<Change> {
        self.allowed = self.allowed.max(self.sent).saturating_add(messages);
        self.goal = tell.then_some(self.allowed);
        self.serve(desk)
    }

    /// It may send nothing more.
    pub(crate) fn rest(&mut self) {
        self.allowed = self.sent;
        self.goal = None;
    }

    /// Sends a Close with 1000. The tunnel must be open.
    pub(crate) fn close(&mut self, desk: &mut Desk) -> Option<Change> {
        let sent = self.send_close(desk, &NORMAL, true);
        sent.err().map(|end| self.end(desk, end))
    }

    /// It may have held its request back until now.
    pub(crate) fn release(&mut self, desk: &mut Desk) -> Option<Change> {
        match self.phase {
            Phase::Connecting => self.serve(desk),
            _ => None,
        }
    }

    /// A wait that was to be over then.
    pub(crate) fn overdue(&mut self, desk: &mut Desk, deadline: Instant) -> Option<Change> {
        (self.deadline == Some(deadline)).then(|| self.end(desk, End::TimedOut))
    }

    /// What was wrong with its messages since it was last asked.
    pub(crate) fn take_faults(&mut self) -> crate::check::Faults {
        self.checker.take_faults()
    }

    /// Whether no answer is to come: a sink says nothing of less than its bytes.
    pub(crate) fn is_settled(&self, desk: &Desk) -> bool {
        match desk.open.mode {
            Mode::Sink { bytes: bytes @ 1.. } => self.sent_bytes - self.last_ack.bytes < bytes,
            _ => self.sent == self.answered(desk),
        }
    }

    fn answered(&self, desk: &Desk) -> u64 {
        match desk.open.mode {
            Mode::Echo => self.checker.next(),
            Mode::Sink { .. } => self.last_ack.messages,
        }
    }

    fn advance(&mut self, desk: &mut Desk) -> Result<(), End> {
        if self.phase == Phase::Connecting {
            self.ask(desk)?;
        }
        while let Some(count) = self.read(desk)? {
            match count {
                0 => return Err(self.at_eof()),
                _ => self.take(desk, count)?,
            }
        }
        self.pump(desk)
    }

    /// A write finds the reset before what came ahead of it was read, which may have been a Close.
    fn last_words(&mut self, desk: &mut Desk, end: End) -> End {
        if end != End::Reset {
            return end;
        }
        if let Some(wire) = &mut self.wire {
            wire.read_on();
        }
        while let Ok(Some(1..)) = self.read_some(desk) {}
        match self.peer_closed {
            Some(code) => End::Closed(code),
            None => end,
        }
    }

    fn read_some(&mut self, desk: &mut Desk) -> Result<Option<usize>, End> {
        let Some(wire) = &mut self.wire else {
            return Ok(None);
        };
        let read = wire.read(&mut desk.buffer);
        let count = read.map_err(|error| self.failed(&error))?;
        self.take(desk, count.unwrap_or(0))?;
        Ok(count)
    }

    fn read(&mut self, desk: &mut Desk) -> Result<Option<usize>, End> {
        let Some(wire) = &mut self.wire else {
            return Ok(None);
        };
        let read = wire.flush().and_then(|_| wire.read(&mut desk.buffer));
        read.map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &io::Error) -> End {
        match (&self.phase, self.peer_closed) {
            (Phase::Closing { .. }, Some(_)) => self.at_eof(),
            _ => of_error(error, &self.phase),
        }
    }

    fn at_eof(&self) -> End {
        match (&self.phase, self.peer_closed) {
            (Phase::Closing { ours: true }, Some(_)) => End::Polite,
            (Phase::Closing { ours: true }, None) => End::CloseUnanswered,
            (_, Some(code)) => End::Closed(code),
            (Phase::Connecting | Phase::Asking(_), None) => End::NoAnswer,
            _ => End::Fin,
        }
    }

    /// Sends the request once the connection stands.
    fn ask(&mut self, desk: &mut Desk) -> Result<(), End> {
        let Some(wire) = &mut self.wire else {
            return Ok(());
        };
        if let Ok(Some(error)) | Err(error) = wire.stream().take_error() {
            return Err(of_error(&error, &self.phase));
        }
        if wire.stream().peer_addr().is_err() {
            return Ok(());
        }
        if !desk.open.held.is_zero() {
            let until = *self.held.get_or_insert_with(|| desk.hold(self.index));
            if until > Instant::now() {
                return Ok(());
            }
        }
        let request = request(&desk.open.host, &desk.path, &key(u64::from(self.number)));
        let written = wire.write(request.as_bytes());
        self.phase = Phase::Asking(Vec::new());
        written.map_err(|error| self.failed(&error))
    }

    fn take(&mut self, desk: &mut Desk, count: usize) -> Result<(), End> {
        let mut at = 0;
        if let Phase::Asking(head) = &mut self.phase {
            let before = head.len();
            head.extend_from_slice(&desk.buffer[..count]);
            match head_length(head) {
                None if head.len() > LONGEST_HEAD => return Err(End::BadAnswer),
                None => return Ok(()),
                Some(length) => at = length - before,
            }
            let whole = before + at;
            self.opened(desk, whole)?;
        }
        self.frames(desk, at, count)
    }

    fn opened(&mut self, desk: &mut Desk, length: usize) -> Result<(), End> {
        let Phase::Asking(bytes) = std::mem::replace(&mut self.phase, Phase::Open) else {
            return Ok(());
        };
        let judged = self.judge(Head(&bytes[..length]));
        if let Err(end) = judged {
            self.phase = Phase::Asking(Vec::new());
            return Err(end);
        }
        self.deadline = None;
        self.allowed = desk.orders.allowed;
        desk.tally.opened += 1;
        let took = self.began.elapsed();
        desk.tally.handshakes.record(took.as_nanos() as u64);
        self.end_of_life(desk)
    }

    fn judge(&self, head: Head<'_>) -> Result<(), End> {
        let expected = accept(key(u64::from(self.number)).as_bytes());
        match head.status() {
            Some(101) if head.field("sec-websocket-accept") == Some(expected.as_bytes()) => Ok(()),
            Some(101) | None => Err(End::BadAnswer),
            Some(status) => Err(End::Status(status)),
        }
    }

    /// Closes the connection and accounts for it.
    fn end(&mut self, desk: &mut Desk, end: End) -> Change {
        let settled = self.is_settled(desk);
        let lost = self.sent - self.answered(desk).min(self.sent);
        let unanswered = if settled { 0 } else { lost };
        let ending = self.ending(end, unanswered);
        let tally = &mut desk.tally;
        if self.is_open() {
            tally.opened -= 1;
        }
        tally.live -= 1;
        tally.lives += u64::from(end == End::Polite);
        tally.end(ending);
        tally.unanswered += unanswered;
        tally.flying -= lost;
        tally.faults.add(&self.checker.take_faults());
        self.phase = Phase::Gone;
        self.wire = None;
        self.deadline = None;
        Change::Ended(end)
    }

    fn ending(&self, end: End, unanswered: u64) -> Ending {
        let ended = machine::now();
        Ending {
            local: self.local,
            began: ended.saturating_sub(self.began.elapsed()),
            ended,
            opened: !matches!(self.phase, Phase::Connecting | Phase::Asking(_)),
            end,
            unanswered,
        }
    }
}

fn of_error(error: &io::Error, phase: &Phase) -> End {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset};
    match (error.kind(), phase) {
        (ConnectionRefused, _) => End::Refused,
        (ConnectionReset | BrokenPipe, Phase::Connecting | Phase::Asking(_)) => {
            End::ResetBeforeAnswer
        }
        (ConnectionReset | BrokenPipe, _) => End::Reset,
        _ => End::Failed(error.raw_os_error().unwrap_or(0)),
    }
}
