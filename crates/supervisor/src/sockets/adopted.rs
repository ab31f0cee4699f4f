//! Sockets that come back from workers which outlived a supervisor.
//!
//! Whatever is there is taken: slots beyond the configuration and listeners that are gone, which the next
//! commit retires, and not every slot, which the next reload binds anew. Workers send copies: the
//! same socket may come several times.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use wsgate_config::ListenAddress;
use wsgate_os::channel;
use wsgate_os::socket::{self, UnixBound, steer};
use wsgate_protocol::control::SocketSpec;

use super::group::Group;
use super::{Behind, Sockets, Unix};

/// Sockets as workers send them. A copy of one that is there already is closed as it comes: no descriptor is
/// budgeted for it.
#[derive(Default)]
pub(crate) struct Returned {
    seen: BTreeSet<u64>,
    sockets: Vec<(SocketSpec, OwnedFd)>,
}

impl Returned {
    /// What cannot be used is logged, and closed.
    pub(crate) fn push(&mut self, spec: SocketSpec, socket: OwnedFd) {
        match channel::inode(socket.as_fd()) {
            Ok(inode) if self.seen.insert(inode) => self.sockets.push((spec, socket)),
            Ok(_) => {}
            Err(error) => not_taken(&spec, &error),
        }
    }
}

fn not_taken(spec: &SocketSpec, error: &io::Error) {
    tracing::warn!(listener = spec.listener, slot = spec.slot, %error, "a socket of a worker is not taken over");
}

/// A socket of a TCP listener, with what it says of itself.
struct Found {
    slot: usize,
    socket: Arc<OwnedFd>,
    bound: SocketAddr,
    place: Option<usize>,
}

impl Sockets {
    /// The state that these sockets are what is left of. What cannot be used is logged, and closed.
    pub(crate) fn adopted(returned: Returned) -> Self {
        let mut adopted = Self::default();
        let mut groups: BTreeMap<ListenAddress, Vec<Found>> = BTreeMap::new();
        for (spec, socket) in returned.sockets {
            if let Err(error) = adopted.take(&spec, socket, &mut groups) {
                not_taken(&spec, &error);
            }
        }
        for (address, sockets) in groups {
            adopted
                .listeners
                .extend(group(sockets).map(|group| (address, Behind::Tcp(group))));
        }
        adopted
    }

    fn take(
        &mut self,
        spec: &SocketSpec,
        socket: OwnedFd,
        groups: &mut BTreeMap<ListenAddress, Vec<Found>>,
    ) -> io::Result<()> {
        match (parse(&spec.listener), spec.slot) {
            (Some(address @ ListenAddress::Tcp(_)), Some(slot)) => {
                let found = Found::new(slot, socket)?;
                groups.entry(address).or_default().push(found);
            }
            // The file is that of one of them, and nobody can tell of which.
            (Some(address), None) if self.listeners.contains_key(&address) => {
                return Err(io::Error::other("its listener has another socket already"));
            }
            (Some(address @ ListenAddress::Unix(_)), None) => {
                let unix = Unix::new(UnixBound::adopt(socket)?)?;
                self.listeners.insert(address, Behind::Unix(unix));
            }
            _ => return Err(io::Error::other("it has no listener's name")),
        }
        Ok(())
    }
}

impl Found {
    fn new(slot: usize, socket: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            slot,
            bound: socket::local_addr(socket.as_fd())?,
            place: steer::noted_place(socket.as_fd())?,
            socket: Arc::new(socket),
        })
    }
}

/// A listener's address, as [`SocketSpec`] has it.
fn parse(listener: &str) -> Option<ListenAddress> {
    match listener.strip_prefix("unix:") {
        Some(path) => Some(ListenAddress::Unix(PathBuf::from(path))),
        None => listener.parse().ok().map(ListenAddress::Tcp),
    }
}

fn group(mut sockets: Vec<Found>) -> Option<Group> {
    let bound = sockets.first()?.bound;
    let places: Vec<Option<usize>> = sockets.iter().map(|found| found.place).collect();
    let order = order(&places);
    match &order {
        Some(order) => {
            let mut by_place: Vec<(usize, Found)> = order.iter().copied().zip(sockets).collect();
            by_place.sort_by_key(|(place, _)| *place);
            sockets = by_place.into_iter().map(|(_, found)| found).collect();
        }
        None => sockets.sort_by_key(|found| found.slot),
    }
    let slots = own_slots(&sockets);
    let sockets = slots
        .into_iter()
        .zip(sockets)
        .map(|(slot, found)| (slot, found.socket));
    Some(Group::found(bound, sockets.collect(), order.is_some()))
}

/// The places that sockets with these notes have now, if that can be told. Sockets that nobody
/// held were closed, and each left its place to the last one. With one socket that has moved there is one
/// place that it can have moved to.
fn order(noted: &[Option<usize>]) -> Option<Vec<usize>> {
    let places: Vec<usize> = noted.iter().copied().collect::<Option<_>>()?;
    let distinct: BTreeSet<usize> = places.iter().copied().collect();
    let holes: Vec<usize> = (0..places.len())
        .filter(|place| !distinct.contains(place))
        .collect();
    match holes.as_slice() {
        _ if distinct.len() < places.len() => None,
        [] => Some(places),
        [hole] => Some(
            places
                .iter()
                .map(|place| if *place < places.len() { *place } else { *hole })
                .collect(),
        ),
        _ => None,
    }
}

/// The slots of sockets; a second one of the same slot gets a number of its own, beyond all others.
fn own_slots(sockets: &[Found]) -> Vec<usize> {
    let mut beyond = sockets
        .iter()
        .map(|found| found.slot + 1)
        .max()
        .unwrap_or(0);
    let mut taken = BTreeSet::new();
    let mut own = |slot| {
        if taken.insert(slot) {
            return slot;
        }
        beyond += 1;
        beyond - 1
    };
    sockets.iter().map(|found| own(found.slot)).collect()
}
