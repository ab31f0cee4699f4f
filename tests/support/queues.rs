//! What waits in the kernel's buffers of all TCP connections, the gateway's too
//! (`/proc/net/tcp`).

use std::collections::HashMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};

/// A look at all of them. They are read one after the other: right where nothing moves.
#[derive(Debug)]
pub(crate) struct Queues(HashMap<(SocketAddr, SocketAddr), Queue>);

#[derive(Clone, Copy, Debug, Default)]
struct Queue {
    /// Written, and not acknowledged by the other side.
    unsent: u64,
    unread: u64,
}

impl Queues {
    pub(crate) fn look() -> Self {
        let text = fs::read_to_string("/proc/net/tcp").unwrap();
        Self(text.lines().skip(1).filter_map(line).collect())
    }

    /// Bytes on their way from the socket at `near`.
    pub(crate) fn unsent(&self, near: SocketAddr, far: SocketAddr) -> u64 {
        self.of(near, far).unsent
    }

    /// Bytes that the socket at `near` has for its reader.
    pub(crate) fn unread(&self, near: SocketAddr, far: SocketAddr) -> u64 {
        self.of(near, far).unread
    }

    fn of(&self, near: SocketAddr, far: SocketAddr) -> Queue {
        self.0.get(&(near, far)).copied().unwrap_or_default()
    }
}

/// `sl local_address rem_address st tx_queue:rx_queue …`, all in hexadecimal digits.
fn line(line: &str) -> Option<((SocketAddr, SocketAddr), Queue)> {
    let mut fields = line.split_whitespace().skip(1);
    let key = (address(fields.next()?)?, address(fields.next()?)?);
    let (unsent, unread) = fields.nth(1)?.split_once(':')?;
    let queue = Queue {
        unsent: u64::from_str_radix(unsent, 16).ok()?,
        unread: u64::from_str_radix(unread, 16).ok()?,
    };
    Some((key, queue))
}

/// The address is printed as the number that its bytes are in memory.
fn address(field: &str) -> Option<SocketAddr> {
    let (ip, port) = field.split_once(':')?;
    let ip = u32::from_str_radix(ip, 16).ok()?.to_ne_bytes();
    let port = u16::from_str_radix(port, 16).ok()?;
    Some((Ipv4Addr::from(ip), port).into())
}
