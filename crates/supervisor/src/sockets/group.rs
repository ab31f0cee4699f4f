//! The sockets of one TCP listener: one group of the kernel's, and who in it gets new connections.
//!
//! The order of `members` is that of the kernel's array, which is what steering speaks of
//! (see [`steer`]). It holds because the supervisor is the last to hold a socket that it closes, and
//! because a socket joins when it listens. Where the order is not known nothing is steered, and so no
//! socket is closed while its listener is wanted: it is served by a worker of another slot.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use wsgate_lifecycle::Generation;
use wsgate_os::socket::{self, steer};

/// A group.
pub(super) struct Group {
    /// Port 0 has become a real port here.
    pub(super) bound: SocketAddr,
    members: Vec<Member>,
    /// Whether the order of `members` is the kernel's.
    ordered: bool,
    /// Whether a program may be attached.
    steered: bool,
    /// Whether sockets may drop SYNs.
    shut: bool,
    /// Whether the configuration has the listener.
    wanted: bool,
}

/// A socket that listens.
pub(super) struct Member {
    pub(super) slot: usize,
    pub(super) socket: Arc<OwnedFd>,
    /// Whether new connections may come to it.
    takes: bool,
    /// The generation whose commit left it without a place.
    pub(super) retired: Option<Generation>,
}

impl Group {
    pub(super) fn new(bound: SocketAddr) -> Self {
        Self {
            bound,
            members: Vec::new(),
            ordered: true,
            steered: false,
            shut: false,
            wanted: true,
        }
    }

    /// A group that another supervisor made: `sockets` in the kernel's order, if that is known.
    pub(super) fn found(
        bound: SocketAddr,
        sockets: Vec<(usize, Arc<OwnedFd>)>,
        ordered: bool,
    ) -> Self {
        let members = sockets.into_iter().map(|(slot, socket)| Member {
            slot,
            socket,
            takes: true,
            retired: None,
        });
        let group = Self {
            bound,
            members: members.collect(),
            ordered,
            // By that supervisor; nobody can tell.
            steered: true,
            shut: true,
            wanted: true,
        };
        group.note_places();
        group
    }

    pub(super) fn members(&self) -> &[Member] {
        &self.members
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether the order of the kernel's array is known.
    #[cfg(test)]
    pub(super) fn is_ordered(&self) -> bool {
        self.ordered
    }

    pub(super) fn has(&self, slot: usize) -> bool {
        self.members.iter().any(|member| member.slot == slot)
    }

    /// The sockets that the worker of a slot accepts from if there are so many: its own, and
    /// those of slots beyond them that must not be closed.
    pub(super) fn of_slot(&self, slot: usize, slots: usize) -> impl Iterator<Item = &Member> {
        self.members
            .iter()
            .filter(move |member| self.wants(member, slots) && member.slot % slots.max(1) == slot)
    }

    fn wants(&self, member: &Member, slots: usize) -> bool {
        member.slot < slots || !self.ordered
    }

    /// A socket listens from now on, and is the last of the group.
    pub(super) fn join(&mut self, slot: usize, socket: Arc<OwnedFd>) {
        let place = self.ordered.then_some(self.members.len());
        note(&socket, place);
        if let Err(error) = socket::listen(socket.as_fd(), socket::BACKLOG) {
            tracing::error!(address = %self.bound, slot, %error, "a socket does not listen");
            self.lose_order();
        }
        self.members.push(Member {
            slot,
            socket,
            takes: true,
            retired: None,
        });
    }

    /// The listener is wanted, with so many slots: what is beyond them is retired by this
    /// commit, unless an older one has and no new connection came to it since.
    pub(super) fn settle(&mut self, slots: usize, generation: Generation) {
        self.wanted = true;
        self.open();
        let ordered = self.ordered;
        for member in &mut self.members {
            if member.slot < slots || !ordered {
                member.takes = true;
                member.retired = None;
            } else if std::mem::take(&mut member.takes) {
                member.retired = Some(generation);
            }
        }
        if !self.steer() {
            self.settle(slots, generation);
        }
    }

    /// The listener is gone: all of it is retired.
    pub(super) fn retire(&mut self, generation: Generation) {
        self.wanted = false;
        for member in &mut self.members {
            member.retired.get_or_insert(generation);
        }
    }

    /// What a commit retired is about to be closed: nothing new begins where nobody is left to steer to. So
    /// a connection that comes between the last accept and the close is refused, a second later, and not reset.
    pub(super) fn shut(&mut self, retired: Generation) {
        if self.wanted {
            return;
        }
        self.shut = true;
        let retired = |member: &&Member| member.retired == Some(retired);
        for member in self.members.iter().filter(retired) {
            take_handshakes(member, false);
        }
    }

    /// Takes back what [`Group::shut`] did.
    fn open(&mut self) {
        if std::mem::take(&mut self.shut) {
            for member in &self.members {
                take_handshakes(member, true);
            }
        }
    }

    /// Closes what a commit retired, from the last down: whatever is closed leaves its place to the last.
    pub(super) fn close(&mut self, retired: Generation) {
        let before = self.members.len();
        let mut moved = false;
        for place in (0..self.members.len()).rev() {
            if self.members[place].retired == Some(retired) {
                moved |= place + 1 < self.members.len();
                drop(self.members.swap_remove(place));
            }
        }
        if self.members.len() == before {
            return;
        }
        if moved {
            self.note_places();
        }
        if !self.steer() {
            // Some get connections again that have no worker of their own.
            tracing::warn!(address = %self.bound, "retired sockets may get connections until the next reload");
        }
    }

    /// Tells the kernel who takes new connections. False if it does not obey.
    fn steer(&mut self) -> bool {
        let taking = |(place, member): (usize, &Member)| member.takes.then_some(place);
        let places: Vec<usize> = self.members.iter().enumerate().filter_map(taking).collect();
        let all = places.len() == self.members.len();
        let Some(first) = self.members.first() else {
            return true;
        };
        if all && !self.steered {
            return true;
        }
        let done = match all {
            true => steer::steer_no_more(first.socket.as_fd()),
            false => steer::steer(first.socket.as_fd(), &places),
        };
        self.steered = !all;
        let Err(error) = done else { return true };
        tracing::error!(address = %self.bound, %error, "new connections cannot be steered: no slot's socket is closed");
        self.lose_order();
        all
    }

    fn lose_order(&mut self) {
        self.ordered = false;
        self.note_places();
    }

    fn note_places(&self) {
        for (place, member) in self.members.iter().enumerate() {
            note(&member.socket, self.ordered.then_some(place));
        }
    }
}

fn take_handshakes(member: &Member, takes: bool) {
    if let Err(error) = steer::take_handshakes(member.socket.as_fd(), takes) {
        tracing::warn!(takes, slot = member.slot, %error, "a socket goes on as it was with new handshakes");
    }
}

/// For whoever adopts the socket one day.
fn note(socket: &OwnedFd, place: Option<usize>) {
    if let Err(error) = steer::note_place(socket.as_fd(), place) {
        tracing::warn!(%error, "a socket's place is not noted");
    }
}
