//! Which upstream a request goes to, and which server of it.

use http::Response;
use tokio_tungstenite::tungstenite::Message;

use crate::configs;
use crate::support::backend::{self, Echo, Raw, body};
use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::raw::{Wire, ask, get};
use crate::support::wait::{SOON, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_longest_path_of_the_closest_host_wins() {
    async fn named(name: &'static str) -> Raw {
        backend::http(move |_| async move { Response::new(body(name)) }).await
    }
    let names = [
        "any",
        "any-deep",
        "wild",
        "exact",
        "exact-deep",
        "alone",
        "prefix",
    ];
    let routes = [
        "path = \"/\"",
        "path = \"/a/b\"",
        "host = \"*.example.com\"",
        "host = [\"chat.example.com\", \"talk.example.com\"]",
        "host = \"chat.example.com\"\npath = \"/a/b\"",
        "host = \"chat.example.com\"\npath = \"=/a\"",
        "host = \"chat.example.com\"\npath = \"/pre*\"",
    ];
    let mut servers = Vec::new();
    let mut config = configs::LISTENER.to_owned();
    for (name, route) in names.into_iter().zip(routes) {
        let server = named(name).await;
        config += &format!("[[route]]\n{route}\nupstream = \"{name}\"\n");
        config += &configs::upstream(name, &[&server.address]);
        servers.push(server);
    }
    let gateway = Gateway::start(&config).await;
    let mut wire = Wire::connect(gateway.address()).await;
    for (host, path, expected) in [
        ("localhost", "/", "any"),
        ("localhost", "/a/b?x", "any-deep"),
        ("localhost", "/a/b/c", "any-deep"),
        ("localhost", "/a/bc", "any"),
        ("example.com", "/", "any"),
        ("x.y.example.com", "/a/b", "wild"),
        ("talk.example.com", "/zzz", "exact"),
        ("chat.example.com:80", "/a/b/c", "exact-deep"),
        ("chat.example.com", "/a", "alone"),
        ("chat.example.com", "/a/x", "exact"),
        ("Chat.Example.com", "/prefixed", "prefix"),
    ] {
        let (head, text) = ask(&mut wire, &get(path, host)).await;
        assert_eq!(
            (head.status(), text.as_str()),
            (200, expected),
            "{host}{path}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_cannot_be_reached_is_made_up_for_by_another() {
    let echo = Echo::start().await;
    let (one, two) = (backend::nobody().await, backend::nobody().await);
    let gateway = Gateway::start(&configs::simple(&[&one, &two, &echo.address])).await;
    for _ in 0..6 {
        let mut client = Client::open(&gateway.ws_url("/")).await;
        client.echo(Message::text("hello")).await;
    }
    assert_eq!(echo.sessions().len(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_take_turns_by_their_weights() {
    let (one, two) = (Echo::start().await, Echo::start().await);
    let config = format!(
        "workers = 1\n{}{}[upstream.chat]\nbalance = \"round-robin\"\nservers = [\"{}\", {{ address = \"{}\", weight = 3 }}]\n",
        configs::LISTENER,
        configs::ROUTE,
        one.address,
        two.address,
    );
    let gateway = Gateway::start(&config).await;
    let mut clients = Vec::new();
    for _ in 0..12 {
        clients.push(Client::open(&gateway.ws_url("/")).await);
    }
    assert_eq!((one.sessions().len(), two.sessions().len()), (3, 9));
}

/// Opens a tunnel and waits until every worker can know of it: a client may see its 101
/// before that.
async fn open_and_counted(gateway: &Gateway) -> Client {
    let opened = gateway.status().await.totals.tunnels_opened;
    let client = Client::open(&gateway.ws_url("/")).await;
    until("the tunnel is counted", SOON, async || {
        gateway.status().await.totals.tunnels_opened == opened + 1
    })
    .await;
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_with_the_fewest_tunnels_is_next_whichever_worker_asks() {
    let (one, two) = (Echo::start().await, Echo::start().await);
    let config = format!(
        "workers = 2\n{}{}[upstream.chat]\nbalance = \"least-tunnels\"\nservers = [\"{}\", \"{}\"]\n",
        configs::LISTENER,
        configs::ROUTE,
        one.address,
        two.address,
    );
    let gateway = Gateway::start(&config).await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(open_and_counted(&gateway).await);
    }
    assert_eq!((one.open(), two.open()), (5, 5));
    // All of one server's leave: the next ones all go there.
    let tunnels = gateway
        .tunnels_where(&format!("server={}", one.address))
        .await;
    assert_eq!(tunnels.len(), 5);
    let leaving: Vec<String> = tunnels.into_iter().map(|tunnel| tunnel.client).collect();
    let (gone, stay): (Vec<_>, Vec<_>) = clients
        .into_iter()
        .partition(|client| leaving.contains(&client.local_address()));
    for client in gone {
        client.close(1000, "").await;
    }
    until("they are gone", SOON, async || one.open() == 0).await;
    until("the gateway knows", SOON, async || {
        gateway.tunnels().await.len() == stay.len()
    })
    .await;
    let mut back = Vec::new();
    for _ in 0..5 {
        back.push(open_and_counted(&gateway).await);
    }
    assert_eq!((one.open(), two.open()), (5, 5));
}
