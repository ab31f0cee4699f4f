//! One job, from its start until nothing of it is in flight: who sends when, what is
//! measured, when it is over.

mod pace;

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use crate::check::STAMP;
use crate::fleet::desk::Orders;
use crate::fleet::shift::pace::Pace;
use crate::fleet::tunnel::{Change, Tunnel};
use crate::fleet::{Fleet, is_ours};
use crate::job::{Run, Until, Work};
use crate::machine::Clocks;
use crate::report::Report;

/// Longest wait for events: what is due at a time comes no later.
const TICK: Duration = Duration::from_millis(100);

/// With nothing coming back for so long, what is in flight is given up.
const STALLED: Duration = Duration::from_secs(15);

/// Before a tunnel that could not be opened is tried again.
const RETRY: Duration = Duration::from_millis(100);

pub(super) struct Shift<'a> {
    run: &'a Run,
    clocks: Clocks,
    began: Instant,
    /// When the measured part began, and what the CPU clocks said.
    measured: Option<(Instant, u64)>,
    report: Option<Report>,
    /// Messages, renewals and arrivals that were due so far.
    sends: Pace,
    renewals: Pace,
    arrivals: Pace,
    /// Tunnels that have not begun their part.
    waiting: VecDeque<usize>,
    /// Tunnels to be opened again, and when.
    retries: VecDeque<(Instant, usize)>,
    /// Places where a short tunnel may begin.
    free: Vec<usize>,
    /// Short tunnels that may still begin.
    lives_left: u64,
    /// Tunnels that have not all of their answers.
    unfinished: usize,
    progress: (Instant, u64),
}

impl<'a> Shift<'a> {
    pub(super) fn new(run: &'a Run, fleet: &mut Fleet) -> io::Result<Self> {
        if run.size < STAMP || run.size > fleet.desk.open.longest {
            return Err(invalid(
                "a message is at least a stamp, and at most as long as the fleet's longest",
            ));
        }
        let (sends, renewals, arrivals) = paces(run.work, fleet.tunnels.len());
        let now = Instant::now();
        let shift = Self {
            run,
            clocks: Clocks::of(&run.clocks)?,
            began: now,
            measured: None,
            report: None,
            sends,
            renewals,
            arrivals,
            waiting: VecDeque::new(),
            retries: VecDeque::new(),
            free: Vec::new(),
            lives_left: u64::MAX,
            unfinished: 0,
            progress: (now, 0),
        };
        fleet.desk.orders = shift.orders();
        Ok(shift)
    }

    fn orders(&self) -> Orders {
        let life = match self.run.work {
            Work::Lives { echoes, .. } | Work::Arrivals { echoes, .. } => Some(echoes),
            _ => None,
        };
        Orders {
            size: self.run.size,
            window: match self.run.work {
                Work::Messages { window } => u64::from(window),
                _ => u64::MAX,
            },
            left: u64::MAX,
            allowed: match self.run.work {
                Work::Messages { .. } => u64::MAX,
                _ => life.unwrap_or(0),
            },
            life,
        }
    }

    pub(super) fn work(mut self, fleet: &mut Fleet) -> io::Result<Report> {
        fleet.changes.clear();
        self.began = Instant::now();
        self.measure(fleet, self.began)?;
        self.start(fleet);
        loop {
            self.follow(fleet);
            let now = Instant::now();
            self.measure(fleet, now)?;
            if self.report.is_some() && (self.is_drained(fleet) || self.is_stalled(fleet, now)) {
                break;
            }
            if self.report.is_none() {
                self.schedule(fleet, now);
            }
            let wait = self.wait(now);
            fleet.turn(wait)?;
        }
        let mut report = self.report.unwrap_or_default();
        fleet.settle(&mut report);
        Ok(report)
    }

    fn start(&mut self, fleet: &mut Fleet) {
        match (self.run.work, self.run.until) {
            (Work::Messages { .. }, Until::Each { active, .. }) => {
                let open = fleet
                    .tunnels
                    .iter()
                    .enumerate()
                    .filter(|(_, one)| one.is_open());
                self.waiting = open.map(|(index, _)| index).collect();
                self.unfinished = self.waiting.len();
                for _ in 0..active {
                    self.start_next(fleet);
                }
            }
            (Work::Messages { .. }, _) => {
                for index in 0..fleet.tunnels.len() {
                    allow(fleet, index, u64::MAX, false);
                }
            }
            (Work::Lives { concurrency, .. }, _) => {
                (0..concurrency).for_each(|_| self.arrive(fleet));
            }
            (Work::Idle | Work::Rate { .. } | Work::Arrivals { .. }, _) => {}
        }
    }

    fn start_next(&mut self, fleet: &mut Fleet) {
        if let (Some(index), Until::Each { messages, .. }) =
            (self.waiting.pop_front(), self.run.until)
        {
            allow(fleet, index, messages, true);
        }
    }

    /// A short tunnel begins.
    fn arrive(&mut self, fleet: &mut Fleet) {
        if self.lives_left == 0 {
            return;
        }
        self.lives_left = self.lives_left.saturating_sub(1);
        let index = self.free.pop().unwrap_or_else(|| {
            fleet.tunnels.push(Tunnel::new(fleet.tunnels.len()));
            fleet.tunnels.len() - 1
        });
        connect(fleet, index);
    }

    /// Does what changes ask for; that may change more.
    fn follow(&mut self, fleet: &mut Fleet) {
        while let Some((index, change)) = fleet.changes.pop() {
            match (change, self.run.work) {
                (Change::Reached, _) => self.finished(fleet),
                (Change::Ended(_), Work::Arrivals { .. }) => self.free.push(index),
                (Change::Ended(end), Work::Rate { .. } | Work::Lives { .. })
                    if self.report.is_none() =>
                {
                    match is_ours(end) {
                        true => self.again(fleet, index),
                        false => self.retries.push_back((Instant::now() + RETRY, index)),
                    }
                }
                // Its answers will never come.
                (Change::Ended(_), Work::Messages { .. }) => self.finished(fleet),
                (Change::Ended(_) | Change::Opened, _) => {}
            }
        }
    }

    /// A place whose tunnel has ended gets another.
    fn again(&mut self, fleet: &mut Fleet, index: usize) {
        match self.run.work {
            Work::Lives { .. } => {
                self.free.push(index);
                self.arrive(fleet);
            }
            _ => connect(fleet, index),
        }
    }

    fn finished(&mut self, fleet: &mut Fleet) {
        self.unfinished = self.unfinished.saturating_sub(1);
        self.start_next(fleet);
    }

    /// Begins and ends the measured part.
    fn measure(&mut self, fleet: &mut Fleet, now: Instant) -> io::Result<()> {
        let measured = self.measured;
        match measured {
            None if now >= self.began + self.run.warm_up => {
                fleet.desk.tally.begin();
                if let Until::Total(total) = self.run.until {
                    match self.run.work {
                        Work::Lives { .. } => self.lives_left = total,
                        _ => fleet.desk.orders.left = total,
                    }
                }
                self.measured = Some((Instant::now(), self.clocks.read()?));
            }
            Some((from, cpu)) if self.report.is_none() && self.is_over(fleet, now - from) => {
                let cpu = self.clocks.read()?.saturating_sub(cpu);
                self.report = Some(fleet.desk.tally.figures(from.elapsed(), cpu));
                self.end(fleet);
            }
            _ => {}
        }
        Ok(())
    }

    fn is_over(&mut self, fleet: &Fleet, measured: Duration) -> bool {
        let tally = &fleet.desk.tally;
        let over = match (self.run.until, self.run.work) {
            (Until::Elapsed(limit), _) => measured >= limit,
            (Until::Halted, _) => return fleet.halt.is_said(),
            (Until::Total(_), Work::Lives { .. }) => self.lives_left == 0 && tally.live == 0,
            (Until::Total(_), _) => {
                fleet.desk.orders.left == 0 && fleet.is_settled() || tally.live == 0
            }
            (Until::Each { .. }, _) => self.unfinished == 0,
        };
        over || self.is_stalled(fleet, Instant::now())
    }

    /// Nothing new from now on.
    fn end(&self, fleet: &mut Fleet) {
        // A short tunnel that has begun has its echoes yet.
        if !matches!(self.run.work, Work::Lives { .. } | Work::Arrivals { .. }) {
            fleet.tunnels.iter_mut().for_each(Tunnel::rest);
        }
    }

    fn is_drained(&self, fleet: &Fleet) -> bool {
        let tally = &fleet.desk.tally;
        match self.run.work {
            Work::Lives { .. } | Work::Arrivals { .. } => tally.live == 0,
            _ => tally.live == tally.opened && fleet.is_settled(),
        }
    }

    fn is_stalled(&mut self, fleet: &Fleet, now: Instant) -> bool {
        let tally = &fleet.desk.tally;
        let seen = tally.messages + tally.lives + tally.opened + tally.flying;
        if seen != self.progress.1 || tally.live == tally.opened && fleet.is_settled() {
            self.progress = (now, seen);
        }
        now - self.progress.0 >= STALLED
    }

    /// What is due at a time.
    fn schedule(&mut self, fleet: &mut Fleet, now: Instant) {
        let since = now - self.began;
        while let Some(number) = self.sends.due(since) {
            let index = (number % fleet.tunnels.len() as u64) as usize;
            if fleet.tunnels[index].is_open() {
                allow(fleet, index, 1, false);
            }
        }
        while let Some(number) = self.renewals.due(since) {
            let index = (number % fleet.tunnels.len() as u64) as usize;
            if fleet.tunnels[index].is_open() {
                close(fleet, index);
            }
        }
        while self.arrivals.due(since).is_some() {
            self.arrive(fleet);
        }
        while self.retries.front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, index)) = self.retries.pop_front() {
                self.again(fleet, index);
            }
        }
    }

    /// Until something is due; whole milliseconds, as epoll has them.
    fn wait(&self, now: Instant) -> Duration {
        if self.report.is_some() {
            return TICK;
        }
        let since = now - self.began;
        let paces = [&self.sends, &self.renewals, &self.arrivals];
        let due = paces.into_iter().filter_map(Pace::next);
        let retry = self
            .retries
            .front()
            .map(|(at, _)| at.saturating_duration_since(self.began));
        let marks = match self.measured {
            None => Some(self.run.warm_up),
            Some((from, _)) => match self.run.until {
                Until::Elapsed(limit) => Some(from - self.began + limit),
                _ => None,
            },
        };
        due.chain(retry)
            .chain(marks)
            .map(|at| at.saturating_sub(since))
            .fold(TICK, Duration::min)
    }
}

/// Of messages, renewals and arrivals.
const fn paces(work: Work, tunnels: usize) -> (Pace, Pace, Pace) {
    let (sends, renewals, arrivals) = match work {
        Work::Rate {
            per_second,
            renewals,
        } => (per_second * tunnels as f64, renewals, 0.0),
        Work::Arrivals { per_second, .. } => (0.0, 0.0, per_second),
        _ => (0.0, 0.0, 0.0),
    };
    (Pace::new(sends), Pace::new(renewals), Pace::new(arrivals))
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

fn allow(fleet: &mut Fleet, index: usize, messages: u64, tell: bool) {
    let change = fleet.tunnels[index].allow(&mut fleet.desk, messages, tell);
    fleet.changes.extend(change.map(|change| (index, change)));
}

fn connect(fleet: &mut Fleet, index: usize) {
    let change = fleet.connect(index);
    fleet.changes.extend(change.map(|change| (index, change)));
}

fn close(fleet: &mut Fleet, index: usize) {
    let change = fleet.tunnels[index].close(&mut fleet.desk);
    fleet.changes.extend(change.map(|change| (index, change)));
}
