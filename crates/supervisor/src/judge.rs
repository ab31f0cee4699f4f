//! What would become of the tunnels under another configuration: each worker says it of its own.
//!
//! Waited for in a task, never in the loop. Nothing changes by it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use futures_util::future::join_all;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::timeout;
use wsgate_config::{Config, Share};
use wsgate_os::memfd;
use wsgate_protocol::admin::{Fates, UnjudgedWorker};
use wsgate_protocol::control::ToWorker;

use crate::link::{ANSWER_WITHIN, Link, Unanswered};
use crate::supervisor::Supervisor;

/// The longest answer, in bytes: some hundred lines.
const LONGEST: u64 = 4 << 20;

/// A worker that holds tunnels, and how many.
pub(crate) struct Holder {
    link: Link,
    tunnels: u64,
}

/// What workers have said.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) fates: Fates,
    /// Those that did not answer in time.
    pub(crate) unresponsive: Vec<UnjudgedWorker>,
}

impl Supervisor {
    /// Every worker, of any generation, that holds tunnels.
    pub(crate) fn holders(&self) -> Vec<Holder> {
        let holders = self.links.values().map(|link| Holder {
            link: link.clone(),
            tunnels: self.figures.tunnels_of(link.block),
        });
        holders.filter(|holder| holder.tunnels > 0).collect()
    }
}

/// Asks all of them. Each has a second for a sign of life, and another one to judge.
pub(crate) async fn judge(holders: Vec<Holder>, config: &Config) -> io::Result<Verdict> {
    let text = serde_json::to_vec(config)?;
    let config = Arc::new(memfd::sealed("wsgate-judge", &text)?);
    let mut verdict = Verdict::default();
    let asked = holders.iter().map(|holder| ask(&holder.link, &config));
    for (said, holder) in join_all(asked).await.into_iter().zip(&holders) {
        match said {
            Ok(fates) => verdict.fates.add(fates),
            // Its tunnels ended with it.
            Err(Unanswered::Gone) => {}
            Err(Unanswered::Late) => verdict.unresponsive.push(UnjudgedWorker {
                pid: holder.link.pid,
                tunnels: holder.tunnels,
            }),
        }
    }
    Ok(verdict)
}

/// First for a sign of life: one that reads nothing is not buried in messages.
async fn ask(link: &Link, config: &Arc<OwnedFd>) -> Result<Fates, Unanswered> {
    link.ping().await?;
    match timeout(ANSWER_WITHIN, put(link, config)).await {
        Ok(Ok(fates)) => Ok(fates),
        Ok(Err(error)) => {
            link.ping().await?;
            tracing::warn!(pid = link.pid, %error, "worker has not judged its tunnels");
            Err(Unanswered::Late)
        }
        Err(_) => Err(Unanswered::Late),
    }
}

async fn put(link: &Link, config: &Arc<OwnedFd>) -> io::Result<Fates> {
    let (read, write): (OwnedFd, OwnedFd) = wsgate_os::pipe::pipe()?;
    link.send_with(ToWorker::Judge, vec![Arc::clone(config), Arc::new(write)]);
    let mut said = Vec::new();
    let mut pipe = pipe::Receiver::from_owned_fd(read)?.take(LONGEST);
    pipe.read_to_end(&mut said).await?;
    Ok(serde_json::from_slice(&said)?)
}

impl Verdict {
    /// Of tunnels that are not to move: all of them stay where they are, and drain.
    fn without_handover(mut self) -> Self {
        let Fates { kept, drained, .. } = self.fates;
        self.fates = Fates {
            drained: kept + drained,
            draining: self.fates.draining,
            ..Fates::default()
        };
        self
    }

    /// As it is where tunnels are to move, or are not.
    pub(crate) fn with_handover(self, handover: bool) -> Self {
        match handover {
            true => self,
            false => self.without_handover(),
        }
    }

    /// The part of all tunnels that would be drained or end at once, if it is more than may be.
    pub(crate) fn exceeds(&self, limit: Share) -> Option<f64> {
        let (part, all) = self.harmed_of();
        limit
            .is_exceeded(part, all)
            .then(|| part as f64 / all as f64)
    }

    /// Tunnels that would be drained or end, and all. Of those that nobody has judged the worst is assumed.
    fn harmed_of(&self) -> (u64, u64) {
        let unjudged: u64 = self.unresponsive.iter().map(|it| it.tunnels).sum();
        let Fates {
            drained, ending, ..
        } = self.fates;
        (drained + ending + unjudged, self.fates.tunnels() + unjudged)
    }
}
