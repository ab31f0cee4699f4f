//! Drains that outlive the supervisor that began them: deadlines, the rate of closes, and the end of the
//! workers.

use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use http::Method;
use rustix::process::Signal;
use tokio_tungstenite::tungstenite::Message;
use wsgate_protocol::admin::{
    GenerationStatus, ServerState, ServerStateChanged, TunnelState, WorkerState,
};

use crate::configs;
use crate::generations::assert_rate;
use crate::support::admin::over_tcp;
use crate::support::backend::{Echo, nobody};
use crate::support::client::{Client, Outcome, Sequenced};
use crate::support::gateway::Gateway;
use crate::support::load::alone;
use crate::support::process::Process;
use crate::support::wait::{SOON, until};

/// Closes a second, and tunnels of each drain.
const RATE: u32 = 20;
const EACH: usize = 40;

async fn open(gateway: &Gateway, name: &str, count: usize) -> Vec<Sequenced> {
    let mut tunnels = Vec::new();
    for number in 0..count {
        let client = Client::open(&gateway.ws_url("/")).await;
        let pause = Duration::from_millis(100);
        tunnels.push(Sequenced::run(client, format!("{name}{number}"), pause));
    }
    tunnels
}

/// Lets a server drain for so many seconds.
async fn drain(gateway: &Gateway, echo: &Echo, seconds: f64) -> ServerStateChanged {
    let path = format!("/v1/upstreams/chat/servers/{}", echo.address);
    let word = format!(r#"{{"state":"drain","grace_seconds":{seconds}}}"#);
    let answer = gateway.call(Method::PUT, &path, &word).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// The seconds that the tunnels to a server have, of the one that has the most.
async fn longest(gateway: &Gateway, echo: &Echo) -> f64 {
    let query = format!("server={}", echo.address);
    let tunnels = gateway.tunnels_where(&query).await.into_iter();
    let left = tunnels.filter_map(|tunnel| tunnel.deadline_in_seconds);
    left.max_by(f64::total_cmp).unwrap()
}

/// Waits until all of them have been closed, each politely, and no faster than the rate.
async fn closed_in_turns(gateway: &Gateway, tunnels: Vec<Sequenced>) {
    let mut outcomes: Vec<Outcome> = Vec::new();
    for tunnel in tunnels {
        let outcome = tunnel.ended(SOON * 2).await;
        assert!(outcome.end.is_polite(1012), "{outcome:?}");
        assert!(outcome.faults.is_empty(), "{outcome:?}");
        outcomes.push(outcome);
    }
    let log = gateway.log();
    assert!(!log.contains("closed faster"), "the rate did not hold");
    assert_rate(&outcomes, RATE as usize);
}

async fn generation(gateway: &Gateway, number: u64) -> GenerationStatus {
    let generations = gateway.status().await.generations.into_iter();
    let mut generations = generations.filter(|found| found.generation == number);
    generations.next().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_does_not_end_sooner_with_every_supervisor_that_dies() {
    let echo = Echo::start().await;
    // A second for each tunnel: the closes of one worker are over long before those of the other.
    let head = configs::draining("10m", 1);
    let number = |number| configs::numbered(&head, &[&echo.address], number);
    let mut gateway = Gateway::start(&number(1)).await;
    let mut held = Vec::new();
    until("both workers hold some", SOON, async || {
        held.push(Client::open(&gateway.ws_url("/")).await);
        let workers = gateway.active_workers().await;
        workers.iter().all(|worker| worker.tunnels >= 6)
    })
    .await;
    gateway.edit(&number(2));
    gateway.reloaded().await;
    let began = Instant::now();
    let before = generation(&gateway, 1).await.deadline_in_seconds.unwrap();
    for last in 2..4 {
        gateway.kill_supervisor().await;
        gateway.revive(last).await;
    }
    let after = generation(&gateway, 1).await.deadline_in_seconds.unwrap();
    let passed = began.elapsed().as_secs_f64();
    assert!(
        after + passed > before - 1.0,
        "{before} s before, {after} s after {passed} s"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_word_that_the_next_supervisor_does_not_know_is_taken_back_with_its_deadlines() {
    let echo = Echo::start().await;
    let head = "workers = 2\n[reload]\nwatch = false\n";
    let mut gateway = Gateway::start(&configs::with(head, &[&echo.address])).await;
    let held = open(&gateway, "", 6).await;
    drain(&gateway, &echo, 3600.0).await;
    assert!(longest(&gateway, &echo).await > 3000.0);
    gateway.kill_supervisor().await;
    fs::remove_file(gateway.dir().join("state.json")).unwrap();
    // The new generation fails, so those that drain the server are the only ones, and get no other deadlines.
    gateway.hooks("crash-at-start");
    gateway.restart();
    gateway.logged(&["ERROR", "reload failed"]).await;
    gateway.hooks("");

    let status = gateway.status().await;
    assert_eq!(status.upstreams[0].servers[0].state, ServerState::Ready);
    let tunnels = gateway.tunnels().await;
    assert_eq!(tunnels.len(), 6);
    for tunnel in tunnels {
        assert_eq!(tunnel.state, TunnelState::Open);
        assert_eq!(tunnel.deadline_in_seconds, None);
    }
    for _ in 0..6 {
        let mut client = Client::open(&gateway.ws_url("/")).await;
        client.echo(Message::text("new")).await;
    }
    for tunnel in held {
        let outcome = tunnel.stop().await;
        assert!(outcome.by_us && outcome.faults.is_empty(), "{outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_drains_since_before_the_supervisor_died_takes_turns_with_the_next_one() {
    let _alone = alone().await;
    let (one, two) = (Echo::start().await, Echo::start().await);
    let head = configs::draining("10m", RATE);
    let mut gateway = Gateway::start(&configs::with(&head, &[&one.address, &two.address])).await;
    let held = open(&gateway, "", EACH * 2).await;
    assert!(one.open() > 30 && two.open() > 30, "each has its share");
    drain(&gateway, &one, 12.0).await;
    gateway.kill_supervisor().await;
    gateway.revive(1).await;
    // Both end at the same moment, so that they would be closed at the same time.
    let left = longest(&gateway, &one).await;
    let changed = drain(&gateway, &two, left).await;
    assert_eq!(changed.tunnels, two.open());
    closed_in_turns(&gateway, held).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generation_that_drains_since_before_the_supervisor_died_takes_turns_with_the_next_drain()
{
    let _alone = alone().await;
    let (one, two) = (Echo::start().await, Echo::start().await);
    let head = configs::draining("12s", RATE);
    let mut gateway = Gateway::start(&configs::with(&head, &[&one.address])).await;
    let mut held = open(&gateway, "old", EACH).await;
    gateway.edit(&configs::with(&head, &[&two.address]));
    gateway.reloaded().await;
    gateway.kill_supervisor().await;
    gateway.revive(2).await;
    held.extend(open(&gateway, "new", EACH).await);
    let left = generation(&gateway, 1).await.deadline_in_seconds.unwrap();
    let changed = drain(&gateway, &two, left).await;
    assert_eq!(changed.tunnels, EACH as u64);
    closed_in_turns(&gateway, held).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn admin_http_answers_although_the_first_reload_after_an_adoption_fails() {
    let echo = Echo::start().await;
    let http = nobody().await;
    let admin = format!("[admin]\nsocket = \"{{dir}}/admin.sock\"\nhttp = \"{http}\"\n");
    let good = configs::with(
        &format!("{}{admin}", configs::draining("10m", 100)),
        &[&echo.address],
    );
    let mut gateway = Gateway::start(&good).await;
    let mut client = Client::open(&gateway.ws_url("/")).await;
    gateway.kill_supervisor().await;
    assert!(over_tcp(&http, Method::GET, "/readyz").await.is_err());

    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap();
    gateway.edit(&format!("{good}[[listener]]\naddress = \"{taken}\"\n"));
    gateway.restart();
    gateway
        .logged(&[
            "ERROR",
            "the new generation cannot begin",
            &taken.to_string(),
        ])
        .await;
    let answer = over_tcp(&http, Method::GET, "/readyz").await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    client.echo(Message::text("still here")).await;

    // And it is the one that goes on, once the file is mended.
    gateway.edit(&configs::with(
        &format!("{}{admin}", configs::draining("9m", 100)),
        &[&echo.address],
    ));
    gateway.reloaded().await;
    let answer = over_tcp(&http, Method::GET, "/readyz").await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// The sockets that a process has open.
fn sockets(pid: u32) -> usize {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let leads_to = open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    leads_to
        .filter(|to| to.to_str().is_some_and(|to| to.starts_with("socket:")))
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_supervisor_died_without_hearing_that_it_is_empty_ends_at_once() {
    let echo = Echo::start().await;
    let head = configs::draining("1h", 100);
    let number = |number| configs::numbered(&head, &[&echo.address], number);
    let mut gateway = Gateway::start(&number(1)).await;
    let client = Client::open(&gateway.ws_url("/")).await;
    gateway.holds(1).await;
    gateway.edit(&number(2));
    gateway.reloaded().await;
    until("one worker drains", SOON, async || {
        let workers = gateway.status().await.workers;
        let draining = workers
            .iter()
            .filter(|it| it.state == WorkerState::Draining);
        draining.count() == 1 && gateway.rendezvous().len() == 3
    })
    .await;
    let tunnel = gateway.tunnels().await.pop().unwrap();
    let worker = Process::open(tunnel.worker).unwrap();
    let with_tunnel = sockets(worker.pid);

    gateway.signal(Signal::STOP);
    let end = client.close(1000, "").await;
    assert!(end.is_polite(1000), "{end:?}");
    until("the worker holds nothing any more", SOON, async || {
        sockets(worker.pid) == with_tunnel - 2
    })
    .await;
    assert!(!worker.has_ended());
    gateway.kill_supervisor().await;
    until("the worker ends", SOON, async || worker.has_ended()).await;
    let status = gateway.revive(2).await;
    assert_eq!(status.totals.workers_adopted, 2);
}

/// Two workers that drain by themselves, with so many tunnels that the rate is felt.
async fn drains_without_a_supervisor(handover: bool) -> (Gateway, Echo, Vec<Sequenced>) {
    let echo = Echo::start().await;
    let head = format!(
        "workers = 2\n[reload]\nwatch = false\n[drain]\nhandover = {handover}\nclose_rate = {RATE}\norphan_grace = \"5s\""
    );
    let gateway = Gateway::start(&configs::with(&head, &[&echo.address])).await;
    let held = open(&gateway, "held", EACH).await;
    gateway.kill_supervisor().await;
    (gateway, echo, held)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_without_a_supervisor_keep_the_rate_together() {
    let _alone = alone().await;
    let (gateway, _echo, held) = drains_without_a_supervisor(false).await;
    closed_in_turns(&gateway, held).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_are_adopted_while_they_drain_keep_the_rate() {
    let _alone = alone().await;
    let (mut gateway, _echo, held) = drains_without_a_supervisor(false).await;
    gateway.logged(&["draining without a supervisor"]).await;
    let status = gateway.revive(1).await;
    assert_eq!(status.totals.workers_adopted, 2);
    closed_in_turns(&gateway, held).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_of_workers_that_drain_by_themselves_stay_if_a_supervisor_comes_in_time() {
    let _alone = alone().await;
    let (mut gateway, _echo, held) = drains_without_a_supervisor(true).await;
    gateway.logged(&["draining without a supervisor"]).await;
    let status = gateway.revive(1).await;
    assert_eq!(status.totals.workers_adopted, 2);
    until("the adopted workers are gone", SOON, async || {
        gateway.status().await.generations.len() == 1
    })
    .await;
    for tunnel in gateway.tunnels().await {
        assert_eq!((tunnel.handovers, tunnel.deadline_at), (1, None));
    }
    for tunnel in held {
        let outcome = tunnel.stop().await;
        assert!(outcome.by_us && outcome.faults.is_empty(), "{outcome:?}");
    }
}
