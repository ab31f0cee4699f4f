//! Which sockets of a SO_REUSEPORT group get new TCP connections.
//!
//! The kernel keeps the listening sockets of one address in an array and picks one by a hash for each
//! SYN. A classic BPF program (SO_ATTACH_REUSEPORT_CBPF, socket(7)) can pick in its place: it answers with a
//! place in that array. A TCP socket joins at its listen(2), at the end; one that is closed leaves
//! its place to the last one. Who steers must know that order: nothing here finds it out.
//!
//! Only a SYN is steered. The kernel keeps the handshake with the socket that got the SYN, and the ACK that ends
//! it goes there, whatever the program says by then. (A SYN cookie is an exception: nothing is kept, the ACK is
//! steered like a SYN, and any socket of the group takes it.) So a socket that gets no new SYN
//! has seen the last of its handshakes when their time is over, and can be closed without a loss.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_B, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_MOD, BPF_RET, BPF_W,
    sock_filter,
};
use socket2::{SockFilter, SockRef};

/// BPF_A of linux/filter.h: return the accumulator.
const BPF_A: u32 = 0x10;

/// Most places that a program can name: two instructions each, and BPF_MAXINSNS is 4096.
pub const MOST_PLACES: usize = 2000;

/// Lets new connections to the group of a listening socket go to the sockets in these
/// places only, evenly. Replaces what was said before. A place that does not exist gets nothing: the
/// kernel then picks by its hash among all.
///
/// The socket is drawn by lot (SKF_AD_RANDOM), not by the packet's hash: that is whatever the
/// network card put there, and 0 for all packets if it does not hash.
///
/// # Errors
/// `InvalidInput` for no place or more than [`MOST_PLACES`], or a socket without SO_REUSEPORT;
/// else those of setsockopt(2).
pub fn steer(fd: BorrowedFd<'_>, places: &[usize]) -> io::Result<()> {
    let mut program = program(places)?;
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the option takes a sock_fprog, whose instructions live until the call is over; the kernel copies them.
    let done = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Lets the kernel pick again, by its hash and among all sockets of the group. Nothing happens if it did already.
///
/// # Errors
/// Those of setsockopt(2).
pub fn steer_no_more(fd: BorrowedFd<'_>) -> io::Result<()> {
    let unused: libc::c_int = 0;
    // SAFETY: the option takes an int, which it does not read.
    let done = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_DETACH_REUSEPORT_BPF,
            (&raw const unused).cast(),
            size_of_val(&unused) as libc::socklen_t,
        )
    };
    match io::Error::last_os_error() {
        _ if done == 0 => Ok(()),
        none if none.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        error => Err(error),
    }
}

/// Draws one of `places`: a number below their count, and the place in that position. Where
/// the two are the same there is nothing to look up.
fn program(places: &[usize]) -> io::Result<Vec<sock_filter>> {
    let count = u32::try_from(places.len()).unwrap_or(u32::MAX);
    if places.is_empty() || places.len() > MOST_PLACES {
        let why = format!("{} places to steer to", places.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    let random = (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM).cast_unsigned();
    let mut program = vec![
        instruction(BPF_LD | BPF_W | BPF_ABS, random, 0),
        instruction(BPF_ALU | BPF_MOD | BPF_K, count, 0),
    ];
    if !places.iter().copied().eq(0..places.len()) {
        for (drawn, place) in (0..count).zip(places) {
            let place = u32::try_from(*place).unwrap_or(u32::MAX);
            program.push(instruction(BPF_JMP | BPF_JEQ | BPF_K, drawn, 1));
            program.push(instruction(BPF_RET | BPF_K, place, 0));
        }
    }
    program.push(instruction(BPF_RET | BPF_A, 0, 0));
    Ok(program)
}

/// An instruction that skips so many others if its condition does not hold.
fn instruction(code: u32, k: u32, skip_if_not: u8) -> sock_filter {
    sock_filter {
        // Every code of classic BPF fits.
        code: code as u16,
        jt: 0,
        jf: skip_if_not,
        k,
    }
}

/// Lets a listening TCP socket take no new handshake any more, or take them again. A SYN that it gets is dropped, which its
/// sender repeats after a second; handshakes that have begun go on, and so does accepting.
///
/// # Errors
/// Those of setsockopt(2).
pub fn take_handshakes(fd: BorrowedFd<'_>, takes: bool) -> io::Result<()> {
    let socket = SockRef::from(&fd);
    if !takes {
        return socket.attach_filter(DROP_SYN);
    }
    match socket.detach_filter() {
        Err(none) if none.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        done => done,
    }
}

/// What a TCP socket's filter sees begins with the TCP header (RFC 9293): flags are in byte 13, SYN is 2
/// and ACK is 16.
const DROP_SYN: &[SockFilter] = &[
    SockFilter::new((BPF_LD | BPF_B | BPF_ABS) as u16, 0, 0, 13),
    SockFilter::new((BPF_ALU | BPF_AND | BPF_K) as u16, 0, 0, 0x12),
    SockFilter::new((BPF_JMP | BPF_JEQ | BPF_K) as u16, 0, 1, 0x02),
    SockFilter::new((BPF_RET | BPF_K) as u16, 0, 0, 0),
    SockFilter::new((BPF_RET | BPF_K) as u16, 0, 0, u32::MAX),
];

/// Writes a socket's place in its group on the socket itself, where another process that gets the
/// descriptor can read it; `None` wipes it out. The kernel tells nobody the order of a group.
///
/// The note is SO_RCVTIMEO, which means nothing on a socket that does not block.
///
/// # Errors
/// Those of setsockopt(2).
pub fn note_place(fd: BorrowedFd<'_>, place: Option<usize>) -> io::Result<()> {
    let seconds = place.map(|place| Duration::from_secs(place as u64 + 1));
    SockRef::from(&fd).set_read_timeout(seconds)
}

/// What [`note_place`] wrote.
///
/// # Errors
/// Those of getsockopt(2).
pub fn noted_place(fd: BorrowedFd<'_>) -> io::Result<Option<usize>> {
    let seconds = SockRef::from(&fd).read_timeout()?;
    let place = seconds.and_then(|seconds| usize::try_from(seconds.as_secs()).ok()?.checked_sub(1));
    Ok(place)
}

/// Whether the kernel itself moves what waits on a socket that is closed to the others of its
/// group (`net.ipv4.tcp_migrate_req`, for IPv6 too).
///
/// # Errors
/// Those of reading the file; `NotFound` before Linux 5.14.
pub fn migrates() -> io::Result<bool> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req")?;
    Ok(text.trim() != "0")
}

#[cfg(test)]
mod tests;
