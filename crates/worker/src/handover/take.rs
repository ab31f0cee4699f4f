//! The side that takes tunnels over.
//!
//! Nothing of a tunnel is touched before its batch has been acknowledged. From then on it is this worker's, whatever becomes of the other.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use tokio::task::AbortHandle;
use wsgate_os::channel::Channel;
use wsgate_protocol::control::{FromWorker, Refusal};
use wsgate_protocol::handover::{FromGiver, FromTaker, VERSION};
use wsgate_proxy::handover::{Adopted, Passport, Places, VERSION as PASSPORT_VERSION};
use wsgate_proxy::{Gateway, Judgement};

use super::BATCH;
use super::parcel::{self, Parcel};
use crate::{hooks, judge};

/// Tunnels may come from another worker, until this is dropped.
pub(crate) struct Taking {
    task: AbortHandle,
}

/// What a taker needs.
pub(crate) struct Order {
    pub(crate) handover: u64,
    /// The giver's process.
    pub(crate) from: u32,
    pub(crate) slot: usize,
    /// What tunnels get that have lost their way.
    pub(crate) grace: Duration,
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) reports: UnboundedSender<FromWorker>,
}

impl Taking {
    pub(crate) fn begin(order: Order, channel: Channel) -> Self {
        let taker = Taker {
            channel,
            places: order.gateway.places(),
            lost_until: Instant::now() + order.grace,
            taken: Judgement::default(),
            batches: 0,
            order,
        };
        Self {
            task: tokio::spawn(taker.run()).abort_handle(),
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.task.is_finished()
    }
}

impl Drop for Taking {
    /// A batch that has not been acknowledged by now is the giver's.
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Taker {
    order: Order,
    channel: Channel,
    places: Places,
    lost_until: Instant,
    /// Since the last report.
    taken: Judgement,
    batches: u64,
}

impl Taker {
    async fn run(mut self) {
        while let Some(answer) = self.next().await {
            let answered = match answer {
                Some(refusal) => self.answer(&refusal).await,
                None => Ok(()),
            };
            if answered.is_err() {
                break;
            }
        }
        tracing::debug!(from = self.order.from, "no more tunnels are taken over");
        self.report(true);
    }

    /// Hears one message. What is to be answered, if anything; `None` at the end.
    async fn next(&mut self) -> Option<Option<FromTaker>> {
        let parcel = match self.channel.recv().await {
            Ok(Some((bytes, fds))) => Parcel::open(bytes, fds),
            Ok(None) => return None,
            // Descriptors were lost for want of room: the kernel has closed those that came.
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                tracing::error!(%error, "tunnels not taken over");
                return Some(Some(refused(Refusal::NoDescriptors)));
            }
            Err(error) => {
                tracing::debug!(%error, "handover channel");
                return None;
            }
        };
        match parcel {
            Ok(parcel) => self.heard(parcel).await,
            Err(error) => {
                tracing::error!(%error, "a batch of tunnels is not understood");
                Some(Some(refused(Refusal::Unfit)))
            }
        }
    }

    async fn heard(&mut self, mut parcel: Parcel) -> Option<Option<FromTaker>> {
        let message = std::mem::replace(&mut parcel.message, FromGiver::Done);
        Some(match message {
            FromGiver::Hello {
                version: VERSION,
                tunnels: PASSPORT_VERSION,
                holds,
            }
            | FromGiver::Ask { holds } => {
                self.places.give_back();
                Some(FromTaker::Room {
                    tunnels: self.places.grant(holds.min(BATCH)),
                })
            }
            FromGiver::Hello { .. } => Some(refused(Refusal::Version)),
            FromGiver::Batch {
                number,
                tunnels,
                more,
            } => match self.make_ready(tunnels, parcel) {
                Ok(adopted) => {
                    if let Err(error) = self.take(number, adopted, more).await {
                        tracing::warn!(%error, number, "the giver did not wait: its tunnels stay with it");
                        return None;
                    }
                    None
                }
                Err(reason) => Some(refused(reason)),
            },
            FromGiver::Long => Some(refused(Refusal::Unfit)),
            FromGiver::Done => {
                self.places.give_back();
                // Those that have begun are to be relayed once before it is said how long they were not.
                tokio::task::yield_now().await;
                self.report(false);
                None
            }
        })
    }

    /// All of a batch, or nothing.
    fn make_ready(&self, tunnels: Vec<Passport>, parcel: Parcel) -> Result<Vec<Adopted>, Refusal> {
        if tunnels.len() > self.places.granted() {
            return Err(Refusal::NoRoom);
        }
        if parcel.sockets.len() != 2 * tunnels.len() {
            tracing::error!(
                tunnels = tunnels.len(),
                descriptors = parcel.sockets.len(),
                "each tunnel has two sockets"
            );
            return Err(Refusal::Unfit);
        }
        let adopted = self.adopt(tunnels, parcel);
        adopted.map_err(|error| {
            tracing::error!(%error, "tunnels not taken over");
            Refusal::Unfit
        })
    }

    fn adopt(&self, tunnels: Vec<Passport>, mut parcel: Parcel) -> io::Result<Vec<Adopted>> {
        let sockets = std::mem::take(&mut parcel.sockets);
        let mut sockets = sockets.into_iter();
        let mut tail = parcel.tail();
        let mut adopted = Vec::with_capacity(tunnels.len());
        for passport in tunnels {
            let [down, up] = passport.pending();
            let to_client = split(&mut tail, down)?;
            let to_server = split(&mut tail, up)?;
            let (Some(client), Some(server)) = (sockets.next(), sockets.next()) else {
                return Err(io::ErrorKind::UnexpectedEof.into());
            };
            let ready = self.order.gateway.adopt(
                passport,
                [client, server],
                [to_client, to_server],
                self.lost_until,
            );
            adopted.push(ready.map_err(io::Error::other)?);
        }
        if tail.is_empty() {
            Ok(adopted)
        } else {
            Err(io::Error::other("bytes that belong to no tunnel"))
        }
    }

    /// The moment at which the batch changes hands is that of the answer.
    async fn take(&mut self, number: u64, adopted: Vec<Adopted>, more: usize) -> io::Result<()> {
        self.batches += 1;
        hooks::at_take(self.order.slot, self.batches);
        let room = self.places.grant_more(more.min(BATCH));
        self.answer(&FromTaker::Taken { number, room }).await?;
        hooks::at_taken(self.order.slot, self.batches);
        for tunnel in adopted {
            tunnel.begin(&mut self.taken);
        }
        self.places.arrived();
        Ok(())
    }

    async fn answer(&self, answer: &FromTaker) -> io::Result<()> {
        parcel::say(&self.channel, answer).await
    }

    fn report(&mut self, over: bool) {
        let pause = self.places.longest_pause().as_micros();
        let report = FromWorker::TookOver {
            handover: self.order.handover,
            fates: judge::fates(std::mem::take(&mut self.taken)),
            longest_pause_us: u64::try_from(pause).unwrap_or(u64::MAX),
            over,
        };
        // Nobody listens only while the worker itself ends.
        drop(self.order.reports.send(report));
    }
}

const fn refused(reason: Refusal) -> FromTaker {
    FromTaker::Refused { reason }
}

fn split<'a>(tail: &mut &'a [u8], count: usize) -> io::Result<&'a [u8]> {
    let (bytes, rest) = tail
        .split_at_checked(count)
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    *tail = rest;
    Ok(bytes)
}
