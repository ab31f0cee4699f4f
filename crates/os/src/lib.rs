//! What wsgate needs of the kernel: processes, descriptors, shared memory,
//! sockets, signals, systemd and the log.
//!
//! This is the only crate with unsafe code, and each block says why it is sound.
//! It knows nothing of configuration, tunnels or messages: it moves bytes and
//! descriptors, and never keeps a raw descriptor number.
//!
//! It needs Linux 5.9 or newer (pidfd with `waitid`, memfd seals) and a mounted `/proc`.

#![expect(
    unsafe_code,
    reason = "pidfd, mmap, signal dispositions and the allocator have no safe interface"
)]

#[cfg(not(target_os = "linux"))]
compile_error!("wsgate runs on Linux only: it is built on pidfd, memfd and SO_REUSEPORT");

pub mod board;
pub mod channel;
pub mod file;
pub mod limits;
pub mod lock;
pub mod log;
pub mod memfd;
pub mod memory;
pub mod pipe;
pub mod process;
pub mod rendezvous;
pub mod signals;
pub mod socket;
pub mod systemd;

#[cfg(test)]
mod testing;

use std::fmt::Display;
use std::io;

/// An error with what was being done in front.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
struct Context {
    what: String,
    source: io::Error,
}

/// The same kind of error, with what was being done in front.
fn context(source: io::Error, what: impl Display) -> io::Error {
    let what = what.to_string();
    io::Error::new(source.kind(), Context { what, source })
}
