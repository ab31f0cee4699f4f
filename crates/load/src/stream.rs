//! Bytes that stream both ways through tunnels, clients' and servers' ends in one thread: what each end has sent is compared
//! with what the other has received, to the byte.
//!
//! The fleet and the echo server have messages in flight now and then; here something is always on its way, and the
//! directions know nothing of each other. Some readers are slow, some tunnels are in the midst of a very long frame, some are
//! half closed. A tunnel that ends before it should is counted, never opened again.

mod end;
mod flow;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};
use serde::{Deserialize, Serialize};

use crate::check::{Faults, Pattern};
use crate::connect::{connect, listen};
use crate::fleet::{Halt, Phase};
use crate::frame::LONGEST_HEADER;
use crate::histogram::Histogram;
use crate::stream::end::{End, Phase as State};
pub use crate::stream::flow::BLOCK;

/// Announced by the frame of [`Kind::LongFrame`], in bytes. It never ends.
pub const LONG_FRAME: u64 = 1 << 30;

const EVENTS: usize = 1024;
const READ: usize = 64 * 1024;
const LISTENER: Token = Token(usize::MAX);

/// All tunnels must have opened, and what is on its way must have arrived, at some pace: nothing for so long is given up.
const STALLED: Duration = Duration::from_secs(15);

/// What a tunnel does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A frame each way in each turn.
    Even,
    /// The client reads little in each turn; the server sends all that goes.
    SlowClient,
    /// The same the other way round.
    SlowServer,
    /// Both read little, and send all that goes.
    SlowBoth,
    /// Each way a part of a frame of [`LONG_FRAME`] bytes in each turn.
    LongFrame,
    /// The client has sent its FIN; the server sends on.
    ClientDone,
    /// The same the other way round.
    ServerDone,
}

impl Kind {
    const fn reads_slowly(self, side: Side) -> bool {
        matches!(
            (self, side),
            (Self::SlowBoth, _)
                | (Self::SlowClient, Side::Client)
                | (Self::SlowServer, Side::Server)
        )
    }

    const fn ends_early(self, side: Side) -> bool {
        matches!(
            (self, side),
            (Self::ClientDone, Side::Client) | (Self::ServerDone, Side::Server)
        )
    }

    /// Directions whose reader is slow.
    const fn slow(self) -> u64 {
        self.reads_slowly(Side::Client) as u64 + self.reads_slowly(Side::Server) as u64
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

impl Side {
    const fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// Which tunnels.
#[derive(Clone, Debug)]
pub struct Open {
    /// Where to connect to, in turn.
    pub targets: Vec<SocketAddr>,
    /// The `Host` field.
    pub host: String,
    /// One for each tunnel.
    pub kinds: Vec<Kind>,
    /// Turns of each tunnel, each second.
    pub per_second: f64,
}

/// What became of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Tunnels that were opened.
    pub tunnels: u64,
    /// Payload bytes that clients and servers have sent.
    pub sent: [u64; 2],
    /// Those of them that servers and clients have received.
    pub received: [u64; 2],
    /// What was wrong with them, in blocks of [`BLOCK`] bytes.
    pub faults: Faults,
    /// Directions, of tunnels that are not broken, in which not as much was received as was sent.
    pub unequal: u64,
    /// Ends that ended before they should, and how.
    pub broken: Vec<String>,
    /// Directions whose reader is slow, and those of them in which everything was full up to the sender when it ended.
    pub slow: u64,
    /// See [`Self::slow`].
    pub held_up: u64,
    /// From the write of some bytes to their arrival, by the phase ([`Phase`]) in which they were on their way; not to slow readers.
    pub delays: BTreeMap<u8, Histogram>,
}

impl Report {
    /// That all bytes arrived as they went, and no tunnel broke.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub fn sound(&self) -> Result<(), String> {
        if !self.faults.any() && self.unequal == 0 && self.broken.is_empty() {
            return Ok(());
        }
        let first = self.broken.first().map_or("none", String::as_str);
        Err(format!(
            "bytes: {:?} sent, {:?} received, {} directions unequal, {:?} (blocks of {BLOCK}); ends that broke: {}, the first: {first}",
            self.sent,
            self.received,
            self.unequal,
            self.faults,
            self.broken.len(),
        ))
    }
}

/// Both ends, when the servers' is there and the clients have not come yet.
#[derive(Debug)]
pub struct Streams {
    poll: Poll,
    listener: TcpListener,
    address: SocketAddr,
}

/// What all ends share.
#[derive(Debug)]
struct Desk {
    host: String,
    kinds: Vec<Kind>,
    buffer: Box<[u8]>,
    frame: Box<[u8]>,
    pattern: Pattern,
    phase: Phase,
    /// Ends that are behind their handshake.
    open: usize,
    /// All are, and nobody has said that it is enough.
    runs: bool,
    over: bool,
    /// By direction: whether its FIN was sent.
    finished: Vec<bool>,
    /// By direction: up to where some bytes have gone, when, and in which phase.
    probes: Vec<Option<(u64, Instant, u8)>>,
    delays: BTreeMap<u8, Histogram>,
    progress: u64,
    /// By tunnel.
    broken: Vec<bool>,
}

impl Desk {
    fn new(open: &Open, phase: Phase) -> Self {
        let directions = open.kinds.len() * 2;
        Self {
            host: open.host.clone(),
            kinds: open.kinds.clone(),
            buffer: vec![0; READ].into_boxed_slice(),
            frame: vec![0; LONGEST_HEADER + READ].into_boxed_slice(),
            pattern: Pattern::new(BLOCK),
            phase,
            open: 0,
            runs: false,
            over: false,
            finished: vec![false; directions],
            probes: vec![None; directions],
            delays: BTreeMap::new(),
            progress: 0,
            broken: vec![false; open.kinds.len()],
        }
    }

    /// Bytes up to `end` have gone.
    fn went(&mut self, direction: usize, end: u64) {
        let phase = self.phase.number();
        self.probes[direction].get_or_insert_with(|| (end, Instant::now(), phase));
    }

    fn arrived(&mut self, direction: usize, end: u64) {
        self.progress += 1;
        let probe = &mut self.probes[direction];
        if let Some((_, went, phase)) = probe.take_if(|(until, ..)| *until <= end) {
            let phase = phase.max(self.phase.number());
            let delays = self.delays.entry(phase).or_default();
            delays.record(went.elapsed().as_nanos() as u64);
        }
    }
}

/// Streams that go on in a thread.
#[derive(Debug)]
pub struct Running {
    thread: JoinHandle<io::Result<Report>>,
    opened: Receiver<()>,
    halt: Halt,
    phase: Phase,
}

impl Running {
    /// Waits until all tunnels are open.
    ///
    /// # Errors
    /// If they are not, after a while.
    pub fn opened(&self) -> io::Result<()> {
        let opened = self.opened.recv_timeout(STALLED * 2);
        opened.map_err(|_| io::Error::other("not all streams have opened"))
    }

    /// Tells it of phases.
    #[must_use]
    pub const fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Sends no more, waits for what is on its way, and ends all tunnels.
    ///
    /// # Errors
    /// Those of epoll, and if they never opened.
    pub fn finish(self) -> io::Result<Report> {
        self.halt.halt();
        let ended = self.thread.join();
        ended.unwrap_or_else(|_| Err(io::Error::other("the streams have panicked")))
    }
}

impl Streams {
    /// Listens; port 0 is one that the kernel picks.
    ///
    /// # Errors
    /// Those of binding, and of epoll.
    pub fn bind(at: SocketAddr) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut listener = listen(at)?;
        poll.registry()
            .register(&mut listener, LISTENER, Interest::READABLE)?;
        let address = listener.local_addr()?;
        Ok(Self {
            poll,
            listener,
            address,
        })
    }

    /// Where the servers' ends listen.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Opens the tunnels and lets them stream, in a thread.
    #[must_use]
    pub fn start(self, open: Open) -> Running {
        let (say, opened) = channel();
        let (halt, phase) = (Halt::default(), Phase::default());
        let (halted, told) = (halt.clone(), phase.clone());
        Running {
            thread: thread::spawn(move || Work::new(self, &open, halted, told)?.all(&open, &say)),
            opened,
            halt,
            phase,
        }
    }
}

/// The work of the thread.
struct Work {
    streams: Streams,
    ends: Vec<End>,
    desk: Desk,
    halt: Halt,
    /// Turns so far.
    turns: u64,
    /// When anything arrived last.
    progress: (Instant, u64),
}

impl Work {
    fn new(streams: Streams, open: &Open, halt: Halt, phase: Phase) -> io::Result<Self> {
        let mut work = Self {
            streams,
            ends: Vec::new(),
            desk: Desk::new(open, phase),
            halt,
            turns: 0,
            progress: (Instant::now(), 0),
        };
        for (tunnel, kind) in open.kinds.iter().enumerate() {
            let target = open.targets[tunnel % open.targets.len()];
            let mut stream = connect(target, None, false)?;
            work.register(&mut stream)?;
            work.ends.push(End::client(stream, tunnel, *kind));
        }
        Ok(work)
    }

    /// For the place behind the last.
    fn register(&self, stream: &mut mio::net::TcpStream) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        let token = Token(self.ends.len());
        self.streams
            .poll
            .registry()
            .register(stream, token, interest)
    }

    fn all(mut self, open: &Open, say: &Sender<()>) -> io::Result<Report> {
        let mut events = Events::with_capacity(EVENTS);
        let wanted = open.kinds.len() * 2;
        while self.desk.open < wanted {
            self.step(&mut events, Duration::from_millis(10))?;
            if self.is_stalled() || self.desk.broken.contains(&true) {
                return Err(io::Error::other(self.first_words(wanted)));
            }
        }
        // Nobody may wait for it any more.
        let _ = say.send(());
        self.stream(&mut events, open.per_second)?;
        let held_up = self.ends.iter().filter(|end| end.is_held_up()).count() as u64;
        self.finish(&mut events)?;
        Ok(self.report(open, held_up))
    }

    fn first_words(&self, wanted: usize) -> String {
        let broken = self.ends.iter().find_map(|end| match &end.phase {
            State::Broken(how) => Some(how.as_str()),
            _ => None,
        });
        let (open, how) = (self.desk.open, broken.unwrap_or("no answer"));
        format!("{open} of {wanted} ends of streams have opened: {how}")
    }

    fn stream(&mut self, events: &mut Events, per_second: f64) -> io::Result<()> {
        self.desk.runs = true;
        for end in &mut self.ends {
            end.serve(&mut self.desk);
        }
        let began = Instant::now();
        let tunnels = self.desk.kinds.len() as f64;
        while !self.halt.is_said() {
            let due = (began.elapsed().as_secs_f64() * per_second * tunnels) as u64;
            while self.turns < due {
                self.turn();
            }
            let next = Duration::from_secs_f64((self.turns + 1) as f64 / per_second / tunnels);
            let wait = next.saturating_sub(began.elapsed());
            self.step(events, wait.min(Duration::from_millis(50)))?;
        }
        Ok(())
    }

    /// The next tunnel's turn, at both of its ends.
    fn turn(&mut self) {
        let tunnel = self.turns as usize % self.desk.kinds.len();
        self.turns += 1;
        for end in self.ends.iter_mut().filter(|end| end.tunnel == tunnel) {
            end.turn(&mut self.desk);
        }
    }

    fn finish(&mut self, events: &mut Events) -> io::Result<()> {
        (self.desk.runs, self.desk.over) = (false, true);
        for end in &mut self.ends {
            end.finish(&mut self.desk);
        }
        self.progress = (Instant::now(), self.desk.progress);
        while !self.ends.iter().all(|end| end.is_done(&self.desk)) && !self.is_stalled() {
            self.step(events, Duration::from_millis(50))?;
        }
        Ok(())
    }

    fn is_stalled(&mut self) -> bool {
        let seen = self.desk.progress + self.desk.open as u64;
        if seen != self.progress.1 {
            self.progress = (Instant::now(), seen);
        }
        self.progress.0.elapsed() >= STALLED
    }

    fn step(&mut self, events: &mut Events, wait: Duration) -> io::Result<()> {
        match self.streams.poll.poll(events, Some(wait)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            polled => polled?,
        }
        for event in &*events {
            if event.token() == LISTENER {
                self.accept()?;
            } else if let Some(end) = self.ends.get_mut(event.token().0) {
                end.note(event);
                end.serve(&mut self.desk);
            }
        }
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let mut stream = match self.streams.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            // One that is gone already shows at the first read.
            drop(stream.set_nodelay(true));
            self.register(&mut stream)?;
            self.ends.push(End::server(stream));
        }
    }

    fn report(self, open: &Open, held_up: u64) -> Report {
        let mut report = Report {
            tunnels: open.kinds.len() as u64,
            slow: open.kinds.iter().map(|kind| kind.slow()).sum(),
            held_up,
            delays: self.desk.delays,
            ..Report::default()
        };
        let broken = &self.desk.broken;
        let (mut sent, mut received) = (vec![0; broken.len() * 2], vec![0; broken.len() * 2]);
        for end in &self.ends {
            let direction = end.outgoing();
            sent[direction] = end.outflow.sent();
            received[direction ^ 1] = end.inflow.received();
            report.faults.add(end.inflow.faults());
            if let State::Broken(how) = &end.phase {
                let side = ["client", "server"][direction % 2];
                let kind = open.kinds[end.tunnel];
                report
                    .broken
                    .push(format!("{kind:?} {}, {side}: {how}", end.tunnel));
            }
        }
        for direction in 0..sent.len() {
            report.sent[direction % 2] += sent[direction];
            report.received[direction % 2] += received[direction];
            let differs = sent[direction] != received[direction] && !broken[direction / 2];
            report.unequal += u64::from(differs);
        }
        report
    }
}
