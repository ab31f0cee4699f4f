//! `DELETE /v1/tunnels/{id}`: the polite close of one tunnel.
//!
//! The supervisor knows no tunnels. It asks the workers which of them has this one, tells that
//! one to close it, and looks again. It never waits for the close itself, which takes as long
//! as the peers do.
//!
//! A tunnel may move to another worker meanwhile. So every worker is told (the one that gets it next
//! remembers the order), and nobody hears that there is no such tunnel before a handover that is under way is over.

use std::time::Duration;

use http::StatusCode;
use http_body_util::BodyExt;
use tokio::net::unix::UCred;
use wsgate_protocol::admin::{
    CLOSE_CODE, CLOSE_REASON, CloseRequest, LONGEST_REASON, Tunnel, TunnelFilter,
    UNRESPONSIVE_HEADER, is_close_code,
};
use wsgate_protocol::control::ToWorker;

use super::http::{ask, invalid};
use super::{Refusal, Snapshot, tunnels};
use crate::event::{Events, Request};
use crate::link::Link;

/// A handover that is under way is waited for so long, at most.
const HANDOVER_WITHIN: Duration = Duration::from_secs(5);

/// What the Close frames are to say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Order {
    code: u16,
    reason: String,
}

/// What a request asks for, if it may be sent.
pub(crate) fn order(request: CloseRequest) -> Result<Order, Refusal> {
    let code = request.code.unwrap_or(CLOSE_CODE);
    let reason = request.reason.unwrap_or_else(|| CLOSE_REASON.to_owned());
    if !is_close_code(code) {
        let help = "1000 to 1003, 1007 to 1014 or 3000 to 4999";
        return Err(invalid(
            format!("{code} may not be sent in a Close frame"),
            help,
        ));
    }
    if reason.len() > LONGEST_REASON {
        let length = reason.len();
        return Err(invalid(
            format!("the reason has {length} bytes, a Close frame carries {LONGEST_REASON}"),
            "shorten it: it is counted as UTF-8",
        ));
    }
    Ok(Order { code, reason })
}

/// Tells the tunnel's worker to close it, and returns the tunnel as the worker has it then.
pub(crate) async fn close(
    events: &Events,
    id: &str,
    order: Order,
    peer: Option<UCred>,
) -> Result<Tunnel, Refusal> {
    let found = look(events, id).await?;
    let silent = || format!("no worker that answers has a tunnel {id:?}");
    let tunnel = found
        .tunnel(silent)?
        .ok_or_else(|| unknown(&format!("there is no tunnel {id:?}")))?;
    log(&tunnel, &order, peer);
    // Those who are there now: it may have moved to one that was not, when it was looked for.
    let links = ask(events, Request::Snapshot).await?.links;
    let Order { code, reason } = order;
    for link in &links {
        link.send(ToWorker::CloseTunnel {
            id: tunnel.id.clone(),
            code,
            reason: reason.clone(),
        });
    }
    let own: Vec<Link> = links
        .into_iter()
        .filter(|link| link.pid == tunnel.worker)
        .collect();
    if own.is_empty() {
        return Ok(tunnel);
    }
    // A worker obeys in the order in which it is told, so its second answer comes after the
    // close has begun.
    let found = find(own, id).await?;
    let silent = || "the worker of the tunnel has been told to close it".to_owned();
    // One that is not there any more has ended meanwhile, or has moved.
    Ok(found.tunnel(silent)?.unwrap_or(tunnel))
}

/// Looks for a tunnel in all workers; once more, if tunnels moved meanwhile and it was with nobody who was asked.
async fn look(events: &Events, id: &str) -> Result<Found, Refusal> {
    let Snapshot {
        links, mut moving, ..
    } = ask(events, Request::Snapshot).await?;
    let moved = *moving.borrow_and_update();
    let found = find(links, id).await?;
    let moved = moved || moving.has_changed().unwrap_or(false);
    if found.tunnel.is_some() || !moved {
        return Ok(found);
    }
    let over = moving.wait_for(|moving| !moving);
    // It takes no longer than this unless something is wrong: then the second look says what is known.
    drop(tokio::time::timeout(HANDOVER_WITHIN, over).await);
    let links = ask(events, Request::Snapshot).await?.links;
    find(links, id).await
}

/// What the workers have said.
struct Found {
    tunnel: Option<Tunnel>,
    unresponsive: Vec<u32>,
}

impl Found {
    /// The tunnel, or that there is none, if that is known. `otherwise` says what is known if it is not.
    fn tunnel(self, otherwise: impl FnOnce() -> String) -> Result<Option<Tunnel>, Refusal> {
        if self.tunnel.is_none() && !self.unresponsive.is_empty() {
            return Err(unresponsive(&otherwise(), &self.unresponsive));
        }
        Ok(self.tunnel)
    }
}

async fn find(links: Vec<Link>, id: &str) -> Result<Found, Refusal> {
    let filter = TunnelFilter {
        id: Some(id.to_owned()),
        ..TunnelFilter::default()
    };
    let list = tunnels::open(links, filter).await;
    let broken = |error: &dyn std::fmt::Display| refusal(error.to_string());
    let text = list.body.collect().await.map_err(|error| broken(&error))?;
    let tunnels: Vec<Tunnel> =
        serde_json::from_slice(&text.to_bytes()).map_err(|error| broken(&error))?;
    Ok(Found {
        tunnel: tunnels.into_iter().next(),
        unresponsive: list.unresponsive,
    })
}

/// Who closes what goes to the log.
fn log(tunnel: &Tunnel, order: &Order, peer: Option<UCred>) {
    tracing::info!(
        pid = peer.and_then(|peer| peer.pid()),
        uid = peer.map(|peer| peer.uid()),
        id = tunnel.id,
        worker = tunnel.worker,
        code = order.code,
        reason = order.reason,
        "admin: close of a tunnel"
    );
}

fn unknown(message: &str) -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        "unknown_tunnel",
        message,
        "`wsctl tunnels` lists the live tunnels; one that has ended has a line in the log, unless `log.access` is off",
    )
}

/// Named as the list of tunnels names them, in words and in the same header.
fn unresponsive(what: &str, pids: &[u32]) -> Refusal {
    let pids = tunnels::joined(pids);
    Refusal {
        header: Some((UNRESPONSIVE_HEADER, pids.as_str().into())),
        ..refusal(format!("{what}; these did not answer within 1 s: {pids}"))
    }
}

fn refusal(message: String) -> Refusal {
    Refusal::new(
        StatusCode::GATEWAY_TIMEOUT,
        "unresponsive",
        message,
        "`wsctl status` shows the workers; try again when all of them answer",
    )
}

#[cfg(test)]
mod tests {
    use wsgate_config::{SourceFile, Sources, parse};

    use super::*;

    fn with(code: Option<u16>, reason: Option<&str>) -> Result<Order, Refusal> {
        order(CloseRequest {
            code,
            reason: reason.map(str::to_owned),
        })
    }

    #[test]
    fn without_a_word_clients_are_told_that_they_may_come_back() {
        let order = with(None, None).expect("an order");
        assert_eq!((order.code, order.reason.as_str()), (1001, CLOSE_REASON));
        let silent = with(Some(4000), Some("")).expect("an order");
        assert_eq!((silent.code, silent.reason.as_str()), (4000, ""));
    }

    #[test]
    fn a_reason_is_counted_in_bytes() {
        assert!(with(None, Some(&"x".repeat(123))).is_ok());
        assert!(with(None, Some(&"x".repeat(124))).is_err());
        // 62 characters.
        let refusal = with(None, Some(&"ü".repeat(62))).expect_err("a refusal");
        assert!(refusal.message.contains("124 bytes"), "{}", refusal.message);
    }

    #[test]
    fn the_codes_are_those_of_the_configuration() {
        let borders = [
            0, 999, 1000, 1003, 1004, 1006, 1007, 1014, 1015, 1016, 2999, 3000, 4999, 5000, 65_535,
        ];
        for code in borders {
            let text = format!(
                "[drain]\nclose_code = {code}\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
                 [[route]]\nupstream = \"a\"\n[upstream.a]\nservers = [\"127.0.0.1:1\"]\n"
            );
            let files = vec![SourceFile {
                path: "wsgate.toml".into(),
                text,
            }];
            let sources = Sources {
                files,
                include_dirs: Vec::new(),
            };
            let allowed = parse(sources).is_ok();
            assert_eq!(with(Some(code), None).is_ok(), allowed, "{code}");
        }
    }
}
