//! A handover that is cut short, at each of its steps: only the tunnels break that a killed worker had.

use std::collections::BTreeSet;
use std::time::Duration;

use wsgate_protocol::admin::{Reloaded, Status};

use super::old_ones_gone;
use crate::configs;
use crate::support::backend::Echo;
use crate::support::client::{Client, Outcome, Sequenced};
use crate::support::gateway::Gateway;
use crate::support::wait::{SOON, until};

/// One worker, so that all tunnels go by one handover.
const HEAD: &str = "workers = 1\n[reload]\nwatch = false\n";

/// In four batches: 32, 32, 32 and 4.
const TUNNELS: usize = 100;

/// A gateway with tunnels, oldest first.
struct Crowd {
    gateway: Gateway,
    echo: Echo,
    tunnels: Vec<Sequenced>,
    pid: u32,
}

impl Crowd {
    async fn start() -> Self {
        let echo = Echo::start().await;
        let gateway = Gateway::start(&configs::numbered(HEAD, &[&echo.address], 1)).await;
        let mut tunnels = Vec::new();
        for number in 0..TUNNELS {
            let client = Client::open(&gateway.ws_url("/")).await;
            let pause = Duration::from_millis(200);
            tunnels.push(Sequenced::run(client, number.to_string(), pause));
        }
        let pid = gateway.active_workers().await[0].pid;
        Self {
            gateway,
            echo,
            tunnels,
            pid,
        }
    }

    async fn reload(&self) -> Reloaded {
        let text = configs::numbered(HEAD, &[&self.echo.address], 2);
        self.gateway.edit(&text);
        self.gateway.reloaded().await
    }

    /// All is as it should be again: one worker, which is of the new generation and has so many tunnels.
    async fn settled(&self, left: usize) -> Status {
        old_ones_gone(&self.gateway).await;
        self.gateway.holds(left as u64).await;
        let workers = self.gateway.active_workers().await;
        assert_eq!(workers.len(), 1);
        assert_ne!(workers[0].pid, self.pid);
        self.gateway.status().await
    }

    /// Ends all tunnels. Which have broken before, by their places; whatever did not break has lost nothing.
    async fn broken(self) -> BTreeSet<usize> {
        let ends = self.tunnels.into_iter().map(Sequenced::stop);
        let outcomes: Vec<Outcome> = futures_util::future::join_all(ends).await;
        let mut broken = BTreeSet::new();
        for (place, outcome) in outcomes.iter().enumerate() {
            assert!(outcome.faults.is_empty(), "{place}: {outcome:?}");
            if !outcome.by_us {
                // A process that dies closes its sockets.
                assert_eq!(outcome.end.code(), None, "{place}: {outcome:?}");
                broken.insert(place);
            }
        }
        broken
    }
}

/// A worker crashes at this step of the second batch. So many of the oldest tunnels break with the new worker, or so many
/// of the youngest with the old one.
async fn crash(hook: &str, with_new: usize, with_old: usize) {
    let crowd = Crowd::start().await;
    crowd.gateway.hooks(hook);
    crowd.reload().await;
    let expected: BTreeSet<usize> = (0..with_new).chain(TUNNELS - with_old..TUNNELS).collect();
    let status = crowd.settled(TUNNELS - expected.len()).await;
    let ended = &status.totals.tunnels_ended;
    assert_eq!(ended["worker_stop"], expected.len() as u64, "{ended:?}");
    assert_eq!(ended.values().sum::<u64>(), expected.len() as u64);
    assert_eq!(status.totals.tunnels_opened, TUNNELS as u64);
    assert_eq!(crowd.broken().await, expected);
}

#[tokio::test]
async fn the_old_worker_dies_before_a_batch_is_sent() {
    crash("give-crash=2", 0, 68).await;
}

/// Whether the new worker acknowledges the batch before the old one is gone is chance. If it has, the batch is its own.
#[tokio::test]
async fn the_old_worker_dies_while_a_batch_is_on_its_way() {
    let crowd = Crowd::start().await;
    crowd.gateway.hooks("given-crash=2");
    crowd.reload().await;
    old_ones_gone(&crowd.gateway).await;
    let totals = crowd.gateway.status().await.totals;
    let left = usize::try_from(totals.tunnels).unwrap();
    assert!([32, 64].contains(&left), "{left}");
    let ended: u64 = totals.tunnels_ended.values().sum();
    assert_eq!(
        (totals.tunnels_opened, ended),
        (TUNNELS as u64, (TUNNELS - left) as u64)
    );
    assert_eq!(crowd.broken().await, (left..TUNNELS).collect());
}

#[tokio::test]
async fn the_new_worker_dies_before_it_has_acknowledged_a_batch() {
    crash("take-crash=2", 32, 0).await;
}

#[tokio::test]
async fn the_new_worker_dies_after_it_has_acknowledged_a_batch() {
    crash("taken-crash=2", 64, 0).await;
}

#[tokio::test]
async fn the_new_worker_dies_before_it_has_taken_any() {
    crash("take-crash=1", 0, 0).await;
}

#[tokio::test]
async fn a_new_worker_that_stands_still_is_given_up_and_its_batch_is_not_lost() {
    let crowd = Crowd::start().await;
    crowd.gateway.hooks("take-wait=2");
    let given_up = async {
        let words = ["a handover broke off", "did not answer in time"];
        crowd.gateway.logged(&words).await;
        // Its acknowledgement comes too late. Then it is asked once more.
        crowd.gateway.hooks("");
    };
    let (reloaded, ()) = tokio::join!(crowd.reload(), given_up);
    assert_eq!(
        (reloaded.moved, reloaded.stays.len()),
        (TUNNELS as u64, 0),
        "{reloaded:?}"
    );
    let status = crowd.settled(TUNNELS).await;
    assert_eq!(status.totals.handovers, TUNNELS as u64);
    assert_eq!(crowd.broken().await, BTreeSet::new());
}

#[tokio::test]
async fn an_old_worker_that_stands_still_goes_on_where_it_was() {
    let crowd = Crowd::start().await;
    crowd.gateway.hooks("give-wait=2");
    let reloaded = crowd.reload().await;
    assert_eq!(reloaded.warnings.len(), 1, "{reloaded:?}");
    assert!(reloaded.warnings[0].contains(&crowd.pid.to_string()));
    crowd.gateway.hooks("");
    crowd.settled(TUNNELS).await;
    assert_eq!(crowd.broken().await, BTreeSet::new());
}

#[tokio::test]
async fn a_reload_during_a_handover_waits_for_it() {
    let crowd = Crowd::start().await;
    crowd.gateway.hooks("give-wait=2");
    let first = crowd.reload();
    let second = async {
        until("the first reload has begun", SOON, async || {
            crowd.gateway.status().await.generations.len() == 2
        })
        .await;
        let text = configs::numbered(HEAD, &[&crowd.echo.address], 3);
        crowd.gateway.edit(&text);
        let second = crowd.gateway.reloaded();
        crowd.gateway.hooks("");
        second.await
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!((first.generation, second.generation), (2, 3));
    assert_eq!(
        (first.moved, second.moved),
        (TUNNELS as u64, TUNNELS as u64)
    );
    let status = crowd.settled(TUNNELS).await;
    assert_eq!(status.totals.handovers, 2 * TUNNELS as u64);
    assert_eq!(crowd.broken().await, BTreeSet::new());
}

#[tokio::test]
async fn the_supervisor_dies_during_a_handover_and_the_tunnels_move_all_the_same() {
    let mut crowd = Crowd::start().await;
    crowd.gateway.hooks("give-wait=2");
    crowd
        .gateway
        .edit(&configs::numbered(HEAD, &[&crowd.echo.address], 2));
    crowd.gateway.signal(rustix::process::Signal::HUP);
    until("the handover has begun", SOON, async || {
        crowd.gateway.status().await.totals.handovers > 0
    })
    .await;
    crowd.gateway.kill_supervisor().await;
    crowd.gateway.hooks("");
    until("the old worker has gone", SOON, async || {
        crowd.gateway.workers().len() == 1
    })
    .await;
    crowd.gateway.revive(2).await;
    let status = crowd.settled(TUNNELS).await;
    assert_eq!(status.totals.tunnels_ended.values().sum::<u64>(), 0);
    assert_eq!(crowd.broken().await, BTreeSet::new());
}
