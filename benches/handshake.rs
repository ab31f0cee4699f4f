//! Handshakes end to end, through a real worker process: connect, upgrade, a 101 that is
//! verified, a polite close of both sides.

#[path = "support/gateway.rs"]
mod gateway;
#[path = "support/stage.rs"]
mod stage;

use std::process::ExitCode;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group};
use stage::{Bill, Stage, must};
use wsgate_load::job::{Open, Run, Until, Work};

/// Short tunnels that do nothing but begin and end.
fn lives(total: u64, concurrency: usize) -> Run {
    Run {
        work: Work::Lives {
            concurrency,
            echoes: 0,
        },
        until: Until::Total(total),
        ..Run::default()
    }
}

fn handshakes(c: &mut Criterion) {
    let stage = must(Stage::set());
    let open = Open {
        tunnels: 0,
        ..Open::default()
    };
    let mut fleet = must(stage.open(open));
    let mut group = c.benchmark_group("handshake");
    group.sampling_mode(SamplingMode::Flat);
    group.throughput(Throughput::Elements(1));
    for concurrency in [1, 64] {
        let mut bill = Bill::default();
        group.bench_function(BenchmarkId::new("in flight", concurrency), |b| {
            b.iter_custom(|total| {
                must(stage.run(&mut fleet, lives(total, concurrency), &mut bill))
            });
        });
        must(bill.print("handshake"));
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(5));
    targets = handshakes
}

fn main() -> ExitCode {
    if let Some(code) = wsgate_load::role::run_if_child() {
        return code;
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
    ExitCode::SUCCESS
}
