//! Servers to put behind the gateway: echo servers that keep a record of what they saw,
//! HTTP servers, and raw ones that may misbehave. Each ends when it is dropped.

use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request as Handshake};

use super::client::{close_frame, closed, no_limits};
use super::raw::{Head, Wire, switching};
use super::wire::{EndNote, Stream, Watched, WireEnd};

/// A server that sends every message back.
///
/// What a client asks for in its path: `/close/CODE/REASON` closes after the first
/// message; a subprotocol is agreed on if the client offers `chat.v2`.
#[derive(Debug)]
pub(crate) struct Echo {
    /// As it stands in a configuration.
    pub(crate) address: String,
    record: Arc<Record>,
    accepting: JoinHandle<()>,
}

/// What an [`Echo`] server saw.
#[derive(Debug, Default)]
struct Record {
    sessions: Mutex<Vec<Session>>,
    faults: Mutex<Vec<String>>,
    open: AtomicU64,
}

/// One tunnel, as its server saw it.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    /// Path and query of the handshake.
    pub(crate) target: String,
    /// Headers of the handshake.
    pub(crate) headers: HeaderMap,
    /// Code and reason of the client's Close frame.
    pub(crate) close: Option<(u16, String)>,
    /// What came after it on the wire; `None` while the tunnel lives.
    pub(crate) wire: Option<WireEnd>,
}

impl Echo {
    /// On a free port of 127.0.0.1.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        Self::accept(address, Listener::Tcp(listener))
    }

    /// On a Unix socket.
    pub(crate) fn start_unix(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let address = format!("unix:{}", path.display());
        Self::accept(address, Listener::Unix(listener))
    }

    fn accept(address: String, listener: Listener) -> Self {
        let record = Arc::new(Record::default());
        let shared = Arc::clone(&record);
        let accepting = tokio::spawn(async move {
            loop {
                let stream = listener.accept().await;
                tokio::spawn(echo(stream, Arc::clone(&shared)));
            }
        });
        Self {
            address,
            record,
            accepting,
        }
    }

    /// Every tunnel so far, in the order of their handshakes.
    pub(crate) fn sessions(&self) -> Vec<Session> {
        self.record.sessions.lock().unwrap().clone()
    }

    /// The only tunnel so far.
    pub(crate) fn session(&self) -> Session {
        let sessions = self.sessions();
        assert_eq!(sessions.len(), 1, "{sessions:?}");
        sessions.into_iter().next().unwrap()
    }

    /// Tunnels that are open now.
    pub(crate) fn open(&self) -> u64 {
        self.record.open.load(Ordering::SeqCst)
    }

    /// Numbered messages that came lost, doubled or out of order.
    pub(crate) fn faults(&self) -> Vec<String> {
        self.record.faults.lock().unwrap().clone()
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn accept(&self) -> Stream {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                Stream::Tcp(stream)
            }
            Self::Unix(listener) => Stream::Unix(listener.accept().await.unwrap().0),
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn echo(stream: Stream, record: Arc<Record>) {
    let (stream, end) = Watched::new(stream);
    let mut seen = None;
    #[expect(
        clippy::result_large_err,
        reason = "the library's type for a refusal, which is never made"
    )]
    let negotiate = |request: &Handshake, mut response: Response<()>| {
        let offered = request.headers().get("sec-websocket-protocol");
        if offered.is_some_and(|offered| offers(offered, "chat.v2")) {
            let agreed = HeaderValue::from_static("chat.v2");
            response
                .headers_mut()
                .insert("sec-websocket-protocol", agreed);
        }
        seen = Some((request.uri().to_string(), request.headers().clone()));
        Ok::<_, ErrorResponse>(response)
    };
    let accepted =
        tokio_tungstenite::accept_hdr_async_with_config(stream, negotiate, Some(no_limits())).await;
    // A connection that was no handshake: a retry's or a probe's.
    let (Ok(mut ws), Some((target, headers))) = (accepted, seen) else {
        return;
    };
    let number = {
        let mut sessions = record.sessions.lock().unwrap();
        sessions.push(Session {
            target: target.clone(),
            headers,
            close: None,
            wire: None,
        });
        sessions.len() - 1
    };
    record.open.fetch_add(1, Ordering::SeqCst);
    let close = converse(&mut ws, &target, &record).await;
    let wire = finish(ws, &end).await;
    record.open.fetch_sub(1, Ordering::SeqCst);
    let session = &mut record.sessions.lock().unwrap()[number];
    session.close = close;
    session.wire = wire;
}

/// Echoes until the client's Close frame or the end of the stream.
async fn converse(
    ws: &mut WebSocketStream<Watched>,
    target: &str,
    record: &Record,
) -> Option<(u16, String)> {
    let mut close_with = target.strip_prefix("/close/").map(|wish| {
        let (code, reason) = wish.split_once('/').unwrap_or((wish, ""));
        close_frame(code.parse().unwrap(), reason)
    });
    let mut next = 0;
    while let Some(Ok(message)) = ws.next().await {
        match message {
            Message::Close(frame) => return Some(closed(frame)),
            Message::Text(_) | Message::Binary(_) => {
                if let Some(fault) = out_of_order(&message, &mut next) {
                    record.faults.lock().unwrap().push(fault);
                }
                if ws.send(message).await.is_err() {
                    return None;
                }
                if let Some(frame) = close_with.take() {
                    let _ = ws.close(Some(frame)).await;
                }
            }
            _ => {}
        }
    }
    None
}

/// Checks messages of the form `name:number`.
fn out_of_order(message: &Message, next: &mut u64) -> Option<String> {
    let Message::Text(text) = message else {
        return None;
    };
    let number = text.rsplit_once(':')?.1.parse::<u64>().ok()?;
    let expected = std::mem::replace(next, number + 1);
    (number != expected).then(|| format!("server expected {expected}, got {text}"))
}

/// Finishes its own side first, as a server does (RFC 6455 section 7.1.1), and reads to
/// the end of the stream, so that nothing unread turns the close into a reset.
async fn finish(mut ws: WebSocketStream<Watched>, end: &EndNote) -> Option<WireEnd> {
    let reading = async {
        // The answer to a Close leaves with this.
        while let Some(Ok(_)) = ws.next().await {}
        let stream = ws.get_mut();
        let _ = stream.shutdown().await;
        let mut rest = [0; 4096];
        while matches!(stream.read(&mut rest).await, Ok(1..)) {}
    };
    let _ = tokio::time::timeout(Duration::from_secs(5), reading).await;
    *end.lock().unwrap()
}

fn offers(header: &HeaderValue, protocol: &str) -> bool {
    let offered = header.to_str().unwrap_or_default();
    offered.split(',').any(|item| item.trim() == protocol)
}

/// A server that is a function from a connection to what happens on it.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) address: String,
    connections: Arc<AtomicU64>,
    accepting: JoinHandle<()>,
}

impl Raw {
    pub(crate) async fn start<F>(mut handle: impl FnMut(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let connections = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&connections);
        let accepting = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(handle(stream));
            }
        });
        Self {
            address,
            connections,
            accepting,
        }
    }

    /// Connections accepted so far.
    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// The body of an HTTP server's answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// An HTTP server with keep-alive.
pub(crate) async fn http<F>(
    handle: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
) -> Raw
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    Raw::start(move |stream| {
        let handle = handle.clone();
        async move {
            let service = service_fn(move |request| {
                let answer = handle(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            // How a connection ends is the client's business.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        }
    })
    .await
}

/// An address of 127.0.0.1 that refuses connections.
pub(crate) async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}

/// The body of an answer.
pub(crate) fn body(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed_unsync()
}

/// Answers with what it was asked, as it arrived.
pub(crate) async fn mirror(request: Request<Incoming>) -> Response<Body> {
    let (parts, incoming) = request.into_parts();
    let got = incoming.collect().await.unwrap().to_bytes();
    let mut text = format!("{} {} {} bytes\n", parts.method, parts.uri, got.len());
    for (name, value) in &parts.headers {
        text.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
    }
    Response::builder()
        .header("x-server", "mirror")
        .body(body(text))
        .unwrap()
}

/// A server that shakes hands, and gives its ends of the tunnels to the test.
pub(crate) async fn handing_over() -> (Raw, mpsc::Receiver<Wire>) {
    let (sender, tunnels) = mpsc::channel(1);
    let server = Raw::start(move |stream| {
        let sender = sender.clone();
        async move {
            let mut wire = Wire::new(stream);
            let head = wire.head().await;
            wire.send(switching(&head, "")).await;
            sender.send(wire).await.unwrap();
        }
    });
    (server.await, tunnels)
}

/// A server whose answer to an upgrade is made by `answer`.
pub(crate) async fn answering(answer: impl Fn(&Head) -> String + Clone + Send + 'static) -> Raw {
    Raw::start(move |stream| {
        let answer = answer.clone();
        async move {
            let mut wire = Wire::new(stream);
            if let Some(head) = wire.try_head().await {
                wire.send(answer(&head)).await;
                wire.rest().await;
            }
        }
    })
    .await
}
