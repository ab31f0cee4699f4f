//! Pipes, for lists that must not travel on the control channel.

use std::io;
use std::os::fd::OwnedFd;

/// A new pipe, close-on-exec and blocking: first the end to read, then the end to write.
///
/// # Errors
/// Those of pipe2(2).
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = io::pipe()?;
    Ok((read.into(), write.into()))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};

    use super::*;

    #[test]
    fn bytes_come_out_and_no_exec_inherits_an_end() {
        let (read, write) = pipe().unwrap();
        for end in [&read, &write] {
            let flags = FdFlag::from_bits_retain(fcntl(end, FcntlArg::F_GETFD).unwrap());
            assert!(flags.contains(FdFlag::FD_CLOEXEC));
        }
        File::from(write).write_all(b"abc").unwrap();
        let mut text = String::new();
        File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "abc");
    }
}
