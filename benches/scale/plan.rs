//! How tunnels are spread over processes and addresses, so that neither descriptors nor ports run out.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use wsgate_load::job::Open;
use wsgate_load::machine;

use crate::Args;

/// Tunnels of one load process, and connections of one server process, if its descriptors allow. All of them come from
/// one address; of some 28,000 ports the kernel gives away the first half fast (net.ipv4.ip_local_port_range).
const EACH: u64 = 10_000;

/// What a process opens besides.
const OTHERS: u64 = 100;

/// Addresses of each server process.
const ADDRESSES: usize = 2;

/// Bytes of each message.
pub(crate) const SIZE: usize = 64;

#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) tunnels: u64,
    pub(crate) workers: u64,
    /// Of clients, and as many of servers.
    pub(crate) processes: usize,
}

impl Plan {
    /// # Errors
    /// If a worker may not open enough descriptors for its share.
    pub(crate) fn new(args: &Args) -> io::Result<Self> {
        let (tunnels, workers) = (u64::from(args.tunnels), u64::from(args.workers));
        let descriptors = machine::raise_nofile()?;
        let each = EACH.min(descriptors.saturating_sub(OTHERS).max(1));
        let processes = usize::try_from(tunnels.div_ceil(each)).map_err(io::Error::other)?;
        // Short ones come on top, and the kernel deals them out by a hash: none had more than 1.06 times the mean.
        let share = tunnels / workers * 11 / 10;
        if share > room(descriptors) || processes > 120 {
            return Err(io::Error::other(format!(
                "{tunnels} tunnels are too many for {workers} workers with {descriptors} descriptors each"
            )));
        }
        Ok(Self {
            tunnels,
            workers,
            processes,
        })
    }

    /// What the fleet of one process opens, towards the gateway.
    pub(crate) fn open(&self, process: usize, gateway: SocketAddr) -> Open {
        let all = self.tunnels as usize;
        let before = |process: usize| all * process / self.processes;
        Open {
            tunnels: before(process + 1) - before(process),
            ..self.short_ones(process, gateway)
        }
    }

    /// A fleet that holds no tunnel. Its number is one that no other has.
    pub(crate) fn short_ones(&self, process: usize, gateway: SocketAddr) -> Open {
        Open {
            targets: vec![gateway],
            sources: vec![IpAddr::V4(Ipv4Addr::new(127, 0, 1, byte(process)))],
            tunnels: 0,
            longest: SIZE,
            first: u32::from(byte(process)) << 24,
            ..Open::default()
        }
    }

    /// Where one server process listens.
    pub(crate) fn listen(&self, process: usize) -> Vec<SocketAddr> {
        let addresses = ADDRESSES * process..ADDRESSES * (process + 1);
        addresses
            .map(|number| SocketAddr::from(([127, 0, 2, byte(number)], 0)))
            .collect()
    }
}

/// Tunnels that a worker holds with so many descriptors (docs/operations.md, Limits and descriptors).
const fn room(descriptors: u64) -> u64 {
    descriptors.saturating_sub(256) / 2 / 16 * 15
}

/// From 1 on: there are never more processes than that.
fn byte(number: usize) -> u8 {
    u8::try_from(number + 1).unwrap_or(u8::MAX)
}
