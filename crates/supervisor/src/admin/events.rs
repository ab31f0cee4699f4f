//! `GET /v1/events`: what happens, as server-sent events (WHATWG HTML, "Server-sent events").
//!
//! Readers share one bounded queue. One that reads too slowly loses the oldest events and is told how many: nobody
//! ever holds up the supervisor.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::timeout;
use wsgate_protocol::admin::{Event, EventKind, GenerationChange, WorkerChange};

use super::http::Body;
use super::time_of_day;
use crate::link::Link;

pub(crate) const CONTENT_TYPE: &str = "text/event-stream";

/// Events that a reader may be behind.
const QUEUE: usize = 256;

/// A comment goes out after so long without an event: so a reader knows that the way is open, and wsgate that a reader is gone.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Where events are told.
pub(crate) struct News {
    sender: broadcast::Sender<Arc<Event>>,
    told: u64,
}

impl Default for News {
    fn default() -> Self {
        Self {
            sender: broadcast::Sender::new(QUEUE),
            told: 0,
        }
    }
}

impl News {
    /// Tells everybody who listens.
    pub(crate) fn tell(&mut self, kind: EventKind) {
        self.told += 1;
        let event = Event {
            id: Some(self.told),
            at: time_of_day(SystemTime::now()),
            kind,
        };
        // Nobody may be listening.
        drop(self.sender.send(Arc::new(event)));
    }

    pub(crate) fn tell_generation(&mut self, generation: u64, state: GenerationChange) {
        self.tell(EventKind::Generation { generation, state });
    }

    pub(crate) fn tell_worker(&mut self, link: &Link, state: WorkerChange) {
        self.tell(worker(link, state, None, None));
    }

    /// One that held these tunnels has ended.
    pub(crate) fn tell_end(&mut self, link: &Link, how: &str, tunnels: u64) {
        let how = Some(how.to_owned());
        self.tell(worker(link, WorkerChange::Ended, how, Some(tunnels)));
    }

    /// All that is told from now on.
    pub(crate) fn listen(&self) -> broadcast::Receiver<Arc<Event>> {
        self.sender.subscribe()
    }
}

fn worker(
    link: &Link,
    state: WorkerChange,
    how: Option<String>,
    tunnels: Option<u64>,
) -> EventKind {
    EventKind::Worker {
        state,
        pid: link.pid,
        slot: link.slot as u64,
        generation: link.generation,
        how,
        tunnels,
    }
}

/// What one reader gets, until the supervisor ends.
pub(crate) fn body(receiver: broadcast::Receiver<Arc<Event>>) -> Body {
    let parts = parts(receiver).map(|part| Ok::<_, Infallible>(Frame::data(part)));
    let body = StreamBody::new(parts);
    BodyExt::boxed(body.map_err(|never| -> io::Error { match never {} }))
}

/// The first one says that nothing is missed from here on.
fn parts(receiver: broadcast::Receiver<Arc<Event>>) -> impl Stream<Item = Bytes> {
    let hello = stream::once(async { Bytes::from_static(b": events of wsgate\n\n") });
    hello.chain(stream::unfold(receiver, |mut receiver| async {
        Some((next(&mut receiver, HEARTBEAT).await?, receiver))
    }))
}

async fn next(
    receiver: &mut broadcast::Receiver<Arc<Event>>,
    heartbeat: Duration,
) -> Option<Bytes> {
    match timeout(heartbeat, receiver.recv()).await {
        Ok(Ok(event)) => Some(rendered(&event)),
        Ok(Err(RecvError::Lagged(events))) => Some(rendered(&Event {
            id: None,
            at: time_of_day(SystemTime::now()),
            kind: EventKind::Lost { events },
        })),
        Ok(Err(RecvError::Closed)) => None,
        Err(_) => Some(Bytes::from_static(b":\n\n")),
    }
}

/// JSON has no line breaks of its own, so one `data` line is enough.
fn rendered(event: &Event) -> Bytes {
    let data = serde_json::to_string(event).unwrap_or_default();
    let id = event
        .id
        .map_or_else(String::new, |id| format!("id: {id}\n"));
    let name = event.kind.name();
    format!("{id}event: {name}\ndata: {data}\n\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stop(tunnels: u64) -> EventKind {
        EventKind::Stop {
            tunnels,
            deadline_in_seconds: 1.5,
        }
    }

    async fn text(receiver: &mut broadcast::Receiver<Arc<Event>>) -> Option<String> {
        let bytes = next(receiver, Duration::from_millis(20)).await?;
        Some(String::from_utf8(bytes.to_vec()).expect("UTF-8"))
    }

    #[tokio::test]
    async fn an_event_has_an_id_a_name_and_its_json_in_one_line() {
        let mut news = News::default();
        news.tell(stop(1));
        let mut reader = news.listen();
        news.tell(stop(2));
        let said = text(&mut reader).await.expect("an event");
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[..2], ["id: 2", "event: stop"]);
        let data = lines[2].strip_prefix("data: ").expect("data");
        let event: Event = serde_json::from_str(data).expect("JSON");
        assert_eq!((event.id, &event.kind), (Some(2), &stop(2)));
        assert!(said.ends_with("}\n\n"), "{said}");
        drop(news);
        assert_eq!(text(&mut reader).await, None);
    }

    #[tokio::test]
    async fn a_reader_that_is_too_slow_is_told_how_much_it_has_missed() {
        let mut news = News::default();
        let mut reader = news.listen();
        for n in 0..QUEUE as u64 + 7 {
            news.tell(stop(n));
        }
        let said = text(&mut reader).await.expect("a word");
        assert!(
            said.starts_with("event: lost\n") && said.contains("\"events\":7"),
            "{said}"
        );
        let said = text(&mut reader).await.expect("an event");
        assert!(said.starts_with("id: 8\n"), "{said}");
    }

    #[tokio::test]
    async fn silence_is_broken_by_a_comment() {
        let news = News::default();
        let mut reader = news.listen();
        assert_eq!(text(&mut reader).await.as_deref(), Some(":\n\n"));
        drop(news);
    }
}
