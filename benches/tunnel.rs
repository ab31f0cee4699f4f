//! Tunnel throughput: payload through a real worker process, over loopback.
//!
//! One direction: the server swallows messages and says now and then how many it took. Both
//! directions: it echoes each. Every message is checked, on the side where it ends. What is
//! counted is payload as often as it was relayed: an echo twice.

#[path = "support/gateway.rs"]
mod gateway;
#[path = "support/stage.rs"]
mod stage;

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group,
};
use stage::{Bill, Stage, must};
use wsgate_load::fleet::Fleet;
use wsgate_load::job::{Mode, Open, Run, Until, Work};

const SIZES: [usize; 4] = [64, 1024, 16 * 1024, 64 * 1024];
const TUNNELS: [usize; 3] = [1, 64, 1024];

/// Messages of one iteration, at least, over all tunnels.
const MESSAGES: usize = 1024;

/// Messages in flight, at least, over all tunnels.
const IN_FLIGHT: usize = 64;

/// Payload bytes after which a sink says what it took; after each message, if they are larger. Answers to
/// each small message would be as much traffic as the messages.
const ACK: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Directions {
    One,
    Both,
}

impl Directions {
    const fn group(self) -> &'static str {
        match self {
            Self::One => "tunnel/one direction",
            Self::Both => "tunnel/both directions",
        }
    }

    /// What a message comes to.
    const fn unit(self) -> &'static str {
        match self {
            Self::One => "message",
            Self::Both => "echo",
        }
    }
}

/// One benchmark.
#[derive(Clone, Copy, Debug)]
struct Case {
    directions: Directions,
    tunnels: usize,
    size: usize,
}

impl Case {
    /// Messages of a tunnel that one answer is for.
    fn batch(self) -> usize {
        match self.directions {
            Directions::One => (ACK / self.size).max(1),
            Directions::Both => 1,
        }
    }

    /// Messages of each tunnel in one iteration: whole batches, or the last answer would not come.
    fn messages(self) -> usize {
        let batches = MESSAGES / (self.tunnels * self.batch());
        self.batch() * batches.max(1)
    }

    /// While one batch is being answered the next is on its way.
    fn window(self) -> usize {
        let batches = if self.batch() > 1 { 2 } else { 1 };
        (batches * self.batch()).max(IN_FLIGHT / self.tunnels)
    }

    fn mode(self) -> Mode {
        match (self.directions, self.batch()) {
            (Directions::Both, _) => Mode::Echo,
            (Directions::One, 1) => Mode::Sink { bytes: 0 },
            (Directions::One, batch) => Mode::Sink {
                bytes: (batch * self.size) as u64,
            },
        }
    }

    /// Payload that the worker relays in one iteration.
    fn throughput(self) -> Throughput {
        let relayed = match self.directions {
            Directions::One => 1,
            Directions::Both => 2,
        };
        Throughput::Bytes((self.tunnels * self.messages() * self.size * relayed) as u64)
    }

    fn open(self, stage: &Stage) -> io::Result<Fleet> {
        stage.open(Open {
            mode: self.mode(),
            tunnels: self.tunnels,
            longest: self.size,
            ..Open::default()
        })
    }

    /// So many iterations in one go.
    fn run(self, iterations: u64) -> Run {
        Run {
            work: Work::Messages {
                window: self.window() as u32,
            },
            size: self.size,
            until: Until::Each {
                messages: self.messages() as u64 * iterations,
                active: self.tunnels,
            },
            ..Run::default()
        }
    }
}

fn throughput(c: &mut Criterion) {
    let stage = must(Stage::set());
    for directions in [Directions::One, Directions::Both] {
        let mut group = c.benchmark_group(directions.group());
        group.sampling_mode(SamplingMode::Flat);
        for (tunnels, size) in TUNNELS
            .into_iter()
            .flat_map(|n| SIZES.map(|size| (n, size)))
        {
            let case = Case {
                directions,
                tunnels,
                size,
            };
            must(measure(&mut group, &stage, case));
        }
        group.finish();
    }
}

fn measure(group: &mut BenchmarkGroup<'_, WallTime>, stage: &Stage, case: Case) -> io::Result<()> {
    let id = format!("tunnels {}", case.tunnels);
    let id = BenchmarkId::new(id, format!("{} B", case.size));
    let mut fleet = None;
    let mut bill = Bill::default();
    group.throughput(case.throughput());
    group.bench_function(id, |b| {
        // Not before: the benchmark may be left out.
        let fleet = fleet.get_or_insert_with(|| must(case.open(stage)));
        b.iter_custom(|iterations| must(stage.run(fleet, case.run(iterations), &mut bill)));
    });
    bill.print(case.directions.unit())?;
    let Some(fleet) = fleet else { return Ok(()) };
    fleet.close()?.sound().map_err(io::Error::other)
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4));
    targets = throughput
}

fn main() -> ExitCode {
    if let Some(code) = wsgate_load::role::run_if_child() {
        return code;
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
    ExitCode::SUCCESS
}
