//! A worker without a supervisor: it serves on, tunnels and new connections alike, until
//! another supervisor adopts it.
//!
//! It trusts nobody but its own user and root, and gives away nothing before the kernel has said who
//! has come.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use wsgate_os::channel::Channel;
use wsgate_os::rendezvous::Peer;
use wsgate_protocol::control::{FromWorker, Hello, SocketSpec, VERSION};

use crate::control::{Control, Next};

/// How long an introduction may take: whoever has come has to read it.
const INTRODUCED_WITHIN: Duration = Duration::from_secs(5);

/// Between two visits when accepting one has failed.
const PAUSE: Duration = Duration::from_millis(100);

/// Sockets in one message. Whoever comes has them already from another worker, mostly, and closes its copies at
/// once; so few descriptors are needed at a time.
const SOCKETS_AT_ONCE: usize = 32;

impl Control {
    /// The supervisor is gone.
    pub(crate) fn is_orphaned(&mut self, why: &str) -> Next {
        self.channel = None;
        // Whoever heard it will not tell it to go.
        self.said_empty = false;
        let needed = self.booted.boot.active || !self.accepting.is_empty();
        if needed && self.drains_until.is_none() {
            // What it was about to be told to accept from.
            self.accept_all();
        }
        let tunnels = self.booted.gateway.tunnels().len();
        match self.drains_until {
            Some(_) => tracing::warn!(why, tunnels, "the supervisor is gone: the drain goes on"),
            // It was to replace others, and they go on.
            None if self.accepting.is_empty() => {
                tracing::warn!(why, "the supervisor is gone before this worker was needed");
                return Next::Exit;
            }
            None => match self.grace() {
                // The supervisor's sockets are gone with it: nobody else accepts.
                Some(grace) => self.drain_by_itself("the supervisor is gone", grace, true),
                None => tracing::warn!(
                    why,
                    tunnels,
                    "the supervisor is gone: serving on until another one comes"
                ),
            },
        }
        Next::Message
    }

    /// What tunnels get without a supervisor, if they do not stay. Where no other one can find this worker, it must
    /// not serve for ever.
    fn grace(&self) -> Option<Duration> {
        let drain = &self.booted.config.drain;
        let lost = self.booted.rendezvous.is_none().then_some(drain.grace);
        drain.orphan_grace.or(lost)
    }

    /// Somebody has come to the rendezvous.
    pub(crate) async fn visited(&mut self, visit: io::Result<(Channel, Peer)>) -> Next {
        let (channel, peer) = match visit {
            Ok(visit) => visit,
            Err(error) => {
                tracing::warn!(%error, "the next supervisor may not get through");
                tokio::time::sleep(PAUSE).await;
                return Next::Message;
            }
        };
        if !peer.may_command() {
            tracing::warn!(
                pid = peer.pid,
                uid = peer.uid,
                "refused: no supervisor of ours"
            );
            return Next::Message;
        }
        let introduced = tokio::time::timeout(INTRODUCED_WITHIN, self.introduce(&channel));
        match introduced.await.unwrap_or_else(|late| Err(late.into())) {
            Ok(()) => {
                tracing::info!(supervisor = peer.pid, "another supervisor has come");
                self.channel = Some(channel);
            }
            Err(error) => {
                tracing::warn!(%error, pid = peer.pid, "whoever came is gone again");
            }
        }
        Next::Message
    }

    async fn introduce(&self, channel: &Channel) -> io::Result<()> {
        let (boot, heirloom) = (&self.booted.boot, &self.booted.heirloom);
        let sockets = self.sockets()?;
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let left = |until: Instant| ms(until.saturating_duration_since(Instant::now()));
        let hello = FromWorker::Hello(Hello {
            version: VERSION,
            instance: boot.instance,
            slot: boot.slot,
            generation: boot.generation,
            block: boot.block,
            age_ms: ms(self.booted.began.elapsed()),
            drains_for_ms: self.drains_until.map(left),
            sockets: sockets.len(),
        });
        let heirloom = [heirloom.config.as_fd(), heirloom.board.as_fd()];
        channel
            .send(&serde_json::to_vec(&hello)?, &heirloom)
            .await?;
        for part in sockets.chunks(SOCKETS_AT_ONCE) {
            let specs = part.iter().map(|(spec, _)| spec.clone()).collect();
            let fds: Vec<BorrowedFd<'_>> = part.iter().map(|(_, fd)| fd.as_fd()).collect();
            let message = FromWorker::Sockets { sockets: specs };
            channel.send(&serde_json::to_vec(&message)?, &fds).await?;
        }
        Ok(())
    }

    /// All that it accepts from.
    fn sockets(&self) -> io::Result<Vec<(SocketSpec, OwnedFd)>> {
        let accepting = self.accepting.iter();
        accepting
            .map(|(spec, acceptor)| Ok((spec.clone(), acceptor.socket()?)))
            .collect()
    }
}
