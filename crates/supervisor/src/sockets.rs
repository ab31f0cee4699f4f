//! The listening sockets: one for each slot and TCP listener, one for each Unix listener.
//!
//! They are bound when a configuration is validated and listen at the commit, not
//! before: a listening SO_REUSEPORT socket gets connections at once. They are never closed
//! because a worker died. What no slot or listener wants any more is retired by the commit:
//! new connections are steered away from it where there is another socket, a worker
//! serves it on, and lifecycle says when it is closed ([`wsgate_lifecycle::Retired`]). A
//! configuration that wants it again until then takes it back as it is.

mod adopted;
mod group;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use wsgate_config::{Config, ListenAddress};
use wsgate_lifecycle::Generation;
use wsgate_os::socket::{self, UnixBound};
use wsgate_protocol::control::SocketSpec;

pub(crate) use adopted::Returned;
use group::Group;

/// File mode of a Unix listener: whoever may enter its directory may connect.
const UNIX_MODE: u32 = 0o666;

/// A listener's address cannot be had; the kernel's answer names it.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {reason}{hint}", reason = reason(address, source), hint = hint(source))]
pub struct Error {
    address: String,
    source: io::Error,
}

impl Error {
    pub(crate) fn new(address: impl ToString, source: io::Error) -> Self {
        let address = address.to_string();
        Self { address, source }
    }
}

/// The kernel's answer, without the address that stands before it already.
fn reason(address: &str, source: &io::Error) -> String {
    let text = source.to_string();
    let path = address.strip_prefix("unix:").unwrap_or(address);
    let named = [format!("binding {address}: "), format!("{path}: ")];
    let short = named
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix.as_str()));
    short.unwrap_or(&text).to_owned()
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            " (another program, or another wsgate, listens there: stop it or choose another address)"
        }
        io::ErrorKind::PermissionDenied => {
            " (ports below 1024 need CAP_NET_BIND_SERVICE; a path needs a directory that wsgate may write to)"
        }
        io::ErrorKind::AddrNotAvailable => " (no interface of this machine has the address)",
        _ => "",
    }
}

/// The sockets behind one listener.
enum Behind {
    Tcp(Group),
    Unix(Unix),
}

/// One socket for all slots. Its file goes with it.
struct Unix {
    bound: UnixBound,
    socket: Arc<OwnedFd>,
    /// The generation whose commit left it without a listener.
    retired: Option<Generation>,
    /// Its file is gone: nobody finds it any more.
    shut: bool,
}

/// A socket as a worker gets it.
type Named = (SocketSpec, Arc<OwnedFd>);

/// All sockets of the gateway.
#[derive(Default)]
pub(crate) struct Sockets {
    listeners: BTreeMap<ListenAddress, Behind>,
}

/// Sockets that a candidate wants and that are not there. Dropped, they are closed again.
#[derive(Default)]
pub(crate) struct Staged {
    /// Where listeners are bound that are new.
    bound: BTreeMap<ListenAddress, SocketAddr>,
    /// Slots, in ascending order for each listener.
    slots: Vec<(ListenAddress, usize, Arc<OwnedFd>)>,
    unix: BTreeMap<ListenAddress, Unix>,
}

impl Staged {
    fn has(&self, address: &ListenAddress) -> bool {
        self.bound.contains_key(address) || self.unix.contains_key(address)
    }
}

/// How many sockets a listener has.
pub(crate) struct Counts {
    /// As bound.
    pub(crate) bound: String,
    pub(crate) in_use: usize,
    /// They are closed when their time is over.
    pub(crate) retired: usize,
}

impl Sockets {
    /// Binds what `config` wants beyond what is there. Nothing listens yet.
    pub(crate) fn stage(&self, config: &Config) -> Result<Staged, Error> {
        let mut staged = Staged::default();
        for listener in &config.listeners {
            let address = &listener.address;
            self.stage_one(address, config.workers, &mut staged)
                .map_err(|source| Error::new(address, source))?;
        }
        Ok(staged)
    }

    /// Whether [`Sockets::stage`] would have its way. Nothing stays of the trial, and what a candidate has bound is
    /// left alone.
    pub(crate) fn try_stage(
        &self,
        config: &Config,
        candidate: Option<&Staged>,
    ) -> Result<(), Error> {
        for listener in &config.listeners {
            let address = &listener.address;
            let tried = match address {
                _ if candidate.is_some_and(|staged| staged.has(address)) => Ok(()),
                ListenAddress::Tcp(_) => {
                    self.stage_one(address, config.workers, &mut Staged::default())
                }
                ListenAddress::Unix(path) => match self.listeners.get(address) {
                    Some(Behind::Unix(unix)) if !unix.shut => Ok(()),
                    _ => socket::probe_unix(path),
                },
            };
            tried.map_err(|source| Error::new(address, source))?;
        }
        Ok(())
    }

    /// How many descriptors there are once `config` is added to what is there.
    pub(crate) fn count_with(&self, config: &Config) -> u64 {
        let mut slots: BTreeMap<&ListenAddress, usize> = BTreeMap::new();
        for (address, behind) in &self.listeners {
            slots.insert(address, behind.count());
        }
        for listener in &config.listeners {
            let wanted = match &listener.address {
                ListenAddress::Tcp(_) => config.workers,
                ListenAddress::Unix(_) => 1,
            };
            let there = slots.entry(&listener.address).or_default();
            *there = wanted.max(*there);
        }
        // A Unix socket has one more, to find its file again.
        let twice = |address: &&ListenAddress| matches!(address, ListenAddress::Unix(_));
        let more = slots.keys().copied().filter(twice).count();
        (slots.values().sum::<usize>() + more) as u64
    }

    fn stage_one(
        &self,
        address: &ListenAddress,
        slots: usize,
        staged: &mut Staged,
    ) -> io::Result<()> {
        match (address, self.listeners.get(address)) {
            (_, Some(Behind::Unix(unix))) if !unix.shut => {}
            (_, Some(Behind::Tcp(group))) => {
                for slot in (0..slots).filter(|slot| !group.has(*slot)) {
                    let socket = Arc::new(socket::bind_reuseport(group.bound)?);
                    staged.slots.push((address.clone(), slot, socket));
                }
            }
            (ListenAddress::Tcp(wanted), _) => {
                // Two wsgates of one user could otherwise share the port silently.
                if !self.overlaps(wanted) {
                    socket::probe(*wanted)?;
                }
                let mut at = *wanted;
                for slot in 0..slots {
                    let socket = socket::bind_reuseport(at)?;
                    at = socket::local_addr(socket.as_fd())?;
                    staged.slots.push((address.clone(), slot, Arc::new(socket)));
                }
                staged.bound.insert(address.clone(), at);
            }
            (ListenAddress::Unix(path), _) => {
                let bound = socket::bind_unix(path, UNIX_MODE)?;
                staged.unix.insert(address.clone(), Unix::new(bound)?);
            }
        }
        Ok(())
    }

    /// Whether a listener of ours, retired ones included, has the same port by a wildcard address, or
    /// the other way round: the two may stand beside each other until the old one is closed.
    fn overlaps(&self, wanted: &SocketAddr) -> bool {
        self.listeners.values().any(|behind| match behind {
            Behind::Tcp(Group { bound, .. }) => {
                let wildcard = wanted.ip().is_unspecified() || bound.ip().is_unspecified();
                bound.port() == wanted.port() && bound.is_ipv4() == wanted.is_ipv4() && wildcard
            }
            Behind::Unix(_) => false,
        })
    }

    /// Takes the staged sockets over and lets them listen, in the order of their slots; retires what `config`
    /// has not. Failures are logged: a commit does not roll back.
    pub(crate) fn commit(&mut self, staged: &mut Staged, config: &Config, generation: Generation) {
        let new = std::mem::take(staged);
        for (address, bound) in new.bound {
            let group = Behind::Tcp(Group::new(bound));
            self.listeners.insert(address, group);
        }
        for (address, slot, socket) in new.slots {
            if let Some(Behind::Tcp(group)) = self.listeners.get_mut(&address) {
                group.join(slot, socket);
            }
        }
        for (address, unix) in new.unix {
            if let Err(error) = socket::listen(unix.socket.as_fd(), socket::BACKLOG) {
                tracing::error!(%address, %error, "a socket does not listen");
            }
            self.listeners.insert(address, Behind::Unix(unix));
        }
        for (address, behind) in &mut self.listeners {
            let wanted = is_configured(address, config) || is_covered(behind, config);
            match behind {
                Behind::Tcp(group) if wanted => group.settle(config.workers, generation),
                Behind::Tcp(group) => group.retire(generation),
                Behind::Unix(unix) if wanted => unix.retired = None,
                Behind::Unix(unix) => _ = unix.retired.get_or_insert(generation),
            }
        }
    }

    /// What the worker of a slot accepts from, staged sockets included.
    pub(crate) fn of_slot(
        &self,
        staged: Option<&Staged>,
        config: &Config,
        slot: usize,
    ) -> Vec<Named> {
        let mut found = Vec::new();
        for listener in &config.listeners {
            let address = &listener.address;
            let unix = staged.and_then(|staged| staged.unix.get(address));
            match self.listeners.get(address) {
                Some(Behind::Tcp(group)) => {
                    let members = group.of_slot(slot, config.workers);
                    found.extend(
                        members.map(|member| named(address, Some(member.slot), &member.socket)),
                    );
                }
                // One that is staged in place of one that is shut.
                there => {
                    let there = there.and_then(Behind::unix);
                    let unix = unix.or(there);
                    found.extend(unix.map(|unix| named(address, None, &unix.socket)));
                }
            }
            let further = staged.into_iter().flat_map(|staged| &staged.slots);
            let further = further.filter(|(of, number, _)| of == address && *number == slot);
            found.extend(further.map(|(_, slot, socket)| named(address, Some(*slot), socket)));
        }
        for (address, behind) in &self.listeners {
            if let Behind::Tcp(group) = behind
                && !is_configured(address, config)
                && is_covered(behind, config)
            {
                let members = group.of_slot(slot, config.workers);
                found.extend(
                    members.map(|member| named(address, Some(member.slot), &member.socket)),
                );
            }
        }
        found
    }

    /// What a commit retired and is not closed or taken back.
    pub(crate) fn retired_by(&self, generation: Generation) -> Vec<Named> {
        let mut found = Vec::new();
        for (address, behind) in &self.listeners {
            match behind {
                Behind::Tcp(group) => {
                    let members = group.members().iter();
                    let members = members.filter(|member| member.retired == Some(generation));
                    found.extend(
                        members.map(|member| named(address, Some(member.slot), &member.socket)),
                    );
                }
                Behind::Unix(unix) if unix.retired == Some(generation) => {
                    found.push(named(address, None, &unix.socket));
                }
                Behind::Unix(_) => {}
            }
        }
        found
    }

    /// What a commit retired is about to be let go.
    pub(crate) fn shut(&mut self, generation: Generation) {
        for behind in self.listeners.values_mut() {
            match behind {
                Behind::Tcp(group) => group.shut(generation),
                Behind::Unix(unix) if unix.retired == Some(generation) => {
                    unix.shut = true;
                    unix.unlink();
                }
                Behind::Unix(_) => {}
            }
        }
    }

    /// Closes what a commit retired. No worker has it any more.
    pub(crate) fn close(&mut self, generation: Generation) {
        self.listeners.retain(|_, behind| match behind {
            Behind::Tcp(group) => {
                group.close(generation);
                !group.is_empty()
            }
            Behind::Unix(unix) => unix.retired != Some(generation),
        });
    }

    /// The sockets of a listener.
    pub(crate) fn counts(&self, address: &ListenAddress) -> Option<Counts> {
        self.listeners
            .get(address)
            .map(|behind| behind.counts(address))
    }

    /// Listeners that are not in the configuration any more and are not closed.
    pub(crate) fn removed(&self, config: &Config) -> Vec<(String, Counts)> {
        let removed = self.listeners.iter();
        let removed = removed.filter(|(address, _)| !is_configured(address, config));
        removed
            .map(|(address, behind)| (address.to_string(), behind.counts(address)))
            .collect()
    }
}

fn is_configured(address: &ListenAddress, config: &Config) -> bool {
    let mut listeners = config.listeners.iter();
    listeners.any(|listener| listener.address == *address)
}

/// Whether a wildcard of the configuration means these sockets' address too. Connections to it come to them as
/// long as they are there, for theirs is the better match: closing them would reset clients who are wanted.
fn is_covered(behind: &Behind, config: &Config) -> bool {
    let Behind::Tcp(Group { bound, .. }) = behind else {
        return false;
    };
    config
        .listeners
        .iter()
        .any(|listener| match listener.address {
            ListenAddress::Tcp(wildcard) => {
                wildcard.ip().is_unspecified()
                    && wildcard.is_ipv4() == bound.is_ipv4()
                    && wildcard.port() == bound.port()
            }
            ListenAddress::Unix(_) => false,
        })
}

fn named(address: &ListenAddress, slot: Option<usize>, socket: &Arc<OwnedFd>) -> Named {
    let listener = address.to_string();
    (SocketSpec { listener, slot }, Arc::clone(socket))
}

impl Behind {
    fn unix(&self) -> Option<&Unix> {
        match self {
            Self::Tcp(_) => None,
            Self::Unix(unix) => Some(unix),
        }
    }

    fn count(&self) -> usize {
        match self {
            Self::Tcp(group) => group.members().len(),
            Self::Unix(_) => 1,
        }
    }

    fn counts(&self, address: &ListenAddress) -> Counts {
        let (bound, all, retired) = match self {
            Self::Tcp(group) => {
                let members = group.members();
                let retired = members.iter().filter(|member| member.retired.is_some());
                (group.bound.to_string(), members.len(), retired.count())
            }
            Self::Unix(unix) => (address.to_string(), 1, usize::from(unix.retired.is_some())),
        };
        Counts {
            bound,
            in_use: all - retired,
            retired,
        }
    }
}

impl Unix {
    fn new(bound: UnixBound) -> io::Result<Self> {
        Ok(Self {
            socket: Arc::new(bound.as_fd().try_clone_to_owned()?),
            bound,
            retired: None,
            shut: false,
        })
    }

    /// Nobody connects to it any more; those who have may be accepted still.
    fn unlink(&self) {
        if let Err(error) = self.bound.unlink() {
            tracing::warn!(path = %self.bound.path().display(), %error, "socket file not removed");
        }
    }
}

impl Drop for Unix {
    fn drop(&mut self) {
        // A panic is a crash: workers serve on, and their clients have to find them.
        if std::thread::panicking() {
            return;
        }
        self.unlink();
    }
}

#[cfg(test)]
mod tests;
