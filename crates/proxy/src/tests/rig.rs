//! A gateway in a line, a client that writes bytes, and a server that answers with bytes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use wsgate_config::{
    Admin, Balance, Config, Drain, HostPattern, Limits, ListenAddress, Listener, Log, LogFormat,
    LogLevel, PathPattern, Reload, Route, Server, ServerAddress, Share, Stop, Upstream, Watchdog,
};

use super::ledger::Books;
use crate::{Acceptor, Gateway, Listening, Settings};

/// Longer than anything here takes.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// The key of RFC 6455 section 1.3.
pub(crate) const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub(crate) const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

pub(crate) fn server(address: SocketAddr, number: u32) -> Server {
    Server {
        address: ServerAddress::Ip(address),
        weight: 1,
        number,
    }
}

pub(crate) fn config(servers: Vec<Server>) -> Config {
    let upstream = Upstream {
        balance: Balance::RoundRobin,
        connect_timeout: Duration::from_secs(2),
        retries: 2,
        source: Vec::new(),
        servers,
    };
    let route = Route {
        hosts: vec![HostPattern::Exact("test".to_owned())],
        path: PathPattern::Segments("/ws".to_owned()),
        upstream: "up".to_owned(),
        idle_timeout: Duration::from_secs(60),
        send_timeout: Duration::from_secs(60),
        max_age: None,
        ping_interval: None,
        number: 7,
    };
    Config {
        workers: 1,
        admin: Admin {
            socket: "unused".into(),
            http: None,
        },
        log: Log {
            level: LogLevel::Info,
            format: LogFormat::Text,
            file: None,
            access: true,
        },
        reload: Reload {
            watch: false,
            max_drained: Share::ALL,
        },
        drain: Drain {
            handover: true,
            grace: LONG,
            close_rate: 100,
            close_code: 1012,
            orphan_grace: None,
            generations: 0,
        },
        stop: Stop {
            accept_for: Duration::ZERO,
            grace: LONG,
        },
        watchdog: Watchdog { timeout: None },
        limits: Limits {
            tunnels: None,
            handshake_timeout: LONG,
            header_bytes: 16 * 1024,
        },
        listeners: vec![Listener {
            address: ListenAddress::Unix("front".into()),
        }],
        routes: vec![route],
        upstreams: BTreeMap::from([("up".to_owned(), upstream)]),
    }
}

/// A gateway that accepts.
pub(crate) struct Rig {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) books: Arc<Books>,
    pub(crate) acceptor: Acceptor,
    address: SocketAddr,
}

impl Rig {
    pub(crate) fn new(config: Config) -> Self {
        Self::with(config, |_| {})
    }

    pub(crate) fn with(config: Config, change: impl FnOnce(&mut Settings)) -> Self {
        let books = Books::new();
        let mut settings = Settings {
            config: Arc::new(config),
            id_prefix: "t-0".to_owned(),
            tunnels_here: 1000,
            connections_here: 1000,
            ledger: books.clone(),
            states: Vec::new(),
        };
        change(&mut settings);
        let gateway = Gateway::new(settings);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = gateway
            .accept("unix:front", Listening::Tcp(listener))
            .unwrap();
        Self {
            gateway,
            books,
            acceptor,
            address,
        }
    }

    pub(crate) async fn client(&self) -> Peer {
        Peer::new(TcpStream::connect(self.address).await.unwrap())
    }

    /// A client that has sent this.
    pub(crate) async fn sent(&self, bytes: &str) -> Peer {
        let mut client = self.client().await;
        client.send(bytes).await;
        client
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// A server that tests play by hand: each connection is handed out as it comes.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    connections: mpsc::UnboundedReceiver<Peer>,
}

impl Backend {
    pub(crate) async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, connections) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if sender.send(Peer::new(stream)).is_err() {
                    return;
                }
            }
        });
        Self {
            address,
            connections,
        }
    }

    pub(crate) async fn accept(&mut self) -> Peer {
        within(self.connections.recv()).await.unwrap()
    }

    /// Whether nobody has connected that was not accepted yet.
    pub(crate) fn is_unused(&self) -> bool {
        self.connections.is_empty()
    }
}

/// An address where nobody listens.
pub(crate) async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

/// One end of a connection, played by hand.
pub(crate) struct Peer {
    pub(crate) stream: TcpStream,
    unread: Vec<u8>,
}

impl Peer {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            unread: Vec::new(),
        }
    }

    pub(crate) async fn send(&mut self, bytes: &str) {
        within(self.stream.write_all(bytes.as_bytes()))
            .await
            .unwrap();
    }

    /// A message's head, with its empty line.
    pub(crate) async fn head(&mut self) -> String {
        loop {
            if let Some(at) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") {
                let head: Vec<u8> = self.unread.drain(..at + 4).collect();
                return String::from_utf8(head).unwrap();
            }
            let read = self.more().await.expect("the connection broke");
            assert!(
                read > 0,
                "the connection ended within a head: {:?}",
                self.unread
            );
        }
    }

    pub(crate) async fn exactly(&mut self, n: usize) -> String {
        while self.unread.len() < n {
            let read = self.more().await.expect("the connection broke");
            assert!(
                read > 0,
                "the connection ended before {n} bytes: {:?}",
                self.unread
            );
        }
        String::from_utf8(self.unread.drain(..n).collect()).unwrap()
    }

    /// All until the FIN; an error if there is a reset.
    pub(crate) async fn rest(&mut self) -> std::io::Result<String> {
        while self.more().await? > 0 {}
        Ok(String::from_utf8(std::mem::take(&mut self.unread)).unwrap())
    }

    /// Until the other end is gone, by whatever way.
    pub(crate) async fn gone(&mut self) {
        while matches!(self.more().await, Ok(read) if read > 0) {}
    }

    /// At most 4 KiB, so that a test can be a slow reader.
    async fn more(&mut self) -> std::io::Result<usize> {
        let mut block = [0; 1 << 12];
        let read = within(self.stream.read(&mut block)).await?;
        self.unread.extend_from_slice(&block[..read]);
        Ok(read)
    }
}

pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(LONG, future).await.expect("in time")
}

/// Waits for a state that another task brings about.
pub(crate) async fn until(mut holds: impl FnMut() -> bool) {
    within(async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// A handshake as a browser sends it, with more header lines.
pub(crate) fn handshake(more: &str) -> String {
    format!(
        "GET /ws/room?token=secret HTTP/1.1\r\nHost: Test:8080\r\nConnection: keep-alive, Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{more}\r\n"
    )
}

/// A right answer to it.
pub(crate) fn switching(more: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {ACCEPT}\r\n{more}\r\n"
    )
}

/// A tunnel through the gateway: the client's end and the server's.
pub(crate) async fn tunnel(rig: &Rig, backend: &mut Backend) -> (Peer, Peer) {
    let mut client = rig.sent(&handshake("")).await;
    let mut server = backend.accept().await;
    server.head().await;
    server.send(&switching("")).await;
    assert!(client.head().await.starts_with("HTTP/1.1 101 "));
    (client, server)
}
