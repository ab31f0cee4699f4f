//! The operator's word about a server: `drain`, `undrain`, `maint`. It changes tables in
//! running workers, and no process.

use std::time::Duration;

use http::Method;
use rustix::process::Signal;
use tokio_tungstenite::tungstenite::Message;
use wsgate_protocol::admin::{ServerState, ServerStateChanged, ServerStatus, TunnelState};

use crate::configs;
use crate::support::backend::Echo;
use crate::support::client::Client;
use crate::support::gateway::{Gateway, stderr};
use crate::support::process::{self, Process};
use crate::support::wait::{SOON, until};

/// A gateway before two servers, with two tunnels to each.
struct Deployed {
    one: Echo,
    two: Echo,
    gateway: Gateway,
    clients: Vec<Client>,
}

fn config(one: &Echo, two: &Echo, number: u64) -> String {
    let head = configs::draining("10m", 100);
    configs::numbered(&head, &[&one.address, &two.address], number)
}

impl Deployed {
    async fn start() -> Self {
        let (one, two) = (Echo::start().await, Echo::start().await);
        let gateway = Gateway::start(&config(&one, &two, 1)).await;
        let mut clients = Vec::new();
        // Which worker a client meets is the kernel's choice, and each takes turns for itself.
        while one.open() < 2 || two.open() < 2 {
            clients.push(Client::open(&gateway.ws_url("/")).await);
        }
        Self {
            one,
            two,
            gateway,
            clients,
        }
    }

    /// `chat/SERVER` of the first server.
    fn target(&self) -> String {
        format!("chat/{}", self.one.address)
    }

    async fn ctl(&self, args: &[&str]) {
        let output = self.gateway.ctl(args).await;
        assert_eq!(
            output.status.code(),
            Some(0),
            "{args:?}: {}",
            stderr(&output)
        );
    }

    /// What the status says of the first server.
    async fn server(&self) -> ServerStatus {
        let mut status = self.gateway.status().await;
        status.upstreams.remove(0).servers.remove(0)
    }

    fn pids(&self) -> Vec<u32> {
        process::children(self.gateway.pid).into_keys().collect()
    }

    /// New clients avoid the first server.
    async fn assert_avoided(&self) {
        let (before, other) = (self.one.sessions().len(), self.two.sessions().len());
        for _ in 0..8 {
            Client::open(&self.gateway.ws_url("/"))
                .await
                .echo(Message::text("hello"))
                .await;
        }
        assert_eq!(self.one.sessions().len(), before);
        assert_eq!(self.two.sessions().len(), other + 8);
    }

    /// New clients meet the first server too.
    async fn assert_met(&self) {
        let before = self.one.sessions().len();
        for _ in 0..8 {
            Client::open(&self.gateway.ws_url("/"))
                .await
                .echo(Message::text("hello"))
                .await;
        }
        assert!(self.one.sessions().len() > before);
    }

    /// The first server's tunnels.
    async fn tunnels(&self) -> Vec<wsgate_protocol::admin::Tunnel> {
        let query = format!("server={}", self.one.address);
        self.gateway.tunnels_where(&query).await
    }

    async fn assert_all_live(&mut self) {
        for client in &mut self.clients {
            client.echo(Message::text("still here")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_server_gets_nothing_new_and_its_tunnels_a_deadline() {
    let mut deployed = Deployed::start().await;
    let pids = deployed.pids();
    let held = deployed.one.open();
    deployed
        .ctl(&["drain", &deployed.target(), "--grace", "5m"])
        .await;
    deployed.assert_avoided().await;
    deployed.assert_all_live().await;
    let tunnels = deployed.tunnels().await;
    assert_eq!(tunnels.len() as u64, held);
    for tunnel in tunnels {
        assert_eq!(tunnel.state, TunnelState::Draining);
        let left = tunnel.deadline_in_seconds.unwrap();
        assert!((280.0..=300.0).contains(&left), "{left}");
    }
    let server = deployed.server().await;
    assert_eq!(
        (server.state, server.draining_tunnels),
        (ServerState::Drain, held)
    );
    let others = deployed
        .gateway
        .tunnels_where(&format!("server={}", deployed.two.address))
        .await;
    assert!(
        others
            .iter()
            .all(|tunnel| tunnel.state == TunnelState::Open)
    );
    assert_eq!(deployed.pids(), pids, "no process is new");
    assert_eq!(deployed.gateway.status().await.generations.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn undrain_gives_a_server_everything_back() {
    let mut deployed = Deployed::start().await;
    deployed.ctl(&["drain", &deployed.target()]).await;
    deployed.ctl(&["undrain", &deployed.target()]).await;
    deployed.assert_met().await;
    for tunnel in deployed.tunnels().await {
        assert_eq!(
            (tunnel.state, tunnel.deadline_at),
            (TunnelState::Open, None)
        );
    }
    let server = deployed.server().await;
    assert_eq!(
        (server.state, server.draining_tunnels),
        (ServerState::Ready, 0)
    );
    deployed.assert_all_live().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tunnels_of_a_server_in_maintenance_stay() {
    let mut deployed = Deployed::start().await;
    deployed.ctl(&["maint", &deployed.target()]).await;
    deployed.assert_avoided().await;
    for tunnel in deployed.tunnels().await {
        assert_eq!(
            (tunnel.state, tunnel.deadline_at),
            (TunnelState::Open, None)
        );
    }
    assert_eq!(deployed.server().await.state, ServerState::Maint);
    deployed.assert_all_live().await;
    deployed.ctl(&["undrain", &deployed.target()]).await;
    deployed.assert_met().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drained_tunnels_are_closed_at_the_end_of_the_grace_and_no_others() {
    let mut deployed = Deployed::start().await;
    let held: Vec<String> = deployed
        .tunnels()
        .await
        .into_iter()
        .map(|it| it.client)
        .collect();
    deployed
        .ctl(&["drain", &deployed.target(), "--grace", "1s"])
        .await;
    let (drained, stay): (Vec<_>, Vec<_>) = std::mem::take(&mut deployed.clients)
        .into_iter()
        .partition(|client| held.contains(&client.local_address()));
    deployed.clients = stay;
    for mut client in drained {
        let end = client.end(SOON).await;
        assert!(end.is_polite(1012), "{end:?}");
    }
    deployed.assert_all_live().await;
    until("the server has none left", SOON, async || {
        deployed.server().await.tunnels == 0
    })
    .await;
    assert_eq!(deployed.one.open(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operators_word_survives_reloads() {
    let mut deployed = Deployed::start().await;
    deployed.ctl(&["drain", &deployed.target()]).await;
    deployed
        .gateway
        .edit(&config(&deployed.one, &deployed.two, 2));
    deployed.gateway.reloaded().await;
    assert_eq!(deployed.server().await.state, ServerState::Drain);
    deployed.assert_avoided().await;
    deployed.assert_all_live().await;
    deployed.ctl(&["undrain", &deployed.target()]).await;
    deployed.assert_met().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operators_word_reaches_old_generations() {
    let mut deployed = Deployed::start().await;
    deployed
        .gateway
        .edit(&config(&deployed.one, &deployed.two, 2));
    deployed.gateway.reloaded().await;
    deployed
        .ctl(&["drain", &deployed.target(), "--grace", "1s"])
        .await;
    until(
        "its tunnels of both generations are closed",
        SOON,
        async || deployed.one.open() == 0,
    )
    .await;
    assert!(deployed.two.open() >= 2);
    deployed.clients.clear();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operators_word_survives_a_worker() {
    let mut deployed = Deployed::start().await;
    deployed.ctl(&["maint", &deployed.target()]).await;
    for worker in deployed.gateway.active_workers().await {
        let process = Process::open(worker.pid).unwrap();
        process.signal(Signal::KILL);
        assert!(process.ended_within(SOON));
    }
    deployed.clients.clear();
    until("both are replaced", SOON, async || {
        let status = deployed.gateway.status().await;
        status.workers.len() == 2 && status.vacant_slots.is_empty()
    })
    .await;
    deployed.assert_avoided().await;
    assert_eq!(deployed.server().await.state, ServerState::Maint);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_every_server_drained_a_client_is_told_so() {
    let deployed = Deployed::start().await;
    for server in [&deployed.one, &deployed.two] {
        deployed
            .ctl(&["maint", &format!("chat/{}", server.address)])
            .await;
    }
    let error = Client::try_open(&deployed.gateway.ws_url("/"))
        .await
        .unwrap_err();
    assert!(error.contains("503") || error.contains("502"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_says_what_it_changed() {
    let deployed = Deployed::start().await;
    let path = format!("/v1/upstreams/chat/servers/{}", deployed.one.address);
    let body = r#"{"state":"drain","grace_seconds":300,"close_rate":10}"#;
    let answer = deployed.gateway.call(Method::PUT, &path, body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let changed: ServerStateChanged = answer.json();
    assert_eq!(
        (changed.was, changed.state),
        (ServerState::Ready, ServerState::Drain)
    );
    assert_eq!(changed.server, deployed.one.address);
    assert_eq!(changed.tunnels, deployed.one.open());
    assert!(changed.deadline_in_seconds.unwrap() <= 300.0);
    deployed
        .gateway
        .logged(&[&deployed.one.address, "server state"])
        .await;
    for (path, status) in [
        ("/v1/upstreams/chta/servers/127.0.0.1:1", 404),
        ("/v1/upstreams/chat/servers/127.0.0.1:1", 404),
    ] {
        let answer = deployed.gateway.call(Method::PUT, path, body).await;
        assert_eq!(answer.status, status, "{}", answer.text());
        assert!(answer.error_code().is_some(), "{}", answer.text());
    }
    for wrong in [
        "",
        "{}",
        r#"{"state":"gone"}"#,
        r#"{"state":"drain","graze":1}"#,
    ] {
        let answer = deployed.gateway.call(Method::PUT, &path, wrong).await;
        assert!(
            answer.status.is_client_error(),
            "{wrong}: {}",
            answer.status
        );
        assert!(answer.error_code().is_some(), "{}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_a_reload_removes_is_listed_while_it_holds_tunnels() {
    let mut deployed = Deployed::start().await;
    let only_two = configs::with(&configs::draining("10m", 100), &[&deployed.two.address]);
    deployed.gateway.edit(&only_two);
    deployed.gateway.reloaded().await;
    let servers = deployed.gateway.status().await.upstreams.remove(0).servers;
    let removed = servers
        .iter()
        .find(|server| server.address == deployed.one.address)
        .unwrap();
    assert!(
        !removed.configured && removed.tunnels == deployed.one.open(),
        "{removed:?}"
    );
    deployed.assert_all_live().await;
    deployed.clients.clear();
    until(
        "it is listed no more",
        Duration::from_secs(15),
        async || {
            deployed
                .gateway
                .status()
                .await
                .upstreams
                .remove(0)
                .servers
                .len()
                == 1
        },
    )
    .await;
}
