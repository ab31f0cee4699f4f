//! The control channel: whole messages with descriptors beside them, over a
//! pair of SOCK_SEQPACKET sockets (unix(7)).
//!
//! A message arrives whole or is an error, and so do its descriptors: the kernel
//! silently drops those for which the receiver has no room (RLIMIT_NOFILE).
//! Nothing here knows what a message means.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::stat::fstat;
use socket2::{SockRef, Type};
use tokio_seqpacket::UnixSeqpacket;
use tokio_seqpacket::ancillary::{
    AncillaryMessageReader, AncillaryMessageWriter, OwnedAncillaryMessage,
};

use crate::{Context, context};

/// The largest message in bytes. The kernel ends one at the socket's send
/// buffer, 212,960 bytes unless `net.core.wmem_default` says otherwise.
pub const MAX_MESSAGE: usize = 200 * 1024;

/// Few messages are longer, in bytes: those of a start, and long lists of servers.
const USUAL_MESSAGE: usize = 1024;

/// The most descriptors that one message carries: the kernel's SCM_MAX_FD.
pub const MAX_FDS: usize = 253;

/// Room for one SCM_RIGHTS message of [`MAX_FDS`] descriptors, aligned as cmsg(3) demands.
#[repr(align(8))]
struct Control([u8; CONTROL_BYTES]);

// SAFETY: CMSG_SPACE is arithmetic on its argument and touches no memory.
const CONTROL_BYTES: usize =
    unsafe { libc::CMSG_SPACE((MAX_FDS * size_of::<libc::c_int>()) as u32) } as usize;

/// One end of a control channel, registered with the current tokio runtime.
///
/// [`send`](Self::send) and [`recv`](Self::recv) may wait at the same time and
/// are cancel-safe: in a `select!`, a dropped call has sent or taken nothing.
#[derive(Debug)]
pub struct Channel {
    socket: UnixSeqpacket,
}

impl Channel {
    /// Two connected ends: ours, and one to give away, close-on-exec and
    /// blocking, fit to be a child's stdin.
    ///
    /// # Errors
    /// Those of socketpair(2), setsockopt(2) and epoll_ctl(2).
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = Self::pair_to_give()?;
        Ok((Self::from_fd(ours)?, theirs))
    }

    /// Two connected ends, both to give away: as that of [`pair`](Self::pair).
    ///
    /// # Errors
    /// Those of socketpair(2) and setsockopt(2).
    pub fn pair_to_give() -> io::Result<(OwnedFd, OwnedFd)> {
        let (one, other) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        for end in [&one, &other] {
            // So that the largest message fits whatever the system's default is;
            // the kernel doubles the value for its own overhead.
            SockRef::from(end).set_send_buffer_size(MAX_MESSAGE)?;
        }
        Ok((one, other))
    }

    /// A connection that was made at a [rendezvous](crate::rendezvous).
    pub(crate) fn met(socket: UnixSeqpacket) -> io::Result<Self> {
        // As for a pair.
        SockRef::from(&socket).set_send_buffer_size(MAX_MESSAGE)?;
        Ok(Self { socket })
    }

    /// Takes over an end that [`pair`](Self::pair) gave away, and makes it non-blocking.
    ///
    /// # Errors
    /// `InvalidInput` if this is no SOCK_SEQPACKET socket; else those of
    /// fcntl(2) and epoll_ctl(2).
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        if !matches!(SockRef::from(&fd).r#type(), Ok(kind) if kind == Type::SEQPACKET) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the descriptor is no control channel",
            ));
        }
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let socket = UnixSeqpacket::try_from(fd)?;
        Ok(Self { socket })
    }

    /// Sends one message whole, waiting for room. The caller keeps its
    /// descriptors; the receiver gets duplicates.
    ///
    /// # Errors
    /// `InvalidInput` if the message is empty (it could not be told from end of
    /// file), above [`MAX_MESSAGE`], or has more than [`MAX_FDS`] descriptors.
    /// `BrokenPipe` or `ConnectionReset` if the other end is gone. ETOOMANYREFS if a user without privileges
    /// has more unread descriptors in flight than RLIMIT_NOFILE. Else those of sendmsg(2).
    pub async fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        check_size(bytes.len(), fds.len())?;
        let mut control = Control([0; CONTROL_BYTES]);
        let mut ancillary = AncillaryMessageWriter::new(&mut control.0);
        if !fds.is_empty() {
            ancillary.add_fds(fds.iter())?;
        }
        let sent = self
            .socket
            .send_with_ancillary(bytes, &mut ancillary)
            .await
            .map_err(|error| explain(error, bytes.len(), fds.len()))?;
        debug_assert_eq!(sent, bytes.len(), "SOCK_SEQPACKET sends a message whole");
        Ok(())
    }

    /// The next message and its descriptors, in the order they were sent and
    /// close-on-exec; `None` at end of file.
    ///
    /// # Errors
    /// `InvalidData` if the message or a descriptor was lost; those that did
    /// arrive are closed. Else those of recvmsg(2).
    pub async fn recv(&self) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        loop {
            match self.recv_once().await {
                // The other end was closed with messages of ours unread. The kernel says so
                // once, before the messages that it still has for us, and then end of file.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                other => return other,
            }
        }
    }

    /// Nothing can be sent from either end any more (shutdown(2)): not by this one, and what the other one sends fails with
    /// `BrokenPipe`. What it had sent before can be received still, and then comes end of file. So whoever has done
    /// this and has received all knows exactly what was sent in time.
    ///
    /// # Errors
    /// Those of shutdown(2).
    pub fn shut_down(&self) -> io::Result<()> {
        match self.socket.shutdown(std::net::Shutdown::Both) {
            // The other end has gone first.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            other => other,
        }
    }

    async fn recv_once(&self) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        // Whoever waits holds no room for a message, and few need much.
        let next = self.socket.peek(&mut [0; USUAL_MESSAGE]).await?;
        let room = if next.truncated() {
            MAX_MESSAGE
        } else {
            USUAL_MESSAGE
        };
        let mut bytes = vec![0; room];
        let mut control = Control([0; CONTROL_BYTES]);
        let (info, ancillary) = self
            .socket
            .recv_with_ancillary(&mut bytes, &mut control.0)
            .await?;
        if info.ancillary_truncated() {
            let what = "descriptors of a control message were lost".to_owned();
            let source = Errno::EMFILE.into();
            return Err(invalid(Context { what, source }));
        }
        if info.truncated() {
            return Err(invalid("a control message was longer than may be"));
        }
        let fds = take_fds(ancillary);
        if info.bytes_read() == 0 && fds.is_empty() {
            return Ok(None);
        }
        bytes.truncate(info.bytes_read());
        bytes.shrink_to_fit();
        Ok(Some((bytes, fds)))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn check_size(bytes: usize, fds: usize) -> io::Result<()> {
    let problem = if bytes == 0 {
        "a control message is empty".to_owned()
    } else if bytes > MAX_MESSAGE {
        format!("a control message has {bytes} bytes, {MAX_MESSAGE} at most are allowed")
    } else if fds > MAX_FDS {
        format!("a control message has {fds} descriptors, {MAX_FDS} at most are allowed")
    } else {
        return Ok(());
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, problem))
}

/// EMSGSIZE and its kind say little without the size. EAGAIN never gets here.
fn explain(error: io::Error, bytes: usize, fds: usize) -> io::Error {
    context(
        error,
        format_args!("a control message of {bytes} bytes and {fds} descriptors"),
    )
}

fn take_fds(ancillary: AncillaryMessageReader<'_>) -> Vec<OwnedFd> {
    ancillary
        .into_messages()
        .filter_map(|message| match message {
            OwnedAncillaryMessage::FileDescriptors(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect()
}

/// Tells whether two descriptors are of one file or socket: numbers that are alike for all of them that
/// are (fstat(2)). For descriptors of one kind.
///
/// # Errors
/// Those of fstat(2).
pub fn inode(fd: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(fstat(fd)?.st_ino)
}

fn invalid(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests;
