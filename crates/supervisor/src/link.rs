//! A worker as the supervisor holds it: its process, its channel, its block of the board.
//!
//! Messages go out through a queue: a worker that does not read must not hold up
//! the supervisor. When its queue is full it has not read for a long time, and is killed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use wsgate_lifecycle::{Generation, WorkerId};
use wsgate_os::channel::Channel;
use wsgate_os::limits;
use wsgate_os::process::{self, Process, Signal, Spawn};
use wsgate_protocol::control::{FromWorker, Hello, ToWorker};

use crate::event::{Event, Events};

/// Messages that may wait for a worker to read.
const QUEUE: usize = 1024;

/// What a worker has to answer within.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// How long a message is tried that the kernel does not let through: other processes of this user may have as many descriptors in
/// flight as it allows (ETOOMANYREFS, see sendmsg(2)).
const SENT_WITHIN: Duration = Duration::from_secs(10);

/// Between two tries.
const SENT_AGAIN_AFTER: Duration = Duration::from_millis(5);

/// A message with its descriptors.
struct Outgoing {
    message: ToWorker,
    fds: Vec<Arc<OwnedFd>>,
}

/// A handle on a worker; cheap to clone, so that tasks can ask workers something
/// without the supervisor's loop.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) id: WorkerId,
    pub(crate) slot: usize,
    pub(crate) generation: Generation,
    pub(crate) pid: u32,
    pub(crate) block: usize,
    /// Another supervisor started it.
    pub(crate) adopted: bool,
    outgoing: mpsc::Sender<Outgoing>,
    shared: Arc<Shared>,
}

/// What a worker is, and since when it is ours.
struct Place {
    slot: usize,
    generation: Generation,
    block: usize,
    adopted: bool,
}

struct Shared {
    process: Process,
    asked: Mutex<Asked>,
}

#[derive(Default)]
struct Asked {
    last_nonce: u64,
    /// The question that has not been answered yet.
    under_way: Option<u64>,
    /// Nothing will be answered any more.
    gone: bool,
    waiting: Vec<oneshot::Sender<()>>,
    last_heard: Option<Instant>,
    /// How often it has said something.
    heard: u64,
}

impl Asked {
    /// For a question, unless one is under way.
    fn next_nonce(&mut self) -> Option<u64> {
        if self.under_way.is_some() {
            return None;
        }
        self.last_nonce += 1;
        self.under_way = Some(self.last_nonce);
        self.under_way
    }
}

/// Why a worker did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unanswered {
    /// It did not in time.
    Late,
    /// It is about to end, or has ended.
    Gone,
}

impl Link {
    /// Starts a worker process, and the tasks that serve its channel. What it says and
    /// its end come as events.
    pub(crate) fn spawn(
        id: WorkerId,
        slot: usize,
        generation: Generation,
        block: usize,
        events: &Events,
    ) -> io::Result<Self> {
        let (channel, stdin) = Channel::pair()?;
        let arg0 = format!("wsgate: worker {slot} gen {generation}");
        let process = process::spawn_self(Spawn {
            arg0: &arg0,
            args: &[],
            stdin,
        })?;
        let place = Place {
            slot,
            generation,
            block,
            adopted: false,
        };
        Ok(Self::serve(id, place, process, channel, events))
    }

    /// A worker that another supervisor has started.
    pub(crate) fn adopt(
        id: WorkerId,
        hello: &Hello,
        process: Process,
        channel: Channel,
        events: &Events,
    ) -> Self {
        let place = Place {
            slot: hello.slot,
            generation: hello.generation,
            block: hello.block,
            adopted: true,
        };
        Self::serve(id, place, process, channel, events)
    }

    fn serve(
        id: WorkerId,
        place: Place,
        process: Process,
        channel: Channel,
        events: &Events,
    ) -> Self {
        let (outgoing, queue) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared {
            process,
            asked: Mutex::default(),
        });
        let link = Self {
            id,
            slot: place.slot,
            generation: place.generation,
            pid: shared.process.pid(),
            block: place.block,
            adopted: place.adopted,
            outgoing,
            shared,
        };
        let channel = Arc::new(channel);
        tokio::spawn(link.clone().send_queued(channel.clone(), queue));
        tokio::spawn(link.clone().hear(channel, events.clone()));
        link
    }

    /// Queues a message.
    pub(crate) fn send(&self, message: ToWorker) {
        self.send_with(message, Vec::new());
    }

    /// Queues a message with descriptors.
    pub(crate) fn send_with(&self, message: ToWorker, fds: Vec<Arc<OwnedFd>>) {
        match self.outgoing.try_send(Outgoing { message, fds }) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                tracing::error!(pid = self.pid, "worker has not read {QUEUE} messages");
                self.kill();
            }
            // Its end comes as an event.
            Err(mpsc::error::TrySendError::Closed(_)) => {}
        }
    }

    /// Kills the process. Its end comes as an event.
    pub(crate) fn kill(&self) {
        kill(&self.shared.process);
    }

    /// Asks the worker for a sign of life. One question at a time is under way: a worker
    /// that answers none is not buried in them.
    pub(crate) async fn ping(&self) -> Result<(), Unanswered> {
        let (sender, answer) = oneshot::channel();
        let nonce = {
            let mut asked = self.asked();
            if asked.gone {
                return Err(Unanswered::Gone);
            }
            asked.waiting.retain(|waiting| !waiting.is_closed());
            asked.waiting.push(sender);
            asked.next_nonce()
        };
        self.put_question(nonce);
        match tokio::time::timeout(ANSWER_WITHIN, answer).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Unanswered::Gone),
            Err(_) => Err(Unanswered::Late),
        }
    }

    /// Asks for a sign of life without waiting for it, and says how often there was one: see
    /// [`Link::ping`].
    pub(crate) fn heartbeat(&self) -> u64 {
        let (nonce, heard) = {
            let mut asked = self.asked();
            (asked.next_nonce(), asked.heard)
        };
        self.put_question(nonce);
        heard
    }

    fn put_question(&self, nonce: Option<u64>) {
        if let Some(nonce) = nonce {
            self.send(ToWorker::Ping { nonce });
        }
    }

    /// Ends the process so that it leaves a core, if it is to. One that was stopped gets its
    /// SIGABRT with the SIGCONT, before it runs again. (A worker that came to change its user would
    /// have to set PR_SET_DUMPABLE for a core.)
    pub(crate) fn abort(&self) {
        for signal in [Signal::SIGABRT, Signal::SIGCONT] {
            if let Err(error) = self.shared.process.signal(signal) {
                tracing::debug!(pid = self.pid, %error, "worker not aborted");
            }
        }
    }

    /// When the worker last said anything.
    pub(crate) fn last_heard(&self) -> Option<Instant> {
        self.asked().last_heard
    }

    fn asked(&self) -> std::sync::MutexGuard<'_, Asked> {
        self.shared
            .asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands on what the worker says until its channel ends, then waits for its process.
    async fn hear(self, channel: Arc<Channel>, events: Events) {
        loop {
            match channel.recv().await {
                Ok(Some((bytes, _))) => match serde_json::from_slice(&bytes) {
                    Ok(message) => self.heard(message, &events),
                    Err(error) => {
                        tracing::error!(pid = self.pid, %error, "a worker's message is not understood");
                        self.kill();
                    }
                },
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(pid = self.pid, %error, "control channel");
                    break;
                }
            }
        }
        self.stop_waiting();
        let exit = match self.shared.process.wait().await {
            Ok(exit) => exit,
            Err(error) => {
                tracing::error!(pid = self.pid, %error, "worker's end not seen");
                wsgate_os::process::Exit::Unknown
            }
        };
        // Nobody listens only while the supervisor itself ends.
        drop(events.send(Event::Exited(self.id, Some(exit))));
    }

    /// Whoever waits for an answer need not any more.
    fn stop_waiting(&self) {
        let mut asked = self.asked();
        asked.gone = true;
        asked.waiting.clear();
    }

    fn heard(&self, message: FromWorker, events: &Events) {
        let mut asked = self.asked();
        asked.last_heard = Some(Instant::now());
        asked.heard += 1;
        if let FromWorker::Pong { nonce } = message {
            if asked.under_way == Some(nonce) {
                asked.under_way = None;
            }
            for waiting in asked.waiting.drain(..) {
                // Whoever asked may have stopped waiting.
                let _ = waiting.send(());
            }
            return;
        }
        drop(asked);
        drop(events.send(Event::Said(self.id, message)));
    }

    /// Sends what is queued, in order, until the worker or the supervisor is gone. A worker
    /// that misses a message is of no use any more.
    async fn send_queued(self, channel: Arc<Channel>, mut queue: mpsc::Receiver<Outgoing>) {
        // Else the queue would never end, and channel and pidfd stay open: this task holds a sender of it. (What a
        // pattern leaves out stays in `self` to the end.)
        let Self {
            pid,
            shared,
            outgoing,
            ..
        } = self;
        drop(outgoing);
        while let Some(Outgoing { message, fds }) = queue.recv().await {
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
            let sent = match serde_json::to_vec(&message) {
                Ok(bytes) => send_patiently(&channel, &bytes, &fds).await,
                Err(error) => Err(error.into()),
            };
            match sent {
                Ok(()) => {}
                Err(error) if is_gone(&error) => return,
                Err(error) => {
                    tracing::error!(pid, %error, "a message to a worker was not sent: the worker is ended");
                    kill(&shared.process);
                    return;
                }
            }
        }
    }
}

/// What the kernel does not let through at the moment is tried again for a while: a worker that misses a message is ended,
/// with all its tunnels.
async fn send_patiently(channel: &Channel, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let until = Instant::now() + SENT_WITHIN;
    loop {
        match channel.send(bytes, fds).await {
            Err(error) if limits::may_pass(&error) && Instant::now() < until => {
                tracing::debug!(%error, "a message to a worker has to wait");
                tokio::time::sleep(SENT_AGAIN_AFTER).await;
            }
            sent => return sent,
        }
    }
}

/// The other end is closed: the worker has ended, or is about to.
fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotConnected};
    matches!(
        error.kind(),
        BrokenPipe | ConnectionRefused | ConnectionReset | NotConnected
    )
}

/// Its end comes as an event.
fn kill(process: &Process) {
    if let Err(error) = process.signal(Signal::SIGKILL) {
        tracing::debug!(pid = process.pid(), %error, "worker not killed");
    }
}
