//! What this process or machine can run out of, in words that an operator can act on.
//!
//! The server, or the client, has done no wrong then. Local ports are not here: they run out for
//! one server at a time, and only where one is dialled.

use std::io;

/// What has run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Shortage {
    /// EMFILE
    #[error("this worker has no file descriptors left: raise LimitNOFILE")]
    Descriptors,
    /// ENFILE
    #[error("this machine has no file descriptors left: raise fs.file-max")]
    Files,
    /// ENOBUFS, ENOMEM
    #[error(
        "the kernel has no memory for a connection: look at the cgroup's memory.max and at net.ipv4.tcp_mem"
    )]
    Memory,
    /// ENOSPC, where a socket is registered with epoll (epoll_ctl(2))
    #[error("this user may watch no more sockets: raise fs.epoll.max_user_watches")]
    Watches,
}

impl Shortage {
    /// What an error of socket(2), accept(2), connect(2) or epoll_ctl(2) is for want of.
    pub(crate) fn of(error: &io::Error) -> Option<Self> {
        match error.raw_os_error()? {
            libc::EMFILE => Some(Self::Descriptors),
            libc::ENFILE => Some(Self::Files),
            libc::ENOBUFS | libc::ENOMEM => Some(Self::Memory),
            libc::ENOSPC => Some(Self::Watches),
            _ => None,
        }
    }
}
