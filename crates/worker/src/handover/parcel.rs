//! A batch of tunnels as a message, and back.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::Serialize;
use wsgate_os::channel::{Channel, MAX_FDS, MAX_MESSAGE};
use wsgate_os::memfd;
use wsgate_protocol::handover::FromGiver;
use wsgate_proxy::handover::{Leaver, Passport};

use super::BATCH;

// Two sockets for each tunnel, and the memfd of a batch that is too long for a message.
const _: () = assert!(2 * BATCH < MAX_FDS);

/// Ends the JSON text, in which it cannot be: what follows are the tunnels' bytes.
const END: u8 = 0;

/// Sends a batch. Whatever goes wrong, it has been sent whole or not at all.
pub(super) async fn send(
    channel: &Channel,
    number: u64,
    batch: &[Leaver],
    more: usize,
) -> io::Result<()> {
    let tunnels = batch.iter().map(Leaver::passport).collect();
    let mut bytes = serde_json::to_vec(&FromGiver::Batch {
        number,
        tunnels,
        more,
    })?;
    bytes.push(END);
    for pending in batch.iter().flat_map(Leaver::pending) {
        bytes.extend_from_slice(pending);
    }
    let mut fds: Vec<BorrowedFd<'_>> = batch.iter().flat_map(Leaver::sockets).collect();
    if bytes.len() <= MAX_MESSAGE {
        return channel.send(&bytes, &fds).await;
    }
    let long = memfd::sealed("wsgate-tunnels", &bytes)?;
    fds.push(long.as_fd());
    let text = text(&FromGiver::<Passport>::Long)?;
    channel.send(&text, &fds).await
}

/// A message without a batch.
pub(super) async fn say<T: Serialize>(channel: &Channel, message: &T) -> io::Result<()> {
    channel.send(&text(message)?, &[]).await
}

fn text<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec(message)?)
}

/// A message, with what is beside it.
pub(super) struct Parcel {
    pub(super) message: FromGiver<Passport>,
    /// The tunnels' sockets.
    pub(super) sockets: Vec<OwnedFd>,
    bytes: Vec<u8>,
    /// Where the bytes of the tunnels begin.
    tail: usize,
}

impl Parcel {
    pub(super) fn open(bytes: Vec<u8>, mut fds: Vec<OwnedFd>) -> io::Result<Self> {
        let (message, tail) = read(&bytes)?;
        if !matches!(message, FromGiver::Long) {
            return Ok(Self {
                message,
                sockets: fds,
                bytes,
                tail,
            });
        }
        let long = fds
            .pop()
            .ok_or_else(|| io::Error::other("a long batch without its memfd"))?;
        let bytes = memfd::read(long)?;
        let (message, tail) = read(&bytes)?;
        Ok(Self {
            message,
            sockets: fds,
            bytes,
            tail,
        })
    }

    /// The bytes of all its tunnels, one after the other.
    pub(super) fn tail(&self) -> &[u8] {
        &self.bytes[self.tail..]
    }
}

fn read(bytes: &[u8]) -> io::Result<(FromGiver<Passport>, usize)> {
    let end = bytes.iter().position(|byte| *byte == END);
    let text = &bytes[..end.unwrap_or(bytes.len())];
    let message = serde_json::from_slice(text)?;
    Ok((message, end.map_or(bytes.len(), |end| end + 1)))
}
