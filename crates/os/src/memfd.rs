//! Sealed memory files: what is too large for a control message, or secret.
//!
//! A sealed file can be passed to anyone and never changes again, so its reader
//! need not trust its writer to leave it alone.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::context;

/// Neither content nor size can change, nor the seals.
const ALL: SealFlag = SealFlag::F_SEAL_SEAL
    .union(SealFlag::F_SEAL_SHRINK)
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_WRITE);

/// A memory file with these bytes, sealed for good, close-on-exec. The name is
/// for `/proc/PID/fd` alone, and has at most 249 bytes.
///
/// # Errors
/// Those of memfd_create(2), write(2) and fcntl(2).
pub fn sealed(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(create(name)?);
    file.write_all(bytes)
        .map_err(|error| context(error, format_args!("writing memory file {name}")))?;
    let fd = OwnedFd::from(file);
    seal(&fd, ALL)?;
    Ok(fd)
}

/// All bytes of a file that [`sealed`] made. It reads by position: every holder
/// of the same file can read it, since they share one offset.
///
/// # Errors
/// `InvalidData` if the file is not sealed; else those of fcntl(2) and pread(2).
pub fn read(fd: OwnedFd) -> io::Result<Vec<u8>> {
    require_seals(&fd, ALL)?;
    let file = File::from(fd);
    let size = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// An empty memory file that takes seals.
pub(crate) fn create(name: &str) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    // Where sysctl vm.memfd_noexec is 2 the kernel demands this flag; before 6.3 it does not know it.
    let no_exec = MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL);
    let created = match memfd_create(name, flags | no_exec) {
        Err(Errno::EINVAL) => memfd_create(name, flags),
        other => other,
    };
    created.map_err(|errno| context(errno.into(), format_args!("memory file {name}")))
}

/// Adds seals.
pub(crate) fn seal(fd: impl AsFd, seals: SealFlag) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_ADD_SEALS(seals))
        .map(drop)
        .map_err(|errno| context(errno.into(), "sealing a memory file"))
}

/// Refuses what lacks one of these seals, or is no memory file.
pub(crate) fn require_seals(fd: impl AsFd, seals: SealFlag) -> io::Result<()> {
    let found = match fcntl(fd, FcntlArg::F_GET_SEALS) {
        Ok(bits) => SealFlag::from_bits_retain(bits),
        Err(Errno::EINVAL) => SealFlag::empty(),
        Err(errno) => return Err(errno.into()),
    };
    if found.contains(seals) {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        "the descriptor is no sealed memory file",
    ))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn what_was_sealed_is_read_by_several_readers() {
        let bytes: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
        let fd = sealed("test", &bytes).unwrap();
        // Moves the offset that all duplicates share.
        let mut file = File::from(fd.try_clone().unwrap());
        let _ = file.read(&mut [0; 1000]).unwrap();
        assert_eq!(read(fd.try_clone().unwrap()).unwrap(), bytes);
        assert_eq!(read(fd).unwrap(), bytes);
    }

    #[test]
    fn an_empty_file_is_a_file() {
        assert!(read(sealed("test", &[]).unwrap()).unwrap().is_empty());
    }

    #[test]
    fn nobody_can_change_what_is_sealed() {
        let file = File::from(sealed("test", b"abc").unwrap());
        assert_eq!(
            file.write_at(b"x", 0).unwrap_err().raw_os_error(),
            Some(libc::EPERM)
        );
        assert!(file.set_len(1).is_err());
        assert!(file.set_len(100).is_err());
    }

    #[test]
    fn what_is_not_sealed_is_refused() {
        let open = create("test").unwrap();
        assert_eq!(read(open).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let file = tempfile::tempfile().unwrap();
        assert_eq!(
            read(file.into()).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
