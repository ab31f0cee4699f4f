//! The client fleet: one thread, any number of tunnels, one job after the other.
//!
//! Between jobs nothing is in flight and nobody looks at the tunnels: one that ends then is noticed by the next job.

mod desk;
mod shift;
mod tunnel;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use mio::{Events, Poll};

pub(crate) use crate::fleet::desk::masking_key;
use crate::fleet::desk::{Desk, Orders};
use crate::fleet::shift::Shift;
use crate::fleet::tunnel::{Change, Tunnel};
pub use crate::job::{Mode, Open, Run, Until, Work};
use crate::report::{End, Report};

/// Handshakes at a time when a fleet opens.
const OPENING: usize = 256;

const EVENTS: usize = 1024;

/// Ends jobs that go on until then ([`Until::Halted`]), from another thread. Said too early it ends the next
/// such job at once.
#[derive(Clone, Debug, Default)]
pub struct Halt(Arc<AtomicBool>);

impl Halt {
    /// The job ends within 100 ms, and then waits for what is in flight.
    pub fn halt(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Forgets that it was said.
    pub fn reset(&self) {
        self.0.store(false, Ordering::Release);
    }

    pub(crate) fn is_said(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// What goes on around the fleet, for whoever wants to know round trips by it: a number from another thread.
#[derive(Clone, Debug, Default)]
pub struct Phase(Arc<AtomicU8>);

impl Phase {
    /// Begins another one.
    pub fn begin(&self, number: u8) {
        self.0.store(number, Ordering::Release);
    }

    pub(crate) fn number(&self) -> u8 {
        self.0.load(Ordering::Acquire)
    }
}

/// A fleet of tunnels.
#[derive(Debug)]
pub struct Fleet {
    halt: Halt,
    poll: Poll,
    events: Events,
    tunnels: Vec<Tunnel>,
    desk: Desk,
    changes: Vec<(usize, Change)>,
}

impl Fleet {
    /// Opens all tunnels.
    ///
    /// # Errors
    /// Those of epoll, and if not every tunnel opened: the error says how they ended.
    pub fn open(open: Open) -> io::Result<Self> {
        let (fleet, report) = Self::try_open(open)?;
        report.sound().map_err(io::Error::other)?;
        Ok(fleet)
    }

    /// Opens all tunnels that can be opened; the report says how the others ended, and how long handshakes took.
    ///
    /// # Errors
    /// Those of epoll, and if there is nowhere to connect to.
    pub fn try_open(open: Open) -> io::Result<(Self, Report)> {
        if open.targets.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no target"));
        }
        let mut fleet = Self {
            halt: Halt::default(),
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS),
            tunnels: (0..open.tunnels).map(Tunnel::new).collect(),
            desk: Desk::new(open),
            changes: Vec::new(),
        };
        let began = Instant::now();
        let mut report = fleet.connect_all()?;
        report.elapsed = began.elapsed();
        Ok((fleet, report))
    }

    /// Ends jobs from another thread.
    #[must_use]
    pub fn halter(&self) -> Halt {
        self.halt.clone()
    }

    /// Tells it of phases from another thread.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.desk.phase.clone()
    }

    /// Listens to these from now on.
    pub(crate) fn obey(&mut self, halt: &Halt, phase: &Phase) {
        self.halt = halt.clone();
        self.desk.phase = phase.clone();
    }

    /// Does a job.
    ///
    /// # Errors
    /// Those of epoll, of the clocks, and if the job makes no sense.
    pub fn run(&mut self, run: &Run) -> io::Result<Report> {
        let shift = Shift::new(run, self)?;
        let report = shift.work(self);
        self.desk.orders = Orders::REST;
        self.tunnels.iter_mut().for_each(Tunnel::rest);
        report
    }

    /// Closes all tunnels politely and waits for their ends.
    ///
    /// # Errors
    /// Those of epoll.
    pub fn close(mut self) -> io::Result<Report> {
        let open = self.tunnels.iter_mut().filter(|tunnel| tunnel.is_open());
        for tunnel in open {
            // How it ended is in the tally.
            tunnel.close(&mut self.desk);
        }
        while self.desk.tally.live > 0 {
            self.turn(Duration::from_millis(100))?;
            self.changes.clear();
        }
        Ok(self.report())
    }

    /// Whether no answer is to come.
    fn is_settled(&self) -> bool {
        let is_settled = |tunnel: &Tunnel| tunnel.is_settled(&self.desk);
        self.desk.tally.flying == 0
            || matches!(self.desk.open.mode, Mode::Sink { bytes: 1.. })
                && self.tunnels.iter().all(is_settled)
    }

    fn connect_all(&mut self) -> io::Result<Report> {
        let mut next = 0;
        loop {
            let tally = &self.desk.tally;
            let busy = (tally.live - tally.opened) as usize;
            let end = self.tunnels.len().min(next + OPENING - busy.min(OPENING));
            for index in next..end {
                self.connect(index);
            }
            next = end;
            let tally = &self.desk.tally;
            if next == self.tunnels.len() && tally.live == tally.opened {
                return Ok(self.report());
            }
            self.turn(Duration::from_millis(100))?;
            self.changes.clear();
        }
    }

    /// What was seen since the last report, without figures of a measured part but for handshakes.
    fn report(&mut self) -> Report {
        let tally = &mut self.desk.tally;
        let mut report = tally.figures(Duration::ZERO, 0);
        tally.begin();
        self.settle(&mut report);
        report
    }

    /// Completes a report with what is of the whole job.
    fn settle(&mut self, report: &mut Report) {
        for tunnel in &mut self.tunnels {
            self.desk.tally.faults.add(&tunnel.take_faults());
        }
        self.desk.tally.close(report);
        if self.is_settled() {
            report.stuck = 0;
        }
    }

    /// Waits for events, at most so long, and lets their tunnels go on. What changed is added
    /// to `changes`.
    fn turn(&mut self, wait: Duration) -> io::Result<()> {
        let release = self.desk.next_release();
        let release = release.map(|at| at.saturating_duration_since(Instant::now()));
        let wait = release.map_or(wait, |release| wait.min(release));
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            polled => polled?,
        }
        for event in &self.events {
            let index = event.token().0;
            let tunnel = &mut self.tunnels[index];
            tunnel.note(event);
            if let Some(change) = tunnel.serve(&mut self.desk) {
                self.changes.push((index, change));
            }
        }
        self.end_waits();
        Ok(())
    }

    fn end_waits(&mut self) {
        let now = Instant::now();
        while let Some(index) = self.desk.released(now) {
            let change = self.tunnels[index].release(&mut self.desk);
            self.changes.extend(change.map(|change| (index, change)));
        }
        while let Some((deadline, index)) = self.desk.overdue(now) {
            if let Some(change) = self.tunnels[index].overdue(&mut self.desk, deadline) {
                self.changes.push((index, change));
            }
        }
    }

    /// Begins a connection in a place that is free.
    fn connect(&mut self, index: usize) -> Option<Change> {
        self.tunnels[index].connect(self.poll.registry(), &mut self.desk)
    }
}

/// Whether it was the fleet that wanted the end.
const fn is_ours(end: End) -> bool {
    matches!(end, End::Polite | End::CloseUnanswered)
}
