//! The operator's word about a server whose upstream gets another name, or that is removed.

use wsgate_protocol::admin::{ServerState, ServerStatus, TunnelState};

use crate::configs;
use crate::support::backend::Echo;
use crate::support::client::Client;
use crate::support::gateway::{Gateway, stderr};
use crate::support::wait::{SOON, until};

const HEAD: &str = "workers = 2\n[reload]\nwatch = false\n";

/// Two servers, under the name that is given.
fn config(name: &str, servers: &[&str]) -> String {
    let text = configs::with(HEAD, servers);
    text.replace("\"chat\"", &format!("\"{name}\""))
        .replace("upstream.chat", &format!("upstream.{name}"))
}

async fn ctl(gateway: &Gateway, args: &[&str]) {
    let output = gateway.ctl(args).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

async fn server(gateway: &Gateway, upstream: &str, address: &str) -> ServerStatus {
    let upstreams = gateway.status().await.upstreams;
    let upstream = upstreams.iter().find(|it| it.name == upstream).unwrap();
    let mut servers = upstream.servers.iter();
    servers.find(|it| it.address == address).unwrap().clone()
}

async fn draining(gateway: &Gateway) -> usize {
    let tunnels = gateway.tunnels().await;
    let draining = tunnels
        .iter()
        .filter(|it| it.state == TunnelState::Draining);
    draining.count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operators_word_goes_along_with_an_upstream_that_is_renamed() {
    let (one, two) = (Echo::start().await, Echo::start().await);
    let servers = [one.address.as_str(), two.address.as_str()];
    let gateway = Gateway::start(&config("chat", &servers)).await;
    let mut clients = Vec::new();
    while one.open() < 2 || two.open() < 2 {
        clients.push(Client::open(&gateway.ws_url("/")).await);
    }
    ctl(
        &gateway,
        &["drain", &format!("chat/{}", servers[0]), "--grace", "1h"],
    )
    .await;
    ctl(&gateway, &["maint", &format!("chat/{}", servers[1])]).await;
    let held = one.open() as usize;
    until("its tunnels drain", SOON, async || {
        draining(&gateway).await == held
    })
    .await;
    gateway.edit(&config("talk", &servers));
    let reloaded = gateway.reloaded().await;
    assert!(reloaded.warnings.is_empty(), "{:?}", reloaded.warnings);
    let drained = server(&gateway, "talk", servers[0]).await;
    assert_eq!(drained.state, ServerState::Drain);
    let kept = server(&gateway, "talk", servers[1]).await;
    assert_eq!((kept.state, kept.draining_tunnels), (ServerState::Maint, 0));
    until("they drain still", SOON, async || {
        draining(&gateway).await == held
    })
    .await;
    for tunnel in gateway.tunnels_where("state=draining").await {
        let left = tunnel.deadline_in_seconds.unwrap();
        assert!((3_000.0..3_600.0).contains(&left), "{left}");
        assert_eq!((&*tunnel.upstream, &*tunnel.server), ("talk", servers[0]));
    }
    // The new workers have heard it, too: neither server gets anything new.
    let refused = Client::try_open(&gateway.ws_url("/")).await.err();
    assert!(
        refused.as_ref().is_some_and(|error| error.contains("503")),
        "{refused:?}"
    );
    // It can be taken back by the new name.
    ctl(&gateway, &["undrain", &format!("talk/{}", servers[0])]).await;
    until("nothing drains", SOON, async || {
        draining(&gateway).await == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_word_that_is_forgotten_is_told() {
    let (one, two) = (Echo::start().await, Echo::start().await);
    let servers = [one.address.as_str(), two.address.as_str()];
    let gateway = Gateway::start(&config("chat", &servers)).await;
    ctl(&gateway, &["drain", &format!("chat/{}", servers[0])]).await;
    gateway.edit(&config("chat", &servers[1..]));
    let expected = format!(
        "server chat/{} was in drain: that word is forgotten with it",
        servers[0]
    );
    assert_eq!(gateway.reloaded().await.warnings, [expected]);
    gateway.edit(&config("chat", &servers));
    gateway.reloaded().await;
    let back = server(&gateway, "chat", servers[0]).await;
    assert_eq!(back.state, ServerState::Ready);
}
