//! The listening sockets: one for each slot and TCP listener, one for each Unix listener.
//!
//! They are bound when a configuration is validated and listen at the commit, not
//! before: a listening SO_REUSEPORT socket gets connections at once. They are closed
//! only when no slot or listener wants them, never because a worker died.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use wsgate_config::{Config, ListenAddress};
use wsgate_os::socket::{self, UnixBound};
use wsgate_protocol::control::SocketSpec;

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
    /// By slot. Port 0 has become a real port in `bound`.
    Tcp {
        bound: SocketAddr,
        slots: Vec<Arc<OwnedFd>>,
    },
    Unix {
        bound: UnixBound,
        socket: Arc<OwnedFd>,
    },
}

/// All sockets of the gateway.
#[derive(Default)]
pub(crate) struct Sockets {
    listeners: BTreeMap<ListenAddress, Behind>,
}

/// Sockets that a candidate wants and the active generation does not have. Dropped,
/// they are closed again.
#[derive(Default)]
pub(crate) struct Staged {
    listeners: BTreeMap<ListenAddress, Behind>,
    /// Further slots of listeners that exist.
    slots: Vec<(ListenAddress, Arc<OwnedFd>)>,
}

impl Sockets {
    /// Binds what `config` wants beyond what is there. Nothing listens yet.
    pub(crate) fn stage(&self, config: &Config) -> Result<Staged, Error> {
        let mut staged = Staged::default();
        for listener in &config.listeners {
            let address = &listener.address;
            let failed = |source| Error::new(address, source);
            match self.listeners.get(address) {
                None => {
                    let probe = !self.overlaps(address);
                    let behind = bind(address, config.workers, probe).map_err(failed)?;
                    staged.listeners.insert(address.clone(), behind);
                }
                Some(Behind::Tcp { bound, slots }) => {
                    for _ in slots.len()..config.workers {
                        let socket = Arc::new(socket::bind_reuseport(*bound).map_err(failed)?);
                        staged.slots.push((address.clone(), socket));
                    }
                }
                Some(Behind::Unix { .. }) => {}
            }
        }
        Ok(staged)
    }

    /// How many descriptors there are once `config` is added to what is there.
    pub(crate) fn count_with(&self, config: &Config) -> u64 {
        let mut slots: BTreeMap<&ListenAddress, usize> = BTreeMap::new();
        for (address, behind) in &self.listeners {
            slots.insert(address, behind.all().count());
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

    /// Whether a listener of ours has the same port by a wildcard address, or the other way
    /// round: the two may stand beside each other until the commit lets go of the old one.
    fn overlaps(&self, address: &ListenAddress) -> bool {
        let ListenAddress::Tcp(wanted) = address else {
            return false;
        };
        self.listeners.values().any(|behind| match behind {
            Behind::Tcp { bound, .. } => {
                let wildcard = wanted.ip().is_unspecified() || bound.ip().is_unspecified();
                bound.port() == wanted.port() && bound.is_ipv4() == wanted.is_ipv4() && wildcard
            }
            Behind::Unix { .. } => false,
        })
    }

    /// Takes the staged sockets over and lets them listen; lets go of listeners that
    /// `config` has not. Failures are logged: a commit does not roll back.
    pub(crate) fn commit(&mut self, staged: &mut Staged, config: &Config) {
        for (address, socket) in staged.slots.drain(..) {
            if let Some(Behind::Tcp { slots, .. }) = self.listeners.get_mut(&address) {
                slots.push(socket);
            }
        }
        self.listeners.append(&mut staged.listeners);
        self.listeners.retain(|address, _| {
            config
                .listeners
                .iter()
                .any(|listener| listener.address == *address)
        });
        for (address, behind) in &self.listeners {
            for socket in behind.all() {
                if let Err(error) = socket::listen(socket.as_fd(), socket::BACKLOG) {
                    tracing::error!(%address, %error, "a socket does not listen");
                }
            }
        }
    }

    /// What a worker in `slot` gets, staged sockets included.
    pub(crate) fn of_slot(
        &self,
        staged: Option<&Staged>,
        config: &Config,
        slot: usize,
    ) -> Vec<(SocketSpec, Arc<OwnedFd>)> {
        let mut found = Vec::new();
        for listener in &config.listeners {
            let address = &listener.address;
            let new = staged.and_then(|staged| staged.listeners.get(address));
            let socket = match self.listeners.get(address).or(new) {
                Some(Behind::Tcp { slots, .. }) => {
                    let further = staged.into_iter().flat_map(|staged| staged.slots.iter());
                    let further = further
                        .filter(|(of, _)| of == address)
                        .map(|(_, socket)| socket);
                    slots
                        .iter()
                        .chain(further)
                        .nth(slot)
                        .cloned()
                        .map(|socket| (Some(slot), socket))
                }
                Some(Behind::Unix { socket, .. }) => Some((None, socket.clone())),
                None => None,
            };
            found.extend(socket.map(|(slot, socket)| {
                (
                    SocketSpec {
                        listener: address.to_string(),
                        slot,
                    },
                    socket,
                )
            }));
        }
        found
    }

    /// The address that a listener is bound to, and how many sockets are behind it.
    pub(crate) fn bound(&self, address: &ListenAddress) -> Option<(String, usize)> {
        self.listeners.get(address).map(|behind| match behind {
            Behind::Tcp { bound, slots } => (bound.to_string(), slots.len()),
            Behind::Unix { .. } => (address.to_string(), 1),
        })
    }
}

impl Behind {
    fn all(&self) -> impl Iterator<Item = &Arc<OwnedFd>> {
        match self {
            Self::Tcp { slots, .. } => slots.iter(),
            Self::Unix { socket, .. } => std::slice::from_ref(socket).iter(),
        }
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        if let Self::Unix { bound, .. } = self
            && let Err(error) = bound.unlink()
        {
            tracing::warn!(path = %bound.path().display(), %error, "socket file not removed");
        }
    }
}

fn bind(address: &ListenAddress, slots: usize, probe: bool) -> io::Result<Behind> {
    match address {
        ListenAddress::Tcp(address) => {
            // Two wsgates of one user could otherwise share the port silently.
            if probe {
                socket::probe(*address)?;
            }
            let first = socket::bind_reuseport(*address)?;
            let bound = socket::local_addr(first.as_fd())?;
            let mut sockets = vec![Arc::new(first)];
            for _ in 1..slots {
                sockets.push(Arc::new(socket::bind_reuseport(bound)?));
            }
            Ok(Behind::Tcp {
                bound,
                slots: sockets,
            })
        }
        ListenAddress::Unix(path) => {
            let bound = socket::bind_unix(path, UNIX_MODE)?;
            let socket = Arc::new(bound.as_fd().try_clone_to_owned()?);
            Ok(Behind::Unix { bound, socket })
        }
    }
}
