//! What the supervisor says about handovers, and what is told to it.

use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use wsgate_os::channel::Channel;
use wsgate_protocol::admin::Fates;
use wsgate_protocol::control::{FromWorker, Refusal};
use wsgate_proxy::ClosePlan;

use super::{Control, Error};
use crate::handover::{GiveOrder, Giving, TakeOrder, Taking};

/// Handovers under way.
pub(super) struct Moves {
    giving: Option<Giving>,
    taking: Vec<Taking>,
    reports: UnboundedSender<FromWorker>,
    reported: UnboundedReceiver<FromWorker>,
}

impl Moves {
    pub(super) fn new() -> Self {
        let (reports, reported) = mpsc::unbounded_channel();
        Self {
            giving: None,
            taking: Vec::new(),
            reports,
            reported,
        }
    }

    /// What a giver or a taker has to say to the supervisor.
    pub(super) async fn report(&mut self) -> FromWorker {
        match self.reported.recv().await {
            Some(report) => report,
            // Never: a sender is here.
            None => std::future::pending().await,
        }
    }

    /// The same, if there is anything now.
    pub(super) fn next_report(&mut self) -> Option<FromWorker> {
        self.reported.try_recv().ok()
    }

    /// Whether it is known of every tunnel whether it stays.
    pub(super) fn is_settled(&self) -> bool {
        self.giving.as_ref().is_none_or(|giving| giving.through)
    }

    /// The handover whose tunnels are not settled yet.
    fn unsettled(&mut self) -> Option<&mut Giving> {
        self.giving.as_mut().filter(|giving| !giving.through)
    }

    /// Gives nothing more.
    pub(super) fn stop_giving(&self) {
        if let Some(giving) = &self.giving {
            giving.stop();
        }
    }

    /// What a handover is told to be that could not even begin.
    fn say_broken(&self, handover: u64, error: &Error) {
        tracing::error!(%error, "a handover cannot begin");
        let reports = [
            FromWorker::HandedOver {
                handover,
                moved: 0,
                stays: Vec::new(),
                broken: Some(Refusal::Unsent),
                longest_pause_us: 0,
            },
            FromWorker::TookOver {
                handover,
                fates: Fates::default(),
                longest_pause_us: 0,
                over: true,
            },
        ];
        for report in reports {
            // Nobody listens only while the worker itself ends.
            drop(self.reports.send(report));
        }
    }

    /// Takes nothing more. A batch that is not acknowledged yet is the giver's.
    pub(super) fn stop_taking(&mut self) {
        self.taking.clear();
    }

    /// Whether tunnels are given away, and why no more, if they are not any more.
    pub(super) fn giving(&self) -> Option<Option<Refusal>> {
        self.giving.as_ref().map(|giving| giving.broken)
    }
}

impl Control {
    pub(super) fn hand_over(&mut self, handover: u64, to: u32, fds: Vec<OwnedFd>) {
        let order = GiveOrder {
            handover,
            to,
            slot: self.booted.boot.slot,
            gateway: self.booted.gateway.clone(),
            reports: self.moves.reports.clone(),
        };
        let channel = one(fds).and_then(|fd| Channel::from_fd(fd).map_err(no_channel));
        match channel {
            Ok(channel) => {
                let before = self.moves.giving.take();
                self.moves.giving = Some(Giving::begin(order, channel, before));
            }
            Err(error) => self.moves.say_broken(handover, &error),
        }
    }

    pub(super) fn take_over(
        &mut self,
        handover: u64,
        from: u32,
        grace: Duration,
        fds: Vec<OwnedFd>,
    ) {
        let order = TakeOrder {
            handover,
            from,
            slot: self.booted.boot.slot,
            grace,
            gateway: self.booted.gateway.clone(),
            reports: self.moves.reports.clone(),
        };
        self.moves.taking.retain(|taking| !taking.is_over());
        let channel = one(fds).and_then(|fd| Channel::from_fd(fd).map_err(no_channel));
        match channel {
            Ok(channel) => self.moves.taking.push(Taking::begin(order, channel)),
            Err(error) => self.moves.say_broken(handover, &error),
        }
    }

    /// Waits until it is known which tunnels stay. For a worker that hears nobody any more.
    pub(super) async fn settle_moves(&mut self) {
        self.moves.stop_giving();
        while !self.moves.is_settled() {
            let report = self.moves.report().await;
            self.reported(report).await;
        }
    }

    /// Those that stay are known: now they get their deadlines.
    pub(super) async fn reported(&mut self, report: FromWorker) {
        if let FromWorker::HandedOver {
            handover, broken, ..
        } = &report
            && let Some(giving) = &mut self.moves.giving
            && giving.handover == *handover
        {
            giving.through = true;
            giving.broken = *broken;
            if let Some(plan) = giving.plan.take() {
                self.booted.gateway.retire(&plan);
            }
        }
        self.say(&report).await;
    }

    /// Tunnels get their deadlines: now, or once it is known which of them stay.
    pub(super) fn retire_by(&mut self, plan: &ClosePlan) {
        let gateway = &self.booted.gateway;
        match self.moves.unsettled() {
            Some(giving) => {
                giving.plan = Some(plan.clone());
                gateway.retire_those_to_come(plan);
            }
            None => gateway.retire(plan),
        }
    }
}

fn one(fds: Vec<OwnedFd>) -> Result<OwnedFd, Error> {
    let [fd] = <[OwnedFd; 1]>::try_from(fds).map_err(|fds| {
        let count = fds.len();
        Error::Message(format!("a handover with {count} descriptors in place of 1"))
    })?;
    Ok(fd)
}

fn no_channel(source: std::io::Error) -> Error {
    Error::System {
        what: "channel of a handover",
        source,
    }
}
