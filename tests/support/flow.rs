//! One direction of a tunnel whose two sides are in the test's hands: written as long as the
//! gateway takes it, read when the test says so, and accounted for byte by byte meanwhile.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::queues::Queues;
use super::script::{Check, Script};
use super::wait::{SOON, within};

/// Bytes read at once.
const CHUNK: usize = 64 * 1024;

/// Bytes written at once, and the pause after it. What comes as fast as it can makes the
/// kernel's buffers grow to many megabytes a connection before it stops.
const PIECE: usize = 16 * 1024;
const PAUSE: Duration = Duration::from_millis(16);

/// A direction: where it is written, where it can be read, and what.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub(crate) from: Arc<TcpStream>,
    pub(crate) to: Arc<TcpStream>,
    pub(crate) script: Script,
}

/// A direction that is written as long as it can be, and not read.
#[derive(Debug)]
pub(crate) struct Flood {
    flow: Flow,
    said: Arc<AtomicU64>,
    enough: Arc<Notify>,
    /// One task, which ends with this.
    task: JoinSet<()>,
}

impl Flood {
    pub(crate) fn start(flow: Flow) -> Self {
        Self::paced(flow, PAUSE)
    }

    /// As fast as it can.
    pub(crate) fn rush(flow: Flow) -> Self {
        Self::paced(flow, Duration::ZERO)
    }

    fn paced(flow: Flow, pause: Duration) -> Self {
        let said = Arc::new(AtomicU64::new(0));
        let enough = Arc::new(Notify::new());
        let writing = write(flow.clone(), pause, Arc::clone(&said), Arc::clone(&enough));
        Self {
            flow,
            said,
            enough,
            task: JoinSet::from_iter([writing]),
        }
    }

    /// Bytes that the kernel took so far.
    pub(crate) fn said(&self) -> u64 {
        self.said.load(Ordering::SeqCst)
    }

    /// Bytes in none of the kernel's four buffers: the gateway's. Right once nothing
    /// moves: what is not acknowledged yet is in two of them.
    pub(crate) fn held(&self, queues: &Queues) -> u64 {
        let ends = |stream: &TcpStream| (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
        let (source, gateway_in) = ends(&self.flow.from);
        let (sink, gateway_out) = ends(&self.flow.to);
        let hop =
            |from: SocketAddr, to: SocketAddr| queues.unsent(from, to) + queues.unread(to, from);
        self.said()
            .saturating_sub(hop(source, gateway_in) + hop(gateway_out, sink))
    }

    /// Goes on until `least` bytes are read, then writes no more and reads the rest.
    pub(crate) async fn drain(self, least: u64) -> Flow {
        let mut check = Check::new(self.flow.script.clone());
        read(&self.flow.to, &mut check, least).await;
        self.enough.notify_one();
        within("a writer stops", SOON, self.task.join_all()).await;
        let total = self.said.load(Ordering::SeqCst);
        read(&self.flow.to, &mut check, total).await;
        assert_eq!(check.right, total);
        self.flow
    }

    /// Writes no more, and reads the rest and the end.
    pub(crate) async fn finish(self) {
        let Flow { from, to, .. } = self.drain(0).await;
        SockRef::from(&*from).shutdown(Shutdown::Write).unwrap();
        let after = some(&to, &mut [0; 64]).await;
        assert_eq!(after, 0, "bytes after the last");
    }
}

async fn write(flow: Flow, pause: Duration, said: Arc<AtomicU64>, enough: Arc<Notify>) {
    let Flow {
        from, mut script, ..
    } = flow;
    let mut piece = vec![0; PIECE];
    // An interval of nothing is none.
    let mut pace = (!pause.is_zero()).then(|| interval(pause));
    if let Some(pace) = &mut pace {
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    while !script.is_over() {
        let count = script.fill(&mut piece);
        let mut rest = &piece[..count];
        while !rest.is_empty() {
            tokio::select! {
                () = enough.notified() => return,
                taken = some_taken(&from, rest) => {
                    said.fetch_add(taken as u64, Ordering::SeqCst);
                    rest = &rest[taken..];
                }
            }
            if let Some(pace) = &mut pace {
                pace.tick().await;
            }
        }
    }
}

/// Waits until the kernel takes something, and says how much.
async fn some_taken(stream: &TcpStream, bytes: &[u8]) -> usize {
    loop {
        stream.writable().await.unwrap();
        if let Some(count) = would_block(stream.try_write(bytes)) {
            return count;
        }
    }
}

/// Reads so many bytes at least, and compares.
async fn read(stream: &TcpStream, check: &mut Check, least: u64) {
    let mut chunk = vec![0; CHUNK];
    while check.right < least {
        let count = some(stream, &mut chunk).await;
        assert!(count > 0, "the end after {} bytes", check.right);
        if let Err(stray) = check.take(&chunk[..count]) {
            panic!("after {} bytes {stray}", check.right);
        }
    }
}

/// The next bytes; none at the end.
async fn some(stream: &TcpStream, buffer: &mut [u8]) -> usize {
    loop {
        within("bytes come", SOON * 6, stream.readable())
            .await
            .unwrap();
        if let Some(count) = would_block(stream.try_read(buffer)) {
            return count;
        }
    }
}

fn would_block(result: io::Result<usize>) -> Option<usize> {
    match result {
        Ok(count) => Some(count),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}
