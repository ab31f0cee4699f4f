//! tokio-tungstenite as the client of other languages' servers.

use tokio_tungstenite::tungstenite::Message;

use crate::config;
use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::wait::{SOON, until};
use crate::tools::Server;

async fn meets(server_language: &str) {
    let server = Server::start(server_language).await;
    let gateway = Gateway::start(&config(&server.address)).await;
    let offer = [("sec-websocket-protocol", "chat.v1, chat.v2")];
    let mut client = Client::with_headers(&gateway.ws_url("/"), &offer)
        .await
        .unwrap();
    assert_eq!(
        client.response.headers()["sec-websocket-protocol"],
        "chat.v2"
    );
    for length in [0, 1, 125, 126, 65_535, 65_536, 1 << 20, 16 << 20] {
        client.echo(Message::text("x".repeat(length))).await;
        client.echo(Message::binary(vec![7; length])).await;
    }
    client.send(Message::Ping("payload".into())).await;
    assert_eq!(client.receive().await, Message::Pong("payload".into()));
    let end = client.close(4001, "bye from the client").await;
    assert_eq!(end.code(), Some(4001), "{end:?}");
    until("the server has seen the close", SOON, async || {
        server.said("closed 4001 bye from the client")
    })
    .await;
    let mut client = Client::open(&gateway.ws_url("/close/4002/bye")).await;
    client.echo(Message::text("hello")).await;
    let end = client.end(SOON).await;
    assert_eq!(end.close, Some((4002, "bye".to_owned())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tungstenite_meets_python() {
    meets("python").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tungstenite_meets_node() {
    meets("node").await;
}
