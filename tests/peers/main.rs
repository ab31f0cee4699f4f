//! Clients and servers of other languages through the gateway, and its demo in a browser.
//!
//! They need what `scripts/test` installs into `target/test-tools` (or into the directory
//! that `WSGATE_TEST_TOOLS` names), so they are no part of a plain `cargo test`.

#![expect(
    clippy::unwrap_used,
    reason = "a test that fails says where, in its helpers too"
)]

mod browser;
mod tools;
mod tungstenite;

#[path = "../support/mod.rs"]
#[allow(
    dead_code,
    reason = "the end-to-end tests share it, and use more of it"
)]
mod support;

use serde_json::{Value, json};
use support::backend::Echo;
use support::gateway::Gateway;
use support::wait::{SOON, until};
use tools::{Server, client};

/// Texts of the same words over and over, as long as the noise: deflated, they are nothing.
const MOST_OF_ALL: f64 = 0.6;

fn config(server: &str) -> String {
    format!(
        "workers = 2\n[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"peer\"\n\
         [upstream.peer]\nservers = [\"{server}\"]\n"
    )
}

/// A client that tries everything, at a server of another language or of its own.
async fn meets(client_language: &str, server_language: &str) {
    let server = Server::start(server_language).await;
    let gateway = Gateway::start(&config(&server.address)).await;
    let met = client(client_language, &gateway.ws_url("")).await;
    assert_met(&met, true);
    let sent = met["bytes"].as_f64().unwrap();
    let totals = gateway.status().await.totals;
    for passed in [totals.bytes_from_clients, totals.bytes_from_servers] {
        let passed = passed as f64;
        assert!(
            passed < sent * MOST_OF_ALL,
            "{passed} of {sent} bytes: not deflated"
        );
    }
    until("the server has seen the client's close", SOON, async || {
        server.said("closed 4001 bye from the client")
    })
    .await;
    assert!(gateway.log().lines().all(|line| !line.contains("unframed")));
}

fn assert_met(met: &Value, deflate: bool) {
    assert_eq!(met["subprotocol"], "chat.v2");
    assert_eq!(met["deflate"], deflate);
    assert_eq!(met["closed"], json!([4002, "bye-from-the-server"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_meets_python() {
    meets("python", "python").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_meets_node() {
    meets("python", "node").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_meets_python() {
    meets("node", "python").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_meets_node() {
    meets("node", "node").await;
}

/// tungstenite knows no permessage-deflate: nothing is agreed on, and all the rest works.
async fn meets_tungstenite(client_language: &str) {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&config(&echo.address)).await;
    let met = client(client_language, &gateway.ws_url("")).await;
    assert_met(&met, false);
    until("the server has seen the client's close", SOON, async || {
        let closed = Some((4001, "bye from the client".to_owned()));
        echo.sessions()
            .iter()
            .any(|session| session.close == closed)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_meets_tungstenite() {
    meets_tungstenite("python").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_meets_tungstenite() {
    meets_tungstenite("node").await;
}
