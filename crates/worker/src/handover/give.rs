//! The side that gives its tunnels away, oldest first, and from then on each that opens.
//!
//! Whatever happens here, every tunnel that was taken out of its task is either another worker's for certain, or goes on here.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use wsgate_os::channel::Channel;
use wsgate_os::limits;
use wsgate_protocol::control::{FromWorker, Refusal};
use wsgate_protocol::handover::{FromGiver, FromTaker, VERSION};
use wsgate_proxy::handover::{Leaver, Passport, VERSION as PASSPORT_VERSION};
use wsgate_proxy::{ClosePlan, Gateway, Hold};

use super::{ANSWER_WITHIN, BATCH, parcel, stays};
use crate::hooks;

/// Between two batches, in times that the last one has taken. With less the round trips of all other tunnels get longer.
const PAUSE: u32 = 6;

/// At the least, and at the most: a worker that gives thousands has to come to an end.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// How long a batch that the kernel does not let through is tried again: it is with neither worker for as long.
const SENT_WITHIN: Duration = Duration::from_millis(100);

/// How often a taker without room is asked whether it has some, with [`LONGEST_PAUSE`] between.
pub(super) const ASKED_FOR_ROOM: u32 = 10;

/// Tunnels are given to another worker, or were.
pub(crate) struct Giving {
    pub(crate) handover: u64,
    /// What those get that stay, once it is known which ones do.
    pub(crate) plan: Option<ClosePlan>,
    /// Every tunnel that lived has been given, or stays.
    pub(crate) through: bool,
    /// Why nothing more is given.
    pub(crate) broken: Option<Refusal>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// What a giver needs.
pub(crate) struct Order {
    pub(crate) handover: u64,
    /// The taker's process.
    pub(crate) to: u32,
    pub(crate) slot: usize,
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) reports: UnboundedSender<FromWorker>,
}

impl Giving {
    /// Begins as soon as the one before has settled its last batch.
    pub(crate) fn begin(order: Order, channel: Channel, before: Option<Self>) -> Self {
        let stop = CancellationToken::new();
        let handover = order.handover;
        let giver = Giver {
            order,
            channel,
            stop: stop.clone(),
            moved: 0,
            batches: 0,
            unreported: None,
            singly: 0,
        };
        let (before, plan) = match before {
            Some(before) => {
                before.stop();
                (Some(before.task), before.plan)
            }
            None => (None, None),
        };
        let task = tokio::spawn(async move {
            if let Some(before) = before
                && let Err(error) = before.await
            {
                tracing::error!(%error, "the handover before has failed");
            }
            giver.run().await;
        });
        Self {
            handover,
            plan,
            through: false,
            broken: None,
            stop,
            task,
        }
    }

    /// Gives nothing more after the batch that is under way.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }
}

struct Giver {
    order: Order,
    channel: Channel,
    stop: CancellationToken,
    /// Tunnels moved since the last report.
    moved: u64,
    batches: u64,
    /// Until what was moved has been reported this worker is not empty.
    unreported: Option<Hold>,
    /// So many are given one by one, to find the one that the taker cannot serve.
    singly: usize,
}

impl Giver {
    async fn run(mut self) {
        // Another taker may do what the last one did not.
        self.order.gateway.forget_refusals();
        let broken = self.give().await;
        tracing::info!(
            to = self.order.to,
            ?broken,
            "no more tunnels are handed over"
        );
        self.report(Some(broken));
    }

    /// Gives until nothing more can be given, and says why.
    async fn give(&mut self) -> Refusal {
        let mut room = match timeout(ANSWER_WITHIN, self.introduce()).await {
            Ok(Ok(room)) => room,
            Ok(Err(refusal)) => return refusal,
            Err(_) => return Refusal::Late,
        };
        loop {
            if self.stop.is_cancelled() {
                return Refusal::Nobody;
            }
            if room == 0 && self.order.gateway.has_movable() {
                room = match self.ask_until_there_is_room().await {
                    Ok(room) => room,
                    Err(refusal) => return refusal,
                };
            }
            let began = Instant::now();
            let most = if self.singly > 0 { 1 } else { BATCH };
            let batch = self.order.gateway.leavers(room.min(most)).await;
            let given = match batch.is_empty() {
                true => self.wait().await,
                false => self.hand(batch, room).await,
            };
            room = match given {
                Ok(room) => room,
                Err(refusal) => return refusal,
            };
            self.pause(began.elapsed()).await;
        }
    }

    /// Others want the CPU as well: traffic, and other pairs. The longer a batch has taken the more of them there are.
    async fn pause(&self, batch_took: Duration) {
        let pause = (batch_took * PAUSE).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Other givers may have been promised all there is, and need it no more in a moment.
    async fn ask_until_there_is_room(&self) -> Result<usize, Refusal> {
        for _ in 0..ASKED_FOR_ROOM {
            let ask = FromGiver::<Passport>::Ask {
                holds: self.order.gateway.live(),
            };
            match timeout(ANSWER_WITHIN, self.question(&ask)).await {
                // Nothing more is given, whatever room there is.
                Ok(Ok(_)) if self.stop.is_cancelled() => return Err(Refusal::Nobody),
                Ok(Ok(0)) => self.pause(LONGEST_PAUSE).await,
                Ok(room) => return room,
                Err(_) => return Err(Refusal::Late),
            }
        }
        Err(Refusal::NoRoom)
    }

    async fn introduce(&self) -> Result<usize, Refusal> {
        let hello = FromGiver::Hello {
            version: VERSION,
            tunnels: PASSPORT_VERSION,
            holds: self.order.gateway.live(),
        };
        self.question(&hello).await
    }

    /// Asks for room.
    async fn question(&self, question: &FromGiver<Passport>) -> Result<usize, Refusal> {
        parcel::say(&self.channel, question).await.map_err(unsent)?;
        match self.answer().await {
            Ok(FromTaker::Room { tunnels }) => Ok(tunnels),
            Ok(FromTaker::Refused { reason }) => Err(reason),
            Ok(FromTaker::Taken { .. }) => Err(Refusal::Unfit),
            Err(error) => Err(unsent(error)),
        }
    }

    /// Nothing can be given at the moment. Says so, and waits for more. There is no room for that yet.
    async fn wait(&mut self) -> Result<usize, Refusal> {
        parcel::say(&self.channel, &FromGiver::<Passport>::Done)
            .await
            .map_err(unsent)?;
        self.report(None);
        let gateway = Arc::clone(&self.order.gateway);
        while !gateway.has_movable() {
            tokio::select! {
                () = gateway.movable() => {}
                () = self.stop.cancelled() => return Ok(0),
                // Nothing was asked: it has ended.
                _ = self.channel.recv() => return Err(Refusal::Gone),
            }
        }
        Ok(0)
    }

    /// One batch, to its end. Returns the room for the next.
    async fn hand(&mut self, batch: Vec<Leaver>, room: usize) -> Result<usize, Refusal> {
        self.unreported = Some(self.order.gateway.hold());
        self.batches += 1;
        let (number, slot) = (self.batches, self.order.slot);
        hooks::at_give(slot, number);
        let more = self.order.gateway.live().saturating_sub(batch.len());
        let exchange = async {
            self.send(number, &batch, more).await?;
            hooks::at_given(slot, number);
            self.answer().await
        };
        match timeout(ANSWER_WITHIN, exchange).await {
            Ok(Ok(FromTaker::Taken { number: of, room })) if of == number => {
                self.moved(batch);
                Ok(room)
            }
            Ok(Ok(FromTaker::Refused {
                reason: Refusal::Unfit,
            })) => {
                self.look_for_the_unfit(batch);
                Ok(room)
            }
            Ok(Ok(FromTaker::Refused { reason })) => {
                batch.into_iter().for_each(Leaver::resume);
                Err(reason)
            }
            Ok(Ok(other)) => {
                tracing::error!(?other, "an answer to something else");
                Err(self.settle(batch, number, Refusal::Unfit).await)
            }
            Ok(Err(error)) => Err(self.settle(batch, number, unsent(error)).await),
            Err(_) => Err(self.settle(batch, number, Refusal::Late).await),
        }
    }

    /// The kernel may have too many descriptors in flight at the moment, of all processes of this user.
    async fn send(&self, number: u64, batch: &[Leaver], more: usize) -> io::Result<()> {
        let until = Instant::now() + SENT_WITHIN;
        loop {
            match parcel::send(&self.channel, number, batch, more).await {
                Err(error) if limits::may_pass(&error) && Instant::now() < until => {
                    tokio::time::sleep(SHORTEST_PAUSE).await;
                }
                sent => return sent,
            }
        }
    }

    fn moved(&mut self, batch: Vec<Leaver>) {
        self.moved += batch.len() as u64;
        self.singly = self.singly.saturating_sub(batch.len());
        batch.into_iter().for_each(Leaver::moved);
    }

    /// One of them cannot be served there: which one, shows when each goes alone.
    fn look_for_the_unfit(&mut self, batch: Vec<Leaver>) {
        match <[Leaver; 1]>::try_from(batch) {
            Ok([unfit]) => {
                self.singly = self.singly.saturating_sub(1);
                unfit.refused(stays::number(Refusal::Unfit));
            }
            Err(batch) => {
                self.singly = batch.len();
                batch.into_iter().for_each(Leaver::resume);
            }
        }
    }

    /// There was no answer in time: whose is the batch? See [`wsgate_protocol::handover`].
    async fn settle(&mut self, batch: Vec<Leaver>, number: u64, why: Refusal) -> Refusal {
        if let Err(error) = self.channel.shut_down() {
            tracing::error!(%error, "channel of a handover not shut down");
        }
        // To the end: what is queued before it may be no answer at all.
        while let Ok(Some((bytes, _))) = self.channel.recv().await {
            let answer = serde_json::from_slice(&bytes);
            if matches!(answer, Ok(FromTaker::Taken { number: of, .. }) if of == number) {
                tracing::info!(number, "a batch was taken at the last moment");
                self.moved(batch);
                return why;
            }
        }
        batch.into_iter().for_each(Leaver::resume);
        why
    }

    async fn answer(&self) -> io::Result<FromTaker> {
        let (bytes, _) = self
            .channel
            .recv()
            .await?
            .ok_or_else(|| io::Error::from(ErrorKind::BrokenPipe))?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    fn report(&mut self, broken: Option<Refusal>) {
        let report = FromWorker::HandedOver {
            handover: self.order.handover,
            moved: std::mem::take(&mut self.moved),
            stays: stays::all(&self.order.gateway, broken),
            broken,
            longest_pause_us: u64::try_from(self.order.gateway.longest_pause().as_micros())
                .unwrap_or(u64::MAX),
        };
        // Nobody listens only while the worker itself ends.
        drop(self.order.reports.send(report));
        self.unreported = None;
    }
}

/// What a failed send or receive means.
fn unsent(error: io::Error) -> Refusal {
    match error.kind() {
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::NotConnected => {
            Refusal::Gone
        }
        _ => {
            tracing::warn!(%error, "a batch of tunnels was not handed over");
            Refusal::Unsent
        }
    }
}
