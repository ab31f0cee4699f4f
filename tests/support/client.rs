//! WebSocket clients: one for a test's own use, and one that numbers its messages and
//! checks every echo.

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use http::Response;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};

use super::wait::{SOON, within};
use super::wire::{EndNote, Stream, Watched, WireEnd};

/// A client's side of a tunnel.
pub(crate) type Ws = WebSocketStream<Watched>;

/// No limits: the gateway is what is tested.
pub(crate) fn no_limits() -> WebSocketConfig {
    let mut config = WebSocketConfig::default();
    config.max_message_size = None;
    config.max_frame_size = None;
    config
}

/// A client with everything that a test may want to know.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) ws: Ws,
    pub(crate) response: Response<Option<Vec<u8>>>,
    end: EndNote,
}

impl Client {
    /// Opens a tunnel; fails the test if it cannot.
    pub(crate) async fn open(url: &str) -> Self {
        Self::try_open(url)
            .await
            .unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    /// Opens a tunnel, if it can within ten seconds.
    pub(crate) async fn try_open(url: &str) -> Result<Self, String> {
        Self::with_headers(url, &[]).await
    }

    /// With further headers in the handshake.
    pub(crate) async fn with_headers(url: &str, headers: &[(&str, &str)]) -> Result<Self, String> {
        let mut request = url
            .into_client_request()
            .map_err(|error| error.to_string())?;
        for (name, value) in headers {
            let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let address = request.uri().authority().unwrap().to_string();
        let open = async {
            let stream = TcpStream::connect(&address)
                .await
                .map_err(|error| format!("connect: {error}"))?;
            stream
                .set_nodelay(true)
                .map_err(|error| error.to_string())?;
            Self::handshake(request, Stream::Tcp(stream)).await
        };
        tokio::time::timeout(SOON, open)
            .await
            .unwrap_or_else(|_| Err(format!("no tunnel within {SOON:?}")))
    }

    /// Over a Unix socket.
    pub(crate) async fn open_unix(socket: &std::path::Path, path: &str) -> Self {
        let request = format!("ws://localhost{path}")
            .into_client_request()
            .unwrap();
        let stream = UnixStream::connect(socket).await.unwrap();
        Self::handshake(request, Stream::Unix(stream))
            .await
            .unwrap()
    }

    async fn handshake(request: http::Request<()>, stream: Stream) -> Result<Self, String> {
        let (stream, end) = Watched::new(stream);
        let (ws, response) =
            tokio_tungstenite::client_async_with_config(request, stream, Some(no_limits()))
                .await
                .map_err(|error| format!("handshake: {error}"))?;
        Ok(Self { ws, response, end })
    }

    /// This side's address, as the gateway names the client.
    pub(crate) fn local_address(&self) -> String {
        match self.ws.get_ref().stream() {
            Stream::Tcp(stream) => stream.local_addr().unwrap().to_string(),
            Stream::Unix(_) => "unix".to_owned(),
        }
    }

    pub(crate) async fn send(&mut self, message: Message) {
        within("a message is sent", SOON, self.ws.send(message))
            .await
            .unwrap();
    }

    /// The next message; fails the test if there is none.
    pub(crate) async fn receive(&mut self) -> Message {
        within("a message comes", SOON, self.ws.next())
            .await
            .expect("the tunnel is open")
            .unwrap()
    }

    /// Sends a message and waits for its echo.
    pub(crate) async fn echo(&mut self, message: Message) {
        self.send(message.clone()).await;
        let back = self.receive().await;
        assert!(
            back == message,
            "sent {}, got {}",
            short(&message),
            short(&back)
        );
    }

    /// Sends a Close frame and waits for the end.
    pub(crate) async fn close(mut self, code: u16, reason: &str) -> End {
        let frame = close_frame(code, reason);
        within("a Close is sent", SOON, self.ws.close(Some(frame)))
            .await
            .unwrap();
        self.end(SOON).await
    }

    /// Reads until the end, and says how it was. Answers a Close.
    pub(crate) async fn end(&mut self, limit: Duration) -> End {
        let mut close = None;
        let reading = async {
            while let Some(message) = self.ws.next().await {
                match message {
                    Ok(Message::Close(frame)) => close = Some(closed(frame)),
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
        };
        within("the tunnel ends", limit, reading).await;
        End {
            close,
            wire: *self.end.lock().unwrap(),
        }
    }
}

/// How a tunnel ended, as its client saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// Code and reason of the peer's Close frame; code 1005 if it had none.
    pub(crate) close: Option<(u16, String)>,
    /// What came after it on the wire.
    pub(crate) wire: Option<WireEnd>,
}

impl End {
    /// A Close frame with this code, and then a FIN: nothing cut, nothing reset.
    pub(crate) fn is_polite(&self, code: u16) -> bool {
        self.code() == Some(code) && self.wire == Some(WireEnd::Fin)
    }

    pub(crate) fn code(&self) -> Option<u16> {
        self.close.as_ref().map(|(code, _)| *code)
    }
}

pub(crate) fn close_frame(code: u16, reason: &str) -> CloseFrame {
    CloseFrame {
        code: CloseCode::from(code),
        reason: reason.to_owned().into(),
    }
}

/// Code and reason; 1005 stands for a Close without a code (RFC 6455 section 7.1.5).
pub(crate) fn closed(frame: Option<CloseFrame>) -> (u16, String) {
    frame.map_or((1005, String::new()), |frame| {
        (frame.code.into(), frame.reason.to_string())
    })
}

fn short(message: &Message) -> String {
    match message {
        Message::Text(text) => format!("a text of {} bytes", text.len()),
        Message::Binary(bytes) => format!("{} binary bytes", bytes.len()),
        other => format!("{other:?}"),
    }
}

/// A client that sends numbered messages at a rate and checks that each comes back
/// once, in order.
#[derive(Debug)]
pub(crate) struct Sequenced {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Outcome>,
}

/// What a [`Sequenced`] client saw.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Messages sent.
    pub(crate) sent: u64,
    /// Of these, how many came back: the first so many.
    pub(crate) echoed: u64,
    /// Anything lost, doubled, out of order or not ours.
    pub(crate) faults: Vec<String>,
    /// The longest time that an echo took.
    pub(crate) slowest: Duration,
    /// How long the oldest message without an echo had been under way at the end.
    pub(crate) unanswered_for: Option<Duration>,
    /// When its end began: the Close frame, or the end of the stream without one.
    pub(crate) ended: Instant,
    /// Whether the client ended it itself.
    pub(crate) by_us: bool,
    /// How it ended.
    pub(crate) end: End,
}

impl Sequenced {
    /// Takes over an open tunnel. `name` is told in every message.
    pub(crate) fn run(client: Client, name: String, pause: Duration) -> Self {
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(sequence(client, name, pause, stopped));
        Self { stop, task }
    }

    /// Whether the tunnel has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Closes the tunnel from the client's side, if it is still open, once every
    /// message has come back.
    pub(crate) async fn stop(self) -> Outcome {
        let _ = self.stop.send(());
        within("a sequenced client stops", SOON * 2, self.task)
            .await
            .unwrap()
    }

    /// Waits until the tunnel is ended by the other side.
    pub(crate) async fn ended(self, limit: Duration) -> Outcome {
        let _stop = self.stop;
        within("a sequenced client's tunnel ends", limit, self.task)
            .await
            .unwrap()
    }
}

/// What one tunnel's task knows.
struct Sequence {
    client: Client,
    name: String,
    sent_at: Vec<Instant>,
    echoed: u64,
    faults: Vec<String>,
    slowest: Duration,
}

async fn sequence(
    client: Client,
    name: String,
    pause: Duration,
    mut stopped: oneshot::Receiver<()>,
) -> Outcome {
    let mut sequence = Sequence {
        client,
        name,
        sent_at: Vec::new(),
        echoed: 0,
        faults: Vec::new(),
        slowest: Duration::ZERO,
    };
    let mut ticks = tokio::time::interval(pause);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut stopping = false;
    let (close, by_us) = loop {
        if stopping && sequence.echoed == sequence.sent_at.len() as u64 {
            let _ = sequence.client.ws.close(Some(close_frame(1000, ""))).await;
            break (None, true);
        }
        tokio::select! {
            message = sequence.client.ws.next() => match message {
                Some(Ok(Message::Close(frame))) => break (Some(closed(frame)), false),
                Some(Ok(message)) => sequence.check(&message),
                Some(Err(_)) | None => break (None, false),
            },
            _ = ticks.tick(), if !stopping => {
                if sequence.send().await.is_err() {
                    break (None, false);
                }
            }
            _ = &mut stopped, if !stopping => stopping = true,
        }
    };
    sequence.outcome(close, by_us).await
}

impl Sequence {
    async fn send(&mut self) -> Result<(), tungstenite::Error> {
        let text = format!("{}:{}", self.name, self.sent_at.len());
        self.sent_at.push(Instant::now());
        self.client.ws.send(Message::text(text)).await
    }

    fn check(&mut self, message: &Message) {
        let expected = format!("{}:{}", self.name, self.echoed);
        match message {
            Message::Text(text) if text.as_str() == expected => {
                let sent = self.sent_at[usize::try_from(self.echoed).unwrap()];
                self.slowest = self.slowest.max(sent.elapsed());
                self.echoed += 1;
            }
            Message::Text(_) | Message::Binary(_) => {
                self.faults
                    .push(format!("expected {expected}, got {message:?}"));
            }
            _ => {}
        }
    }

    /// Reads on to the very end of the stream, checking what still comes.
    async fn outcome(mut self, mut close: Option<(u16, String)>, by_us: bool) -> Outcome {
        let mut ended = Instant::now();
        let unanswered = self.sent_at.get(usize::try_from(self.echoed).unwrap());
        let unanswered_for = unanswered.map(|sent| ended - *sent);
        let rest = async {
            while let Some(Ok(message)) = self.client.ws.next().await {
                match message {
                    Message::Close(frame) if close.is_none() => {
                        ended = Instant::now();
                        close = Some(closed(frame));
                    }
                    message => self.faults.push(format!("after the end: {message:?}")),
                }
            }
        };
        if tokio::time::timeout(SOON, rest).await.is_err() {
            self.faults.push("the stream did not end".to_owned());
        }
        Outcome {
            sent: self.sent_at.len() as u64,
            echoed: self.echoed,
            faults: self.faults,
            slowest: self.slowest,
            unanswered_for,
            ended,
            by_us,
            end: End {
                close,
                wire: *self.client.end.lock().unwrap(),
            },
        }
    }
}
