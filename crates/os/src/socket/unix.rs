//! Unix sockets bound to a path: what may be replaced there, and what not.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{AccessFlags, access};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use crate::context;

/// A Unix stream socket bound to a path. It does not listen until
/// [`listen`](super::listen): connects are refused. Dropping it leaves the file,
/// for another process may hold the socket too.
#[derive(Debug)]
pub struct UnixBound {
    fd: OwnedFd,
    path: PathBuf,
    /// Device and inode of the file: somebody may put another one in its place.
    file: (u64, u64),
}

impl UnixBound {
    /// A listening socket that another process bound, with the file that is at its path now.
    ///
    /// # Errors
    /// `NotFound` if no socket's file is there: nobody can connect to it any more;
    /// `InvalidInput` if it is bound to no path; else those of getsockname(2) and stat(2).
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let address = SockRef::from(&fd).local_addr()?;
        let path = address
            .as_pathname()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it is bound to no path"))?;
        let found = fs::symlink_metadata(path).map_err(|error| context(error, path.display()))?;
        if !found.file_type().is_socket() {
            let why = format!("{}: no socket is there any more", path.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, why));
        }
        Ok(Self {
            path: path.to_owned(),
            file: (found.dev(), found.ino()),
            fd,
        })
    }

    /// Where it is bound.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the file, unless another one is there by now. Connections live on.
    ///
    /// # Errors
    /// Those of unlink(2); that there is none is no error.
    pub fn unlink(&self) -> io::Result<()> {
        match fs::symlink_metadata(&self.path) {
            Ok(found) if (found.dev(), found.ino()) == self.file => remove(&self.path),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for UnixBound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<UnixBound> for OwnedFd {
    fn from(bound: UnixBound) -> Self {
        bound.fd
    }
}

/// Binds a Unix stream socket to a path, with exactly these permissions (like
/// `0o660`; the umask has no say). A socket file whose owner is gone is replaced.
///
/// The owner counts as gone if it refuses connects: a socket that is bound and
/// does not listen yet is taken for stale. The [lock](crate::lock) keeps a second wsgate from that.
///
/// # Errors
/// `AddrInUse` if somebody listens there; `AlreadyExists` if the path is something
/// else than a socket; `InvalidInput` if it has more than 107 bytes; else those
/// of bind(2), connect(2) and unlink(2).
pub fn bind_unix(path: &Path, mode: u32) -> io::Result<UnixBound> {
    let named = |error| context(error, path.display());
    let address = SockAddr::unix(path).map_err(named)?;
    remove_stale(path).map_err(named)?;
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::UNIX, kind, None)?;
    // The kernel gives the file the mode of the socket, less the umask (unix_bind):
    // it is never more open than it shall be.
    fchmod(&socket, Mode::from_bits_truncate(mode))?;
    socket.bind(&address).map_err(named)?;
    finish(socket.into(), path, mode).map_err(|error| {
        // Already failed, and for the better reason.
        let _ = remove(path);
        named(error)
    })
}

fn finish(fd: OwnedFd, path: &Path, mode: u32) -> io::Result<UnixBound> {
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    let found = fs::symlink_metadata(path)?;
    Ok(UnixBound {
        fd,
        path: path.to_owned(),
        file: (found.dev(), found.ino()),
    })
}

/// Whether [`bind_unix`] would have its way. Nothing changes by it.
///
/// # Errors
/// As [`bind_unix`], but for what only bind(2) itself finds out.
pub fn probe_unix(path: &Path) -> io::Result<()> {
    let named = |error| context(error, path.display());
    is_stale(path).map_err(named)?;
    let directory = path.parent().unwrap_or_else(|| Path::new("/"));
    let needed = AccessFlags::W_OK | AccessFlags::X_OK;
    access(directory, needed).map_err(|errno| named(errno.into()))
}

/// Clears the way if a socket is there that nobody answers on.
///
/// # Errors
/// `AddrInUse` if somebody does; `AlreadyExists` if something else is there; else those of connect(2) and unlink(2).
pub fn remove_stale(path: &Path) -> io::Result<()> {
    if is_stale(path)? {
        remove(path)?;
    }
    Ok(())
}

/// Whether a socket is there that nobody answers on.
fn is_stale(path: &Path) -> io::Result<bool> {
    let address = SockAddr::unix(path)?;
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        found => found?,
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "something that is no socket is there, and is not replaced",
        ));
    }
    let kind = Type::STREAM.nonblocking().cloexec();
    let answer = Socket::new(Domain::UNIX, kind, None)?.connect(&address);
    match answer.map_err(|error| (error.raw_os_error().map(Errno::from_raw), error)) {
        Err((Some(Errno::ECONNREFUSED), _)) => Ok(true),
        Err((Some(Errno::ENOENT), _)) => Ok(false),
        // EAGAIN is a full queue, EPROTOTYPE a socket of another kind: both are alive.
        Ok(()) | Err((Some(Errno::EAGAIN | Errno::EPROTOTYPE), _)) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another process listens there",
        )),
        Err((_, error)) => Err(error),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}
