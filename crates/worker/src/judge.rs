//! What would become of every tunnel under another configuration, as JSON into a pipe made for one request.
//!
//! The tunnels must not notice: what takes milliseconds is done by a thread of its own, and the look at the tunnels in small steps.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::net::unix::pipe;
use tokio::task::spawn_blocking;
use wsgate_config::Config;
use wsgate_os::memfd;
use wsgate_protocol::admin::{Fates, Loss, LossReason};
use wsgate_proxy::{Gateway, Judgement, Lost, Reason};

use crate::listing::write;

/// Judges all tunnels and writes [`Fates`], then closes the pipe.
pub(crate) async fn judge(gateway: Arc<Gateway>, config: OwnedFd, to: OwnedFd) -> io::Result<()> {
    let mut pipe = pipe::Sender::from_owned_fd(to)?;
    let config = spawn_blocking(move || parse(config)).await??;
    let judgement = gateway.judge(config).await?;
    let text = spawn_blocking(move || serde_json::to_vec(&fates(judgement))).await??;
    write(&mut pipe, &text).await
}

fn parse(config: OwnedFd) -> io::Result<Config> {
    Ok(serde_json::from_slice(&memfd::read(config)?)?)
}

/// A judgement, as the admin API says it.
pub(crate) fn fates(judgement: Judgement) -> Fates {
    let losses = judgement.lost.into_iter();
    let mut fates = Fates {
        kept: judgement.kept,
        ending: judgement.ending,
        drained: judgement.drained,
        draining: judgement.draining,
        why: losses.map(|(lost, tunnels)| loss(&lost, tunnels)).collect(),
    };
    fates.tidy();
    fates
}

fn loss(lost: &Lost, tunnels: u64) -> Loss {
    Loss {
        reason: match &lost.reason {
            Reason::ListenerRemoved => LossReason::ListenerRemoved,
            Reason::RouteRemoved => LossReason::RouteRemoved,
            Reason::ServerRemoved => LossReason::ServerRemoved,
            Reason::OtherUpstream(upstream) => LossReason::OtherUpstream {
                upstream: upstream.to_string(),
            },
        },
        listener: lost.listener.to_string(),
        route: lost.route.to_string(),
        upstream: lost.upstream.to_string(),
        server: lost.server.to_string(),
        tunnels,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_word() {
        let lost = |reason| Lost {
            reason,
            listener: "l".into(),
            route: "r".into(),
            upstream: "u".into(),
            server: "s".into(),
        };
        let judgement = Judgement {
            kept: 4,
            ending: 1,
            drained: 10,
            draining: 2,
            lost: [
                (lost(Reason::ListenerRemoved), 1),
                (lost(Reason::RouteRemoved), 2),
                (lost(Reason::ServerRemoved), 3),
                (lost(Reason::OtherUpstream("v".into())), 4),
            ]
            .into(),
        };
        let fates = fates(judgement);
        assert_eq!(
            (fates.kept, fates.ending, fates.drained, fates.draining),
            (4, 1, 10, 2)
        );
        let said: Vec<String> = fates.why.iter().map(Loss::to_string).collect();
        let expected = [
            "route r: leads to upstream v now, which does not have server s: 4 tunnels",
            "route r: upstream u: server s removed: 3 tunnels",
            "route r removed: 2 tunnels",
            "listener l removed: 1 tunnel",
        ];
        assert_eq!(said, expected);
    }
}
