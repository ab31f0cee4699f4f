//! Where two processes meet that have lost their control channel, or never had one: a
//! SOCK_SEQPACKET socket at a path, on which one waits for whoever takes the other's place.
//!
//! Each side is told by the kernel who the other one is (SO_PEERCRED, unix(7)). For the side that
//! connects that is the process that called listen(2) last, so the one that waits calls it, whoever bound the socket.
//! Whoever bound it has called it too: as long as anybody holds the socket a connect waits, and only when
//! nobody does is it refused.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sys::stat::{Mode, fchmod};
use nix::unistd::geteuid;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tokio_seqpacket::{UCred, UnixSeqpacket, UnixSeqpacketListener};

use crate::channel::Channel;
use crate::context;

/// Connections that may wait. One is expected, in the whole life of a worker.
const BACKLOG: i32 = 8;

/// Binds a socket to a path, for its owner alone (mode 0600). Whoever connects before somebody waits on it
/// waits too, and is told that this process is the other side. What was there before is
/// replaced: the caller owns the directory.
///
/// # Errors
/// `InvalidInput` if the path has more than 107 bytes; else those of bind(2), listen(2) and unlink(2).
pub fn bind(path: &Path) -> io::Result<OwnedFd> {
    let named = |error| context(error, path.display());
    let address = SockAddr::unix(path).map_err(named)?;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(named(error)),
        _ => {}
    }
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET.nonblocking().cloexec(), None)?;
    // The file gets the mode of the socket, less the umask (unix_bind in the kernel).
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket.bind(&address).map_err(named)?;
    socket.listen(BACKLOG).map_err(named)?;
    Ok(socket.into())
}

/// The side that waits.
#[derive(Debug)]
pub struct Rendezvous {
    listener: UnixSeqpacketListener,
}

impl Rendezvous {
    /// Waits on a socket of [`bind`] from now on, in this process's name.
    ///
    /// # Errors
    /// Those of listen(2) and epoll_ctl(2).
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn listen(socket: OwnedFd) -> io::Result<Self> {
        SockRef::from(&socket).listen(BACKLOG)?;
        let listener = UnixSeqpacketListener::try_from(socket)?;
        Ok(Self { listener })
    }

    /// The next one who comes. Cancel-safe.
    ///
    /// # Errors
    /// Those of accept(2).
    pub async fn accept(&mut self) -> io::Result<(Channel, Peer)> {
        met(self.listener.accept().await?)
    }
}

/// Goes to where somebody waits, or will.
///
/// # Errors
/// `ConnectionRefused` if nobody holds the socket any more, `NotFound` if there is no such path; else those of connect(2).
///
/// # Panics
/// Outside of a tokio runtime.
pub async fn meet(path: &Path) -> io::Result<(Channel, Peer)> {
    let socket = UnixSeqpacket::connect(path).await;
    met(socket.map_err(|error| context(error, path.display()))?)
}

fn met(socket: UnixSeqpacket) -> io::Result<(Channel, Peer)> {
    let peer = Peer::of(&socket.peer_cred()?);
    Ok((Channel::met(socket)?, peer))
}

/// Who the other side is, as the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its process; `None` if that is not visible from here (another PID namespace).
    pub pid: Option<u32>,
    /// Its effective user.
    pub uid: u32,
}

impl Peer {
    fn of(credentials: &UCred) -> Self {
        let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok());
        Self {
            pid: pid.filter(|pid| *pid != 0),
            uid: credentials.uid(),
        }
    }

    /// Whether it may command this process: it is of our own user, or of root.
    #[must_use]
    pub fn may_command(&self) -> bool {
        self.uid == 0 || self.uid == geteuid().as_raw()
    }

    /// Whether this process may command it: the same, seen from the other side.
    #[must_use]
    pub fn may_be_commanded(&self) -> bool {
        geteuid().is_root() || self.uid == geteuid().as_raw()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn both_sides_learn_who_the_other_is_and_talk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meet");
        let bound = bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let early = meet(&path).await.unwrap();
        let mut waiting = Rendezvous::listen(bound).unwrap();
        let (first, _) = waiting.accept().await.unwrap();
        first.send(b"late", &[]).await.unwrap();
        assert_eq!(early.0.recv().await.unwrap().unwrap().0, b"late");
        let (there, here) = tokio::join!(meet(&path), waiting.accept());
        let ((there, waits), (here, came)) = (there.unwrap(), here.unwrap());
        let us = Some(std::process::id());
        assert_eq!((waits.pid, came.pid), (us, us));
        assert!(waits.may_be_commanded() && came.may_command());
        let long = vec![7; crate::channel::MAX_MESSAGE];
        let (sent, got) = tokio::join!(here.send(&long, &[]), there.recv());
        sent.unwrap();
        assert_eq!(got.unwrap().unwrap().0, long);
    }

    #[tokio::test]
    async fn where_nobody_holds_the_socket_a_connect_is_refused_and_the_path_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meet");
        for waited in [false, true] {
            let bound = bind(&path).unwrap();
            if waited {
                drop(Rendezvous::listen(bound).unwrap());
            } else {
                drop(bound);
            }
            let refused = meet(&path).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        }
        bind(&path).unwrap();
    }

    #[test]
    fn another_user_commands_nothing() {
        let us = geteuid().as_raw();
        let peer = |uid| Peer { pid: None, uid };
        let other = peer(us.wrapping_add(1).max(1));
        assert!(peer(us).may_command() && peer(0).may_command() && !other.may_command());
        assert!(peer(us).may_be_commanded());
        assert_eq!(other.may_be_commanded(), us == 0);
    }
}
