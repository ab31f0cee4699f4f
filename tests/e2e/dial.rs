//! How servers are connected to: from which addresses, with which options, and what is said where this
//! machine lacks something for it.

use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http::Method;
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Resource, Rlimit, getrlimit, pidfd_getfd, pidfd_open, prlimit,
};
use socket2::Socket;
use tokio_tungstenite::tungstenite::Message;
use wsgate_protocol::admin::ServerStatus;

use crate::configs;
use crate::support::admin::over_unix;
use crate::support::backend::{Echo, Raw};
use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::network;
use crate::support::raw::{Head, Wire, ask, get, switching, upgrade};
use crate::support::wait::{SOON, until};

/// An address that is nobody's (RFC 5737).
const FOREIGN: &str = "203.0.113.7";

/// A server that takes every handshake, and notes where it comes from.
struct Noting {
    server: Raw,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Noting {
    async fn start() -> Self {
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let notes = Arc::clone(&seen);
        let server = Raw::start(move |stream| {
            let peer = stream.peer_addr().unwrap();
            notes.lock().unwrap().push(peer.ip().to_string());
            async move {
                let mut wire = Wire::new(stream);
                let head = wire.head().await;
                wire.send(switching(&head, "")).await;
                wire.rest().await;
            }
        });
        Self {
            server: server.await,
            seen,
        }
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

/// One worker, and one upstream of these servers that is connected to from `source`.
fn from(source: &[&str], servers: &[&str]) -> String {
    let text = configs::with("workers = 1\n[reload]\nwatch = false\n", servers);
    format!("{text}source = {source:?}\n")
}

/// A handshake that is refused, and the text of the answer.
async fn refused(wire: &mut Wire, path: &str) -> (Head, String) {
    let (head, text) = ask(wire, &upgrade(path, "")).await;
    assert_eq!(head.status(), 503, "{text}");
    assert_eq!(head.header("retry-after").as_deref(), Some("1"));
    (head, text)
}

/// All servers of all upstreams.
async fn servers(gateway: &Gateway) -> Vec<ServerStatus> {
    let upstreams = gateway.status().await.upstreams.into_iter();
    upstreams.flat_map(|upstream| upstream.servers).collect()
}

async fn assert_nothing_is_held_against_servers(gateway: &Gateway) {
    for server in servers(gateway).await {
        assert_eq!(server.connect_failures, 0, "{}", server.address);
    }
}

/// How many lines of the log have all of these words.
fn lines(gateway: &Gateway, words: &[&str]) -> usize {
    let has_all = |line: &&str| words.iter().all(|word| line.contains(word));
    gateway.log().lines().filter(has_all).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_sees_the_own_addresses_in_turn() {
    let server = Noting::start().await;
    let text = from(&["127.0.0.2", "127.0.0.3"], &[&server.server.address]);
    let gateway = Gateway::start(&text).await;
    let mut tunnels = Vec::new();
    for _ in 0..4 {
        tunnels.push(Wire::tunnel(gateway.address(), "/", "").await);
    }
    assert_eq!(
        server.seen(),
        ["127.0.0.2", "127.0.0.3", "127.0.0.2", "127.0.0.3"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_each_see_all_own_addresses() {
    let (one, two) = (Noting::start().await, Noting::start().await);
    let both = [&*one.server.address, &*two.server.address];
    let gateway = Gateway::start(&from(&["127.0.0.2", "127.0.0.3"], &both)).await;
    let mut tunnels = Vec::new();
    for _ in 0..4 {
        tunnels.push(Wire::tunnel(gateway.address(), "/", "").await);
    }
    for server in [one, two] {
        assert_eq!(server.seen(), ["127.0.0.2", "127.0.0.3"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_is_not_ours_is_named_and_harms_no_other_upstream() {
    let echo = Echo::start().await;
    let (one, two) = (Noting::start().await, Noting::start().await);
    let foreign = configs::upstream("far", &[&one.server.address, &two.server.address]);
    let route = "[[route]]\npath = \"/far\"\nupstream = \"far\"\n";
    let base = configs::with("[reload]\nwatch = false\n", &[&echo.address]);
    let with = |source: &str| format!("{base}{route}{foreign}source = \"{source}\"\n");
    let gateway = Gateway::start(&with(FOREIGN)).await;
    let mut client = Wire::connect(gateway.address()).await;
    let (_, text) = refused(&mut client, "/far").await;
    assert!(
        text.contains("the gateway has no address to connect from"),
        "{text}"
    );
    assert!(!text.contains(FOREIGN), "clients learn no address: {text}");
    let words = [
        "WARN",
        "`source` 203.0.113.7 is not an address of this machine",
    ];
    gateway.logged(&words).await;
    // The other server of the upstream would be connected to from the same address.
    assert_eq!(lines(&gateway, &words), 1, "{}", gateway.log());
    let mut other = Client::open(&gateway.ws_url("/")).await;
    other.echo(Message::text("untouched")).await;
    assert_nothing_is_held_against_servers(&gateway).await;

    gateway.edit(&with("127.0.0.3"));
    gateway.reloaded().await;
    let _tunnel = Wire::tunnel(gateway.address(), "/far", "").await;
    assert_eq!([one.seen(), two.seen()].concat(), ["127.0.0.3"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_one_source_cannot_be_used_the_next_one_is_and_the_log_says_so_once() {
    let server = Noting::start().await;
    let text = from(&[FOREIGN, "127.0.0.3"], &[&server.server.address]);
    let gateway = Gateway::start(&text).await;
    let mut tunnels = Vec::new();
    for _ in 0..6 {
        tunnels.push(Wire::tunnel(gateway.address(), "/", "").await);
    }
    assert_eq!(server.seen(), ["127.0.0.3"; 6]);
    let words = ["WARN", "the next `source` is used", FOREIGN];
    gateway.logged(&words).await;
    assert_eq!(lines(&gateway, &[FOREIGN]), 1, "{}", gateway.log());
    assert_nothing_is_held_against_servers(&gateway).await;
}

/// The worker may open not one descriptor more, until it is let go.
struct Squeezed {
    worker: Pid,
    before: Rlimit,
}

impl Squeezed {
    fn new(worker: u32) -> Self {
        let free = (0..).find(|number| !fs::exists(format!("/proc/{worker}/fd/{number}")).unwrap());
        let worker = Pid::from_raw(worker.cast_signed()).unwrap();
        let limit = Rlimit {
            current: free,
            maximum: getrlimit(Resource::Nofile).maximum,
        };
        let before = prlimit(Some(worker), Resource::Nofile, limit).unwrap();
        Self { worker, before }
    }

    fn let_go(self) {
        prlimit(Some(self.worker), Resource::Nofile, self.before).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_without_a_free_descriptor_says_so_and_recovers() {
    let echo = Echo::start().await;
    let (_, port) = echo.address.rsplit_once(':').unwrap();
    let named = configs::upstream("named", &[&format!("localhost:{port}")]);
    let route = "[[route]]\npath = \"/named\"\nupstream = \"named\"\n";
    let base = configs::with("workers = 1\n", &[&echo.address, "127.0.0.1:9"]);
    let gateway = Gateway::start(&format!("{base}{route}{named}")).await;
    let mut tunnel = Client::open(&gateway.ws_url("/named")).await;
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = Wire::connect(gateway.address()).await;
        // An answer shows that the connection was accepted.
        let (head, _) = ask(&mut client, &get("/a/../b", "localhost")).await;
        assert_eq!(head.status(), 400);
        clients.push(client);
    }

    let squeezed = Squeezed::new(gateway.active_workers().await[0].pid);
    for path in ["/", "/named", "/"] {
        let (_, text) = refused(&mut clients[0], path).await;
        assert!(
            text.contains("the gateway has no resources for a connection"),
            "{text}"
        );
    }
    tunnel.echo(Message::text("meanwhile")).await;
    let words = [
        "WARN",
        "this worker has no file descriptors left: raise LimitNOFILE",
    ];
    // One for each handshake: no other server was tried in vain.
    until("all are told", SOON, async || lines(&gateway, &words) >= 3).await;
    assert_eq!(lines(&gateway, &words), 3, "{}", gateway.log());
    assert_nothing_is_held_against_servers(&gateway).await;

    squeezed.let_go();
    for client in &mut clients {
        client.send(upgrade("/named", "")).await;
        assert_eq!(client.head().await.status(), 101);
    }
}

/// The connected TCP sockets of a worker, as duplicates; `None` where the kernel does not let
/// us look into it (pidfd_getfd(2)).
fn sockets_of(worker: u32) -> Option<Vec<Socket>> {
    let process = Pid::from_raw(worker.cast_signed()).unwrap();
    let process = pidfd_open(process, PidfdFlags::empty()).unwrap();
    let mut sockets = Vec::new();
    for entry in fs::read_dir(format!("/proc/{worker}/fd")).unwrap() {
        let entry = entry.unwrap();
        let is = fs::read_link(entry.path()).unwrap();
        if !is.to_str().unwrap().starts_with("socket:") {
            continue;
        }
        let number = entry.file_name().to_str().unwrap().parse().unwrap();
        match pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) {
            Ok(fd) => sockets.push(Socket::from(fd)),
            Err(Errno::PERM) => return None,
            Err(error) => panic!("{error}"),
        }
    }
    let is_connected = |socket: &Socket| {
        let peer = socket.peer_addr();
        peer.is_ok_and(|peer| peer.as_socket().is_some())
    };
    sockets.retain(is_connected);
    Some(sockets)
}

/// Whether a keepalive timer runs for each socket of a port to another one, and there are any: 02 in
/// the column `tr` (Documentation/networking/proc_net_tcp.rst).
fn are_kept_alive(is_it: impl Fn(u16, u16) -> bool) -> bool {
    let port = |address: &str| {
        let (_, port) = address.rsplit_once(':').unwrap();
        u16::from_str_radix(port, 16).unwrap()
    };
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let timers: Vec<&str> = table
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| is_it(port(fields[1]), port(fields[2])))
        .map(|fields| &fields[5][..2])
        .collect();
    !timers.is_empty() && timers.iter().all(|timer| *timer == "02")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sockets_of_a_tunnel_have_no_delay_and_are_kept_alive() {
    let echo = Echo::start().await;
    let text = configs::with("workers = 1\n", &[&echo.address]);
    let gateway = Gateway::start(&text).await;
    let mut client = Client::open(&gateway.ws_url("/")).await;
    client.echo(Message::text("hello")).await;
    let port = |address: &str| address.parse::<SocketAddr>().unwrap().port();
    let (own, server) = (port(gateway.address()), port(&echo.address));
    let theirs = port(&client.local_address());
    until("keepalive runs to client and server", SOON, async || {
        are_kept_alive(|from, to| (from, to) == (own, theirs))
            && are_kept_alive(|_, to| to == server)
    })
    .await;
    let Some(sockets) = sockets_of(gateway.active_workers().await[0].pid) else {
        // Without the right to look into the worker the timers are all that can be seen.
        return;
    };
    assert_eq!(sockets.len(), 2, "{sockets:?}");
    for socket in sockets {
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
    }
}

const PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const DISABLE_IPV6: &str = "/proc/sys/net/ipv6/conf/all/disable_ipv6";

/// The range of local ports is the whole machine's, so the test runs in a network of its own. Where none may
/// be made it shows nothing, and says so.
#[test]
fn local_ports_that_are_used_up_are_named_and_harm_no_server() {
    network::run_alone("dial::helper_uses_up_local_ports");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by local_ports_that_are_used_up_are_named_and_harm_no_server"]
async fn helper_uses_up_local_ports() {
    network::assert_own();
    let wide = fs::read_to_string(PORT_RANGE).unwrap();
    let (one, two) = (Echo::start().await, Echo::start().await);
    let text = from(&["127.0.0.2", "127.0.0.3"], &[&one.address, &two.address]);
    let nowhere = configs::upstream("six", &["[::1]:9"]);
    let text = format!("{text}[[route]]\npath = \"/six\"\nupstream = \"six\"\n{nowhere}");
    let address = "unix:{dir}/in.sock";
    let gateway = Gateway::start(&text.replace("127.0.0.1:0", address)).await;
    let socket = gateway.dir().join("in.sock");

    fs::write(PORT_RANGE, "20000 20001").unwrap();
    let mut open = Vec::new();
    // Two ports of two own addresses to each of two servers.
    for _ in 0..8 {
        open.push(Client::open_unix(&socket, "/").await);
    }
    assert_eq!((one.open(), two.open()), (4, 4));
    let ask = async |path| over_unix(&socket, Method::GET, path, "").await.unwrap();
    let answer = ask("/").await;
    assert_eq!(answer.status, 503);
    let reason = "the gateway has no resources for a connection";
    assert!(answer.text().contains(reason), "{}", answer.text());
    for server in [&one, &two] {
        let free = format!("to {}: give the upstream's `source` more", server.address);
        gateway
            .logged(&["WARN", "no free local port from 127.0.0.", &free])
            .await;
    }
    assert_nothing_is_held_against_servers(&gateway).await;
    for client in &mut open {
        client.echo(Message::text("meanwhile")).await;
    }

    fs::write(PORT_RANGE, wide).unwrap();
    open.push(Client::open_unix(&socket, "/").await);

    // Without an address of its own in IPv6 the machine has ports enough, and nowhere to go.
    if fs::exists(DISABLE_IPV6).unwrap() {
        fs::write(DISABLE_IPV6, "1").unwrap();
    }
    assert_eq!(ask("/six").await.status, 502);
}
