//! The runtime directory: the one that the admin socket is in. Everything by which one supervisor finds what
//! another has left behind is there.
//!
//! | entry | what |
//! | --- | --- |
//! | `wsgate.lock` | locked by the supervisor that lives |
//! | `admin.sock` | where it answers (the name is the configuration's) |
//! | `worker-PID.sock` | the rendezvous of a worker |
//! | `state.json` | what the operator has said, and numbers that must not come twice |
//! | `last-good.json` | the configuration that ran last; only while wsgate runs, or after a crash |

use std::io;
use std::path::{Path, PathBuf};

use wsgate_os::lock::Lock;

use crate::Error;

/// What names of rendezvous sockets begin and end with. `wsctl` knows them as well.
const RENDEZVOUS: (&str, &str) = ("worker-", ".sock");

/// The directory.
#[derive(Clone, Debug)]
pub(crate) struct RuntimeDirectory(PathBuf);

impl RuntimeDirectory {
    /// Of the gateway with this admin socket.
    pub(crate) fn of(socket: &Path) -> Self {
        Self(socket.parent().unwrap_or_else(|| Path::new("/")).to_owned())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Locks it, and makes it if it is not there.
    pub(crate) fn lock(&self) -> Result<Lock, Error> {
        std::fs::create_dir_all(&self.0).map_err(Error::system(format!(
            "creation of the runtime directory {} (set [admin] socket to a path that wsgate may write to)",
            self.0.display()
        )))?;
        Ok(Lock::take(&self.0.join("wsgate.lock"))?)
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.0.join("state.json")
    }

    pub(crate) fn last_good(&self) -> PathBuf {
        self.0.join("last-good.json")
    }

    /// Where a worker can be met.
    pub(crate) fn rendezvous(&self, pid: u32) -> PathBuf {
        let (begin, end) = RENDEZVOUS;
        self.0.join(format!("{begin}{pid}{end}"))
    }

    /// Where workers can be met, or could be when they lived, with their pids.
    pub(crate) fn all_rendezvous(&self) -> io::Result<Vec<(u32, PathBuf)>> {
        let (begin, end) = RENDEZVOUS;
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.0)? {
            let entry = entry?;
            let name = entry.file_name();
            let pid = name
                .to_str()
                .and_then(|name| name.strip_prefix(begin)?.strip_suffix(end));
            if let Some(pid) = pid.and_then(|pid| pid.parse().ok()) {
                found.push((pid, entry.path()));
            }
        }
        found.sort();
        Ok(found)
    }

    /// A worker is gone for good.
    pub(crate) fn forget(&self, pid: u32) {
        remove(&self.rendezvous(pid));
    }
}

/// Removes a file that need not be there.
pub(crate) fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "not removed");
        }
        _ => {}
    }
}
