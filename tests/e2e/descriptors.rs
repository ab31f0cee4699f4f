//! File descriptors: what fits is told, and what runs out harms nobody who is in.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio_tungstenite::tungstenite::Message;
use wsgate_protocol::admin::TunnelsBy;

use crate::configs;
use crate::support::backend::Echo;
use crate::support::client::{Client, Sequenced};
use crate::support::gateway::{Gateway, Launch};
use crate::support::process;
use crate::support::wait::{SOON, all_along, within};

const HEAD: &str = "workers = 1\n[reload]\nwatch = false\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_tells_how_many_tunnels_fit_and_a_larger_limit_is_a_warning() {
    let echo = Echo::start().await;
    let gateway = Launch::new(&configs::with(HEAD, &[&echo.address]))
        .descriptors(400)
        .start()
        .await;
    let limits = gateway.status().await.limits.unwrap();
    assert_eq!(limits.descriptors_per_worker, 400);
    assert_eq!(limits.tunnels_by, TunnelsBy::Descriptors);
    let fits = limits.tunnels;
    let mut open = Vec::new();
    while let Ok(client) = Client::try_open(&gateway.ws_url("/")).await {
        open.push(client);
    }
    assert_eq!(open.len() as u64, fits, "as many as status says");
    drop(open);

    let limited = |tunnels: u64| {
        let head = format!("{HEAD}[limits]\ntunnels = {tunnels}\n");
        configs::with(&head, &[&echo.address])
    };
    gateway.edit(&limited(5_000));
    let warnings = gateway.reloaded().await.warnings;
    let only = format!("only {fits} fit");
    assert!(
        warnings
            .iter()
            .any(|it| it.contains(&only) && it.contains("LimitNOFILE")),
        "{warnings:?}"
    );
    gateway.logged(&["limits.tunnels is 5000", &only]).await;
    gateway.edit(&limited(20));
    assert_eq!(gateway.reloaded().await.warnings, [""; 0]);
    let limits = gateway.status().await.limits.unwrap();
    assert_eq!((limits.tunnels, limits.tunnels_by), (20, TunnelsBy::Config));
    let shown = gateway.ctl(&["status"]).await;
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(
        shown.contains("room for 20 tunnels as configured, 400 descriptors a worker"),
        "{shown}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_that_the_supervisor_cannot_hold_is_refused() {
    let echo = Echo::start().await;
    let gateway = Launch::new(&configs::with(HEAD, &[&echo.address]))
        .descriptors(200)
        .start()
        .await;
    let mut tunnel = Client::open(&gateway.ws_url("/")).await;
    gateway.edit(&configs::with("workers = 64", &[&echo.address]));
    let answer = gateway.reload().await;
    assert_eq!(answer.status, 409);
    let message = answer.text();
    assert!(
        message.contains("may open 200") && message.contains("LimitNOFILE"),
        "{message}"
    );
    let status = gateway.status().await;
    assert_eq!((status.generations.len(), status.workers.len()), (1, 1));
    tunnel.echo(Message::text("untouched")).await;
}

/// Tunnels with traffic, and a worker that can open `free` descriptors more.
async fn short_of_descriptors(gateway: &Gateway, free: u64) -> (Vec<Sequenced>, u32) {
    let mut tunnels = Vec::new();
    for number in 0..10 {
        let client = Client::open(&gateway.ws_url("/")).await;
        tunnels.push(Sequenced::run(
            client,
            number.to_string(),
            Duration::from_millis(100),
        ));
    }
    gateway.holds(10).await;
    let worker = gateway.active_workers().await[0].pid;
    process::leave_descriptors(worker, Some(free));
    (tunnels, worker)
}

async fn assert_unharmed(tunnels: Vec<Sequenced>) {
    for tunnel in tunnels {
        assert!(!tunnel.has_ended(), "a tunnel ended");
        let outcome = tunnel.stop().await;
        assert!(outcome.faults.is_empty(), "{outcome:?}");
        assert_eq!(outcome.echoed, outcome.sent);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_descriptor_left_accepting_pauses_and_who_waits_is_served_afterwards() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&configs::with(HEAD, &[&echo.address])).await;
    let (tunnels, worker) = short_of_descriptors(&gateway, 0).await;
    let url = gateway.ws_url("/");
    let waiting = (0..20).map(|_| {
        let url = url.clone();
        async move { Client::try_open(&url).await }
    });
    let waiting = tokio::spawn(join_all(waiting.collect::<Vec<_>>()));
    gateway
        .logged(&["cannot accept connections", "no file descriptors left"])
        .await;
    let before = process::cpu_time(worker);
    let began = Instant::now();
    all_along("nobody gets in", Duration::from_secs(2), async || {
        echo.open() == 10
    })
    .await;
    let (took, cpu) = (began.elapsed(), process::cpu_time(worker) - before);
    assert!(
        cpu < took / 5,
        "accepting burns the CPU: {cpu:?} in {took:?}"
    );
    process::leave_descriptors(worker, None);
    for opened in waiting.await.unwrap() {
        opened.unwrap().echo(Message::text("at last")).await;
    }
    assert_unharmed(tunnels).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_descriptor_for_its_server_a_client_is_told_and_the_others_are_unharmed() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&configs::with(HEAD, &[&echo.address])).await;
    let (tunnels, worker) = short_of_descriptors(&gateway, 1).await;
    let url = gateway.ws_url("/");
    let refused = within("an answer", SOON, Client::try_open(&url)).await;
    let refused = refused.map(drop).unwrap_err();
    assert!(refused.contains("503"), "{refused}");
    process::leave_descriptors(worker, None);
    Client::open(&url).await.echo(Message::text("again")).await;
    assert_unharmed(tunnels).await;
}
