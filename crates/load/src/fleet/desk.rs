//! What all tunnels of a fleet share: buffers, orders, and the tally of what they saw.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::check::{Faults, Pattern, mix};
use crate::fleet::Phase;
use crate::frame::{BINARY, FIN, Header, LONGEST_HEADER, mask};
use crate::histogram::Histogram;
use crate::job::Open;
use crate::report::{ENDINGS, End, Ending, Report};

/// Bytes of one read; see the echo server's.
const READ: usize = 128 * 1024;

/// For an answer to a handshake, and for the end after a Close.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) open: Open,
    pub(crate) path: String,
    pub(crate) buffer: Box<[u8]>,
    pub(crate) pattern: Pattern,
    /// Room for a header, and then a payload.
    frame: Box<[u8]>,
    /// Connections begun so far.
    begun: u32,
    pub(crate) orders: Orders,
    pub(crate) tally: Tally,
    pub(crate) phase: Phase,
    /// Who waits for something, and until when. All wait equally long, so the first is the next.
    waits: VecDeque<(Instant, usize)>,
    /// Who holds its request back, and until when; all equally long as well.
    held: VecDeque<(Instant, usize)>,
}

/// What every tunnel does now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Orders {
    pub(crate) size: usize,
    pub(crate) window: u64,
    /// So many messages of all tunnels may still be sent.
    pub(crate) left: u64,
    /// A tunnel that opens may send so many at once.
    pub(crate) allowed: u64,
    /// It closes itself after so many answers.
    pub(crate) life: Option<u64>,
}

impl Orders {
    pub(crate) const REST: Self = Self {
        size: crate::check::STAMP,
        window: 0,
        left: 0,
        allowed: 0,
        life: None,
    };
}

#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    pub(crate) round_trips: Histogram,
    /// The same by phase.
    phases: BTreeMap<u8, Histogram>,
    pub(crate) handshakes: Histogram,
    pub(crate) lives: u64,
    pub(crate) ends: BTreeMap<End, u64>,
    /// Of [`Report::endings`].
    endings: Vec<Ending>,
    pub(crate) faults: Faults,
    pub(crate) unanswered: u64,
    /// Messages on their way.
    pub(crate) flying: u64,
    /// Tunnels that are not gone, and those of them that are open.
    pub(crate) live: u64,
    pub(crate) opened: u64,
}

impl Desk {
    pub(crate) fn new(open: Open) -> Self {
        Self {
            path: open.mode.path(),
            buffer: vec![0; READ].into_boxed_slice(),
            pattern: Pattern::new(open.longest),
            frame: vec![0; LONGEST_HEADER + open.longest].into_boxed_slice(),
            begun: 0,
            orders: Orders::REST,
            tally: Tally::default(),
            phase: Phase::default(),
            waits: VecDeque::new(),
            held: VecDeque::new(),
            open,
        }
    }

    /// The number of a new connection.
    pub(crate) fn number(&mut self) -> u32 {
        let number = self.open.first.wrapping_add(self.begun);
        self.begun = self.begun.wrapping_add(1);
        number
    }

    /// Where the next connection goes, and from where: each pair of addresses in turn.
    pub(crate) fn turn(&self) -> (SocketAddr, Option<IpAddr>) {
        let turn = self.begun as usize;
        let Open {
            sources, targets, ..
        } = &self.open;
        let ways = sources.len().max(1);
        let target = targets[turn / ways % targets.len()];
        (target, sources.get(turn % ways).copied())
    }

    /// A whole frame with this message, masked.
    pub(crate) fn message(&mut self, tunnel: u32, sequence: u64) -> &[u8] {
        let end = LONGEST_HEADER + self.orders.size;
        let payload = &mut self.frame[LONGEST_HEADER..end];
        self.pattern.write(payload, tunnel, sequence);
        let key = masking_key(tunnel, sequence);
        mask(payload, key, 0);
        let header = Header {
            first: FIN | BINARY,
            length: payload.len() as u64,
            key: Some(key),
        };
        let start = header.write_before(&mut self.frame, LONGEST_HEADER);
        &self.frame[start..end]
    }

    /// When a tunnel that waits from now on has waited for too long.
    pub(crate) fn wait(&mut self, index: usize) -> Instant {
        let until = Instant::now() + PATIENCE;
        self.waits.push_back((until, index));
        until
    }

    /// When a tunnel that holds its request back from now on may send it.
    pub(crate) fn hold(&mut self, index: usize) -> Instant {
        let until = Instant::now() + self.open.held;
        self.held.push_back((until, index));
        until
    }

    /// The next one that may send its request.
    pub(crate) fn released(&mut self, now: Instant) -> Option<usize> {
        let over = self.held.front().is_some_and(|(until, _)| *until <= now);
        over.then(|| self.held.pop_front()).flatten().map(|it| it.1)
    }

    /// When that will be.
    pub(crate) fn next_release(&self) -> Option<Instant> {
        self.held.front().map(|(until, _)| *until)
    }

    /// The next one whose time is over.
    pub(crate) fn overdue(&mut self, now: Instant) -> Option<(Instant, usize)> {
        let over = self.waits.front().is_some_and(|(until, _)| *until <= now);
        over.then(|| self.waits.pop_front()).flatten()
    }
}

/// Section 5.3 wants a fresh key for each frame, that nobody can foresee; here nobody tries.
pub(crate) const fn masking_key(tunnel: u32, sequence: u64) -> [u8; 4] {
    (mix(sequence << 20 ^ tunnel as u64) as u32).to_ne_bytes()
}

impl Tally {
    pub(crate) fn end(&mut self, ending: Ending) {
        *self.ends.entry(ending.end).or_default() += 1;
        if ending.end != End::Polite && self.endings.len() < ENDINGS {
            self.endings.push(ending);
        }
    }

    /// A round trip that began in one phase and ended in another counts in the later one, by number.
    pub(crate) fn round_trip(&mut self, phases: [u8; 2], took: Duration) {
        let [began, ended] = phases;
        let nanoseconds = took.as_nanos() as u64;
        self.round_trips.record(nanoseconds);
        let phase = self.phases.entry(began.max(ended)).or_default();
        phase.record(nanoseconds);
    }

    /// The measured part begins.
    pub(crate) fn begin(&mut self) {
        (self.messages, self.bytes, self.lives) = (0, 0, 0);
        self.round_trips.clear();
        self.phases.clear();
        self.handshakes.clear();
    }

    /// The measured part is over.
    pub(crate) fn figures(&self, elapsed: Duration, cpu: u64) -> Report {
        Report {
            messages: self.messages,
            bytes: self.bytes,
            lives: self.lives,
            elapsed,
            round_trips: self.round_trips.summary(),
            phases: self.phases.clone(),
            handshakes: self.handshakes.summary(),
            cpu,
            ..Report::default()
        }
    }

    /// Adds what is of the whole job, and forgets it.
    pub(crate) fn close(&mut self, report: &mut Report) {
        report.faults = std::mem::take(&mut self.faults);
        report.unanswered = std::mem::take(&mut self.unanswered);
        report.stuck = self.flying;
        let ends = std::mem::take(&mut self.ends).into_iter();
        report.ends = ends.map(|(end, n)| (end.to_string(), n)).collect();
        report.endings = std::mem::take(&mut self.endings);
        report.open = self.opened;
    }
}
