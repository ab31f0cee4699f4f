//! A tunnel between two real sockets, for tests.

use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use super::{Course, Ending, Outcome, Tunnel, run};
use crate::frames::Side;
use crate::record::{Asked, By, Deadline, Record, Route, Server, Timeouts};
use crate::socket::{Peer, Socket};
use crate::{Figure, Ledger};

/// No test may wait longer for anything.
const LIMIT: Duration = Duration::from_secs(20);

/// None that a test would see.
pub(crate) const TIMEOUTS: Timeouts = Timeouts {
    idle: Duration::from_secs(3600),
    send: Duration::from_secs(3600),
    max_age: None,
    ping: None,
};

/// Counts what tunnels count.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) client_bytes: AtomicU64,
    pub(crate) server_bytes: AtomicU64,
    pub(crate) client_messages: AtomicU64,
    pub(crate) server_messages: AtomicU64,
    /// What the kernel is to have said of every stream; 0 is the truth.
    pub(crate) held: AtomicU64,
}

impl Ledger for Counts {
    fn add(&self, figure: Figure, n: u64) {
        let cell = match figure {
            Figure::BytesFromClients => &self.client_bytes,
            Figure::BytesFromServers => &self.server_bytes,
            Figure::MessagesFromClients => &self.client_messages,
            Figure::MessagesFromServers => &self.server_messages,
            other => panic!("a tunnel does not count {other:?}"),
        };
        cell.fetch_add(n, Ordering::Relaxed);
    }
    fn sub(&self, gauge: Figure, _: u64) {
        panic!("a tunnel does not count {gauge:?}");
    }
    fn tunnels(&self) -> u64 {
        0
    }
    fn tunnels_here(&self) -> u64 {
        0
    }
    fn tunnels_to(&self, _: u32) -> u64 {
        0
    }

    fn unacknowledged(&self, stream: BorrowedFd<'_>) -> std::io::Result<u64> {
        match self.held.load(Ordering::Relaxed) {
            0 => wsgate_os::socket::unacknowledged(stream),
            held => Ok(held),
        }
    }
}

/// What a test may want otherwise.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) timeouts: Timeouts,
    pub(crate) ahead_from_client: &'static [u8],
    pub(crate) ahead_from_server: &'static [u8],
    /// Kernel buffers as small as they get.
    pub(crate) small_buffers: bool,
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            timeouts: TIMEOUTS,
            ahead_from_client: b"",
            ahead_from_server: b"",
            small_buffers: false,
        }
    }
}

/// The two peers of a tunnel, as the test holds them.
#[derive(Debug)]
pub(crate) struct Peers {
    pub(crate) client: TcpStream,
    pub(crate) server: TcpStream,
    pub(crate) record: Arc<Record>,
    pub(crate) counts: Arc<Counts>,
}

/// A running tunnel and its peers.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) peers: Peers,
    pub(crate) relay: JoinHandle<Ending>,
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::with(Wish::default()).await
    }

    pub(crate) async fn with(wish: Wish) -> Self {
        let (tunnel, peers) = build(wish).await;
        Self {
            peers,
            relay: tokio::spawn(relay(tunnel)),
        }
    }

    /// Drops both peers and waits for the tunnel's end.
    pub(crate) async fn end(self) -> Ending {
        drop(self.peers.client);
        drop(self.peers.server);
        within(self.relay).await.unwrap()
    }
}

impl Peers {
    /// A deadline that is now.
    pub(crate) fn drain_now(&self, code: u16, reason: &str) {
        self.drain_at(Some(Deadline {
            at: Instant::now(),
            code,
            reason: reason.into(),
        }));
    }

    pub(crate) fn drain_at(&self, deadline: Option<Deadline>) {
        self.record.orders.set(By::Retire, deadline);
    }
}

/// A tunnel that does not run yet, and its peers.
pub(crate) async fn build(wish: Wish) -> (Tunnel, Peers) {
    let (client_peer, client) = pair(wish.small_buffers).await;
    let (server_peer, server) = pair(wish.small_buffers).await;
    let record = Arc::new(record(wish.timeouts));
    let counts = Arc::new(Counts::default());
    let tunnel = Tunnel {
        client: Socket::Tcp(client),
        server: Socket::Tcp(server),
        ahead_from_client: Bytes::from_static(wish.ahead_from_client),
        ahead_from_server: Bytes::from_static(wish.ahead_from_server),
        record: Arc::clone(&record),
        ledger: counts.clone(),
    };
    let peers = Peers {
        client: client_peer,
        server: server_peer,
        record,
        counts,
    };
    (tunnel, peers)
}

fn record(timeouts: Timeouts) -> Record {
    let route = Route {
        name: "r".into(),
        number: 0,
        timeouts,
    };
    let server = Server {
        name: "127.0.0.1:2".into(),
        number: 0,
        upstream: "u".into(),
    };
    Record::new(asked("t"), route.into(), server.into())
}

/// What the client of a tunnel with this id asked for.
pub(crate) fn asked(id: &str) -> Asked {
    Asked {
        id: id.into(),
        client: Peer::Unix,
        listener: "main".into(),
        host: "example.org".into(),
        path: "/".into(),
        origin: None,
        subprotocol: None,
    }
}

/// Relays until the tunnel ends; nobody tells it to leave.
pub(crate) async fn relay(tunnel: Tunnel) -> Ending {
    match run(Course::new(tunnel)).await {
        Outcome::Ended(ending) => ending,
        Outcome::Left(course) => panic!("{course:?} was not to leave"),
    }
}

async fn pair(small_buffers: bool) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    if small_buffers {
        socket2::SockRef::from(&listener)
            .set_recv_buffer_size(4096)
            .unwrap();
        socket2::SockRef::from(&listener)
            .set_send_buffer_size(4096)
            .unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.set_send_buffer_size(4096).unwrap();
    }
    let peer = socket
        .connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (ours, _) = listener.accept().await.unwrap();
    peer.set_nodelay(true).unwrap();
    ours.set_nodelay(true).unwrap();
    (peer, ours)
}

/// The future's result, or a failed test.
pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(LIMIT, future)
        .await
        .expect("took too long")
}

/// Waits for a state that nothing announces.
pub(crate) async fn until(mut state: impl FnMut() -> bool) {
    within(async {
        while !state() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

pub(crate) async fn read(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    within(stream.read_exact(&mut bytes)).await.unwrap();
    bytes
}

/// All until end of file; a reset fails the test.
pub(crate) async fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    within(stream.read_to_end(&mut bytes)).await.unwrap();
    bytes
}

pub(crate) async fn send(stream: &mut TcpStream, bytes: &[u8]) {
    within(stream.write_all(bytes)).await.unwrap();
}

pub(crate) async fn end_of_sending(stream: &mut TcpStream) {
    within(stream.shutdown()).await.unwrap();
}

/// Ends a connection by a reset.
pub(crate) fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

/// Whether the future is still pending after one poll.
pub(crate) fn is_pending<F: Future>(future: Pin<&mut F>) -> bool {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    future.poll(&mut cx).is_pending()
}

/// Code and reason of one Close frame, which is all that `bytes` are.
pub(crate) fn close_frame(from: Side, bytes: &[u8]) -> (u16, String) {
    assert_eq!(bytes[0], 0x88, "{bytes:?} begins with no Close frame");
    assert_eq!(bytes[1] & 0x80 != 0, from == Side::Client, "mask");
    let length = usize::from(bytes[1] & 0x7f);
    let payload: Vec<u8> = match from {
        Side::Server => bytes[2..].to_vec(),
        Side::Client => {
            let key = &bytes[2..6];
            bytes[6..]
                .iter()
                .zip(key.iter().cycle())
                .map(|(byte, key)| byte ^ key)
                .collect()
        }
    };
    assert_eq!(payload.len(), length, "one frame, whole");
    let code = u16::from_be_bytes([payload[0], payload[1]]);
    (code, String::from_utf8(payload[2..].to_vec()).unwrap())
}

/// Bytes without a pattern, the same for the same seed.
pub(crate) fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(count).collect()
}
