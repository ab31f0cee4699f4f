//! Clients and servers, each in several processes.
//!
//! Whatever the fleets do they do at the same time, and it counts only if nothing went wrong in any of them.

use std::io;
use std::net::SocketAddr;
use std::thread;

use wsgate_load::job::{Run, Until, Work};
use wsgate_load::report::Report;
use wsgate_load::role::{EchoProcess, FleetProcess};

use crate::plan::{Plan, SIZE};
use crate::progress;

/// Tunnels of each fleet whose message is on its way.
const ACTIVE: usize = 256;

#[derive(Debug)]
pub(crate) struct Servers {
    _processes: Vec<EchoProcess>,
    addresses: Vec<SocketAddr>,
}

impl Servers {
    pub(crate) fn start(plan: &Plan) -> io::Result<Self> {
        let processes = (0..plan.processes)
            .map(|process| EchoProcess::spawn(&plan.listen(process), None))
            .collect::<io::Result<Vec<_>>>()?;
        let addresses = processes.iter().flat_map(EchoProcess::addresses);
        Ok(Self {
            addresses: addresses.copied().collect(),
            _processes: processes,
        })
    }

    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

#[derive(Debug)]
pub(crate) struct Fleets<'a> {
    plan: &'a Plan,
    gateway: SocketAddr,
    processes: Vec<FleetProcess>,
}

impl<'a> Fleets<'a> {
    pub(crate) fn start(plan: &'a Plan, gateway: SocketAddr) -> io::Result<Self> {
        let processes = (0..plan.processes).map(|_| FleetProcess::spawn(None));
        Ok(Self {
            plan,
            gateway,
            processes: processes.collect::<io::Result<_>>()?,
        })
    }

    /// Opens all tunnels.
    ///
    /// # Errors
    /// If one does not open.
    pub(crate) fn open(&mut self) -> io::Result<Report> {
        let (plan, gateway) = (self.plan, self.gateway);
        let report = self.each("opening", |number, fleet| {
            fleet.open(&plan.open(number, gateway))
        })?;
        self.all_open(report)
    }

    /// A message in each tunnel, and back.
    ///
    /// # Errors
    /// If an echo is missing or wrong.
    pub(crate) fn echo(&mut self) -> io::Result<Report> {
        let run = run(
            Work::Messages { window: 1 },
            Until::Each {
                messages: 1,
                active: ACTIVE,
            },
        );
        let report = self.each("an echo in each", |_, fleet| fleet.run(&run))?;
        match report.messages == self.plan.tunnels {
            true => self.all_open(report),
            false => Err(io::Error::other(format!(
                "{} of {} tunnels have echoed",
                report.messages, self.plan.tunnels
            ))),
        }
    }

    /// Begins a job and does not wait for it.
    pub(crate) fn begin(&mut self, run: &Run) -> io::Result<()> {
        self.processes.iter_mut().try_for_each(|it| it.start(run))
    }

    /// Something else goes on from now on, see [`Report::phases`].
    pub(crate) fn phase(&mut self, number: u8) -> io::Result<()> {
        self.processes
            .iter_mut()
            .try_for_each(|it| it.phase(number))
    }

    /// The end of what was begun.
    ///
    /// # Errors
    /// If anything went wrong, or a tunnel is not open any more.
    pub(crate) fn finish(&mut self) -> io::Result<Report> {
        let report = self.each("echoes and new connections", |_, fleet| fleet.finish())?;
        self.all_open(report)
    }

    /// Closes all tunnels.
    ///
    /// # Errors
    /// If one does not end politely.
    pub(crate) fn close(&mut self) -> io::Result<Report> {
        let report = self.each("closing", |_, fleet| fleet.close())?;
        match report.ends.get("polite") == Some(&self.plan.tunnels) {
            true => Ok(report),
            false => Err(io::Error::other(format!("closed: {:?}", report.ends))),
        }
    }

    fn all_open(&self, report: Report) -> io::Result<Report> {
        match report.open == self.plan.tunnels {
            true => Ok(report),
            false => Err(io::Error::other(format!(
                "{} of {} tunnels are open",
                report.open, self.plan.tunnels
            ))),
        }
    }

    /// Has every fleet do something, all at once.
    fn each(
        &mut self,
        what: &str,
        job: impl Fn(usize, &mut FleetProcess) -> io::Result<Report> + Sync,
    ) -> io::Result<Report> {
        progress(what);
        let job = &job;
        let reports: Vec<_> = thread::scope(|scope| {
            let fleets = self.processes.iter_mut().enumerate();
            let threads: Vec<_> = fleets
                .map(|(number, fleet)| scope.spawn(move || job(number, fleet)))
                .collect();
            let panicked = |_| Err(io::Error::other("a thread has panicked"));
            let ends = threads.into_iter().map(|it| it.join());
            ends.map(|end| end.unwrap_or_else(panicked)).collect()
        });
        let mut sum = Report::default();
        for report in reports {
            sum.add(&report?);
        }
        sound(what, &sum)?;
        Ok(sum)
    }
}

/// A job with messages as they are here.
pub(crate) fn run(work: Work, until: Until) -> Run {
    Run {
        work,
        until,
        size: SIZE,
        ..Run::default()
    }
}

/// That nothing was wrong.
pub(crate) fn sound(what: &str, report: &Report) -> io::Result<()> {
    let sound = report.sound();
    sound.map_err(|problem| io::Error::other(format!("{what}: {problem}")))
}
