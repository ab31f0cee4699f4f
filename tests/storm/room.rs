//! A small file system of its own for the gateway's runtime directory, so that its disk can be full. It takes a mount
//! namespace: the storm starts itself again in one, where it may.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Set where the storm is in a mount namespace of its own.
const INSIDE: &str = "WSGATE_STORM_NAMESPACE";

/// Of the file system. The state and a copy of the configuration take some KiB.
const SIZE: &str = "size=1m,mode=0755";

const FILLER: &str = "filler";

/// Starts this process again in a mount namespace of its own. Where that may not be, it goes on as it is.
pub(crate) fn enter() {
    if std::env::var_os(INSIDE).is_some() {
        return;
    }
    // Root needs no user namespace, in which it would have less rights.
    let flags = match rustix::process::geteuid().is_root() {
        true => "-m",
        false => "-rm",
    };
    let tried = Command::new("unshare")
        .args([flags, "true"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if let (Ok(status), Ok(own)) = (tried, std::env::current_exe())
        && status.success()
    {
        // Returns only if it cannot: then there is no full disk in this storm, and the report says so.
        let _ = Command::new("unshare")
            .arg(flags)
            .arg(own)
            .args(std::env::args_os().skip(1))
            .env(INSIDE, "yes")
            .exec();
    }
}

/// The mounted file system. Dropping it unmounts it.
#[derive(Debug)]
pub(crate) struct Room(PathBuf);

impl Room {
    /// Mounts it; `None` where this process may not.
    pub(crate) fn mount(at: &Path) -> Option<Self> {
        std::env::var_os(INSIDE)?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", SIZE, "wsgate-storm"])
            .arg(at)
            .stderr(Stdio::null())
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then(|| Self(at.to_owned()))
    }

    /// Not one more byte fits.
    pub(crate) fn fill(&self) -> io::Result<()> {
        let mut file = File::create(self.0.join(FILLER))?;
        for piece in [4096, 1] {
            loop {
                match file.write_all(&vec![1; piece]) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// There is room again.
    pub(crate) fn empty(&self) -> io::Result<()> {
        fs::remove_file(self.0.join(FILLER))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // The namespace ends with the storm in any case.
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}
