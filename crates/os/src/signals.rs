//! Signals: the supervisor hears them with their sender, workers ignore them.

use std::io;
use std::thread;

use nix::sys::signal::{SigHandler, Signal, signal};
use signal_hook::consts::{
    FORBIDDEN, SIGALRM, SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2,
};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::low_level::signal_name;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::context;

/// What a worker ignores: it obeys its control channel, though Ctrl-C and a
/// cgroup's kill reach it too.
pub const IGNORED_BY_WORKERS: &[i32] = &[
    SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM, SIGPIPE,
];

/// A signal, and who sent it as far as the kernel tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its number.
    pub signal: i32,
    /// The sender's process; `None` if the kernel sent it (Ctrl-C) or the sender
    /// is outside of our pid namespace.
    pub pid: Option<u32>,
    /// The sender's real user; `None` if the kernel sent it.
    pub uid: Option<u32>,
}

/// Hears these signals from now on, on a small thread of its own, in place of
/// what they would do to the process. Signals that come faster than they are read may be merged.
///
/// # Errors
/// `InvalidInput` for signals that cannot be heard (SIGKILL, SIGSTOP, SIGSEGV,
/// SIGILL, SIGFPE); else those of sigaction(2), socketpair(2) and clone(2).
pub fn listen(which: &[i32]) -> io::Result<UnboundedReceiver<Received>> {
    // signal-hook would panic.
    if let Some(signal) = which.iter().find(|signal| FORBIDDEN.contains(signal)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} cannot be handled", name(*signal)),
        ));
    }
    let mut signals = SignalsInfo::<WithOrigin>::new(which)?;
    let (sender, receiver) = unbounded_channel();
    thread::Builder::new()
        .name("wsgate-signals".to_owned())
        .spawn(move || {
            for origin in signals.forever() {
                let received = Received {
                    signal: origin.signal,
                    pid: origin
                        .process
                        .and_then(|process| u32::try_from(process.pid).ok())
                        .filter(|pid| *pid != 0),
                    uid: origin.process.map(|process| process.uid),
                };
                if sender.send(received).is_err() {
                    return;
                }
            }
        })?;
    Ok(receiver)
}

/// Ignores these signals from now on; see [`IGNORED_BY_WORKERS`]. It outlives an exec.
///
/// # Errors
/// `InvalidInput` for numbers that are no signal, SIGKILL and SIGSTOP.
pub fn ignore(which: &[i32]) -> io::Result<()> {
    for number in which {
        let ignored = Signal::try_from(*number).and_then(|known| {
            // SAFETY: no handler is installed that could run anything.
            unsafe { signal(known, SigHandler::SigIgn) }
        });
        ignored
            .map_err(|errno| context(errno.into(), format_args!("ignoring {}", name(*number))))?;
    }
    Ok(())
}

/// What people call a signal: `SIGTERM`.
pub fn name(signal: i32) -> &'static str {
    signal_name(signal).unwrap_or("unknown signal")
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::kill;
    use nix::unistd::{Pid, getuid};

    use super::*;
    use crate::testing::{helper, passes, runtime};

    #[test]
    fn a_signal_is_heard_with_its_sender() {
        passes(&mut helper("signals::tests::helper_hears"));
    }

    #[test]
    #[ignore = "run by a_signal_is_heard_with_its_sender"]
    fn helper_hears() {
        let mut heard = listen(&[SIGUSR1, SIGTERM]).unwrap();
        for signal in [Signal::SIGUSR1, Signal::SIGTERM] {
            kill(Pid::this(), signal).unwrap();
            let received = runtime().block_on(heard.recv()).unwrap();
            let expected = Received {
                signal: signal as i32,
                pid: Some(std::process::id()),
                uid: Some(getuid().as_raw()),
            };
            assert_eq!(received, expected);
        }
    }

    #[test]
    fn what_workers_ignore_does_not_end_them() {
        passes(&mut helper("signals::tests::helper_ignores"));
    }

    #[test]
    #[ignore = "run by what_workers_ignore_does_not_end_them"]
    fn helper_ignores() {
        ignore(IGNORED_BY_WORKERS).unwrap();
        for number in IGNORED_BY_WORKERS {
            kill(Pid::this(), Signal::try_from(*number).unwrap()).unwrap();
        }
    }

    #[test]
    fn signals_that_nobody_can_handle_are_refused() {
        for signal in [libc::SIGKILL, libc::SIGSEGV] {
            let error = listen(&[SIGHUP, signal]).unwrap_err();
            assert!(error.to_string().contains(name(signal)), "{error}");
        }
        assert!(ignore(&[libc::SIGKILL]).is_err());
        assert!(ignore(&[0]).is_err());
    }

    #[test]
    fn signals_have_names() {
        assert_eq!(name(libc::SIGKILL), "SIGKILL");
        assert_eq!(name(63), "unknown signal");
    }
}
