//! At a reload live tunnels move to the new workers, and their peers notice nothing.

mod bytes;
mod clocks;
mod edges;
mod faults;
mod pending;

use std::time::Duration;

use crate::configs;
use crate::support::backend::Echo;
use crate::support::client::{Client, Sequenced};
use crate::support::gateway::Gateway;
use crate::support::wait::{SOON, until};

/// Two workers that reload only when told.
const HEAD: &str = "workers = 2\n[reload]\nwatch = false\n";

/// Waits until the old workers of a reload are gone.
async fn old_ones_gone(gateway: &Gateway) {
    until("the old generation is gone", SOON, async || {
        gateway.status().await.generations.len() == 1
    })
    .await;
}

/// Reloads to another configuration that leads to the same, and waits until the old workers are gone. All `tunnels` have moved.
async fn all_move(gateway: &Gateway, config: &str, tunnels: u64) {
    gateway.edit(config);
    let reloaded = gateway.reloaded().await;
    let expected = (tunnels, tunnels);
    assert_eq!(
        (reloaded.moved, reloaded.fates.kept),
        expected,
        "{reloaded:?}"
    );
    assert_eq!(reloaded.stays, []);
    old_ones_gone(gateway).await;
}

/// A configuration whose route has these keys. Those with different numbers differ, and lead to the same.
fn with_keys(keys: &str, server: &str, number: u64) -> String {
    format!(
        "{HEAD}[limits]\nhandshake_timeout = \"{}s\"\n{}[[route]]\nupstream = \"chat\"\n{keys}\n{}",
        number + 10,
        configs::LISTENER,
        configs::upstream("chat", &[server])
    )
}

#[tokio::test]
async fn tunnels_move_with_all_that_is_known_of_them() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&configs::numbered(HEAD, &[&echo.address], 1)).await;
    let url = gateway.ws_url("/some/where");
    let origin = [("origin", "https://chat.example.com")];
    let mut idle = Vec::new();
    for _ in 0..20 {
        let mut client = Client::with_headers(&url, &origin).await.unwrap();
        client.echo("before".into()).await;
        idle.push(client);
    }
    let mut busy = Vec::new();
    for number in 0..20 {
        let client = Client::open(&url).await;
        let name = format!("busy {number}");
        busy.push(Sequenced::run(client, name, Duration::from_millis(5)));
    }
    let before = gateway.tunnels().await;
    assert_eq!(before.len(), 40);
    for number in 2..5 {
        gateway.edit(&configs::numbered(HEAD, &[&echo.address], number));
        let reloaded = gateway.reloaded().await;
        assert_eq!(
            (reloaded.generation, reloaded.moved),
            (number, 40),
            "{reloaded:?}"
        );
        assert_eq!((reloaded.fates.kept, reloaded.draining_tunnels), (40, 0));
        assert_eq!(reloaded.stays, []);
        assert_eq!(reloaded.warnings, [""; 0]);
        old_ones_gone(&gateway).await;
        let after = gateway.tunnels().await;
        assert_eq!(after.len(), 40);
        for tunnel in &after {
            let before = before.iter().find(|it| it.id == tunnel.id).unwrap();
            assert_eq!((tunnel.generation, tunnel.handovers), (number, number - 1));
            assert_eq!(tunnel.deadline_at, None);
            assert_eq!(tunnel.client, before.client);
            assert_eq!(tunnel.path, "/some/where");
            assert_eq!(tunnel.origin, before.origin);
            assert_eq!(tunnel.opened_at, before.opened_at);
            assert!(tunnel.messages_from_client >= before.messages_from_client);
        }
        for client in &mut idle {
            client.echo("after".into()).await;
        }
    }
    for outcome in futures_util::future::join_all(busy.into_iter().map(Sequenced::stop)).await {
        assert!(outcome.faults.is_empty() && outcome.by_us, "{outcome:?}");
    }
    assert_eq!(echo.faults(), [""; 0]);
    let totals = gateway.status().await.totals;
    assert_eq!((totals.tunnels_opened, totals.handovers), (40, 120));
}
