//! The list of tunnels, as lines of JSON into a pipe made for one request.
//!
//! It never goes over the control channel: a long list must not hold up a heartbeat.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant, SystemTime};

use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use wsgate_protocol::admin::{Tunnel, TunnelFilter, TunnelState};
use wsgate_protocol::control::{Refusal, Stays};
use wsgate_proxy::Record;

use crate::boot::Booted;
use crate::handover::why_it_stays;

/// What is written at once; a pipe holds 64 KiB.
const CHUNK: usize = 32 * 1024;

/// How long the reader may take nothing: its client may be slow, but not for ever.
const WRITE_WITHIN: Duration = Duration::from_secs(30);

/// Who lists.
#[derive(Clone, Copy)]
pub(crate) struct Lister {
    /// Whether tunnels are given away, and why no more.
    giving: Option<Option<Refusal>>,
    pid: u32,
    slot: u64,
    generation: u64,
}

impl Lister {
    pub(crate) fn new(booted: &Booted, giving: Option<Option<Refusal>>) -> Self {
        Self {
            giving,
            pid: std::process::id(),
            slot: booted.boot.slot as u64,
            generation: booted.boot.generation,
        }
    }

    /// Writes each tunnel that matches as one line, then closes the pipe. A reader
    /// that goes away ends the list, and so does one that takes nothing.
    pub(crate) async fn list(
        self,
        tunnels: Vec<std::sync::Arc<Record>>,
        filter: TunnelFilter,
        to: OwnedFd,
    ) -> io::Result<()> {
        let mut pipe = pipe::Sender::from_owned_fd(to)?;
        let mut chunk = Vec::with_capacity(CHUNK + 1024);
        for record in tunnels {
            // Before anything is copied: whoever asks for one tunnel does not pay for all.
            if filter.id.as_deref().is_some_and(|id| id != &*record.id) {
                continue;
            }
            let tunnel = self.describe(&record);
            if matches(&filter, &tunnel) {
                serde_json::to_writer(&mut chunk, &tunnel)?;
                chunk.push(b'\n');
            }
            if chunk.len() >= CHUNK {
                write(&mut pipe, &chunk).await?;
                chunk.clear();
            }
        }
        // An empty line tells a whole list from one that broke off.
        chunk.push(b'\n');
        write(&mut pipe, &chunk).await
    }

    /// Why it has not moved, where tunnels are given away.
    fn stays(self, record: &Record) -> Option<Stays> {
        why_it_stays(record, self.giving?)
    }

    fn describe(self, record: &Record) -> Tunnel {
        let deadline = record
            .deadline()
            .map(|deadline| deadline.at.saturating_duration_since(Instant::now()));
        let (bytes_from_client, messages_from_client) = record.from_client();
        let (bytes_from_server, messages_from_server) = record.from_server();
        Tunnel {
            id: record.id.to_string(),
            client: record.client.to_string(),
            listener: record.listener.to_string(),
            host: record.host.to_string(),
            path: record.path.to_string(),
            route: record.route.name.to_string(),
            upstream: record.server.upstream.to_string(),
            server: record.server.name.to_string(),
            worker: self.pid,
            slot: self.slot,
            generation: self.generation,
            state: match deadline {
                _ if record.closing() => TunnelState::Closing,
                Some(_) => TunnelState::Draining,
                None => TunnelState::Open,
            },
            deadline_at: deadline.map(|left| rfc3339(SystemTime::now() + left)),
            deadline_in_seconds: deadline.map(|left| left.as_secs_f64()),
            opened_at: rfc3339(record.opened_at),
            age_seconds: record.opened.elapsed().as_secs_f64(),
            idle_seconds: record.idle().as_secs_f64(),
            round_trip_seconds: record.round_trip().map(|it| it.as_secs_f64()),
            bytes_from_client,
            bytes_from_server,
            messages_from_client,
            messages_from_server,
            subprotocol: record.subprotocol.as_deref().map(str::to_owned),
            unframed: record.unframed(),
            handovers: record.handovers.into(),
            origin: record.origin.as_deref().map(str::to_owned),
            stays: self.stays(record).map(|why| why.to_string()),
        }
    }
}

/// A reader that takes nothing for too long is gone.
pub(crate) async fn write(pipe: &mut pipe::Sender, chunk: &[u8]) -> io::Result<()> {
    match tokio::time::timeout(WRITE_WITHIN, pipe.write_all(chunk)).await {
        Ok(written) => written,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

fn matches(filter: &TunnelFilter, tunnel: &Tunnel) -> bool {
    fn is<T: PartialEq>(wanted: Option<&T>, have: &T) -> bool {
        wanted.is_none_or(|wanted| wanted == have)
    }
    let at_least = |wanted: Option<f64>, have: f64| {
        wanted.is_none_or(|wanted| {
            Duration::try_from_secs_f64(wanted).is_ok_and(|wanted| have >= wanted.as_secs_f64())
        })
    };
    is(filter.route.as_ref(), &tunnel.route)
        && is(filter.upstream.as_ref(), &tunnel.upstream)
        && is(filter.server.as_ref(), &tunnel.server)
        && filter
            .client
            .as_deref()
            .is_none_or(|wanted| is_client(wanted, &tunnel.client))
        && is(filter.worker.as_ref(), &tunnel.worker)
        && is(filter.generation.as_ref(), &tunnel.generation)
        && is(filter.state.as_ref(), &tunnel.state)
        && at_least(filter.older_than, tunnel.age_seconds)
        && at_least(filter.idle_for, tunnel.idle_seconds)
}

/// A client is named with its port or without.
fn is_client(wanted: &str, client: &str) -> bool {
    let host = client.rsplit_once(':').map_or(client, |(host, _)| host);
    wanted == client || wanted == host || wanted == host.trim_matches(['[', ']'])
}

#[cfg(test)]
mod tests {
    use super::is_client;

    #[test]
    fn a_client_is_found_with_and_without_its_port() {
        assert!(is_client("10.0.0.7:4711", "10.0.0.7:4711"));
        assert!(is_client("10.0.0.7", "10.0.0.7:4711"));
        assert!(is_client("2001:db8::1", "[2001:db8::1]:4711"));
        assert!(is_client("unix", "unix"));
        assert!(!is_client("10.0.0.70", "10.0.0.7:4711"));
        assert!(!is_client("10.0.0.7:4712", "10.0.0.7:4711"));
    }
}
