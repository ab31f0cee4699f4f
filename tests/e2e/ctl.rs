//! `wsctl`, and `wsgate ctl`, as an operator and as a script meet them.

use http::Method;
use tokio_tungstenite::tungstenite::Message;
use wsgate_protocol::admin::{ReloadOutcome, Status, Tunnel};

use crate::configs;
use crate::support::backend::Echo;
use crate::support::client::Client;
use crate::support::gateway::{self, Gateway, stderr, stdout};

const UNWATCHED: &str = "workers = 2\n[reload]\nwatch = false";

async fn running() -> (Gateway, Echo, Client) {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&configs::with(UNWATCHED, &[&echo.address])).await;
    let mut client = Client::open(&gateway.ws_url("/room")).await;
    client.echo(Message::text("hello")).await;
    (gateway, echo, client)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_shows_what_runs() {
    let (gateway, echo, _client) = running().await;
    let output = gateway.ctl(&["status"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    let config = gateway.config();
    for part in [
        gateway.address(),
        &echo.address,
        config.to_str().unwrap(),
        "active",
        "ready",
    ] {
        assert!(text.contains(part), "{part} in:\n{text}");
    }
    assert!(!text.contains('\u{1b}'), "no colours into a pipe");
    let output = gateway.ctl(&["status", "--json"]).await;
    let status: Status = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((status.pid, status.totals.tunnels), (gateway.pid, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_are_listed_and_filtered() {
    let (gateway, echo, client) = running().await;
    let output = gateway.ctl(&["tunnels"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    for part in [client.local_address().as_str(), &echo.address] {
        assert!(text.contains(part), "{part} in:\n{text}");
    }
    for (filter, count) in [
        (&["--server", &echo.address][..], 1),
        (&["--server", "127.0.0.1:1"], 0),
        (&["--state", "open"], 1),
        (&["--generation", "2"], 0),
        (&["--older-than", "1h"], 0),
    ] {
        let args = [&["tunnels", "--json"], filter].concat();
        let output = gateway.ctl(&args).await;
        let tunnels: Vec<Tunnel> = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(tunnels.len(), count, "{filter:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reload_prints_the_generation_and_what_the_old_one_holds() {
    let (gateway, echo, _client) = running().await;
    let unchanged = gateway.ctl(&["reload"]).await;
    assert_eq!(unchanged.status.code(), Some(0));
    assert!(
        stdout(&unchanged).contains("unchanged"),
        "{}",
        stdout(&unchanged)
    );
    gateway.edit(&configs::with(
        &format!("# changed\n{UNWATCHED}\n[stop]\ngrace = \"1s\""),
        &[&echo.address],
    ));
    let output = gateway.ctl(&["reload"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    for part in ["generation 2", "ms", "1 tunnel"] {
        assert!(text.contains(part), "{part} in: {text}");
    }
    gateway.edit(&configs::with(
        &format!("{UNWATCHED}\n[stop]\ngrace = \"2s\""),
        &[&echo.address],
    ));
    let output = gateway.ctl(&["reload", "--json"]).await;
    let outcome: ReloadOutcome = serde_json::from_slice(&output.stdout).unwrap();
    let ReloadOutcome::Reloaded(reloaded) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(reloaded.generation, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_is_1_with_every_reason() {
    let (gateway, _echo, _client) = running().await;
    gateway.edit("workers = 0\n[[listner]]\n");
    let output = gateway.ctl(&["reload"]).await;
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    for part in ["wsgate.toml:1:", "wsgate.toml:2:", "listner"] {
        assert!(said.contains(part), "{part} in:\n{said}");
    }
    let output = gateway.ctl(&["drain", "chat/127.0.0.1:1"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("127.0.0.1:1"),
        "{}",
        stderr(&output)
    );
}

#[tokio::test]
async fn wrong_usage_is_2() {
    for args in [
        &["statsu"][..],
        &["drain", "chat"],
        &["reload", "--what"],
        &[],
    ] {
        let output = gateway::ctl(args).await;
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
}

#[tokio::test]
async fn no_supervisor_is_3_in_one_line_that_helps() {
    for command in [&["status"][..], &["reload"], &["stop"], &["maint", "a/b"]] {
        let args = [&["--socket", "/no/such/admin.sock"], command].concat();
        let output = gateway::ctl(&args).await;
        assert_eq!(output.status.code(), Some(3), "{command:?}");
        let said = stderr(&output);
        assert_eq!(said.trim_end().lines().count(), 1, "{said}");
        assert!(
            said.contains("/no/such/admin.sock") && said.contains("wsgate run"),
            "{said}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateways_own_ctl_is_the_same() {
    let (gateway, _echo, _client) = running().await;
    let socket = gateway.socket();
    let args = [
        "ctl",
        "--socket",
        socket.to_str().unwrap(),
        "status",
        "--json",
    ];
    let output = gateway::wsgate(&args).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let status: Status = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status.pid, gateway.pid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_limit_that_runs_out_is_4() {
    let (gateway, _echo, _client) = running().await;
    crate::support::process::signal(gateway.pid, rustix::process::Signal::STOP);
    let output = gateway.ctl(&["status", "--timeout", "300ms"]).await;
    crate::support::process::signal(gateway.pid, rustix::process::Signal::CONT);
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_json_is_the_apis_own() {
    let (gateway, _echo, _client) = running().await;
    let output = gateway.ctl(&["tunnels", "--json"]).await;
    let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let answered: serde_json::Value = gateway.call(Method::GET, "/v1/tunnels", "").await.json();
    let ids = |value: &serde_json::Value| -> Vec<serde_json::Value> {
        value
            .as_array()
            .unwrap()
            .iter()
            .map(|tunnel| tunnel["id"].clone())
            .collect()
    };
    assert_eq!(ids(&printed), ids(&answered));
}
