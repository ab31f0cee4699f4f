//! The echo server and the fleet as processes of their own.
//!
//! A benchmark starts itself again with a hidden argument; the child is told what to do by lines of
//! JSON on its standard input, and answers by lines on its standard output. It ends when its input does, so none
//! outlives the benchmark.

use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, channel};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::echo::{Echo, Stop};
use crate::fleet::{Fleet, Halt, Phase};
use crate::job::{Open, Run};
use crate::machine;
use crate::report::Report;

/// The argument in front of the role's name.
const ROLE: &str = "--wsgate-load-role";

/// The first line to an echo server.
#[derive(Debug, Serialize, Deserialize)]
struct Serve {
    listen: Vec<SocketAddr>,
    core: Option<usize>,
}

/// The lines to a fleet.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    Pin(usize),
    Open(Open),
    Run(Run),
    /// Ends a run that goes on until then; not answered.
    Halt,
    /// Something else goes on from now on; not answered.
    Phase(u8),
    Close,
}

type Answer<T> = Result<T, String>;

/// To be called first by `main`: if this process was started as a child it does its part, and
/// `main` has to return this code.
#[must_use]
pub fn run_if_child() -> Option<ExitCode> {
    let mut args = std::env::args().skip(1);
    if args.next()? != ROLE {
        return None;
    }
    let done = match args.next().as_deref() {
        Some("echo") => echo(),
        Some("fleet") => fleet(),
        other => Err(io::Error::other(format!("no such role: {other:?}"))),
    };
    Some(match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever reads nothing any more is gone.
            drop(say(&Answer::<()>::Err(error.to_string())));
            ExitCode::FAILURE
        }
    })
}

fn echo() -> io::Result<()> {
    machine::raise_nofile()?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    let serve: Serve = serde_json::from_str(&line)?;
    if let Some(core) = serve.core {
        machine::pin_here(core)?;
    }
    let echo = Echo::bind(&serve.listen)?;
    say(&Ok(echo.addresses()))?;
    let stop = echo.stopper();
    std::thread::spawn(move || stop_at_eof(&stop));
    echo.run()
}

fn stop_at_eof(stop: &Stop) {
    // An error is an end as well; and if the server cannot be woken it ends with the process.
    drop(io::copy(&mut io::stdin().lock(), &mut io::sink()));
    if stop.stop().is_err() {
        std::process::exit(1);
    }
}

fn fleet() -> io::Result<()> {
    machine::raise_nofile()?;
    let (halt, phase, mut fleet) = (Halt::default(), Phase::default(), None);
    for order in orders(halt.clone(), phase.clone()) {
        say(&obey(&mut fleet, (&halt, &phase), order?).map_err(|error| error.to_string()))?;
    }
    Ok(())
}

/// All orders but those that are obeyed where they are read: the fleet is at work then.
fn orders(halt: Halt, phase: Phase) -> Receiver<io::Result<Order>> {
    let (orders, taken) = channel();
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            let order = line.and_then(|line| Ok(serde_json::from_str(&line)?));
            match order {
                Ok(Order::Halt) => halt.halt(),
                Ok(Order::Phase(number)) => phase.begin(number),
                order => drop(orders.send(order)),
            }
        }
        // Nobody is left to report to; the fleet may be at work for long.
        std::process::exit(0);
    });
    taken
}

fn obey(
    fleet: &mut Option<Fleet>,
    (halt, phase): (&Halt, &Phase),
    order: Order,
) -> io::Result<Report> {
    match order {
        Order::Pin(core) => machine::pin_here(core).map(|()| Report::default()),
        Order::Open(open) => {
            let (mut opened, report) = Fleet::try_open(open)?;
            opened.obey(halt, phase);
            *fleet = Some(opened);
            Ok(report)
        }
        Order::Run(run) => {
            let report = fleet.as_mut().ok_or_else(none_open)?.run(&run);
            halt.reset();
            report
        }
        // They never come here.
        Order::Halt | Order::Phase(_) => Ok(Report::default()),
        Order::Close => fleet.take().ok_or_else(none_open)?.close(),
    }
}

fn none_open() -> io::Error {
    io::Error::other("no fleet is open")
}

fn say<T: Serialize>(answer: &Answer<T>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, answer)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// A child and its two ends. Dropping it ends the child.
#[derive(Debug)]
struct Process {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Process {
    fn spawn(role: &str) -> io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([ROLE, role])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let from = child.stdout.take().ok_or_else(gone)?;
        Ok(Self {
            to: child.stdin.take(),
            from: BufReader::new(from),
            child,
        })
    }

    fn tell<T: Serialize>(&mut self, order: &T) -> io::Result<()> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        self.to.as_mut().ok_or_else(gone)?.write_all(&line)
    }

    fn hear<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        let mut line = String::new();
        if self.from.read_line(&mut line)? == 0 {
            return Err(gone());
        }
        let answer: Answer<T> = serde_json::from_str(&line)?;
        answer.map_err(io::Error::other)
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the load process has ended")
}

impl Drop for Process {
    fn drop(&mut self) {
        // Its input ends. A fleet that is at work would not see that.
        self.to = None;
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// An echo server in a process of its own.
#[derive(Debug)]
pub struct EchoProcess {
    process: Process,
    addresses: Vec<SocketAddr>,
}

impl EchoProcess {
    /// Starts it, on one core if one is given, and waits until it listens.
    ///
    /// # Errors
    /// Those of starting, and those of the child.
    pub fn spawn(listen: &[SocketAddr], core: Option<usize>) -> io::Result<Self> {
        let mut process = Process::spawn("echo")?;
        process.tell(&Serve {
            listen: listen.to_vec(),
            core,
        })?;
        let addresses = process.hear()?;
        Ok(Self { process, addresses })
    }

    /// Where it listens, in the order of `listen`.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }
}

/// A fleet in a process of its own.
#[derive(Debug)]
pub struct FleetProcess(Process);

impl FleetProcess {
    /// Starts it, on one core if one is given.
    ///
    /// # Errors
    /// Those of starting, and those of the child.
    pub fn spawn(core: Option<usize>) -> io::Result<Self> {
        let mut fleet = Self(Process::spawn("fleet")?);
        if let Some(core) = core {
            fleet.ask(&Order::Pin(core))?;
        }
        Ok(fleet)
    }

    /// [`Fleet::try_open`]. The tunnels of the last one are dropped.
    ///
    /// # Errors
    /// Those of the child.
    pub fn open(&mut self, open: &Open) -> io::Result<Report> {
        self.ask(&Order::Open(open.clone()))
    }

    /// [`Fleet::run`].
    ///
    /// # Errors
    /// Those of the child.
    pub fn run(&mut self, run: &Run) -> io::Result<Report> {
        self.start(run)?;
        self.finish()
    }

    /// Begins a [`Self::run`] and does not wait for it.
    ///
    /// # Errors
    /// Those of the child.
    pub fn start(&mut self, run: &Run) -> io::Result<()> {
        self.0.tell(&Order::Run(run.clone()))
    }

    /// Ends what was begun with [`crate::job::Until::Halted`]; [`Self::finish`] has its report.
    ///
    /// # Errors
    /// Those of writing to the child.
    pub fn halt(&mut self) -> io::Result<()> {
        self.0.tell(&Order::Halt)
    }

    /// [`Phase::begin`].
    ///
    /// # Errors
    /// Those of writing to the child.
    pub fn phase(&mut self, number: u8) -> io::Result<()> {
        self.0.tell(&Order::Phase(number))
    }

    /// Waits for what was begun.
    ///
    /// # Errors
    /// Those of the child.
    pub fn finish(&mut self) -> io::Result<Report> {
        self.0.hear()
    }

    /// [`Fleet::close`].
    ///
    /// # Errors
    /// Those of the child.
    pub fn close(&mut self) -> io::Result<Report> {
        self.ask(&Order::Close)
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.child.id()
    }

    fn ask(&mut self, order: &Order) -> io::Result<Report> {
        self.0.tell(order)?;
        self.0.hear()
    }
}
