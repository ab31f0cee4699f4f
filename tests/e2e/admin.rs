//! The admin socket and `[admin] http`: what they say, how fast, and how they refuse.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use http::Method;
use rustix::process::Signal;
use tokio_tungstenite::tungstenite::Message;
use wsgate_protocol::admin::{
    GatewayState, GenerationState, ReloadOutcome, ServerState, TunnelState, UNRESPONSIVE_HEADER,
    WorkerState,
};

use crate::configs;
use crate::support::admin::{Answer, over_tcp, over_unix};
use crate::support::backend::{self, Echo};
use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::process;
use crate::support::wait::{SOON, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_says_what_runs() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&configs::with("workers = 2", &[&echo.address])).await;
    let mut client = Client::open(&gateway.ws_url("/")).await;
    client.echo(Message::text("hello")).await;
    let status = gateway
        .counted("the echo is counted", |totals| {
            totals.messages_from_servers == 1
        })
        .await;
    assert_eq!(status.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(
        (status.pid, status.state),
        (gateway.pid, GatewayState::Running)
    );
    assert_eq!(status.config.file, gateway.config().to_str().unwrap());
    assert_eq!(status.config.sha256.len(), 64);
    assert!(!status.config.file_differs && status.last_reload.is_none());
    assert!(status.uptime_seconds > 0.0 && status.uptime_seconds < 60.0);
    assert!(status.started_at.ends_with('Z'), "{}", status.started_at);
    let [generation] = status.generations.as_slice() else {
        panic!("{:?}", status.generations);
    };
    assert_eq!(
        (generation.generation, generation.state),
        (1, GenerationState::Active)
    );
    assert_eq!((generation.workers, generation.tunnels), (2, 1));
    let slots: Vec<u64> = status.workers.iter().map(|worker| worker.slot).collect();
    assert_eq!(slots, [0, 1]);
    for worker in &status.workers {
        assert_eq!((worker.generation, worker.state), (1, WorkerState::Active));
        assert!(worker.memory_bytes > 100_000, "{worker:?}");
        assert!(worker.last_heard_seconds.unwrap() < 5.0, "{worker:?}");
        assert!(
            process::title(worker.pid).contains("worker"),
            "{}",
            process::title(worker.pid)
        );
    }
    assert_eq!(
        status
            .workers
            .iter()
            .map(|worker| worker.tunnels)
            .sum::<u64>(),
        1
    );
    assert!(status.vacant_slots.is_empty());
    let [listener] = status.listeners.as_slice() else {
        panic!("{:?}", status.listeners);
    };
    assert_eq!(
        (listener.address.as_str(), listener.sockets),
        ("127.0.0.1:0", 2)
    );
    let [upstream] = status.upstreams.as_slice() else {
        panic!("{:?}", status.upstreams);
    };
    assert_eq!(upstream.name, "chat");
    let server = &upstream.servers[0];
    assert_eq!(
        (server.address.as_str(), server.state),
        (&*echo.address, ServerState::Ready)
    );
    assert_eq!(
        (server.tunnels, server.opened, server.connect_failures),
        (1, 1, 0)
    );
    assert!(server.configured);
    let totals = status.totals;
    assert_eq!(
        (totals.tunnels, totals.tunnels_opened, totals.connections),
        (1, 1, 1)
    );
    assert_eq!(
        (totals.messages_from_clients, totals.messages_from_servers),
        (1, 1)
    );
    // A frame of 5 bytes: 2 of head, and 4 of mask from the client.
    assert_eq!(
        (totals.bytes_from_clients, totals.bytes_from_servers),
        (11, 7)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_is_shown_with_all_that_it_is() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&configs::with("workers = 2", &[&echo.address])).await;
    let mut client = Client::open(&gateway.ws_url("/a/b?c=d")).await;
    for _ in 0..3 {
        client.echo(Message::text("hello")).await;
    }
    let tunnels = gateway.tunnels().await;
    let [tunnel] = tunnels.as_slice() else {
        panic!("{tunnels:?}");
    };
    assert_eq!(tunnel.client, client.local_address());
    assert_eq!(
        (tunnel.host.as_str(), tunnel.path.as_str()),
        ("127.0.0.1", "/a/b")
    );
    assert_eq!(
        (tunnel.route.as_str(), tunnel.upstream.as_str()),
        ("*/", "chat")
    );
    assert_eq!(tunnel.server, echo.address);
    assert_eq!((tunnel.generation, tunnel.state), (1, TunnelState::Open));
    assert_eq!(
        (tunnel.messages_from_client, tunnel.messages_from_server),
        (3, 3)
    );
    assert_eq!(
        (tunnel.bytes_from_client, tunnel.bytes_from_server),
        (33, 21)
    );
    assert!((tunnel.idle_seconds - 0.01..60.0).contains(&tunnel.age_seconds));
    assert_eq!(
        (tunnel.deadline_at.as_ref(), tunnel.subprotocol.as_ref()),
        (None, None)
    );
    let workers = gateway.active_workers().await;
    let worker = workers
        .iter()
        .find(|worker| worker.pid == tunnel.worker)
        .unwrap();
    assert_eq!((worker.slot, worker.tunnels), (tunnel.slot, 1));
    let id = tunnel.id.clone();
    client.echo(Message::text("hello")).await;
    assert_eq!(gateway.tunnels().await[0].id, id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_are_filtered() {
    let (one, two) = (Echo::start().await, Echo::start().await);
    let config = format!(
        "workers = 2\n{}{}[[route]]\npath = \"/two\"\nupstream = \"two\"\n{}{}",
        configs::LISTENER,
        configs::ROUTE,
        configs::upstream("chat", &[&one.address]),
        configs::upstream("two", &[&two.address]),
    );
    let gateway = Gateway::start(&config).await;
    let mut clients = Vec::new();
    for path in ["/", "/x", "/two", "/two/more", "/two"] {
        clients.push(Client::open(&gateway.ws_url(path)).await);
    }
    let address = clients[0].local_address();
    let worker = gateway.tunnels().await[0].worker;
    let of_worker = gateway
        .tunnels()
        .await
        .iter()
        .filter(|it| it.worker == worker)
        .count();
    for (query, count) in [
        (String::new(), 5),
        ("upstream=two".to_owned(), 3),
        ("route=*/two".to_owned(), 3),
        ("route=%2A%2Ftwo".to_owned(), 3),
        (format!("server={}", one.address), 2),
        (format!("client={address}"), 1),
        ("client=127.0.0.1".to_owned(), 5),
        (format!("worker={worker}"), of_worker),
        ("generation=1".to_owned(), 5),
        ("generation=2".to_owned(), 0),
        ("state=open".to_owned(), 5),
        ("state=draining".to_owned(), 0),
        ("older_than=1h".to_owned(), 0),
        ("idle_for=0".to_owned(), 5),
        ("upstream=two&client=192.0.2.1".to_owned(), 0),
    ] {
        assert_eq!(gateway.tunnels_where(&query).await.len(), count, "{query}");
    }
    for wrong in [
        "generation=x",
        "state=gone",
        "colour=red",
        "older_than=soon",
    ] {
        let answer = gateway.get(&format!("/v1/tunnels?{wrong}")).await;
        assert_eq!(answer.status, 400, "{wrong}: {}", answer.text());
        assert!(answer.error_code().is_some(), "{}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_list_comes_whole() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&configs::with("workers = 2", &[&echo.address])).await;
    let long = "x".repeat(1500);
    let mut clients = Vec::new();
    for number in 0..300 {
        // More than a pipe's 64 KiB from each worker.
        let url = gateway.ws_url(&format!("/{number}/{long}"));
        clients.push(Client::open(&url).await);
    }
    let answer = gateway.get("/v1/tunnels").await;
    assert!(answer.body.len() > 400_000, "{}", answer.body.len());
    let tunnels: Vec<wsgate_protocol::admin::Tunnel> = answer.json();
    let ids: std::collections::BTreeSet<&String> = tunnels.iter().map(|it| &it.id).collect();
    assert_eq!((tunnels.len(), ids.len()), (300, 300));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_does_not_answer_is_shown_as_that_and_holds_nobody_up() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&configs::with("workers = 2", &[&echo.address])).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(Client::open(&gateway.ws_url("/")).await);
    }
    gateway.holds(20).await;
    let frozen = gateway.tunnels().await[0].worker;
    let of_others = gateway
        .tunnels()
        .await
        .iter()
        .filter(|it| it.worker != frozen)
        .count();
    process::signal(frozen, Signal::STOP);
    let began = Instant::now();
    let status = gateway.status().await;
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    for worker in status.workers {
        let expected = if worker.pid == frozen {
            WorkerState::Unresponsive
        } else {
            WorkerState::Active
        };
        assert_eq!(worker.state, expected);
    }
    assert_eq!(
        status.totals.tunnels, 20,
        "the board knows them all the same"
    );
    let began = Instant::now();
    let answer = gateway.get("/v1/tunnels").await;
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    let listed: Vec<wsgate_protocol::admin::Tunnel> = answer.json();
    assert_eq!(listed.len(), of_others);
    assert_eq!(answer.headers[UNRESPONSIVE_HEADER], frozen.to_string());
    process::signal(frozen, Signal::CONT);
    until("it is active again", SOON, async || {
        let status = gateway.status().await;
        status
            .workers
            .iter()
            .all(|worker| worker.state == WorkerState::Active)
    })
    .await;
    assert_eq!(gateway.tunnels().await.len(), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_calls_get_errors_that_help() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&configs::simple(&[&echo.address])).await;
    for (method, path, body, status) in [
        (Method::GET, "/", "", 404),
        (Method::GET, "/v1/nothing", "", 404),
        (Method::POST, "/v1/status", "", 405),
        (Method::GET, "/v1/reload", "", 405),
        (Method::DELETE, "/v1/tunnels", "", 405),
        (Method::POST, "/v1/stop", "{\"now\":", 400),
        (Method::POST, "/v1/stop", "{\"later\":true}", 400),
        (
            Method::PUT,
            "/v1/upstreams/chta/servers/a:1",
            "{\"state\":\"drain\"}",
            404,
        ),
    ] {
        let answer = gateway.call(method.clone(), path, body).await;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
        let error = answer.json::<wsgate_protocol::admin::ErrorBody>().error;
        assert!(
            !error.message.is_empty() && !error.help.is_empty(),
            "{error:?}"
        );
        assert_eq!(answer.headers["content-type"], "application/json");
        if status == 405 {
            assert!(answer.headers.contains_key("allow"), "{:?}", answer.headers);
        }
    }
    let huge = "x".repeat(10 << 20);
    let socket = gateway.socket();
    // It may be cut off before it has sent all of it.
    if let Ok(answer) = over_unix(&socket, Method::POST, "/v1/stop", &huge).await {
        assert!(answer.status.is_client_error(), "{}", answer.status);
    }
    assert_eq!(gateway.status().await.state, GatewayState::Running);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_socket_is_for_its_owner_and_group_alone() {
    use std::os::unix::fs::PermissionsExt;
    let echo = Echo::start().await;
    let gateway = Gateway::start(&configs::simple(&[&echo.address])).await;
    let mode = std::fs::metadata(gateway.socket())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o660);
    // Whoever changes something is named in the log.
    gateway.reload().await;
    gateway
        .logged(&["reload", &std::process::id().to_string()])
        .await;
}

/// A gateway with `[admin] http`, and the address of that.
async fn with_http(echo: &Echo) -> (Gateway, String) {
    let address = backend::nobody().await;
    let gateway = Gateway::start(&http_config(echo, &address, 1)).await;
    (gateway, address)
}

fn http_config(echo: &Echo, address: &str, number: u64) -> String {
    let admin = format!("[admin]\nsocket = \"{{dir}}/admin.sock\"\nhttp = \"{address}\"\n");
    let head = configs::draining("10m", 100) + &admin;
    configs::numbered(&head, &[&echo.address], number)
}

async fn get(address: &str, path: &str) -> Answer {
    over_tcp(address, Method::GET, path).await.unwrap()
}

/// The samples of the exposition format: name with labels, and value.
async fn metrics(address: &str) -> BTreeMap<String, f64> {
    let answer = get(address, "/metrics").await;
    assert_eq!(answer.status, 200);
    let content_type = answer.headers["content-type"].to_str().unwrap().to_owned();
    assert!(content_type.contains("openmetrics") || content_type.contains("text/plain"));
    let text = answer.text();
    let samples = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

/// The sum of the samples whose name begins so.
fn sum(metrics: &BTreeMap<String, f64>, name: &str) -> f64 {
    let matching = metrics.iter().filter(|(key, _)| key.starts_with(name));
    matching.map(|(_, value)| value).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_readiness_are_told_over_http() {
    let echo = Echo::start().await;
    let (gateway, address) = with_http(&echo).await;
    assert_eq!(get(&address, "/healthz").await.status, 200);
    assert_eq!(get(&address, "/readyz").await.status, 200);
    // What names a client, or changes something, is for the socket.
    for path in ["/v1/status", "/v1/tunnels", "/v1/reload", "/"] {
        assert_eq!(get(&address, path).await.status, 404, "{path}");
    }
    let stop = over_tcp(&address, Method::POST, "/v1/stop").await.unwrap();
    assert!(stop.status.is_client_error());
    let _client = Client::open(&gateway.ws_url("/")).await;
    gateway.signal(Signal::TERM);
    until("not ready while it stops", SOON, async || {
        get(&address, "/readyz").await.status == 503
    })
    .await;
    assert_eq!(get(&address, "/healthz").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn totals_never_go_back() {
    let echo = Echo::start().await;
    let (gateway, address) = with_http(&echo).await;
    let mut before = metrics(&address).await;
    let mut status_before = gateway.status().await.totals;
    let mut held = Vec::new();
    for number in 2..6 {
        for _ in 0..4 {
            let mut client = Client::open(&gateway.ws_url("/")).await;
            client.echo(Message::text("hello")).await;
            held.push(client);
        }
        held.remove(0).close(1000, "").await;
        if number % 2 == 0 {
            gateway.edit(&http_config(&echo, &address, number));
            gateway.reloaded().await;
        } else {
            let victim = gateway.active_workers().await[0].pid;
            let restarts = gateway.status().await.totals.worker_restarts;
            process::signal(victim, Signal::KILL);
            until("it is replaced", SOON, async || {
                let status = gateway.status().await;
                status.totals.worker_restarts > restarts && status.vacant_slots.is_empty()
            })
            .await;
        }
        let now = metrics(&address).await;
        for (name, value) in before.iter().filter(|(name, _)| name.contains("_total")) {
            let later = now.get(name).unwrap_or_else(|| panic!("{name} is gone"));
            assert!(later >= value, "{name} went from {value} to {later}");
        }
        let status = gateway.status().await.totals;
        assert!(status.tunnels_opened >= status_before.tunnels_opened + 4);
        assert!(status.bytes_from_clients >= status_before.bytes_from_clients + 4 * 11);
        // Figures are read one by one while tunnels end: they agree when that is over.
        until("every tunnel lives or has a cause", SOON, async || {
            let totals = gateway.status().await.totals;
            let ended: u64 = totals.tunnels_ended.values().sum();
            totals.tunnels_opened == ended + totals.tunnels
        })
        .await;
        (before, status_before) = (now, status);
    }
    assert_eq!(status_before.tunnels_opened, 16);
    let names: Vec<&str> = before
        .keys()
        .map(|name| name.split('{').next().unwrap())
        .collect();
    assert!(
        names.iter().all(|name| name.starts_with("wsgate_")),
        "{names:?}"
    );
    assert_eq!(sum(&before, "wsgate_tunnels_opened_total"), 16.0);
    assert_eq!(
        sum(&before, "wsgate_reloads_total{result=\"reloaded\"}"),
        2.0
    );
    assert_eq!(sum(&before, "wsgate_worker_restarts_total"), 2.0);
    // The dead workers' tunnels are none any more, and have ended.
    let live = gateway.tunnels().await.len() as u64;
    assert_eq!(gateway.status().await.totals.tunnels, live);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_tell_tunnels_by_route_server_and_state() {
    let echo = Echo::start().await;
    let (gateway, address) = with_http(&echo).await;
    let _old = Client::open(&gateway.ws_url("/")).await;
    gateway.edit(&http_config(&echo, &address, 2));
    gateway.reloaded().await;
    let _new = Client::open(&gateway.ws_url("/")).await;
    let metrics = metrics(&address).await;
    let tunnels: Vec<&String> = metrics
        .iter()
        .filter(|(name, value)| {
            name.starts_with("wsgate_") && name.contains("tunnels{") && **value > 0.0
        })
        .map(|(name, _)| name)
        .collect();
    let all = tunnels
        .iter()
        .map(|name| name.as_str())
        .collect::<Vec<_>>()
        .join("\n");
    for part in [
        "state=\"open\"",
        "state=\"draining\"",
        "route=\"*/\"",
        &echo.address,
    ] {
        assert!(all.contains(part), "{part} in:\n{all}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_reload_stays_in_the_status_until_one_goes_well() {
    let echo = Echo::start().await;
    let (gateway, address) = with_http(&echo).await;
    gateway.edit("workers = \"no\"\n");
    assert_eq!(
        gateway.reload().await.error_code().as_deref(),
        Some("config_invalid")
    );
    let last = gateway.status().await.last_reload.unwrap();
    assert_eq!(last.by, "admin");
    assert!(
        matches!(last.outcome, ReloadOutcome::Failed { .. }),
        "{last:?}"
    );
    gateway.edit(&http_config(&echo, &address, 2));
    gateway.reloaded().await;
    let last = gateway.status().await.last_reload.unwrap();
    assert!(
        matches!(last.outcome, ReloadOutcome::Reloaded(_)),
        "{last:?}"
    );
    assert_eq!(
        sum(
            &metrics(&address).await,
            "wsgate_reloads_total{result=\"failed\"}"
        ),
        1.0
    );
}
