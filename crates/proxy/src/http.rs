//! Requests that are no upgrade: forwarded as plain HTTP, both bodies streamed.
//!
//! A body is never held: a receiver that does not read stops its sender, through hyper and TCP.
//! A request is sent a second time only if the first server cannot have acted on it: it
//! was not sent, or it is idempotent and has no body (RFC 9110 section 9.2.2).

use std::time::Duration;

use http::header::{CONTENT_LENGTH, HOST, HeaderValue, TRANSFER_ENCODING};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::{Either, Empty};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use crate::access::Access;
use crate::answer::{Refusal, causes};
use crate::balance::{Attempts, Pick};
use crate::body::Body;
use crate::connection::Front;
use crate::exchange::connect;
use crate::headers::{set_forwarded, set_te_trailers, strip_hop_by_hop};
use crate::pool::{Outgoing, Sender};
use crate::target::{is_chunked_at_most, takes_trailers};

/// Bound for a server's head, and for what hyper holds of a body.
const BUFFER: usize = 64 * 1024;

/// How long a server may take to begin its answer, once it has the request's head. Long-polling
/// waits on purpose, and a body may be long on its way.
const ANSWER_WITHIN: Duration = Duration::from_secs(5 * 60);

/// How wsgate speaks to servers.
pub(crate) fn builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .preserve_header_case(true)
        .title_case_headers(true)
        .max_buf_size(BUFFER);
    builder
}

/// Forwards a request and passes the answer on.
pub(crate) async fn forward(
    front: &Front,
    access: &mut Access,
    mut attempts: Attempts,
    head: Parts,
    body: Incoming,
) -> Result<Response<Body>, Refusal> {
    let repeatable = head.method.is_idempotent() && body.is_end_stream();
    let head = outgoing(front, access, head, &body);
    let spare = repeatable.then(|| head.clone());
    let mut request = Request::from_parts(head, Either::Left(body));
    loop {
        let pick = attempts.next(&*front.gateway.ledger)?;
        access.picked(&pick);
        let failed = match try_server(front, &pick, request, spare.as_ref()).await {
            Ok(response) => return pass_on(response, &access.method),
            Err(failed) => failed,
        };
        let refusal;
        (refusal, request) = failed.again(spare.as_ref())?;
        access.failed(&refusal);
        attempts.failed(refusal);
    }
}

/// Why there is no answer.
enum Failed {
    /// The request was not sent.
    Unsent(Refusal, Box<Request<Outgoing>>),
    /// It may have been.
    Sent(Refusal),
    ForGood(Refusal),
}

impl Failed {
    /// The request for another try, and what is said if there is none.
    fn again(self, spare: Option<&Parts>) -> Result<(Refusal, Request<Outgoing>), Refusal> {
        match self {
            Self::Unsent(refusal, request) => Ok((refusal, *request)),
            Self::Sent(refusal) => match spare {
                Some(head) => {
                    let body = Either::Right(Empty::new());
                    Ok((refusal, Request::from_parts(head.clone(), body)))
                }
                None => Err(refusal),
            },
            Self::ForGood(refusal) => Err(refusal),
        }
    }
}

/// By idle connections first, which may all be dead by now; then by a new one.
async fn try_server(
    front: &Front,
    pick: &Pick,
    mut request: Request<Outgoing>,
    spare: Option<&Parts>,
) -> Result<Response<Incoming>, Failed> {
    while let Some(sender) = front.gateway.pool.take(pick.server().shared.number) {
        request = match send(front, pick, sender, request).await {
            Ok(response) => return Ok(response),
            Err(failed) => failed.again(spare).map_err(Failed::ForGood)?.1,
        };
    }
    let socket = match connect(&front.gateway, pick).await {
        Ok(socket) => socket,
        Err(refusal) => return Err(Failed::Unsent(refusal, Box::new(request))),
    };
    match builder().handshake(TokioIo::new(socket)).await {
        Ok((sender, connection)) => {
            // Its errors reach the request as well, and there they are reported.
            tokio::spawn(connection);
            send(front, pick, sender, request).await
        }
        Err(error) => Err(Failed::ForGood(unanswered(&error))),
    }
}

async fn send(
    front: &Front,
    pick: &Pick,
    mut sender: Sender,
    request: Request<Outgoing>,
) -> Result<Response<Incoming>, Failed> {
    let Ok(answered) = timeout(ANSWER_WITHIN, sender.try_send_request(request)).await else {
        return Err(Failed::ForGood(Refusal::late(ANSWER_WITHIN)));
    };
    let mut failed = match answered {
        Ok(response) => {
            front
                .gateway
                .pool
                .give_back(pick.server().shared.number, sender);
            return Ok(response);
        }
        Err(failed) => failed,
    };
    let unsent = failed.take_message();
    let error = failed.into_error();
    Err(if let Some(request) = unsent {
        Failed::Unsent(unanswered(&error), Box::new(request))
    } else if error.is_user() {
        // The only thing here that can fail is the client's body.
        let refusal = Refusal::new(StatusCode::BAD_REQUEST, "the request broke off");
        Failed::ForGood(refusal.because(causes(&error)))
    } else if error.is_parse() {
        let reason = "the server's answer is not HTTP/1.1";
        Failed::ForGood(Refusal::bad_gateway(reason, causes(&error)))
    } else {
        Failed::Sent(unanswered(&error))
    })
}

fn unanswered(error: &hyper::Error) -> Refusal {
    Refusal::bad_gateway("the server did not answer", causes(error))
}

fn outgoing(front: &Front, access: &Access, mut head: Parts, body: &Incoming) -> Parts {
    let trailers = takes_trailers(&head);
    let headers = &mut head.headers;
    strip_hop_by_hop(headers);
    if trailers {
        set_te_trailers(headers);
    }
    if body.size_hint().exact().is_none() {
        // hyper would take a GET without this for one without a body.
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if !headers.contains_key(HOST) {
        // From an HTTP/1.0 client; to the server it is HTTP/1.1, which must have one.
        headers.insert(HOST, access.host_for_server());
    }
    set_forwarded(headers, front.peer);
    head.version = Version::HTTP_11;
    head
}

/// A server's answer, for the client.
pub(crate) fn pass_on(
    mut response: Response<Incoming>,
    method: &Method,
) -> Result<Response<Body>, Refusal> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Refusal::bad_gateway(
            "the server switched protocols unasked",
            "a 101",
        ));
    }
    if !is_chunked_at_most(response.headers().get_all(TRANSFER_ENCODING).iter()) {
        let reason = "the server used a transfer coding that nobody asked for";
        return Err(Refusal::bad_gateway(reason, "only chunked is understood"));
    }
    let length = response.body().size_hint().exact();
    let headers = response.headers_mut();
    strip_hop_by_hop(headers);
    // One length, written once, however often the server has said it. In an answer to HEAD, and in
    // a 304, it is the length of what is not sent.
    if let Some(length) = length
        && headers.contains_key(CONTENT_LENGTH)
        && *method != Method::HEAD
    {
        headers.insert(CONTENT_LENGTH, length.into());
    }
    *response.version_mut() = Version::HTTP_11;
    Ok(response.map(Body::of_server))
}
