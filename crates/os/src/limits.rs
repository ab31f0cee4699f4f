//! Limits of the process.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit of open descriptors to the hard one, and returns the
/// soft limit now in force. Each tunnel takes two descriptors, and what is over
/// the limit when descriptors are passed is lost (see [`crate::channel`]).
///
/// # Errors
/// Those of getrlimit(2) and setrlimit(2).
pub fn raise_nofile() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// Whether an error is that no descriptor is left: EMFILE for this process, ENFILE for the machine.
#[must_use]
pub fn is_shortage(error: &io::Error) -> bool {
    is_one_of(error, &[libc::EMFILE, libc::ENFILE])
}

/// Whether the kernel may let the same message through a moment later: too many descriptors of this user are in flight (ETOOMANYREFS),
/// or there is no memory for it right now.
#[must_use]
pub fn may_pass(error: &io::Error) -> bool {
    is_one_of(error, &[libc::ETOOMANYREFS, libc::ENOBUFS, libc::ENOMEM])
}

/// Also if it is the cause of the error.
fn is_one_of(error: &io::Error, codes: &[i32]) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        let code = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error);
        if code.is_some_and(|code| codes.contains(&code)) {
            return true;
        }
        next = error.source();
    }
    false
}

/// Descriptors that a worker needs beside those of its tunnels and of listening sockets: the
/// board, log files, pooled connections, a listing's pipe.
const BESIDE: u64 = 256;

/// Of so many connections with a tunnel one more is kept, for a client that has to be told that the gateway is full.
const TUNNELS_FOR_A_REFUSAL: u64 = 15;

/// What the descriptors of one worker are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Tunnels, each with a descriptor for its client and one for its server; at least 1.
    pub tunnels: u64,
    /// Connections beyond them that get an answer; at least 1.
    pub refusals: u64,
}

impl Budget {
    /// Of a worker that may open so many descriptors, and may come to hold so many listening
    /// sockets: those of every slot, if it is the only one left.
    #[must_use]
    pub fn new(descriptors: u64, sockets: u64) -> Self {
        let pairs = descriptors.saturating_sub(BESIDE.saturating_add(sockets)) / 2;
        let refusals = (pairs / (TUNNELS_FOR_A_REFUSAL + 1)).max(1);
        Self {
            tunnels: pairs.saturating_sub(refusals).max(1),
            refusals,
        }
    }

    /// Whether not even the least of it fits.
    #[must_use]
    pub fn is_beyond(descriptors: u64, sockets: u64) -> bool {
        descriptors < Self::descriptors_for(1, sockets)
    }

    /// The descriptors that a worker needs for so many tunnels.
    #[must_use]
    pub fn descriptors_for(tunnels: u64, sockets: u64) -> u64 {
        let refusals = tunnels / TUNNELS_FOR_A_REFUSAL + 1;
        let pairs = tunnels.saturating_add(refusals);
        pairs.saturating_mul(2).saturating_add(BESIDE + sockets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{helper, passes};

    #[test]
    fn a_shortage_is_one_whatever_was_being_done() {
        let plain = io::Error::from_raw_os_error(libc::EMFILE);
        assert!(is_shortage(&plain));
        let told = crate::context(crate::context(plain, "opening it"), "here");
        assert!(is_shortage(&told));
        assert_eq!(
            told.to_string(),
            "here: opening it: Too many open files (os error 24)"
        );
        let other = io::Error::from_raw_os_error(libc::ENOSPC);
        assert!(!is_shortage(&crate::context(other, "here")));
    }

    #[test]
    fn two_descriptors_a_tunnel_and_some_beside_are_budgeted() {
        let budget = Budget::new(20_000, 4);
        assert_eq!((budget.tunnels, budget.refusals), (9_254, 616));
        let least = Budget {
            tunnels: 1,
            refusals: 1,
        };
        assert_eq!(Budget::new(64, 4), least);
        assert_eq!(Budget::new(264, 4), least);
        assert!(Budget::is_beyond(263, 4) && !Budget::is_beyond(264, 4));
        assert_eq!(Budget::new(0, u64::MAX), least);
    }

    #[test]
    fn the_descriptors_for_so_many_tunnels_hold_them() {
        for tunnels in (1..5_000).chain([100_000, 10_000_000]) {
            let descriptors = Budget::descriptors_for(tunnels, 7);
            assert!(Budget::new(descriptors, 7).tunnels >= tunnels);
            assert!(
                Budget::new(descriptors - 6, 7).tunnels <= tunnels,
                "{tunnels}"
            );
        }
    }

    #[test]
    fn the_soft_limit_of_descriptors_becomes_the_hard_one() {
        passes(&mut helper("limits::tests::helper_raises"));
    }

    #[test]
    #[ignore = "run by the_soft_limit_of_descriptors_becomes_the_hard_one"]
    fn helper_raises() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 64, hard).unwrap();
        assert_eq!(raise_nofile().unwrap(), hard);
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
        assert_eq!(raise_nofile().unwrap(), hard);
    }
}
