//! Slots and listeners that come and go at reloads: whoever connects is served.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::time::MissedTickBehavior;
use wsgate_protocol::admin::ListenerStatus;

use crate::configs;
use crate::support::backend::Echo;
use crate::support::client::Client;
use crate::support::gateway::{Gateway, Launch, stdout};
use crate::support::knocks::{self, Door, Knocks, Seen};
use crate::support::load::{self, Storm, alone};
use crate::support::network;
use crate::support::process::Process;
use crate::support::wait::{SOON, all_along, eventually, until};

/// How long a handshake hangs half open.
const HOLD: Duration = Duration::from_millis(50);

/// What is retired is closed after four seconds, and not before three.
const AT_LEAST: Duration = Duration::from_secs(3);

/// Configurations with different numbers of workers and listeners. Paths that no route has are answered by
/// the gateway itself.
fn config(echo: &Echo, workers: usize, listeners: &[&str]) -> String {
    let listeners = listeners.iter();
    let listeners: String = listeners
        .map(|address| format!("[[listener]]\naddress = \"{address}\"\n"))
        .collect();
    let upstream = configs::upstream("chat", &[&echo.address]);
    format!(
        "workers = {workers}\n[reload]\nwatch = false\n[log]\naccess = false\n[drain]\ngrace = \"60s\"\n\
         {listeners}[[route]]\npath = \"/tunnel\"\nupstream = \"chat\"\n{upstream}"
    )
}

const TCP: &str = "127.0.0.1:0";
const TCP6: &str = "[::1]:0";

fn has_ipv6() -> bool {
    std::net::TcpListener::bind("[::1]:0").is_ok()
}

fn door(gateway: &Gateway, listener: usize) -> Door {
    Door::Tcp(gateway.bound(listener).parse().unwrap())
}

fn address(gateway: &Gateway, listener: usize) -> SocketAddr {
    gateway.bound(listener).parse().unwrap()
}

async fn change(gateway: &Gateway, text: &str) {
    gateway.edit(text);
    assert_eq!(gateway.reloaded().await.warnings, [""; 0]);
}

async fn listener(gateway: &Gateway, address: &str) -> Option<ListenerStatus> {
    let listeners = gateway.status().await.listeners;
    listeners
        .into_iter()
        .find(|listener| listener.address == address)
}

/// Waits until the kernel has as many listening sockets as the listener has slots, whoever holds them.
async fn closed_down_to(address: SocketAddr, slots: usize) {
    until("retired sockets are closed", SOON, async || {
        knocks::listening(address) == slots
    })
    .await;
}

fn assert_served(seen: &Seen, at_least: usize) {
    assert!(seen.problems.is_empty(), "{seen:?}");
    assert!(seen.answered >= at_least, "{seen:?}");
}

/// Lets a gateway have these numbers of slots, one after the other, under load. With `patience` what was
/// retired is closed before the next reload, else it lingers still.
///
/// Says how many connections were answered.
async fn steps(tcp: &str, slots: &[usize], patience: bool, per_second: u32) -> usize {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&config(&echo, slots[0], &[tcp])).await;
    let address = address(&gateway, 0);
    let began = Instant::now();
    let knocks = Knocks::start(door(&gateway, 0), per_second, HOLD);
    let plain = Knocks::start(door(&gateway, 0), per_second, Duration::ZERO);
    let storm = Storm::start(&gateway.ws_url("/tunnel"), 50);
    until("handshakes are held", SOON, async || {
        knocks::half_open(address) > 0
    })
    .await;
    let mut pace = tokio::time::interval(Duration::from_millis(300));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for workers in &slots[1..] {
        change(&gateway, &config(&echo, *workers, &[tcp])).await;
        let status = listener(&gateway, tcp).await.unwrap();
        assert_eq!(status.sockets, *workers as u64);
        if patience {
            closed_down_to(address, *workers).await;
        }
        pace.tick().await;
    }
    closed_down_to(address, slots[slots.len() - 1]).await;
    let status = listener(&gateway, tcp).await.unwrap();
    assert_eq!(status.retired_sockets, 0);
    // A machine that is busy may not keep the rate.
    let at_least = began.elapsed().as_secs() as usize * per_second as usize / 2;
    let (knocks, plain) = (knocks.stop().await, plain.stop().await);
    assert_served(&knocks, at_least);
    assert_served(&plain, at_least);
    assert_eq!(load::problems(&storm.stop().await), [""; 0]);
    assert_eq!(gateway.status().await.totals.worker_restarts, 0);
    assert!(!gateway.log().contains("ERROR"), "{}", gateway.log());
    knocks.answered + plain.answered
}

const STEPS: &[usize] = &[1, 4, 2, 1, 3];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_grow_and_shrink_and_no_connection_fails() {
    let _alone = alone().await;
    steps(TCP, STEPS, true, 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_grow_and_shrink_while_others_linger_and_no_connection_fails() {
    let _alone = alone().await;
    steps(TCP, &[1, 4, 2, 1, 4, 3, 1, 2], false, 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_of_an_ipv6_listener_grow_and_shrink_and_no_connection_fails() {
    if has_ipv6() {
        let _alone = alone().await;
        steps(TCP6, STEPS, false, 200).await;
    }
}

/// Ten times 1, 8, 3, 1 slots under 2,000 connections a second, half of them held half open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "two minutes of two processors"]
#[expect(clippy::print_stderr, reason = "a figure for docs and notes")]
async fn ten_times_to_eight_slots_and_back_under_2000_connections_a_second() {
    let slots: Vec<usize> = [1, 8, 3].repeat(10);
    let slots = [&slots[..], &[1]].concat();
    for patience in [false, true] {
        let answered = steps(TCP, &slots, patience, 1_000).await;
        eprintln!("{answered} connections answered, 0 failed (patience: {patience})");
    }
}

/// Takes the second listener away and gives it back while somebody connects to it.
async fn removed_and_back(other: &str, door: impl Fn(&Gateway) -> Door) {
    let echo = Echo::start().await;
    let launch = Launch::new(&config(&echo, 2, &[TCP, other]));
    let gateway = launch.start().await;
    let (both, one) = (config(&echo, 2, &[TCP, other]), config(&echo, 2, &[TCP]));
    let door = door(&gateway);
    let knocks = Knocks::start(door.clone(), 200, HOLD);
    let other = other.replace("{dir}", &gateway.dir().display().to_string());
    for _ in 0..3 {
        change(&gateway, &one).await;
        let status = listener(&gateway, &other).await.unwrap();
        assert!(
            status.retired && status.sockets == 0 && status.retired_sockets > 0,
            "{status:?}"
        );
        change(&gateway, &both).await;
        let status = listener(&gateway, &other).await.unwrap();
        assert!(
            !status.retired && status.sockets > 0 && status.retired_sockets == 0,
            "{status:?}"
        );
    }
    assert_served(&knocks.stop().await, 20);

    change(&gateway, &one).await;
    all_along("it is served on", AT_LEAST, async || {
        knocks::once(door.clone(), Duration::ZERO).await.is_ok()
    })
    .await;
    until("it is closed", SOON, async || {
        let refused = knocks::once(door.clone(), Duration::ZERO).await.is_err();
        refused && listener(&gateway, &other).await.is_none()
    })
    .await;
    if let Door::Unix(path) = &door {
        assert!(!path.exists());
    }
    // Bound anew, it is what it was; port 0 would be another one.
    if let Door::Unix(_) = &door {
        change(&gateway, &both).await;
        knocks::once(door, Duration::ZERO).await.unwrap();
    }
    assert!(!gateway.log().contains("ERROR"), "{}", gateway.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_is_removed_is_served_for_a_while_and_comes_back_as_it_was() {
    removed_and_back("127.0.0.2:0", |gateway| door(gateway, 1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ipv6_listener_that_is_removed_is_served_for_a_while_and_comes_back_as_it_was() {
    if has_ipv6() {
        removed_and_back(TCP6, |gateway| door(gateway, 1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unix_listener_that_is_removed_is_served_for_a_while_and_comes_back_as_it_was() {
    removed_and_back("unix:{dir}/in.sock", |gateway| {
        Door::Unix(gateway.dir().join("in.sock"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_removed_listener_is_closed_connects_are_refused_and_nobody_is_reset() {
    let _alone = alone().await;
    let echo = Echo::start().await;
    let gateway = Gateway::start(&config(&echo, 2, &[TCP, "127.0.0.2:0"])).await;
    let knocks = Knocks::start(door(&gateway, 1), 1_000, Duration::ZERO);
    change(&gateway, &config(&echo, 1, &[TCP])).await;
    closed_down_to(address(&gateway, 1), 0).await;
    let seen = knocks.stop().await;
    let connects = |problem: &String| problem.starts_with("connect: Connection refused");
    assert!(seen.problems.keys().all(connects), "{seen:?}");
    assert!(seen.answered > 500, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_becomes_a_wildcard_and_no_connection_fails() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&config(&echo, 2, &[TCP])).await;
    let address = address(&gateway, 0);
    let wildcard = format!("0.0.0.0:{}", address.port());
    let knocks = Knocks::start(door(&gateway, 0), 200, HOLD);
    change(&gateway, &config(&echo, 2, &[&wildcard])).await;
    let stays = listener(&gateway, TCP).await.unwrap();
    assert!(
        stays.retired && stays.sockets == 2 && stays.retired_sockets == 0,
        "{stays:?}"
    );
    all_along("both are there", Duration::from_secs(5), async || {
        knocks::listening(address) == 4
    })
    .await;
    assert_served(&knocks.stop().await, 400);
    let elsewhere = SocketAddr::from(([127, 0, 0, 3], address.port()));
    knocks::once(Door::Tcp(elsewhere), Duration::ZERO)
        .await
        .unwrap();
}

/// The worker that the log says serves retired sockets.
async fn serving(gateway: &Gateway) -> u32 {
    let line = gateway.logged(&["retired sockets are served"]).await;
    let (_, pid) = line.rsplit_once("pid=").unwrap();
    pid.split_whitespace().next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_worker_that_serves_a_removed_listener_dies_another_goes_on() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&config(&echo, 2, &[TCP, "127.0.0.2:0"])).await;
    change(&gateway, &config(&echo, 2, &[TCP])).await;
    let door = door(&gateway, 1);
    knocks::once(door.clone(), Duration::ZERO).await.unwrap();
    let worker = Process::open(serving(&gateway).await).unwrap();
    worker.signal(Signal::KILL);
    assert!(worker.ended_within(SOON));
    // It may be that one that is accepted first is accepted by the dead.
    knocks::once(door, Duration::ZERO).await.unwrap();
    assert!(listener(&gateway, "127.0.0.2:0").await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retired_sockets_stay_as_long_as_an_old_worker_does_not_let_go_of_them() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&config(&echo, 2, &[TCP])).await;
    let address = address(&gateway, 0);
    let workers = gateway.active_workers().await;
    let old = workers
        .iter()
        .map(|worker| Process::open(worker.pid).unwrap());
    let old: Vec<Process> = old.collect();
    old[0].signal(Signal::STOP);
    old[1].signal(Signal::STOP);
    change(&gateway, &config(&echo, 1, &[TCP])).await;
    let knocks = Knocks::start(door(&gateway, 0), 100, HOLD);
    all_along("it is not closed", Duration::from_secs(5), async || {
        knocks::listening(address) == 2
    })
    .await;
    for worker in &old {
        worker.signal(Signal::CONT);
    }
    closed_down_to(address, 1).await;
    assert_served(&knocks.stop().await, 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_closes_what_is_retired_as_well() {
    let echo = Echo::start().await;
    let unix = "unix:{dir}/in.sock";
    let gateway = Gateway::start(&config(&echo, 3, &[TCP, unix])).await;
    let tunnel = Client::open(&gateway.ws_url("/tunnel")).await;
    change(&gateway, &config(&echo, 1, &[TCP])).await;
    let path = gateway.dir().join("in.sock");
    assert!(path.exists());
    let address = address(&gateway, 0);
    gateway.signal(Signal::TERM);
    until("all is closed", SOON, async || {
        knocks::listening(address) == 0 && !path.exists()
    })
    .await;
    drop(tunnel);
    assert!(gateway.exited(SOON).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wsctl_status_shows_what_is_retired() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&config(&echo, 3, &[TCP, "127.0.0.2:0"])).await;
    change(&gateway, &config(&echo, 1, &[TCP])).await;
    let text = stdout(&gateway.ctl(&["status"]).await);
    let shown = |address: &str| {
        let line = text
            .lines()
            .find(|line| line.trim_start().starts_with(address));
        let line = line.unwrap_or_else(|| panic!("{address} in {text}"));
        line.split_whitespace()
            .skip(2)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(shown("127.0.0.1:0"), ["1", "2"]);
    assert_eq!(shown("127.0.0.2:0"), ["0", "3"]);
}

const MIGRATE: &str = "/proc/sys/net/ipv4/tcp_migrate_req";

/// The kernel may move what waits on a socket that is closed: nothing is different then.
#[test]
fn slots_grow_and_shrink_where_the_kernel_migrates_requests_too() {
    if Path::new(MIGRATE).exists() {
        network::run_alone("slots::helper_migrates");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by slots_grow_and_shrink_where_the_kernel_migrates_requests_too"]
async fn helper_migrates() {
    network::assert_own();
    std::fs::write(MIGRATE, "1").unwrap();
    steps(TCP, STEPS, false, 100).await;
    let echo = Echo::start().await;
    let text = config(&echo, 1, &[TCP]).replace("[log]\n", "[log]\nlevel = \"debug\"\n");
    let gateway = Gateway::start(&text).await;
    let said = eventually("it is said", SOON, async || {
        let log = gateway.log();
        let line = log.lines().find(|line| line.contains("tcp_migrate_req"))?;
        Some(line.to_owned())
    })
    .await;
    assert!(said.contains("on=true"), "{said}");
}
