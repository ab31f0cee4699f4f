//! The lock on the runtime directory: one supervisor at a time.
//!
//! By flock(2) on a file that is never removed (whoever removed it could lock
//! one inode while another process locks the next). The kernel lets go of it when the
//! process ends in whatever way; the pid in the file is for people.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

/// Held until dropped. Children do not inherit it.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

/// Why the lock cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("{} is locked by {}: another wsgate runs with this directory; stop it, or set [admin] socket to a path in another one", path.display(), holder(*pid))]
    Held {
        /// The file.
        path: PathBuf,
        /// What the file says about its holder.
        pid: Option<u32>,
    },
    /// The file cannot be opened, locked or written.
    #[error("cannot lock {}: {source} (the user that runs wsgate must be able to write there)", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Lock {
    /// Locks this file, which is made if it is not there (mode 0600), and writes our pid into it.
    ///
    /// # Errors
    /// [`LockError::Held`] at once if another process has the lock.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Io {
            path: path.to_owned(),
            source,
        };
        let file = open(path).map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                write_pid(&mut file).map_err(failed)?;
                Ok(Self { _file: file })
            }
            Err((mut file, Errno::EWOULDBLOCK)) => Err(LockError::Held {
                path: path.to_owned(),
                pid: read_pid(&mut file),
            }),
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        // Not before it is ours.
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(path)
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.write_all(format!("{}\n", std::process::id()).as_bytes())
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(
        || "another process".to_owned(),
        |pid| format!("process {pid}"),
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Stdio;

    use super::*;
    use crate::testing::helper;

    #[test]
    fn a_lock_that_another_process_holds_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let mut holder = helper("lock::tests::helper_holds")
            .env("LOCK", &path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = String::new();
        let mut pipe = holder.stdout.take().unwrap();
        while !stdout.contains("held") {
            let mut byte = [0];
            pipe.read_exact(&mut byte).unwrap();
            stdout.push(char::from(byte[0]));
        }
        let error = Lock::take(&path).unwrap_err();
        assert!(
            matches!(error, LockError::Held { pid, .. } if pid == Some(holder.id())),
            "{error}"
        );
        let text = error.to_string();
        assert!(text.contains(&format!("process {}", holder.id())), "{text}");
        holder.kill().unwrap();
        holder.wait().unwrap();
        Lock::take(&path).unwrap();
    }

    #[test]
    #[ignore = "run by a_lock_that_another_process_holds_names_it"]
    fn helper_holds() {
        let _lock = Lock::take(Path::new(&std::env::var_os("LOCK").unwrap())).unwrap();
        io::stdout().write_all(b"held").unwrap();
        io::stdout().flush().unwrap();
        let _ = io::stdin().read(&mut [0]).unwrap();
    }

    #[test]
    fn a_lock_is_free_again_once_dropped_and_a_longer_pid_leaves_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        std::fs::write(&path, "123456789012\n").unwrap();
        for _ in 0..2 {
            let lock = Lock::take(&path).unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(text, format!("{}\n", std::process::id()));
            assert!(matches!(Lock::take(&path), Err(LockError::Held { .. })));
            drop(lock);
        }
    }

    #[test]
    fn the_file_is_for_its_owner_and_no_symlink_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let _lock = Lock::take(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &link).unwrap();
        assert!(matches!(Lock::take(&link), Err(LockError::Io { .. })));
    }
}
