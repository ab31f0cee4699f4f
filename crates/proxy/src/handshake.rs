//! The opening handshake (RFC 6455 section 4): forwarded, and its answer verified.
//!
//! A 101 is passed on only if it is one for this client's key, and offers nothing that the client
//! has not asked for. On both sides hyper is driven by hand and gives the stream back after
//! the head, so that a tunnel has nothing of HTTP left in it.

mod offer;
#[cfg(test)]
mod tests;

pub(crate) use offer::is_upgrade;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, ORIGIN, TRANSFER_ENCODING};
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::{Body as _, Incoming};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use self::offer::Offer;
use crate::Record;
use crate::access::Access;
use crate::answer::{Refusal, causes};
use crate::balance::{Attempts, Pick};
use crate::body::Body;
use crate::connection::Front;
use crate::exchange::connect;
use crate::headers::{set_forwarded, set_upgrade, strip_hop_by_hop};
use crate::http::{builder, pass_on};
use crate::record::Asked;
use crate::registry::Entry;
use crate::socket::Socket;

/// How long a server may take to answer a handshake.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// A server's end of a tunnel that opens as soon as the client has its 101.
pub(crate) struct Opened {
    pub(crate) entry: Entry,
    pub(crate) server: Socket,
    /// What the server sent right behind its 101.
    pub(crate) ahead: Bytes,
}

/// Forwards an upgrade. After a good 101 the server's end waits in the connection's
/// [`Front`] until the 101 is written.
pub(crate) async fn upgrade(
    front: &Front,
    access: &mut Access,
    mut attempts: Attempts,
    mut head: Parts,
    body: Incoming,
) -> Result<Response<Body>, Refusal> {
    let offer = Offer::read(&head.headers, body.is_end_stream())?;
    let gateway = &front.gateway;
    let limit = gateway.config.limits.tunnels;
    let Some(reservation) = gateway.registry.reserve(limit, gateway.tunnels_here) else {
        return Err(Refusal::busy("the gateway holds as many tunnels as it may"));
    };
    let origin = head.headers.get(ORIGIN).and_then(|it| it.to_str().ok());
    let origin: Option<Box<str>> = origin.map(Into::into);
    strip_hop_by_hop(&mut head.headers);
    set_upgrade(&mut head.headers);
    set_forwarded(&mut head.headers, front.peer);
    loop {
        let pick = attempts.next(&*gateway.ledger)?;
        access.picked(&pick);
        // A copy only where another server may need it.
        let head = match attempts.may_go_on() {
            true => head.clone(),
            false => std::mem::replace(&mut head, Request::new(()).into_parts().0),
        };
        let request = Request::from_parts(head, Empty::new());
        let refusal = match try_server(front, &pick, request).await {
            // It declines, redirects or wants to know who asks.
            Ok(Reply::Other(response)) => return pass_on(response, &access.method),
            Ok(Reply::Switched(response, server, ahead)) => {
                let subprotocol = offer.verify(&response).map_err(|wrong| {
                    Refusal::bad_gateway("the server's handshake is not valid", wrong)
                })?;
                let record = Arc::new(record(front, access, &pick, origin, subprotocol));
                let entry = gateway.registry.open(record);
                drop(reservation);
                front.set_opened(Opened {
                    entry,
                    server,
                    ahead,
                });
                return Ok(switch(response));
            }
            Err(Failed::ForGood(refusal)) => return Err(refusal),
            Err(Failed::HereOnly(refusal)) => refusal,
        };
        access.failed(&refusal);
        attempts.failed(refusal);
    }
}

fn record(
    front: &Front,
    access: &Access,
    pick: &Pick,
    origin: Option<Box<str>>,
    subprotocol: Option<Box<str>>,
) -> Record {
    let asked = Asked {
        id: access.id.clone(),
        client: front.peer,
        listener: Arc::clone(&front.listener),
        host: access.host.clone(),
        path: access.path.clone(),
        origin,
        subprotocol,
    };
    Record::new(
        asked,
        Arc::clone(&pick.route().shared),
        Arc::clone(&pick.server().shared),
    )
}

/// What a server answered.
enum Reply {
    Switched(Response<()>, Socket, Bytes),
    Other(Response<Incoming>),
}

/// Why a server did not answer.
enum Failed {
    /// Another server may do better.
    HereOnly(Refusal),
    ForGood(Refusal),
}

async fn try_server(
    front: &Front,
    pick: &Pick,
    request: Request<Empty<Bytes>>,
) -> Result<Reply, Failed> {
    let socket = connect(&front.gateway, pick)
        .await
        .map_err(Failed::HereOnly)?;
    match timeout(ANSWER_WITHIN, ask(socket, request)).await {
        Ok(answered) => answered,
        Err(_) => Err(Failed::ForGood(Refusal::late(ANSWER_WITHIN))),
    }
}

async fn ask(socket: Socket, request: Request<Empty<Bytes>>) -> Result<Reply, Failed> {
    let handshake = builder().handshake(TokioIo::new(socket)).await;
    let (mut sender, mut connection) = handshake.map_err(|error| nonsense(&error))?;
    let mut answer = pin!(sender.send_request(request));
    let mut over = false;
    let answered = poll_fn(|cx| {
        over = over || connection.poll_without_shutdown(cx).is_ready();
        match answer.as_mut().poll(cx) {
            Poll::Ready(answered) => Poll::Ready(Some(answered)),
            // hyper has ended and told nobody.
            Poll::Pending if over => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    });
    match answered.await {
        Some(Ok(response)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            if !over {
                // Ends with all of the request written and nothing read beyond the head that
                // `into_parts` would not give back.
                let ended = poll_fn(|cx| connection.poll_without_shutdown(cx)).await;
                ended.map_err(|error| nonsense(&error))?;
            }
            let parts = connection.into_parts();
            let response = response.map(drop);
            Ok(Reply::Switched(
                response,
                parts.io.into_inner(),
                parts.read_buf,
            ))
        }
        Some(Ok(response)) => {
            // The body comes through hyper; the connection ends behind it, as `sender` is gone.
            tokio::spawn(connection);
            Ok(Reply::Other(response))
        }
        Some(Err(error)) if error.is_parse() => Err(nonsense(&error)),
        Some(Err(error)) => {
            let unanswered = connection.into_parts().read_buf.is_empty();
            Err(lost(&causes(&error), unanswered))
        }
        None => Err(lost("the connection ended", false)),
    }
}

fn nonsense(error: &hyper::Error) -> Failed {
    Failed::ForGood(Refusal::bad_gateway(
        "the server's answer is not HTTP/1.1",
        causes(error),
    ))
}

fn lost(error: &str, unanswered: bool) -> Failed {
    let refusal = Refusal::bad_gateway("the server did not answer", error);
    match unanswered {
        true => Failed::HereOnly(refusal),
        false => Failed::ForGood(refusal),
    }
}

/// The 101 for the client, with all that the server has put into it.
fn switch(mut response: Response<()>) -> Response<Body> {
    let headers = response.headers_mut();
    strip_hop_by_hop(headers);
    // A 101 has no body (RFC 9110 section 8.6), whatever the server says.
    headers.remove(CONTENT_LENGTH);
    headers.remove(TRANSFER_ENCODING);
    set_upgrade(headers);
    response.map(|()| Body::empty())
}
