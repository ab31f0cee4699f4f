//! Processes that die: what their clients see, and what nobody else may notice.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio_tungstenite::tungstenite::Message;

use crate::configs;
use crate::support::backend::Echo;
use crate::support::client::{Client, Sequenced};
use crate::support::gateway::Gateway;
use crate::support::load::{self, Attempt, Storm, alone};
use crate::support::process::{self, Process};
use crate::support::wait::{SOON, eventually, until};

/// Tunnels by the worker that holds them.
pub(crate) struct Held {
    pub(crate) mine: Vec<Sequenced>,
    pub(crate) others: Vec<Sequenced>,
}

/// Opens tunnels with traffic, and tells those of this worker from the rest.
pub(crate) async fn tunnels_of(gateway: &Gateway, worker: u32, count: usize) -> Held {
    let before = gateway.status().await.totals.tunnels_opened;
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(Client::open(&gateway.ws_url("/")).await);
    }
    let all = before + count as u64;
    gateway
        .counted("all are open", |totals| totals.tunnels_opened >= all)
        .await;
    let tunnels = gateway.tunnels_where(&format!("worker={worker}")).await;
    let mine: Vec<String> = tunnels.into_iter().map(|tunnel| tunnel.client).collect();
    let mut held = Held {
        mine: Vec::new(),
        others: Vec::new(),
    };
    for (number, client) in clients.into_iter().enumerate() {
        let is_mine = mine.contains(&client.local_address());
        let tunnel = Sequenced::run(client, number.to_string(), Duration::from_millis(50));
        if is_mine {
            &mut held.mine
        } else {
            &mut held.others
        }
        .push(tunnel);
    }
    assert!(
        held.mine.len() > 2 && held.others.len() > 2,
        "not spread over the workers"
    );
    held
}

/// Nothing lost, doubled or late on the tunnels of workers that live.
pub(crate) async fn assert_unnoticed(others: Vec<Sequenced>) {
    for tunnel in others {
        assert!(!tunnel.has_ended(), "a tunnel of another worker ended");
        let outcome = tunnel.stop().await;
        assert!(outcome.faults.is_empty(), "{outcome:?}");
        assert_eq!(outcome.echoed, outcome.sent);
        assert!(
            outcome.slowest < Duration::from_secs(1),
            "{:?}",
            outcome.slowest
        );
    }
}

/// No connection refused or failed but those that the dead worker had taken already, and
/// none that waited for more than a second.
///
/// A connection that a worker has accepted dies with it, and nobody can help that: its
/// handshake is in the dead process's memory. It is told by a reset or an early end.
fn assert_served(attempts: &[Attempt], deaths: usize) {
    let failed: Vec<&Attempt> = attempts
        .iter()
        .filter(|attempt| attempt.problem.is_some())
        .collect();
    let refused: Vec<&&Attempt> = failed
        .iter()
        .filter(|attempt| {
            let problem = attempt.problem.as_ref().unwrap();
            problem.contains("connect:") || problem.contains("within")
        })
        .collect();
    assert!(refused.is_empty(), "{refused:?}");
    // At 200 a second, each open for some milliseconds, a worker holds one or two.
    assert!(
        failed.len() <= deaths * 3,
        "{} failed: {:?}",
        failed.len(),
        load::problems(attempts)
    );
    let slowest = load::slowest(attempts);
    assert!(
        slowest <= Duration::from_secs(1),
        "a connection took {slowest:?}"
    );
}

async fn kill(pid: u32) -> Process {
    let process = Process::open(pid).unwrap();
    process.signal(Signal::KILL);
    assert!(process.ended_within(SOON));
    process
}

fn config(echo: &Echo) -> String {
    configs::with("workers = 2", &[&echo.address])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_dies_is_replaced_and_nobody_else_notices() {
    let _alone = alone().await;
    let echo = Echo::start().await;
    let gateway = Gateway::start(&config(&echo)).await;
    let victim = gateway.active_workers().await[0].clone();
    let held = tunnels_of(&gateway, victim.pid, 40).await;
    let storm = Storm::start(&gateway.ws_url("/"), 200);
    until("the storm is on", SOON, async || {
        echo.sessions().len() > 100
    })
    .await;
    kill(victim.pid).await;
    let successor = eventually("the slot has a new worker", SOON, async || {
        let workers = gateway.active_workers().await;
        workers.into_iter().find(|worker| {
            worker.slot == victim.slot && worker.pid != victim.pid && worker.tunnels > 0
        })
    })
    .await;
    assert_eq!(successor.generation, victim.generation);
    let before = echo.sessions().len();
    until("the storm goes on", SOON, async || {
        echo.sessions().len() > before + 100
    })
    .await;
    let attempts = storm.stop().await;
    assert_served(&attempts, 1);
    for tunnel in held.mine {
        let outcome = tunnel.ended(SOON).await;
        assert!(outcome.faults.is_empty(), "{outcome:?}");
    }
    assert_unnoticed(held.others).await;
    let status = gateway.status().await;
    assert_eq!(status.totals.worker_restarts, 1);
    assert_eq!(echo.faults(), [""; 0]);
}

async fn while_a_slot_crash_loops(hook: &str) {
    let _alone = alone().await;
    let echo = Echo::start().await;
    let gateway = Gateway::start(&config(&echo)).await;
    let victim = gateway.active_workers().await[0].clone();
    assert_eq!(victim.slot, 0);
    let held = tunnels_of(&gateway, victim.pid, 40).await;
    let storm = Storm::start(&gateway.ws_url("/"), 100);
    until("the storm is on", SOON, async || {
        echo.sessions().len() > 100
    })
    .await;
    gateway.hooks(&format!("{hook} slot=0"));
    kill(victim.pid).await;
    // Several starts: after 0.1, 0.2 and 0.4 s, and one more after 0.8 s. With the fifth death the slot
    // would wait for a minute.
    let vacant = eventually("it has died several times", SOON, async || {
        let status = gateway.status().await;
        status
            .vacant_slots
            .into_iter()
            .find(|vacant| vacant.deaths == 4)
    })
    .await;
    assert_eq!(vacant.slot, 0);
    let other = gateway
        .active_workers()
        .await
        .into_iter()
        .find(|worker| worker.slot == 1)
        .unwrap();
    assert_eq!(vacant.served_by, Some(other.pid));
    assert_eq!(other.serves_slots, [0], "{other:?}");
    gateway.hooks("");
    until("the slot has a worker again", SOON, async || {
        let status = gateway.status().await;
        status.vacant_slots.is_empty() && status.workers.len() == 2
    })
    .await;
    let before = echo.sessions().len();
    until("the storm goes on", SOON, async || {
        echo.sessions().len() > before + 50
    })
    .await;
    let attempts = storm.stop().await;
    assert_served(&attempts, 1);
    drop(held.mine);
    assert_unnoticed(held.others).await;
    let other = gateway
        .active_workers()
        .await
        .into_iter()
        .find(|worker| worker.slot == 1)
        .unwrap();
    assert_eq!(other.serves_slots, [0; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_whose_workers_crash_at_their_start_is_served_by_another() {
    while_a_slot_crash_loops("crash-at-start").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_whose_workers_crash_once_they_are_ready_is_served_by_another() {
    while_a_slot_crash_loops("crash-at-ready").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_whose_workers_crash_five_times_in_a_row_waits_until_a_reload() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&config(&echo)).await;
    let workers = gateway.active_workers().await;
    gateway.hooks("crash-at-start slot=0");
    kill(workers[0].pid).await;
    let slot = eventually("it is tried seldom", SOON, async || {
        let slots = gateway.status().await.vacant_slots;
        slots.into_iter().find(|slot| slot.crash_looping)
    })
    .await;
    assert_eq!((slot.slot, slot.deaths), (0, 5));
    assert!(slot.restart_in_seconds.unwrap() > 50.0, "{slot:?}");
    until("the other slot's worker serves", SOON, async || {
        let slots = gateway.status().await.vacant_slots;
        slots[0].served_by == Some(workers[1].pid)
    })
    .await;
    gateway
        .logged(&["ERROR", "slot=0", "crash again and again"])
        .await;
    for _ in 0..10 {
        Client::open(&gateway.ws_url("/")).await;
    }
    gateway.hooks("");
    // The same configuration: no new generation, and yet a try at once.
    assert_eq!(gateway.reload().await.status, 200);
    until("the slot has a worker again", SOON, async || {
        let status = gateway.status().await;
        status.vacant_slots.is_empty() && status.workers.len() == 2
    })
    .await;
    assert_eq!(gateway.active_workers().await[1].pid, workers[1].pid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_all_crash_are_tried_all_the_time() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&config(&echo)).await;
    gateway.hooks("crash-at-start");
    for worker in gateway.active_workers().await {
        process::signal(worker.pid, Signal::KILL);
    }
    until("they crash again and again", SOON, async || {
        let slots = gateway.status().await.vacant_slots;
        slots.len() == 2 && slots.iter().all(|slot| slot.deaths >= 6)
    })
    .await;
    gateway.logged(&["ERROR", "NOBODY SERVES"]).await;
    for slot in gateway.status().await.vacant_slots {
        assert!(
            slot.restart_in_seconds.is_none_or(|left| left <= 10.0),
            "{slot:?}"
        );
    }
    gateway.hooks("");
    until("both have workers again", SOON, async || {
        let status = gateway.status().await;
        status.vacant_slots.is_empty() && status.workers.len() == 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_workers_at_once_are_replaced() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&config(&echo)).await;
    let storm = Storm::start(&gateway.ws_url("/"), 50);
    until("the storm is on", SOON, async || echo.sessions().len() > 20).await;
    for worker in gateway.active_workers().await {
        process::signal(worker.pid, Signal::KILL);
    }
    until("both are replaced", SOON, async || {
        let status = gateway.status().await;
        status.totals.worker_restarts == 2 && status.vacant_slots.is_empty()
    })
    .await;
    assert_served(&storm.stop().await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_of_an_old_generation_that_dies_is_not_replaced() {
    let echo = Echo::start().await;
    let head = configs::draining("10m", 100);
    let number = |number: u64| configs::numbered(&head, &[&echo.address], number);
    let gateway = Gateway::start(&number(1)).await;
    let client = Client::open(&gateway.ws_url("/")).await;
    gateway.holds(1).await;
    gateway.edit(&number(2));
    gateway.reloaded().await;
    kill(gateway.tunnels().await[0].worker).await;
    until("its generation is gone", SOON, async || {
        let status = gateway.status().await;
        status.generations.len() == 1 && status.workers.len() == 2
    })
    .await;
    assert_eq!(gateway.status().await.totals.worker_restarts, 0);
    drop(client);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_worker_that_holds_a_slot_does_not_stop_the_other() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&config(&echo)).await;
    let frozen = gateway.active_workers().await[0].pid;
    let held = tunnels_of(&gateway, frozen, 20).await;
    process::signal(frozen, Signal::STOP);
    let before = Instant::now();
    let status = gateway.status().await;
    assert!(
        before.elapsed() < Duration::from_secs(2),
        "{:?}",
        before.elapsed()
    );
    assert_eq!(status.workers.len(), 2);
    assert_unnoticed(held.others).await;
    process::signal(frozen, Signal::CONT);
    for tunnel in held.mine {
        let outcome = tunnel.stop().await;
        assert!(
            outcome.faults.is_empty() && outcome.echoed == outcome.sent,
            "{outcome:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_gateway_with_the_same_address_or_socket_does_not_start() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&config(&echo)).await;
    let config = gateway.config();
    let twin = ["run", "--config", config.to_str().unwrap()];
    let output = crate::support::gateway::wsgate(&twin).await;
    assert_eq!(output.status.code(), Some(1));
    let said = crate::support::gateway::stderr(&output);
    assert!(said.contains(&format!("process {}", gateway.pid)), "{said}");
    let same_port = config_on(gateway.address(), &echo);
    let other = tempfile::tempdir().unwrap();
    let file = other.path().join("wsgate.toml");
    let socket = other.path().join("admin.sock");
    std::fs::write(&file, format!("{same_port}[admin]\nsocket = {socket:?}\n")).unwrap();
    let twin = ["run", "--config", file.to_str().unwrap()];
    let output = crate::support::gateway::wsgate(&twin).await;
    assert_eq!(output.status.code(), Some(1));
    let said = crate::support::gateway::stderr(&output);
    assert!(said.contains(gateway.address()), "{said}");
    // And the first one is as it was.
    Client::open(&gateway.ws_url("/"))
        .await
        .echo(Message::text("hello"))
        .await;
    assert_eq!(gateway.status().await.pid, gateway.pid);
}

fn config_on(address: &str, echo: &Echo) -> String {
    config(echo).replace("127.0.0.1:0", address)
}
