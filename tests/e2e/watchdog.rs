//! Workers that are stuck, and such as only seem to be.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio_tungstenite::tungstenite::Message;
use wsgate_protocol::admin::WorkerStatus;

use crate::configs;
use crate::crash::{assert_unnoticed, tunnels_of};
use crate::support::backend::Echo;
use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::load::{self, Attempt, Storm, alone};
use crate::support::process;
use crate::support::wait::{SOON, all_along, eventually, until};

const TIMEOUT: Duration = Duration::from_secs(2);

/// So many workers, and a watchdog with [`TIMEOUT`].
fn config(workers: usize, echo: &Echo) -> String {
    let head = format!("workers = {workers}\n[watchdog]\ntimeout = \"2s\"\n");
    configs::with(&head, &[&echo.address])
}

/// Waits until the watchdog has ended so many workers, and says how long that took.
async fn stuck(gateway: &Gateway, workers: u64) -> Duration {
    let since = Instant::now();
    until("the watchdog acts", TIMEOUT + SOON, async || {
        gateway.status().await.totals.workers_stuck >= workers
    })
    .await;
    since.elapsed()
}

/// Waits until every slot has a worker of its own that answers.
async fn whole_again(gateway: &Gateway, workers: usize) -> Vec<WorkerStatus> {
    eventually("every slot has its worker", SOON, async || {
        let status = gateway.status().await;
        let whole = status.vacant_slots.is_empty() && status.workers.len() == workers;
        whole.then_some(status.workers)
    })
    .await
}

async fn under_way(echo: &Echo) {
    let before = echo.sessions().len();
    until("the storm is on", SOON, async || {
        echo.sessions().len() > before + 100
    })
    .await;
}

/// None was refused, and of those that came after the worker had stopped every one was served by
/// another: only what it had accepted before could not be helped.
fn assert_waited_and_served(attempts: &[Attempt], stopped: Instant) {
    let refused = |attempt: &&Attempt| {
        let problem = attempt.problem.as_deref().unwrap_or_default();
        problem.contains("connect:") || problem.contains("within")
    };
    assert_eq!(
        attempts.iter().filter(refused).count(),
        0,
        "{:?}",
        load::problems(attempts)
    );
    let later = attempts.iter().filter(|attempt| attempt.began > stopped);
    let failed: Vec<_> = later.filter(|attempt| attempt.problem.is_some()).collect();
    assert!(failed.is_empty(), "{failed:?}");
    let slowest = load::slowest(attempts);
    assert!(
        slowest > TIMEOUT / 2,
        "none waited in its queue: {slowest:?} at most"
    );
    assert!(slowest < TIMEOUT * 2, "{slowest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_stopped_is_replaced_and_who_waited_for_it_is_served() {
    let _alone = alone().await;
    let echo = Echo::start().await;
    let gateway = Gateway::start(&config(2, &echo)).await;
    let victim = gateway.active_workers().await[0].clone();
    let held = tunnels_of(&gateway, victim.pid, 40).await;
    let storm = Storm::start(&gateway.ws_url("/"), 200);
    under_way(&echo).await;
    process::signal(victim.pid, Signal::STOP);
    let stopped = Instant::now();
    let took = stuck(&gateway, 1).await;
    assert!(
        took > TIMEOUT / 2 && took < TIMEOUT * 2,
        "the watchdog acted after {took:?}"
    );
    whole_again(&gateway, 2).await;
    under_way(&echo).await;
    assert_waited_and_served(&storm.stop().await, stopped);
    for tunnel in held.mine {
        assert!(tunnel.ended(SOON).await.faults.is_empty());
    }
    assert_unnoticed(held.others).await;
    assert_eq!(echo.faults(), [""; 0]);
    let totals = gateway.status().await.totals;
    assert_eq!((totals.workers_stuck, totals.worker_restarts), (1, 1));
    let pid = format!("pid={}", victim.pid);
    gateway
        .logged(&["worker is stuck", "slot=0", &pid, "silent_seconds", "core"])
        .await;
    gateway.logged(&["worker ended", &pid, "SIGABRT"]).await;
}

async fn one_that_hangs_is_replaced(hook: &str) {
    let _alone = alone().await;
    let echo = Echo::start().await;
    let gateway = Gateway::start(&config(2, &echo)).await;
    let victim = gateway.active_workers().await[1].clone();
    let held = tunnels_of(&gateway, victim.pid, 40).await;
    gateway.hooks(&format!("{hook} pid={}", victim.pid));
    stuck(&gateway, 1).await;
    let workers = whole_again(&gateway, 2).await;
    assert!(workers.iter().all(|worker| worker.pid != victim.pid));
    drop(held.mine);
    assert_unnoticed(held.others).await;
    assert_eq!(gateway.status().await.totals.workers_stuck, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_loops_for_ever_is_replaced() {
    one_that_hangs_is_replaced("loop").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_waits_for_ever_is_replaced() {
    one_that_hangs_is_replaced("wait").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_merely_busy_is_not() {
    let _alone = alone().await;
    let echo = Echo::start().await;
    let gateway = Gateway::start(&config(2, &echo)).await;
    let busy = gateway.active_workers().await[0].clone();
    gateway.hooks(&format!("busy=1400 pid={}", busy.pid));
    let mut unresponsive = 0;
    all_along("nobody is replaced", TIMEOUT * 4, async || {
        let status = gateway.status().await;
        let state = |worker: &WorkerStatus| format!("{:?}", worker.state);
        unresponsive += status
            .workers
            .iter()
            .filter(|worker| worker.pid == busy.pid && state(worker) == "Unresponsive")
            .count();
        status.totals.workers_stuck == 0
    })
    .await;
    assert!(unresponsive > 0, "it was not busy");
    gateway.hooks("");
    let workers = gateway.active_workers().await;
    assert_eq!(workers[0].pid, busy.pid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_worker_is_replaced_after_its_successor_is_there() {
    let _alone = alone().await;
    let echo = Echo::start().await;
    let gateway = Gateway::start(&config(1, &echo)).await;
    let victim = gateway.active_workers().await[0].clone();
    let storm = Storm::start(&gateway.ws_url("/"), 100);
    under_way(&echo).await;
    process::signal(victim.pid, Signal::STOP);
    let stopped = Instant::now();
    stuck(&gateway, 1).await;
    whole_again(&gateway, 1).await;
    under_way(&echo).await;
    assert_waited_and_served(&storm.stop().await, stopped);
    assert_eq!(
        gateway.status().await.totals.worker_restarts,
        0,
        "the successor was there before the stuck one ended"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_worker_that_goes_on_before_its_successor_is_there_stays() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&config(1, &echo)).await;
    let mut tunnel = Client::open(&gateway.ws_url("/")).await;
    let worker = gateway.active_workers().await[0].clone();
    gateway.hooks("never-ready slot=0");
    process::signal(worker.pid, Signal::STOP);
    until("a successor starts", TIMEOUT + SOON, async || {
        gateway.status().await.workers.len() == 2
    })
    .await;
    process::signal(worker.pid, Signal::CONT);
    tunnel.echo(Message::text("still here")).await;
    gateway.hooks("");
    let workers = whole_again(&gateway, 1).await;
    assert_eq!(workers[0].pid, worker.pid);
    tunnel.echo(Message::text("as before")).await;
    assert_eq!(gateway.status().await.totals.workers_stuck, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_are_stuck_together_are_replaced_one_after_the_other() {
    let _alone = alone().await;
    let echo = Echo::start().await;
    let gateway = Gateway::start(&config(3, &echo)).await;
    let victims = gateway.active_workers().await;
    let storm = Storm::start(&gateway.ws_url("/"), 100);
    under_way(&echo).await;
    for victim in &victims {
        process::signal(victim.pid, Signal::STOP);
    }
    stuck(&gateway, 3).await;
    let workers = whole_again(&gateway, 3).await;
    let old: Vec<u32> = victims.iter().map(|victim| victim.pid).collect();
    assert!(workers.iter().all(|worker| !old.contains(&worker.pid)));
    under_way(&echo).await;
    let attempts = storm.stop().await;
    let unserved = attempts.iter().filter(|attempt| {
        let problem = attempt.problem.as_deref().unwrap_or_default();
        problem.contains("connect:") || problem.contains("within")
    });
    assert_eq!(unserved.count(), 0, "{:?}", load::problems(&attempts));
    // Each end is logged before the next one begins.
    let log = gateway.log();
    let told: Vec<&str> = log
        .lines()
        .filter_map(|line| {
            let words = ["worker is stuck", "worker ended"];
            words.into_iter().find(|word| line.contains(word))
        })
        .collect();
    assert_eq!(told, ["worker is stuck", "worker ended"].repeat(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_worker_that_is_stuck_is_ended_and_not_replaced() {
    let echo = Echo::start().await;
    let config = config(2, &echo).replace("[watchdog]", "[drain]\nhandover = false\n[watchdog]");
    let gateway = Gateway::start(&config).await;
    let client = Client::open(&gateway.ws_url("/")).await;
    gateway.holds(1).await;
    let old = gateway.tunnels().await[0].worker;
    gateway.edit(&format!("{config}\nretries = 1"));
    gateway.generation(2).await;
    process::signal(old, Signal::STOP);
    stuck(&gateway, 1).await;
    until("its generation is gone", SOON, async || {
        let status = gateway.status().await;
        status.generations.len() == 1 && status.workers.len() == 2
    })
    .await;
    assert_eq!(gateway.status().await.totals.worker_restarts, 0);
    drop(client);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_supervisor_that_stood_still_blames_nobody() {
    let _alone = alone().await;
    let echo = Echo::start().await;
    let gateway = Gateway::start(&config(2, &echo)).await;
    let workers = gateway.active_workers().await;
    let pids: Vec<u32> = workers.iter().map(|worker| worker.pid).collect();
    let mut tunnel = Client::open(&gateway.ws_url("/")).await;
    // The machine stands still bit by bit: first a worker, and the supervisor when it has seen some of
    // its silence. And the worker is a moment late to go on.
    let late = gateway.tunnels().await[0].worker;
    process::signal(late, Signal::STOP);
    until("it is silent for a while", SOON, async || {
        let workers = gateway.active_workers().await;
        let mut late = workers.iter().filter(|worker| worker.pid == late);
        late.any(|worker| worker.last_heard_seconds > Some(TIMEOUT.as_secs_f64() / 4.0))
    })
    .await;
    process::signal(gateway.pid, Signal::STOP);
    all_along("nobody ends", TIMEOUT * 2, async || {
        process::children(gateway.pid).len() == 2
    })
    .await;
    process::signal(gateway.pid, Signal::CONT);
    all_along("it is not blamed at once", TIMEOUT / 2, async || {
        gateway.status().await.totals.workers_stuck == 0
    })
    .await;
    process::signal(late, Signal::CONT);
    tunnel.echo(Message::text("here again")).await;
    all_along("and not later", TIMEOUT * 2, async || {
        gateway.status().await.totals.workers_stuck == 0
    })
    .await;
    let after = gateway.active_workers().await;
    let after: Vec<u32> = after.iter().map(|worker| worker.pid).collect();
    assert_eq!(after, pids);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_watchdog_a_stopped_worker_is_left_alone() {
    let echo = Echo::start().await;
    let head = "workers = 2\n[watchdog]\ntimeout = \"off\"\n";
    let gateway = Gateway::start(&configs::with(head, &[&echo.address])).await;
    let frozen = gateway.active_workers().await[0].pid;
    process::signal(frozen, Signal::STOP);
    all_along("it lives", TIMEOUT * 2, async || {
        process::children(gateway.pid).contains_key(&frozen)
    })
    .await;
    process::signal(frozen, Signal::CONT);
    assert_eq!(gateway.status().await.totals.workers_stuck, 0);
}
