//! One member's WebSocket, from the welcome to its close.
//!
//! One task owns the socket, and reads nothing while it writes: a client that
//! does not read is held back, and gone after [`SEND_TIMEOUT`]. What a client
//! sends never ends anything but its own socket.

use std::ops::ControlFlow::{self, Break, Continue};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Error, Message, Utf8Bytes};

use crate::message::{Reply, Request};
use crate::room::{Membership, Queue, Room};

const PING_INTERVAL: Duration = Duration::from_secs(30);

/// How long a client may take to make room for one message.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client's bytes are discarded after our Close frame: closing with
/// unread input sends a reset, which destroys the frame on its way.
const LINGER: Duration = Duration::from_secs(2);

/// Messages up to this size are read, and refused in words if they are longer
/// than a chat text may be. Beyond it the socket is closed with 1009.
const MESSAGE_MAX: usize = 1 << 20;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Serves a member until its socket is closed.
pub(crate) async fn run(upgraded: Upgraded, server: Arc<str>, room: Arc<Room>) {
    let config = WebSocketConfig::default()
        .read_buffer_size(4 << 10)
        .write_buffer_size(0)
        .max_message_size(Some(MESSAGE_MAX))
        .max_frame_size(Some(MESSAGE_MAX));
    let io = TokioIo::new(upgraded);
    let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
    let (membership, queue) = room.join(&server);
    let member = membership.member();
    tracing::debug!(%server, member, "joined the chat");
    let mut session = Session {
        socket,
        membership,
        queue,
        pings: pings(),
    };
    let end = loop {
        if let Break(end) = session.step().await {
            break end;
        }
    };
    tracing::debug!(%server, member, ?end, "left the chat");
    let Session { socket, .. } = session;
    close(socket, end).await;
}

struct Session {
    socket: Socket,
    membership: Membership,
    queue: Queue,
    pings: Interval,
}

/// Why a session is over.
#[derive(Debug)]
enum End {
    /// The closing handshake is done, or the connection is broken.
    Closed,
    /// The client takes nothing any more: a Close frame would not arrive.
    Stuck,
    /// We close it.
    Close(CloseCode, &'static str),
}

enum Event {
    Ping,
    Queued(Option<Utf8Bytes>),
    Received(Option<Result<Message, Error>>),
}

impl Session {
    async fn step(&mut self) -> ControlFlow<End> {
        // Writing comes before reading: a member that talks faster than it
        // listens must not fill its own queue.
        let event = tokio::select! {
            biased;
            _ = self.pings.tick() => Event::Ping,
            text = self.queue.recv() => Event::Queued(text),
            message = self.socket.next() => Event::Received(message),
        };
        match event {
            Event::Ping => self.send(Message::Ping(Bytes::new())).await,
            Event::Queued(Some(text)) => self.send(Message::Text(text)).await,
            Event::Queued(None) => Break(End::Close(CloseCode::Policy, "reads too slowly")),
            Event::Received(None) => Break(End::Closed),
            Event::Received(Some(Ok(message))) => self.received(message).await,
            Event::Received(Some(Err(error))) => Break(End::from(error)),
        }
    }

    async fn received(&mut self, message: Message) -> ControlFlow<End> {
        match message {
            Message::Text(text) => match Request::parse(&text) {
                Ok(request) => self.answer(request).await,
                Err(message) => self.reply(&Reply::Error { message: &message }).await,
            },
            Message::Binary(_) => {
                let message = "chat messages are text, this one was binary";
                self.reply(&Reply::Error { message }).await
            }
            // tungstenite answers Ping and Close by itself as reading goes on.
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => {
                Continue(())
            }
        }
    }

    async fn answer(&mut self, request: Request) -> ControlFlow<End> {
        match request {
            Request::Say { text } => {
                self.membership.say(&text);
                // Messages that came in one read would otherwise all be queued
                // before another member's task has had a chance to write.
                tokio::task::yield_now().await;
                Continue(())
            }
            Request::Rename { name } => {
                self.membership.rename(name);
                let you = self.membership.name();
                let renamed = Reply::Renamed { you }.encode();
                self.send(Message::Text(renamed)).await
            }
            Request::Ping { id } => self.reply(&Reply::Pong { id }).await,
        }
    }

    async fn reply(&mut self, reply: &Reply<'_>) -> ControlFlow<End> {
        self.send(Message::Text(reply.encode())).await
    }

    async fn send(&mut self, message: Message) -> ControlFlow<End> {
        match timeout(SEND_TIMEOUT, self.socket.send(message)).await {
            Ok(Ok(())) => Continue(()),
            // The peer has begun to close: reading on finishes that.
            Ok(Err(Error::Protocol(_))) => Continue(()),
            Ok(Err(_)) => Break(End::Closed),
            Err(_) => Break(End::Stuck),
        }
    }
}

impl From<Error> for End {
    /// The close code that RFC 6455 section 7.4.1 has for what went wrong.
    fn from(error: Error) -> Self {
        match error {
            Error::Capacity(_) => Self::Close(CloseCode::Size, "message too big"),
            Error::Utf8(_) => Self::Close(CloseCode::Invalid, "text is not UTF-8"),
            Error::Protocol(_) => Self::Close(CloseCode::Protocol, "broken framing"),
            _ => Self::Closed,
        }
    }
}

fn pings() -> Interval {
    let mut pings = interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pings
}

async fn close(mut socket: Socket, end: End) {
    let End::Close(code, reason) = end else {
        return;
    };
    let frame = CloseFrame {
        code,
        reason: Utf8Bytes::from_static(reason),
    };
    // Whatever fails from here on, the connection ends.
    let _ = timeout(LINGER, async {
        socket.send(Message::Close(Some(frame))).await?;
        let io = socket.get_mut();
        io.shutdown().await?;
        tokio::io::copy(io, &mut tokio::io::sink()).await?;
        Ok::<_, Error>(())
    })
    .await;
}
