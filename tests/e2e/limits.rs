//! Limits hold for the gateway as a whole, and what is refused or full harms nobody else.

use std::time::Duration;

use futures_util::future::join_all;
use rustix::process::Signal;
use tokio_tungstenite::tungstenite::Message;
use wsgate_protocol::admin::GatewayState;

use crate::configs;
use crate::support::backend::Echo;
use crate::support::client::Client;
use crate::support::gateway::{Gateway, Launch};
use crate::support::raw::{Wire, ask, get};
use crate::support::wait::until;

const SOON: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_of_tunnels_holds_over_all_workers_however_many_come_at_once() {
    let echo = Echo::start().await;
    let head = "workers = 3\n[limits]\ntunnels = 3\n";
    let gateway = Gateway::start(&configs::with(head, &[&echo.address])).await;
    let url = gateway.ws_url("/");
    for _ in 0..3 {
        let opened = join_all((0..60).map(|_| Client::try_open(&url))).await;
        let (mut open, mut refused) = (Vec::new(), 0);
        for client in opened {
            match client {
                Ok(client) => open.push(client),
                Err(error) => {
                    assert!(error.contains("503"), "{error}");
                    refused += 1;
                }
            }
        }
        assert!(open.len() <= 3, "{} are open", open.len());
        assert_eq!(open.len() + refused, 60);
        drop(open);
        until("all have ended", SOON, async || {
            gateway.status().await.totals.tunnels == 0
        })
        .await;
        let mut again = Client::open(&url).await;
        again.echo(Message::text("there is room again")).await;
        drop(again);
        until("it has ended", SOON, async || {
            gateway.status().await.totals.tunnels == 0
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_full_of_connections_serves_on_when_some_leave() {
    let echo = Echo::start().await;
    let gateway = Launch::new(&configs::with("workers = 1\n", &[&echo.address]))
        .descriptors(400)
        .start()
        .await;
    let mut tunnel = Client::open(&gateway.ws_url("/")).await;
    let mut silent = Vec::new();
    for _ in 0..150 {
        silent.push(Wire::connect(gateway.address()).await);
    }
    gateway
        .logged(&["cannot accept connections", "descriptors"])
        .await;
    tunnel.echo(Message::text("meanwhile")).await;
    assert_eq!(
        gateway.tunnels().await.len(),
        1,
        "a list needs a descriptor in the worker"
    );
    drop(silent);
    let (head, _) = ask(
        &mut Wire::connect(gateway.address()).await,
        &get("/", "any"),
    )
    .await;
    assert!(head.status() > 0);
    tunnel.echo(Message::text("and afterwards")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_moves_from_one_address_to_all_of_them_on_the_same_port() {
    let echo = Echo::start().await;
    let one = configs::with("[reload]\nwatch = false\n", &[&echo.address]);
    let first = Gateway::start(&one).await;
    let port = first
        .address()
        .rsplit_once(':')
        .map(|(_, port)| port.to_owned());
    let port = port.expect("an address has a port");
    drop(first);
    let at = |host: &str| one.replace("127.0.0.1:0", &format!("{host}:{port}"));
    let gateway = Gateway::start(&at("127.0.0.1")).await;
    let mut tunnel = Client::open(&gateway.ws_url("/")).await;
    for host in ["0.0.0.0", "127.0.0.1"] {
        gateway.edit(&at(host));
        gateway.reloaded().await;
        tunnel.echo(Message::text("still here")).await;
        Client::open(&gateway.ws_url("/"))
            .await
            .echo(Message::text("new"))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_before_the_first_generation_is_active_is_no_failure() {
    let echo = Echo::start().await;
    let gateway = Launch::new(&configs::simple(&[&echo.address]))
        .file("hooks", "never-ready")
        .spawn();
    until("it has begun", SOON, async || {
        gateway
            .try_status()
            .await
            .is_ok_and(|status| status.state == GatewayState::Starting)
    })
    .await;
    gateway.signal(Signal::TERM);
    let status = gateway.exited(Duration::from_secs(5)).await;
    assert!(status.success(), "{status}");
}
