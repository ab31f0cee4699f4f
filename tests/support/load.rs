//! Load: a fleet of tunnels that are opened again when they end, and a storm of short
//! connections at a fixed rate.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use tokio::sync::{Mutex as AsyncMutex, MutexGuard};
use tokio::task::{JoinHandle, JoinSet};
use tokio_tungstenite::tungstenite::Message;

use super::backend::Echo;
use super::client::{Client, Outcome, Sequenced};
use super::wait::{SOON, within};

/// Held by tests that measure times under load: one at a time, or they measure each other.
pub(crate) async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: AsyncMutex<()> = AsyncMutex::const_new(());
    ALONE.lock().await
}

/// Tunnels with numbered messages. One that ends is opened again.
#[derive(Debug)]
pub(crate) struct Fleet {
    keepers: JoinSet<()>,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
}

/// What a [`Fleet`] saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Every tunnel that has ended.
    pub(crate) tunnels: Vec<Outcome>,
    /// Every tunnel that could not be opened.
    pub(crate) failures: Vec<String>,
}

impl Fleet {
    /// Opens so many tunnels, each sending a message every `pause`, and waits until all are open.
    pub(crate) async fn launch(url: &str, size: usize, pause: Duration) -> Self {
        let mut fleet = Self {
            keepers: JoinSet::new(),
            stop: Arc::default(),
            seen: Arc::default(),
        };
        for number in 0..size {
            let client = Client::open(url).await;
            let keeper = Keeper {
                url: url.to_owned(),
                number,
                pause,
                stop: Arc::clone(&fleet.stop),
                seen: Arc::clone(&fleet.seen),
            };
            fleet.keepers.spawn(keeper.keep(client));
        }
        fleet
    }

    /// Tunnels that have ended so far.
    pub(crate) fn ended(&self) -> usize {
        self.seen.lock().unwrap().tunnels.len()
    }

    /// Closes all tunnels and says what was seen.
    pub(crate) async fn stop(mut self) -> Seen {
        self.stop.store(true, Ordering::SeqCst);
        within("the fleet stops", SOON * 3, async {
            while let Some(kept) = self.keepers.join_next().await {
                kept.unwrap();
            }
        })
        .await;
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

/// Keeps one tunnel of a fleet open.
struct Keeper {
    url: String,
    number: usize,
    pause: Duration,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
}

impl Keeper {
    async fn keep(self, first: Client) {
        let mut client = first;
        for life in 0.. {
            let name = format!("{}.{life}", self.number);
            let tunnel = Sequenced::run(client, name, self.pause);
            while !tunnel.has_ended() && !self.stop.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let outcome = tunnel.stop().await;
            self.seen.lock().unwrap().tunnels.push(outcome);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            client = match Client::try_open(&self.url).await {
                Ok(client) => client,
                Err(error) => {
                    self.seen.lock().unwrap().failures.push(error);
                    return;
                }
            };
        }
    }
}

/// New connections at a fixed rate, whatever becomes of those before: each opens a
/// tunnel, has one message echoed and closes.
#[derive(Debug)]
pub(crate) struct Storm {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Vec<Attempt>>,
}

/// One connection of a [`Storm`].
#[derive(Debug)]
pub(crate) struct Attempt {
    /// Before the connect.
    pub(crate) began: Instant,
    /// From the connect to the echo.
    pub(crate) took: Duration,
    /// What went wrong.
    pub(crate) problem: Option<String>,
}

impl Storm {
    pub(crate) fn start(url: &str, per_second: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(storm(url.to_owned(), per_second, Arc::clone(&stop)));
        Self { stop, task }
    }

    /// Begins no more connections, waits for the last, and says what became of each.
    pub(crate) async fn stop(self) -> Vec<Attempt> {
        self.stop.store(true, Ordering::SeqCst);
        within("the storm ends", SOON * 3, self.task).await.unwrap()
    }
}

async fn storm(url: String, per_second: u32, stop: Arc<AtomicBool>) -> Vec<Attempt> {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / per_second);
    let mut running = JoinSet::new();
    while !stop.load(Ordering::SeqCst) {
        ticks.tick().await;
        running.spawn(attempt(url.clone()));
    }
    running.join_all().await
}

async fn attempt(url: String) -> Attempt {
    let began = Instant::now();
    let opened = one_echo(&url).await;
    let took = began.elapsed();
    let problem = match opened {
        Err(error) => Some(error),
        Ok(client) => close(client).await,
    };
    Attempt {
        began,
        took,
        problem,
    }
}

/// The problem with a client's own close, if there is one.
async fn close(client: Client) -> Option<String> {
    let end = client.close(1000, "").await;
    (!end.is_polite(1000)).then(|| format!("ended with {end:?}"))
}

async fn one_echo(url: &str) -> Result<Client, String> {
    let mut client = Client::try_open(url).await?;
    let exchange = async {
        let message = Message::text("hello");
        client
            .ws
            .send(message.clone())
            .await
            .map_err(|error| format!("send: {error}"))?;
        match client.ws.next().await {
            Some(Ok(back)) if back == message => Ok(()),
            other => Err(format!("instead of the echo: {other:?}")),
        }
    };
    tokio::time::timeout(SOON, exchange)
        .await
        .unwrap_or_else(|_| Err(format!("no echo within {SOON:?}")))?;
    Ok(client)
}

/// The problems of a storm, a few of them.
pub(crate) fn problems(attempts: &[Attempt]) -> Vec<String> {
    attempts
        .iter()
        .filter_map(|attempt| attempt.problem.clone())
        .take(5)
        .collect()
}

/// The longest time that a connection took.
pub(crate) fn slowest(attempts: &[Attempt]) -> Duration {
    attempts
        .iter()
        .map(|attempt| attempt.took)
        .max()
        .unwrap_or_default()
}

/// What came, came whole and in order on both sides, and the server answered all of it.
pub(crate) fn assert_no_faults(seen: &Seen, echo: &Echo) {
    assert_eq!(seen.failures, [""; 0]);
    assert_eq!(echo.faults(), [""; 0]);
    let faults: Vec<&String> = seen
        .tunnels
        .iter()
        .flat_map(|tunnel| &tunnel.faults)
        .collect();
    assert!(faults.is_empty(), "{faults:?}");
    for tunnel in seen.tunnels.iter().filter(|tunnel| tunnel.by_us) {
        assert_eq!(tunnel.echoed, tunnel.sent);
    }
}
