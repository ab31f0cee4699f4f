//! One client's connection: HTTP/1.1 by hyper, until it ends or becomes a tunnel.
//!
//! A client's FIN ends its request, as it does with other gateways: hyper's `half_close` stays
//! off, since a FIN is the only sign that a client is gone while a server is being dialled. (Behind
//! the 101 it is another matter: a tunnel relays a FIN.)
//!
//! What was answered is never destroyed by a reset: a connection that wsgate ends gets a FIN, and
//! is read until the client's, or for 2 s.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tracing::{debug, info};

use crate::answer::{Refusal, causes};
use crate::body::Body;
use crate::exchange::exchange;
use crate::gateway::Gateway;
use crate::handover::spawn;
use crate::handshake::Opened;
use crate::socket::{Peer, Socket};
use crate::tunnel::{Course, Tunnel};
use crate::wire::Wire;
use crate::{Figure, access};

/// How long a connection that wsgate ends is read for the client's FIN.
const LINGER: Duration = Duration::from_secs(2);

/// Least bound for what hyper holds of a body. A head has its own limit.
const BUFFER: usize = 64 * 1024;

/// What the requests of one connection share.
pub(crate) struct Front {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) listener: Arc<str>,
    pub(crate) peer: Peer,
    /// A handshake is in flight: its 101 may not carry a `Connection: close`.
    pub(crate) upgrading: AtomicBool,
    requests: AtomicU64,
    /// The request in flight is HTTP/1.0.
    old: AtomicBool,
    opened: Mutex<Option<Opened>>,
}

impl Front {
    /// The tunnel that begins when the 101 is written.
    pub(crate) fn set_opened(&self, opened: Opened) {
        *self.opened.lock().unwrap_or_else(PoisonError::into_inner) = Some(opened);
    }

    fn take_opened(&self) -> Option<Opened> {
        self.opened
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn has_served(&self) -> bool {
        self.requests.load(Ordering::Relaxed) > 0
    }

    /// hyper may be told to end the connection. Not before its first request: the client
    /// connected before wsgate stopped accepting, and may have sent it already.
    fn may_end(&self) -> bool {
        self.has_served() && !self.upgrading.load(Ordering::Relaxed)
    }
}

/// Serves a connection that was accepted.
pub(crate) async fn serve(gateway: Arc<Gateway>, listener: Arc<str>, socket: Socket, peer: Peer) {
    let front = Arc::new(Front {
        gateway,
        listener,
        peer,
        upgrading: AtomicBool::new(false),
        requests: AtomicU64::new(0),
        old: AtomicBool::new(false),
        opened: Mutex::new(None),
    });
    let (ended, socket, unread) = speak(&front, socket).await;
    match (ended, front.take_opened()) {
        (Ok(()), Some(opened)) => begin_tunnel(&front, opened, socket, unread),
        (Ok(()), None) => part(socket).await,
        (Err(error), _) => part_with_error(&front, &error, socket, &unread).await,
    }
}

type Connection = http1::Connection<TokioIo<Wire>, Requests>;

/// Speaks HTTP until the connection ends or has become a tunnel. All that hyper has to
/// say is written then.
async fn speak(front: &Arc<Front>, socket: Socket) -> (hyper::Result<()>, Socket, Bytes) {
    let (wire, blocked) = Wire::new(socket);
    let requests = Requests(Arc::clone(front));
    let mut connection = builder(front).serve_connection(TokioIo::new(wire), requests);
    let mut retired = pin!(front.gateway.retired.cancelled());
    let mut retiring = false;
    let mut told = false;
    let mut ended = None;
    let ended = poll_fn(|cx| {
        retiring = retiring || retired.as_mut().poll(cx).is_ready();
        if ended.is_none() {
            ended = poll_once(front, &mut connection, cx, retiring, &mut told);
        } else {
            let _ = connection.poll_without_shutdown(cx);
        }
        match &ended {
            // hyper calls itself done although the socket has not taken everything.
            Some(ended) if is_answered(ended) && blocked.load(Ordering::Relaxed) => Poll::Pending,
            Some(_) => Poll::Ready(ended.take()),
            None => Poll::Pending,
        }
    });
    let ended = ended.await.unwrap_or(Ok(()));
    let parts = connection.into_parts();
    (ended, parts.io.into_inner().into_inner(), parts.read_buf)
}

/// Whether hyper has ended with an answer, which may have to be flushed still. After other errors it
/// is not polled again: where a body broke off it would write the last chunk then.
fn is_answered(ended: &hyper::Result<()>) -> bool {
    ended
        .as_ref()
        .map_or_else(hyper::Error::is_parse, |()| true)
}

fn poll_once(
    front: &Front,
    connection: &mut Connection,
    cx: &mut Context<'_>,
    retiring: bool,
    told: &mut bool,
) -> Option<hyper::Result<()>> {
    loop {
        if let Poll::Ready(ended) = connection.poll_without_shutdown(cx) {
            return Some(ended);
        }
        if *told || !retiring || !front.may_end() {
            return None;
        }
        // Only now: a request that has come by now is in flight, and not cut off.
        *told = true;
        Pin::new(&mut *connection).graceful_shutdown();
    }
}

fn builder(front: &Front) -> http1::Builder {
    let limits = &front.gateway.config.limits;
    let mut builder = http1::Builder::new();
    builder
        .half_close(false)
        .preserve_header_case(true)
        .title_case_headers(true)
        .timer(TokioTimer::new())
        .header_read_timeout(limits.handshake_timeout)
        .max_header_size(limits.header_bytes)
        .max_buf_size(BUFFER.max(limits.header_bytes.saturating_add(1)));
    builder
}

/// The service that hyper calls.
struct Requests(Arc<Front>);

impl Service<Request<Incoming>> for Requests {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        let old = request.version() == Version::HTTP_10;
        self.0.old.store(old, Ordering::Relaxed);
        Box::pin(exchange(Arc::clone(&self.0), request).map(Ok))
    }
}

/// Ends a connection whose answers are written.
async fn part(mut socket: Socket) {
    let reading = async {
        let mut unwanted = vec![0; 4096];
        if socket.shutdown().await.is_ok() {
            while socket.read(&mut unwanted).await.is_ok_and(|read| read > 0) {}
        }
    };
    let _ = timeout(LINGER, reading).await;
}

async fn part_with_error(front: &Front, error: &hyper::Error, mut socket: Socket, unread: &[u8]) {
    let client = front.peer;
    if error.is_timeout() {
        if front.has_served() && unread.trim_ascii().is_empty() {
            debug!(target: "wsgate::proxy", %client, "idle connection closed");
            return part(socket).await;
        }
        let id = front.gateway.next_id();
        let refusal = Refusal::new(
            StatusCode::REQUEST_TIMEOUT,
            "the request's head did not come in time",
        );
        count(front, refusal.status);
        let status = refusal.status.as_u16();
        info!(target: "wsgate::proxy", id = &*id, status, %client, "{}", refusal.reason);
        let _ = timeout(LINGER, socket.write_all(&refusal.bytes(&id))).await;
        part(socket).await;
    } else if error.is_parse_version_h2() {
        info!(target: "wsgate::proxy", %client, "closed: HTTP/2 is not spoken here");
    } else if error.is_parse() {
        // hyper has answered by itself.
        let status = match error.is_parse_too_large() {
            true => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            false => StatusCode::BAD_REQUEST,
        };
        count(front, status);
        let status = status.as_u16();
        let detail = causes(error);
        info!(target: "wsgate::proxy", status, %client, detail, "bad request head");
        part(socket).await;
    } else if error.is_user() {
        // A server's answer broke off: the length or the last chunk that is missing tells
        // the client. In HTTP/1.0 the end of the connection may be the end of the body, and only
        // a reset tells it.
        if let (Socket::Tcp(stream), true) = (&socket, front.old.load(Ordering::Relaxed)) {
            let _ = stream.set_zero_linger();
        }
    } else {
        let detail = causes(error);
        debug!(target: "wsgate::proxy", %client, detail, "the client went away");
    }
}

fn count(front: &Front, status: StatusCode) {
    front.gateway.ledger.add(Figure::Error(status.as_u16()), 1);
}

/// The 101 is written: from here on it is a tunnel, with a task of its own, so that
/// nothing of HTTP stays in memory.
fn begin_tunnel(front: &Front, opened: Opened, client: Socket, ahead_from_client: Bytes) {
    let gateway = &front.gateway;
    let Opened {
        mut entry,
        server,
        ahead,
    } = opened;
    entry.begin();
    let record = Arc::clone(entry.record());
    access::opened(&record);
    let tunnel = Tunnel {
        client,
        server,
        ahead_from_client,
        ahead_from_server: ahead,
        record,
        ledger: Arc::clone(&gateway.ledger),
    };
    spawn(gateway, Course::new(tunnel), entry);
}
