//! What the operator is told of a handover, and what holds for tunnels that have lost their way by it.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::Method;
use rustix::process::Signal;
use wsgate_protocol::admin::{LossReason, Reloaded, Status, Totals, WorkerState};

use crate::configs;
use crate::support::backend::Echo;
use crate::support::client::Client;
use crate::support::gateway::{Gateway, active_generation, stdout};
use crate::support::wait::{SOON, eventually, until};

/// Two workers that reload only when told. What loses its way has `grace`, and 20 of them are closed a second.
fn drain(grace: &str) -> String {
    format!("workers = 2\n[reload]\nwatch = false\n[drain]\ngrace = \"{grace}\"\nclose_rate = 20\n")
}

async fn clients(gateway: &Gateway, count: usize) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut client = Client::open(&gateway.ws_url("/")).await;
        client.echo("before".into()).await;
        clients.push(client);
    }
    gateway.holds(count as u64).await;
    clients
}

async fn old_ones_gone(gateway: &Gateway) -> Status {
    eventually("the old generation is gone", SOON, async || {
        let status = gateway.status().await;
        (status.generations.len() == 1).then_some(status)
    })
    .await
}

fn worker_in(status: &Status, slot: u64) -> u32 {
    let mut workers = status.workers.iter();
    let active = workers.find(|it| it.slot == slot && it.state == WorkerState::Active);
    active.expect("a worker that accepts").pid
}

/// Every tunnel that was opened lives or has ended.
fn ended(totals: &Totals) -> u64 {
    let ended: u64 = totals.tunnels_ended.values().sum();
    assert_eq!(totals.tunnels_opened, totals.tunnels + ended, "{totals:?}");
    ended
}

#[tokio::test]
async fn a_server_that_is_removed_ends_its_own_tunnels_at_the_rate_and_the_others_never_notice() {
    let (one, two, three) = (
        Echo::start().await,
        Echo::start().await,
        Echo::start().await,
    );
    let head = drain("3s");
    let all = [&*one.address, &*two.address, &*three.address];
    let gateway = Gateway::start(&configs::with(&head, &all)).await;
    let mut held = clients(&gateway, 60).await;
    let query = format!("server={}", three.address);
    let doomed = gateway.tunnels_where(&query).await;
    assert!(!doomed.is_empty());

    gateway.edit(&configs::with(&head, &all[..2]));
    let begun = Instant::now();
    let reloaded = gateway.reloaded().await;
    let lost = doomed.len() as u64;
    assert_eq!((reloaded.moved, reloaded.draining_tunnels), (60, lost));
    let fates = &reloaded.fates;
    assert_eq!((fates.kept, fates.drained), (60 - lost, lost), "{fates:?}");
    assert_eq!(fates.why[0].reason, LossReason::ServerRemoved);
    assert_eq!(fates.why[0].server, three.address);
    assert!(reloaded.deadline_at.is_some());

    let status = old_ones_gone(&gateway).await;
    assert_eq!(status.generations[0].draining_tunnels, lost);
    // They have a deadline, each its own, and no two of them within less than the rate says.
    let mut deadlines: Vec<f64> = gateway
        .tunnels_where(&query)
        .await
        .iter()
        .map(|it| it.deadline_in_seconds.expect("a deadline"))
        .collect();
    deadlines.sort_by(f64::total_cmp);
    assert_eq!(deadlines.len() as u64, lost);
    assert!(
        deadlines.windows(2).all(|pair| pair[1] - pair[0] > 0.04),
        "{deadlines:?}"
    );

    let wait = gateway.ctl(&["reload", "--wait-drained"]).await;
    assert!(wait.status.success(), "{wait:?}");
    assert!(
        begun.elapsed() > Duration::from_millis(2_500),
        "they had their grace"
    );
    let mut polite = 0;
    let alive = gateway.tunnels().await;
    for client in &mut held {
        let address = client.local_address();
        if alive.iter().any(|tunnel| tunnel.client == address) {
            client.echo("after".into()).await;
            continue;
        }
        let end = client.end(SOON).await;
        let close = Some((1012, "service restart".to_owned()));
        assert_eq!(end.close, close, "{end:?}");
        polite += 1;
    }
    assert_eq!(polite, lost);
    let totals = gateway.status().await.totals;
    assert_eq!(
        (ended(&totals), totals.tunnels_ended["drain"]),
        (lost, lost)
    );
}

#[tokio::test]
async fn wsctl_reload_says_what_moved_and_what_drains() {
    let (one, two) = (Echo::start().await, Echo::start().await);
    let head = drain("10m");
    let both = [&*one.address, &*two.address];
    let gateway = Gateway::start(&configs::with(&head, &both)).await;
    let _held = clients(&gateway, 8).await;
    let lost = gateway
        .tunnels_where(&format!("server={}", two.address))
        .await
        .len();
    gateway.edit(&configs::with(&head, &both[..1]));
    let said = stdout(&gateway.ctl(&["reload"]).await);
    let lines: Vec<&str> = said.lines().collect();
    assert!(
        lines[0].contains("; 8 tunnels moved within ")
            && lines[0].contains(" ms, none was paused for more than "),
        "{said}"
    );
    let why = format!("server {} removed: {lost} tunnels, until ", two.address);
    assert!(lines[1].contains(&why), "{said}");
    assert_eq!(lines.len(), 2, "{said}");
}

#[tokio::test]
async fn a_giver_that_stands_still_is_told_of_after_2_s_and_gives_when_it_goes_on() {
    let echo = Echo::start().await;
    let head = "workers = 2\n[reload]\nwatch = false\n[watchdog]\ntimeout = \"1m\"\n";
    let gateway = Gateway::start(&configs::numbered(head, &[&echo.address], 1)).await;
    let mut held = clients(&gateway, 12).await;
    let status = gateway.status().await;
    let still = worker_in(&status, 0);
    let stuck = gateway.tunnels_where(&format!("worker={still}")).await;
    assert!(!stuck.is_empty() && stuck.len() < 12);
    gateway.workers()[&still].signal(Signal::STOP);

    gateway.edit(&configs::numbered(head, &[&echo.address], 2));
    let begun = Instant::now();
    let reloaded = gateway.reloaded().await;
    let took = begun.elapsed();
    assert!(
        (Duration::from_secs(2)..Duration::from_secs(6)).contains(&took),
        "{took:?}"
    );
    assert_eq!(reloaded.moved, 12 - stuck.len() as u64);
    let [warning] = &reloaded.warnings[..] else {
        panic!("{reloaded:?}");
    };
    let holds = format!("it holds {} of them still", stuck.len());
    assert!(
        warning.contains(&format!("worker {still} ")) && warning.contains(&holds),
        "{warning}"
    );

    gateway.workers()[&still].signal(Signal::CONT);
    let status = old_ones_gone(&gateway).await;
    assert_eq!((status.totals.handovers, ended(&status.totals)), (12, 0));
    for client in &mut held {
        client.echo("after".into()).await;
    }
}

/// Reloads 80 tunnels of one slot, with a fault in it. What is known when all is over.
async fn with_fault(fault: &str) -> (Gateway, Vec<Client>, Reloaded, Totals) {
    let echo = Echo::start().await;
    let head = "workers = 1\n[reload]\nwatch = false\n";
    let gateway = Gateway::start(&configs::numbered(head, &[&echo.address], 1)).await;
    let held = clients(&gateway, 80).await;
    gateway.hooks(fault);
    gateway.edit(&configs::numbered(head, &[&echo.address], 2));
    let (reloaded, ()) = tokio::join!(gateway.reloaded(), async {
        gateway.logged(&["worker ended", "signal"]).await;
        gateway.hooks("");
    });
    let totals = old_ones_gone(&gateway).await.totals;
    (gateway, held, reloaded, totals)
}

/// How many tunnels live.
async fn alive(held: Vec<Client>, gateway: &Gateway) -> u64 {
    let live = gateway.tunnels().await;
    let alive = held.into_iter().map(async |mut client| {
        let address = client.local_address();
        let lives = live.iter().any(|tunnel| tunnel.client == address);
        if lives {
            client.echo("after".into()).await;
        } else {
            client.end(SOON).await;
        }
        u64::from(lives)
    });
    join_all(alive).await.into_iter().sum()
}

#[tokio::test]
async fn when_a_giver_dies_what_it_had_given_lives_and_the_rest_is_accounted_for() {
    let (gateway, held, reloaded, totals) = with_fault("given-crash=2\n").await;
    // The second batch is the taker's if it could say so before the giver was gone.
    let moved = reloaded.moved;
    assert!([32, 64].contains(&moved), "{reloaded:?}");
    assert_eq!(
        (totals.tunnels, totals.tunnels_ended["worker_stop"]),
        (moved, 80 - moved)
    );
    assert_eq!((ended(&totals), totals.handovers), (80 - moved, moved));
    assert_eq!(alive(held, &gateway).await, moved);
}

#[tokio::test]
async fn when_a_taker_dies_the_next_worker_of_the_slot_takes_what_it_had_not() {
    let (gateway, held, reloaded, totals) = with_fault("take-crash=2\n").await;
    assert_eq!(reloaded.warnings, [""; 0]);
    assert_eq!(
        (totals.tunnels, totals.tunnels_ended["worker_stop"]),
        (48, 32)
    );
    assert_eq!((ended(&totals), totals.handovers), (32, 80));
    assert_eq!(alive(held, &gateway).await, 48);
}

#[tokio::test]
async fn a_batch_that_a_taker_had_taken_ends_with_it() {
    let (gateway, held, _, totals) = with_fault("taken-crash=1\n").await;
    assert_eq!(
        (totals.tunnels, totals.tunnels_ended["worker_stop"]),
        (48, 32)
    );
    assert_eq!((ended(&totals), totals.handovers), (32, 80));
    assert_eq!(alive(held, &gateway).await, 48);
}

#[tokio::test]
async fn workers_of_a_supervisor_that_died_give_to_the_next_ones() {
    let echo = Echo::start().await;
    let head = "workers = 2\n[reload]\nwatch = false\n";
    let mut gateway = Gateway::start(&configs::numbered(head, &[&echo.address], 1)).await;
    let mut held = clients(&gateway, 20).await;
    for number in 2..4 {
        let last = active_generation(&gateway.status().await);
        gateway.kill_supervisor().await;
        gateway.revive(last).await;
        let status = old_ones_gone(&gateway).await;
        assert_eq!(status.totals.handovers, 20 * (number - 1));
        assert_eq!((status.totals.tunnels, ended(&status.totals)), (20, 0));
        for client in &mut held {
            client.echo("after".into()).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_is_to_be_closed_while_tunnels_move_is_closed() {
    let echo = Echo::start().await;
    let head = "workers = 2\n[reload]\nwatch = false\n";
    let gateway = Gateway::start(&configs::numbered(head, &[&echo.address], 1)).await;
    let held = clients(&gateway, 120).await;
    let tunnels = gateway.tunnels().await;
    let reloads = async {
        for number in 2..8 {
            gateway.edit(&configs::numbered(head, &[&echo.address], number));
            gateway.reloaded().await;
        }
    };
    let closes = async {
        for tunnel in &tunnels[..60] {
            let path = format!("/v1/tunnels/{}", tunnel.id);
            let answer = gateway.call(Method::DELETE, &path, "").await;
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    };
    tokio::join!(reloads, closes);
    until("60 are closed", SOON, async || {
        gateway.status().await.totals.tunnels == 60
    })
    .await;
    let totals = gateway.status().await.totals;
    assert_eq!((ended(&totals), totals.tunnels_ended["admin"]), (60, 60));
    assert_eq!(alive(held, &gateway).await, 60);
}
