//! Short connections at a fixed rate, each with its handshake held half open for a while: what a
//! listening socket that is closed too early would reset.
//!
//! The hold needs no rights and no tools. A client without TCP_QUICKACK delays the ACK that ends the handshake, for
//! its first data to ride on, by up to 200 ms (tcp(7); TCP_DELACK_MAX). Until then the server's
//! side is in SYN_RECV, while the client's connect(2) has succeeded.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

use super::wait::{SOON, within};

/// Where a client connects to.
#[derive(Clone, Debug)]
pub(crate) enum Door {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Connections that are made until they are stopped.
#[derive(Debug)]
pub(crate) struct Knocks {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Seen>,
}

/// What became of them.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) answered: usize,
    /// How often each thing went wrong.
    pub(crate) problems: BTreeMap<String, usize>,
}

impl Knocks {
    /// So many connections a second, each held half open for so long (less than 200 ms;
    /// zero is not at all).
    pub(crate) fn start(door: Door, per_second: u32, hold: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(knock(door, per_second, hold, Arc::clone(&stop)));
        Self { stop, task }
    }

    /// Makes no more, waits for the last, and says what became of all.
    pub(crate) async fn stop(self) -> Seen {
        self.stop.store(true, Ordering::SeqCst);
        within("the last are answered", SOON * 3, self.task)
            .await
            .unwrap()
    }
}

async fn knock(door: Door, per_second: u32, hold: Duration, stop: Arc<AtomicBool>) -> Seen {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / per_second);
    let (mut running, mut seen) = (JoinSet::new(), Seen::default());
    while !stop.load(Ordering::SeqCst) {
        ticks.tick().await;
        running.spawn(once(door.clone(), hold));
        while let Some(done) = running.try_join_next() {
            seen.note(done.unwrap());
        }
    }
    while let Some(done) = running.join_next().await {
        seen.note(done.unwrap());
    }
    seen
}

impl Seen {
    fn note(&mut self, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => self.answered += 1,
            Err(problem) => *self.problems.entry(problem).or_default() += 1,
        }
    }
}

/// One connection: a request that the gateway answers by itself.
pub(crate) async fn once(door: Door, hold: Duration) -> Result<(), String> {
    let exchange = async {
        match door {
            Door::Tcp(address) => {
                let socket = if address.is_ipv4() {
                    TcpSocket::new_v4()
                } else {
                    TcpSocket::new_v6()
                }
                .map_err(named("socket"))?;
                SockRef::from(&socket)
                    .set_tcp_quickack(hold.is_zero())
                    .map_err(named("quickack"))?;
                let stream = socket.connect(address).await.map_err(named("connect"))?;
                if !hold.is_zero() {
                    tokio::time::sleep(hold).await;
                }
                ask(stream).await
            }
            Door::Unix(path) => {
                ask(UnixStream::connect(path).await.map_err(named("connect"))?).await
            }
        }
    };
    let timed = tokio::time::timeout(SOON, exchange).await;
    timed.unwrap_or_else(|_| Err("no answer".to_owned()))
}

async fn ask(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin) -> Result<(), String> {
    let request = b"GET /nowhere HTTP/1.1\r\nHost: knock\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.map_err(named("write"))?;
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .await
        .map_err(named("read"))?;
    match answer.starts_with(b"HTTP/1.1 404 ") {
        true => Ok(()),
        false => Err(format!("answered {:?}", String::from_utf8_lossy(&answer))),
    }
}

fn named(what: &'static str) -> impl Fn(io::Error) -> String {
    move |error| format!("{what}: {error}")
}

/// Sockets of this machine with the local port of `address` in a state, as /proc/net/tcp numbers them.
fn in_state(address: SocketAddr, state: &str) -> usize {
    let file = if address.is_ipv4() {
        "/proc/net/tcp"
    } else {
        "/proc/net/tcp6"
    };
    let text = fs::read_to_string(file).unwrap();
    let port = format!(":{:04X}", address.port());
    let is_it = |line: &&str| {
        let mut fields = line.split_whitespace();
        fields.nth(1).is_some_and(|local| local.ends_with(&port)) && fields.nth(1) == Some(state)
    };
    text.lines().skip(1).filter(is_it).count()
}

/// Listening sockets that any process holds.
pub(crate) fn listening(address: SocketAddr) -> usize {
    in_state(address, "0A")
}

/// Handshakes that are half open.
pub(crate) fn half_open(address: SocketAddr) -> usize {
    in_state(address, "03")
}
