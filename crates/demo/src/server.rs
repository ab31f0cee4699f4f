//! One chat server: the page at `/`, the chat at `/chat`.
//!
//! It has no limits on the time that a request head may take: only the
//! gateway and this machine's users can reach it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::room::Room;
use crate::session;

const PAGE: &str = include_str!("page.html");

/// The page needs nothing from elsewhere. `ws:` and `wss:` are named because
/// not every browser takes `'self'` for them.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; \
    style-src 'unsafe-inline'; img-src data:; connect-src 'self' ws: wss:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Waits this long after a failed accept: without descriptors the next one
/// fails at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

type Answer = Response<Full<Bytes>>;

/// Accepts connections for as long as the runtime lives.
pub(crate) async fn serve(listener: TcpListener, name: Arc<str>, room: Arc<Room>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(connection(stream, Arc::clone(&name), Arc::clone(&room)));
            }
            Err(error) => {
                tracing::warn!(server = %name, %error, "chat server cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, name: Arc<str>, room: Arc<Room>) {
    // A chat message is small, and nothing follows it.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| {
        let answer = answer(request, &name, &room);
        async { Ok::<_, Infallible>(answer) }
    });
    let served = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(server = %name, %error, "connection to the chat server ended");
    }
}

fn answer(request: Request<Incoming>, name: &Arc<str>, room: &Arc<Room>) -> Answer {
    let path = request.uri().path();
    if path != "/" && path != "/chat" {
        return text(StatusCode::NOT_FOUND, "Nothing here. The page is at /\n");
    }
    let chat = path == "/chat";
    match *request.method() {
        Method::GET if chat => join(request, name, room),
        Method::GET | Method::HEAD if !chat => page(),
        _ => {
            let allow = if chat { "GET" } else { "GET, HEAD" };
            let refusal = text(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed\n");
            with(refusal, &[(header::ALLOW, allow)])
        }
    }
}

fn page() -> Answer {
    let page = Response::new(Full::from(PAGE));
    with(
        page,
        &[
            (header::CONTENT_TYPE, "text/html; charset=utf-8"),
            (header::CACHE_CONTROL, "no-store"),
            (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ],
    )
}

/// The opening handshake, RFC 6455 section 4.2.
fn join(mut request: Request<Incoming>, name: &Arc<str>, room: &Arc<Room>) -> Answer {
    let accept = match accept_key(&request) {
        Ok(accept) => accept,
        Err(refusal) => return refusal.into(),
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let (name, room) = (Arc::clone(name), Arc::clone(room));
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => session::run(upgraded, name, room).await,
            Err(error) => tracing::debug!(server = %name, %error, "upgrade failed"),
        }
    });
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer
        .headers_mut()
        .insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    with(
        answer,
        &[
            (header::CONNECTION, "Upgrade"),
            (header::UPGRADE, "websocket"),
        ],
    )
}

/// What is wrong with an opening handshake.
enum Refusal {
    /// It asks for no WebSocket, or for one of another version.
    Version,
    /// Its key is none.
    Key,
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Key => text(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is not a key\n"),
            Refusal::Version => with(
                text(StatusCode::UPGRADE_REQUIRED, "WebSocket version 13 only\n"),
                &[
                    (header::CONNECTION, "Upgrade"),
                    (header::UPGRADE, "websocket"),
                    (header::SEC_WEBSOCKET_VERSION, "13"),
                ],
            ),
        }
    }
}

fn accept_key(request: &Request<Incoming>) -> Result<HeaderValue, Refusal> {
    let headers = request.headers();
    let asked = request.version() == Version::HTTP_11
        && names(headers, &header::CONNECTION, "upgrade")
        && names(headers, &header::UPGRADE, "websocket")
        && headers
            .get(header::SEC_WEBSOCKET_VERSION)
            .is_some_and(|version| version == "13");
    if !asked {
        return Err(Refusal::Version);
    }
    // 16 bytes in base64: RFC 6455 section 4.1, point 7.
    headers
        .get(header::SEC_WEBSOCKET_KEY)
        .filter(|key| key.len() == 24)
        .and_then(|key| HeaderValue::try_from(derive_accept_key(key.as_bytes())).ok())
        .ok_or(Refusal::Key)
}

/// Whether a header that is a list has `token` in it, in any case.
fn names(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|item| item.trim().eq_ignore_ascii_case(token))
}

fn text(status: StatusCode, body: &'static str) -> Answer {
    let mut answer = Response::new(Full::from(body));
    *answer.status_mut() = status;
    with(
        answer,
        &[(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
    )
}

fn with(mut answer: Answer, headers: &[(HeaderName, &'static str)]) -> Answer {
    for (name, value) in headers {
        answer
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    answer
}
