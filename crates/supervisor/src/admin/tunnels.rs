//! `GET /v1/tunnels`: one JSON array, streamed from the workers through pipes.
//!
//! The list is never held whole: what a worker writes goes to the client as it comes.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use futures_util::stream::{self, Stream, StreamExt};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use percent_encoding::percent_decode_str;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use wsgate_protocol::admin::{TunnelFilter, TunnelState};
use wsgate_protocol::control::ToWorker;

use super::http::{Body, invalid};
use super::{Refusal, duration};
use crate::link::{ANSWER_WITHIN, Link, Unanswered};

/// What is read at once; a pipe holds 64 KiB.
const CHUNK: usize = 64 * 1024;

/// A list on its way.
pub(crate) struct List {
    /// The pids of workers that are not in it.
    pub(crate) unresponsive: Vec<u32>,
    pub(crate) body: Body,
}

/// Asks all workers. Those that do not answer within a second are left out.
pub(crate) async fn open(links: Vec<Link>, filter: TunnelFilter) -> List {
    let answers = join_all(links.into_iter().map(answering)).await;
    let (mut unresponsive, mut parts) = (Vec::new(), Vec::new());
    for (link, answered) in answers {
        match answered.map(|()| ask(&link, &filter)) {
            Ok(Ok(pipe)) => parts.push(Part {
                pipe,
                from: Some(link),
            }),
            Ok(Err(error)) => {
                tracing::warn!(pid = link.pid, %error, "worker not asked for its tunnels");
                unresponsive.push(link.pid);
            }
            Err(Unanswered::Late) => unresponsive.push(link.pid),
            // It has no tunnels any more.
            Err(Unanswered::Gone) => {}
        }
    }
    let body = BodyExt::boxed(StreamBody::new(
        array(parts).map(|bytes| bytes.map(Frame::data)),
    ));
    List { unresponsive, body }
}

/// Pids as a header field lists them.
pub(crate) fn joined(pids: &[u32]) -> String {
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    pids.join(",")
}

/// The worker, if it answers.
async fn answering(link: Link) -> (Link, Result<(), Unanswered>) {
    let answered = link.ping().await;
    (link, answered)
}

fn ask(link: &Link, filter: &TunnelFilter) -> io::Result<pipe::Receiver> {
    let (read, write): (OwnedFd, OwnedFd) = wsgate_os::pipe::pipe()?;
    link.send_with(
        ToWorker::Tunnels {
            filter: filter.clone(),
        },
        vec![Arc::new(write)],
    );
    pipe::Receiver::from_owned_fd(read)
}

/// Lines of all pipes, one pipe after the other, as elements of one array.
fn array(parts: Vec<Part>) -> impl Stream<Item = io::Result<Bytes>> {
    let elements = Elements {
        parts,
        read: BytesMut::new(),
        first: true,
    };
    let elements = stream::unfold(elements, |mut elements| async {
        let part = elements.next().await?;
        Some((part, elements))
    });
    let edge = |text: &'static [u8]| stream::once(async move { Ok(Bytes::from_static(text)) });
    edge(b"[").chain(elements).chain(edge(b"]\n"))
}

/// One worker's part of the list.
struct Part {
    pipe: pipe::Receiver,
    from: Option<Link>,
}

impl Part {
    /// Whether its worker has ended, and all of its tunnels with it.
    async fn is_gone(&self) -> bool {
        match &self.from {
            Some(link) => link.ping().await == Err(Unanswered::Gone),
            None => false,
        }
    }
}

struct Elements {
    parts: Vec<Part>,
    /// Read, and not a whole line yet.
    read: BytesMut,
    first: bool,
}

impl Elements {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            let part = self.parts.last_mut()?;
            self.read.reserve(CHUNK);
            // A worker that stops in the middle ends the list: no client waits for ever.
            let read = match tokio::time::timeout(ANSWER_WITHIN, part.pipe.read_buf(&mut self.read))
                .await
            {
                Ok(Ok(read)) => read,
                Ok(Err(error)) => return Some(Err(error)),
                Err(_) => return Some(Err(broken_off())),
            };
            // A list ends with an empty line, so one that broke off is not taken for a whole one.
            let ended = self.read.as_ref() == b"\n" || self.read.ends_with(b"\n\n");
            if ended {
                self.parts.pop();
            } else if read == 0 && part.is_gone().await {
                self.read.clear();
                self.parts.pop();
            } else if read == 0 {
                return Some(Err(broken_off()));
            }
            let whole = self
                .read
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |end| end + 1);
            let lines = self.read.split_to(whole);
            let elements = self.separate(&lines);
            if !elements.is_empty() {
                return Some(Ok(elements));
            }
        }
    }

    /// Line ends become commas, with none before the first element.
    fn separate(&mut self, lines: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(lines.len() + 1);
        for line in lines
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            if !std::mem::take(&mut self.first) {
                out.extend_from_slice(b",\n");
            }
            out.extend_from_slice(line);
        }
        out.freeze()
    }
}

fn broken_off() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "a worker stopped in the middle of its list",
    )
}

/// The filter that a query asks for.
pub(crate) fn filter(query: Option<&str>) -> Result<TunnelFilter, Refusal> {
    let mut filter = TunnelFilter::default();
    for pair in query
        .unwrap_or("")
        .split('&')
        .filter(|pair| !pair.is_empty())
    {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = value.replace('+', " ");
        let value = percent_decode_str(&value).decode_utf8().map_err(|_| {
            invalid(
                format!("{key}: not UTF-8"),
                "percent-encode values as UTF-8",
            )
        })?;
        set(&mut filter, key, &value)?;
    }
    Ok(filter)
}

fn set(filter: &mut TunnelFilter, key: &str, value: &str) -> Result<(), Refusal> {
    let text = || Some(value.to_owned());
    let seconds = || {
        let help = "give a duration as 1h or 30s, or seconds";
        duration(value)
            .map(|duration| Some(duration.as_secs_f64()))
            .ok_or_else(|| invalid(format!("{key}: {value:?} is no duration"), help))
    };
    let not_a_number = |_| {
        invalid(
            format!("{key}: {value:?} is no number"),
            "give a whole number",
        )
    };
    match key {
        "id" => filter.id = text(),
        "route" => filter.route = text(),
        "upstream" => filter.upstream = text(),
        "server" => filter.server = text(),
        "client" => filter.client = text(),
        "worker" => filter.worker = Some(value.parse().map_err(not_a_number)?),
        "generation" => filter.generation = Some(value.parse().map_err(not_a_number)?),
        "state" => filter.state = Some(state(value)?),
        "older_than" => filter.older_than = seconds()?,
        "idle_for" => filter.idle_for = seconds()?,
        _ => {
            let help = "filters are id, route, upstream, server, client, worker, generation, state, older_than, idle_for";
            return Err(invalid(format!("there is no filter {key:?}"), help));
        }
    }
    Ok(())
}

fn state(value: &str) -> Result<TunnelState, Refusal> {
    match value {
        "open" => Ok(TunnelState::Open),
        "draining" => Ok(TunnelState::Draining),
        "closing" => Ok(TunnelState::Closing),
        _ => Err(invalid(
            format!("state: there is no {value:?}"),
            "open, draining or closing",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    fn part(read: OwnedFd) -> Part {
        let pipe = pipe::Receiver::from_owned_fd(read).expect("its end");
        Part { pipe, from: None }
    }

    async fn listed(written: &[&[u8]]) -> Result<String, String> {
        let mut pipes = Vec::new();
        for text in written {
            let (read, write) = wsgate_os::pipe::pipe().expect("a pipe");
            let mut write = pipe::Sender::from_owned_fd(write).expect("its end");
            pipes.insert(0, part(read));
            let text = text.to_vec();
            tokio::spawn(async move { write.write_all(&text).await.expect("written") });
        }
        let mut out = Vec::new();
        let mut parts = std::pin::pin!(array(pipes));
        while let Some(part) = parts.next().await {
            out.extend_from_slice(&part.map_err(|error| error.to_string())?);
        }
        Ok(String::from_utf8(out).expect("UTF-8"))
    }

    #[tokio::test]
    async fn lines_of_all_workers_become_one_array() {
        assert_eq!(
            listed(&[b"\n", b"1\n2\n\n", b"\n", b"3\n\n"])
                .await
                .as_deref(),
            Ok("[1,\n2,\n3]\n")
        );
        assert_eq!(listed(&[b"\n"]).await.as_deref(), Ok("[]\n"));
    }

    #[tokio::test]
    async fn a_list_that_broke_off_is_not_taken_for_a_whole_one() {
        for text in [&b""[..], b"1\n", b"1\n2"] {
            assert!(listed(&[text]).await.is_err(), "{text:?}");
        }
    }

    #[tokio::test]
    async fn a_long_list_is_never_held_whole() {
        let (read, write) = wsgate_os::pipe::pipe().expect("a pipe");
        let mut write = pipe::Sender::from_owned_fd(write).expect("its end");
        tokio::spawn(async move {
            let line = [b"x".repeat(999), b"\n".to_vec()].concat();
            for _ in 0..2_000 {
                write.write_all(&line).await.expect("written");
            }
            write.write_all(b"\n").await.expect("written");
        });
        let mut parts = std::pin::pin!(array(vec![part(read)]));
        let (mut longest, mut total) = (0, 0);
        while let Some(part) = parts.next().await {
            let part = part.expect("a part");
            longest = longest.max(part.len());
            total += part.len();
        }
        assert!(
            total > 2_000_000 && longest <= 2 * CHUNK,
            "{longest} of {total}"
        );
    }

    #[test]
    fn a_query_becomes_a_filter() {
        let filter =
            filter(Some("route=*%2Fver&older_than=1h&state=draining&worker=7")).expect("a filter");
        assert_eq!(filter.route.as_deref(), Some("*/ver"));
        assert_eq!((filter.older_than, filter.worker), (Some(3600.0), Some(7)));
        assert_eq!(filter.state, Some(TunnelState::Draining));
    }

    #[test]
    fn a_filter_that_does_not_exist_is_refused_by_name() {
        let refusal = filter(Some("rute=x")).expect_err("a refusal");
        assert!(refusal.message.contains("rute"));
        assert!(filter(Some("older_than=soon")).is_err());
    }
}
