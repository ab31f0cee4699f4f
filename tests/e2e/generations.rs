//! `drain.generations`: old generations beyond those that may stay end now, politely.

use std::time::{Duration, Instant};

use crate::configs;
use crate::support::backend::Echo;
use crate::support::client::{Client, Outcome, Sequenced};
use crate::support::gateway::Gateway;
use crate::support::load::alone;
use crate::support::wait::{SOON, until};

/// A gateway whose generations each get some tunnels.
struct Generations {
    gateway: Gateway,
    echo: Echo,
    head: String,
    /// By generation, oldest first.
    tunnels: Vec<Vec<Sequenced>>,
}

impl Generations {
    async fn start(most: usize, rate: u32) -> Self {
        let echo = Echo::start().await;
        let head = format!("{}generations = {most}\n", configs::draining("10m", rate));
        let gateway = Gateway::start(&configs::numbered(&head, &[&echo.address], 1)).await;
        Self {
            gateway,
            echo,
            head,
            tunnels: Vec::new(),
        }
    }

    /// Opens so many tunnels to the active generation, with traffic, and replaces it.
    async fn fill_and_reload(&mut self, tunnels: usize) {
        let number = self.tunnels.len() as u64 + 2;
        let mut opened = Vec::new();
        for each in 0..tunnels {
            let client = Client::open(&self.gateway.ws_url("/")).await;
            let name = format!("{number}.{each}");
            opened.push(Sequenced::run(client, name, Duration::from_millis(50)));
        }
        self.tunnels.push(opened);
        let text = configs::numbered(&self.head, &[&self.echo.address], number);
        self.gateway.edit(&text);
        self.gateway.reloaded().await;
    }

    /// Waits until the tunnels of the oldest generations have ended, each by a Close frame.
    async fn oldest_ended(&mut self, generations: usize) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for tunnel in self.tunnels.drain(..generations).flatten() {
            let outcome = tunnel.ended(SOON).await;
            assert!(outcome.end.is_polite(1012), "{outcome:?}");
            assert!(outcome.faults.is_empty(), "{outcome:?}");
            outcomes.push(outcome);
        }
        outcomes
    }

    async fn nobody_else_noticed(self) {
        for tunnel in self.tunnels.into_iter().flatten() {
            assert!(!tunnel.has_ended(), "a tunnel that may stay has ended");
            let outcome = tunnel.stop().await;
            assert!(outcome.faults.is_empty(), "{outcome:?}");
            assert_eq!(outcome.echoed, outcome.sent);
        }
        let log = self.gateway.log();
        assert!(!log.contains("closed faster"), "the rate did not hold");
        assert_eq!(self.echo.faults(), [""; 0]);
    }
}

/// That no more than `rate` closes came in any second, but for what a busy machine is late with.
pub(crate) fn assert_rate(outcomes: &[Outcome], rate: usize) {
    let mut ends: Vec<Instant> = outcomes.iter().map(|outcome| outcome.ended).collect();
    ends.sort();
    let slack = rate / 2;
    for (n, end) in ends.iter().enumerate() {
        let until = *end + Duration::from_secs(1);
        let within = ends[n..].iter().filter(|other| **other < until).count();
        assert!(within <= rate + slack, "{within} closes in a second");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oldest_generation_beyond_the_limit_is_closed_at_the_rate() {
    let _alone = alone().await;
    let mut world = Generations::start(2, 20).await;
    world.fill_and_reload(30).await;
    world.fill_and_reload(10).await;
    let status = world.gateway.status().await;
    let deadlines = status.generations.iter();
    let near = deadlines.filter(|it| it.deadline_in_seconds.is_some_and(|left| left < 500.0));
    assert_eq!(near.count(), 0, "two old generations may stay");
    let began = Instant::now();
    world.fill_and_reload(10).await;
    let outcomes = world.oldest_ended(1).await;
    let took = began.elapsed();
    assert_eq!(outcomes.len(), 30);
    assert_rate(&outcomes, 20);
    assert!((1.2..4.0).contains(&took.as_secs_f64()), "{took:?}");
    until("its generation is gone", SOON, async || {
        let status = world.gateway.status().await;
        let generations = status.generations.iter();
        generations.map(|it| it.generation).eq([2, 3, 4])
    })
    .await;
    world
        .gateway
        .logged(&["more old generations", "generation=1"])
        .await;
    world.nobody_else_noticed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_generation_that_holds_nothing_does_not_count() {
    let mut world = Generations::start(1, 20).await;
    world.fill_and_reload(5).await;
    for _ in 0..3 {
        world.tunnels.push(Vec::new());
        world.fill_and_reload(0).await;
    }
    let left = world.gateway.status().await.generations[0].clone();
    assert_eq!((left.generation, left.tunnels), (1, 5));
    assert!(left.deadline_in_seconds.unwrap() > 500.0, "{left:?}");
    world.nobody_else_noticed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_that_come_faster_than_the_closes_take_turns_in_the_order_of_age() {
    let _alone = alone().await;
    let mut world = Generations::start(1, 20).await;
    for _ in 0..6 {
        world.fill_and_reload(12).await;
    }
    // The newest old one may stay; those before it, in the order of their age, may not.
    let status = world.gateway.status().await;
    let old = status
        .generations
        .iter()
        .filter_map(|it| it.deadline_in_seconds);
    let old: Vec<f64> = old.collect();
    assert!(old.len() >= 2 && old.is_sorted(), "{old:?}");
    assert!(old[old.len() - 1] > 500.0, "{old:?}");
    assert!(old[old.len() - 2] < 10.0, "{old:?}");
    let outcomes = world.oldest_ended(5).await;
    assert_eq!(outcomes.len(), 60);
    assert_rate(&outcomes, 20);
    until("one old generation is left", SOON, async || {
        world.gateway.status().await.generations.len() == 2
    })
    .await;
    world.nobody_else_noticed().await;
}
