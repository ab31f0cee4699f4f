//! Workers that are silent while tunnels are to move, and what the operator is told of them.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use wsgate_protocol::admin::{ReloadOutcome, Reloaded};

use crate::configs;
use crate::support::backend::Echo;
use crate::support::client::Client;
use crate::support::gateway::{Gateway, stdout};
use crate::support::wait::{SOON, until};

/// One worker, which reloads only when told.
const HEAD: &str = "workers = 1\n[reload]\nwatch = false\n";
const TUNNELS: u64 = 40;

struct Stuck {
    gateway: Gateway,
    _echo: Echo,
    held: Vec<Client>,
    /// The worker that does not answer.
    pid: u32,
    reloaded: Reloaded,
}

/// A reload whose new worker stands still with the first batch.
async fn stuck() -> Stuck {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&configs::numbered(HEAD, &[&echo.address], 1)).await;
    let mut held = Vec::new();
    for _ in 0..TUNNELS {
        held.push(Client::open(&gateway.ws_url("/")).await);
    }
    gateway.holds(TUNNELS).await;
    gateway.hooks("take-wait=1\n");
    gateway.edit(&configs::numbered(HEAD, &[&echo.address], 2));
    let begun = Instant::now();
    let reloaded = gateway.reloaded().await;
    let took = begun.elapsed();
    assert!(took < Duration::from_millis(4_500), "{took:?}");
    let pid = gateway.active_workers().await[0].pid;
    // Its successor is not meant.
    gateway.hooks(&format!("take-wait=1 pid={pid}\n"));
    Stuck {
        gateway,
        _echo: echo,
        held,
        pid,
        reloaded,
    }
}

impl Stuck {
    async fn all_have_moved(mut self) {
        until("all tunnels have moved", SOON * 4, async || {
            let status = self.gateway.status().await;
            status.generations.len() == 1 && status.totals.handovers >= TUNNELS
        })
        .await;
        assert_eq!(self.gateway.status().await.totals.tunnels, TUNNELS);
        for client in &mut self.held {
            client.echo("after".into()).await;
        }
    }
}

#[tokio::test]
async fn a_taker_that_is_silent_is_named_and_its_successor_takes_the_tunnels() {
    let stuck = stuck().await;
    let (gateway, reloaded) = (&stuck.gateway, &stuck.reloaded);
    let [warning] = &reloaded.warnings[..] else {
        panic!("{reloaded:?}");
    };
    let (named, go_on) = (
        format!("worker {} (slot 0, generation 2)", stuck.pid),
        format!("kill -CONT {}", stuck.pid),
    );
    assert!(
        warning.starts_with(&named) && warning.contains(&go_on),
        "{warning}"
    );
    assert_eq!(reloaded.moved, 0);
    let [stays] = &reloaded.stays[..] else {
        panic!("{reloaded:?}");
    };
    let reason = format!("the new worker {} has not answered yet", stuck.pid);
    assert_eq!((&stays.reason, stays.tunnels), (&reason, TUNNELS));
    // All tries are used up before the watchdog ends the taker.
    gateway
        .logged(&["live tunnels stay with their old worker"])
        .await;
    until("the watchdog ends it", SOON * 4, async || {
        let workers = gateway.active_workers().await;
        workers.iter().any(|it| it.pid != stuck.pid)
    })
    .await;
    stuck.all_have_moved().await;
}

#[tokio::test]
async fn an_unchanged_reload_pairs_those_anew_whose_tries_were_used_up() {
    let stuck = stuck().await;
    let gateway = &stuck.gateway;
    gateway
        .logged(&["live tunnels stay with their old worker"])
        .await;
    gateway.hooks("");
    let answer = gateway.reload().await.json();
    let ReloadOutcome::Unchanged(unchanged) = answer else {
        panic!("{answer:?}");
    };
    assert_eq!(unchanged.draining_tunnels, TUNNELS);
    gateway
        .logged(&["live tunnels have moved after the reload's answer"])
        .await;
    stuck.all_have_moved().await;
}

#[tokio::test]
async fn a_deadline_that_was_lifted_is_not_told_any_more() {
    let (one, two) = (Echo::start().await, Echo::start().await);
    let grace = |grace: &str, servers: &[&str]| {
        let head = format!("{HEAD}[drain]\ngrace = \"{grace}\"\n");
        configs::with(&head, servers)
    };
    let both = [&*one.address, &*two.address];
    let gateway = Gateway::start(&grace("5m", &both)).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(Client::open(&gateway.ws_url("/")).await);
    }
    gateway.holds(8).await;
    let mut deadlines = Vec::new();
    for (word, servers) in [("5m", &both[..1]), ("5m", &both[..]), ("30s", &both[..1])] {
        gateway.edit(&grace(word, servers));
        deadlines.push(gateway.reloaded().await.deadline_at);
    }
    let [Some(first), None, Some(last)] = &deadlines[..] else {
        panic!("{deadlines:?}");
    };
    assert!(last < first, "{deadlines:?}");
}

#[tokio::test]
async fn the_log_says_what_is_handed_over_and_when_nothing_is_new() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&configs::numbered(HEAD, &[&echo.address], 1)).await;
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(Client::open(&gateway.ws_url("/")).await);
    }
    gateway.holds(5).await;
    gateway.signal(Signal::HUP);
    gateway.logged(&["unchanged", "by=\"signal\""]).await;
    gateway.edit(&configs::numbered(HEAD, &[&echo.address], 2));
    let said = stdout(&gateway.ctl(&["reload"]).await);
    assert!(said.contains("5 tunnels moved"), "{said}");
    gateway
        .logged(&["generation hands over", "generation=1", "tunnels=5"])
        .await;
}
