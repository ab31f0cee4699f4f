//! Files that are replaced whole: whoever reads one finds the old content or the new, even
//! after a crash or a power failure.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use crate::context;

/// Replaces a file, or makes it (mode 0600): a temporary file beside it, fsync(2), rename(2), fsync of the
/// directory. Blocks on the disk.
///
/// There is one temporary file for each path, so only one process may write to it at a time.
///
/// # Errors
/// Those of open(2), write(2), fsync(2) and rename(2). The old content is still there then, unless it was the
/// directory that could not be synced: the new content is there in its place, and may be lost with the power.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary(path);
    write(&temporary, bytes)
        .and_then(|()| std::fs::rename(&temporary, path))
        .map_err(|error| {
            // What is there of it fills a disk that may be full. It is written anew in any case.
            let _ = std::fs::remove_file(&temporary);
            context(error, format_args!("writing {}", path.display()))
        })?;
    let directory = path.parent().filter(|parent| *parent != Path::new(""));
    File::open(directory.unwrap_or_else(|| Path::new(".")))?.sync_all()
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".new");
    name.into()
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_made_and_replaced_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        for content in ["a long first content", "short"] {
            replace(&path, content.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_written_leaves_the_old_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        replace(&path, b"old").unwrap();
        // Not even root writes into a directory.
        std::fs::create_dir(temporary(&path)).unwrap();
        let error = replace(&path, b"new").unwrap_err();
        assert!(error.to_string().contains("state"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
    }

    #[test]
    fn no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let elsewhere = dir.path().join("elsewhere");
        std::os::unix::fs::symlink(&elsewhere, temporary(&path)).unwrap();
        assert!(replace(&path, b"new").is_err());
        assert!(!elsewhere.exists());
        // The link is out of the way now.
        replace(&path, b"new").unwrap();
    }
}
