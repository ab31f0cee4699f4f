//! Many reloads under load: nothing is lost, every close is polite, and they come no
//! faster than the configuration says.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::configs;
use crate::support::backend::Echo;
use crate::support::client::Outcome;
use crate::support::gateway::Gateway;
use crate::support::load::{self, Fleet, Seen, Storm, alone};
use crate::support::wait::until;

const GRACE: Duration = Duration::from_secs(5);
const CLOSE_RATE: u32 = 50;
const TUNNELS: usize = 200;
const RELOADS: u64 = 20;

/// The configuration of the reload with this number.
fn numbered(echo: &Echo, number: u64) -> String {
    let head = configs::draining(&format!("{}s", GRACE.as_secs()), CLOSE_RATE);
    configs::numbered(&head, &[&echo.address], number)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_reloads_under_load_lose_nothing() {
    let _alone = alone().await;
    let echo = Echo::start().await;
    let gateway = Gateway::start(&numbered(&echo, 0)).await;
    let url = gateway.ws_url("/");
    let fleet = Fleet::launch(&url, TUNNELS, Duration::from_millis(250)).await;
    let storm = Storm::start(&url, 200);
    let mut pace = tokio::time::interval(Duration::from_secs(1));
    for number in 1..=RELOADS {
        pace.tick().await;
        gateway.edit(&numbered(&echo, number));
        if number % 2 == 0 {
            let reloaded = gateway.reloaded().await;
            assert_eq!(reloaded.generation, number + 1);
            assert_eq!(reloaded.warnings, [""; 0]);
        } else {
            gateway.signal(Signal::HUP);
            gateway.generation(number + 1).await;
        }
    }
    until(
        "the last old generation is gone",
        GRACE + Duration::from_secs(3),
        async || gateway.status().await.generations.len() == 1,
    )
    .await;
    let attempts = storm.stop().await;
    let seen = fleet.stop().await;
    assert!(attempts.len() > 3000, "{}", attempts.len());
    assert_eq!(load::problems(&attempts), [""; 0]);
    load::assert_no_faults(&seen, &echo);
    assert_drained_politely(&seen);
    assert_close_rate(&seen);
    let status = gateway.status().await;
    assert_eq!(status.totals.reloads, RELOADS);
    assert_eq!(status.totals.worker_restarts, 0);
    assert_eq!(
        status.totals.errors.values().sum::<u64>(),
        0,
        "{:?}",
        status.totals.errors
    );
}

fn drained(seen: &Seen) -> Vec<&Outcome> {
    seen.tunnels.iter().filter(|tunnel| !tunnel.by_us).collect()
}

/// Every tunnel that the gateway ended got its Close, at its time, and then a FIN.
fn assert_drained_politely(seen: &Seen) {
    let drained = drained(seen);
    assert!(
        drained.len() >= TUNNELS,
        "only {} tunnels were drained",
        drained.len()
    );
    for tunnel in drained {
        assert!(tunnel.end.is_polite(1012), "{tunnel:?}");
        // Messages may cross the Close, but none waited for its echo before.
        let waited = tunnel.unanswered_for.unwrap_or_default();
        assert!(
            waited < Duration::from_secs(1),
            "unanswered for {waited:?}: {tunnel:?}"
        );
        assert!(tunnel.slowest < Duration::from_secs(2), "{tunnel:?}");
    }
}

/// In any second at most `close_rate` closes begin. A client sees them later than they
/// began, by up to 0.2 s on a busy machine, and not all by as much: so a second as
/// clients see it may hold the closes of 1.2 s. All at once, as without a rate, would be
/// 200 in the first drain alone.
fn assert_close_rate(seen: &Seen) {
    let mut ends: Vec<Instant> = drained(seen).iter().map(|tunnel| tunnel.ended).collect();
    ends.sort();
    let within_a_second = |(index, first): (usize, &Instant)| {
        ends[index..]
            .iter()
            .take_while(|end| **end - *first < Duration::from_secs(1))
            .count()
    };
    let most = ends.iter().enumerate().map(within_a_second).max().unwrap();
    let allowed = CLOSE_RATE as usize * 12 / 10 + 1;
    assert!(
        most <= allowed,
        "{most} closes within a second, {allowed} at most"
    );
}
