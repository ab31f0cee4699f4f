//! What the supervisor tells systemd (sd_notify(3)). Without NOTIFY_SOCKET all
//! of it does nothing. Workers never call it: they do not inherit the variable.

use std::io;
use std::time::Duration;

use sd_notify::{NotifyState, notify};

/// The gateway serves; also the end of a reload.
///
/// # Errors
/// Those of connect(2) and send(2), as for all functions here.
pub fn ready(status: &str) -> io::Result<()> {
    notify(&[NotifyState::Ready, NotifyState::Status(&one_line(status))])
}

/// A reload begins; [`ready`] ends it, whether it went well or not.
///
/// # Errors
/// As [`ready`].
pub fn reloading() -> io::Result<()> {
    notify(&[NotifyState::Reloading, NotifyState::monotonic_usec_now()?])
}

/// The gateway stops.
///
/// # Errors
/// As [`ready`].
pub fn stopping() -> io::Result<()> {
    notify(&[NotifyState::Stopping])
}

/// What `systemctl status` shows.
///
/// # Errors
/// As [`ready`].
pub fn status(text: &str) -> io::Result<()> {
    notify(&[NotifyState::Status(&one_line(text))])
}

/// Asks for this much time from now on, while starting, reloading or stopping;
/// 71 minutes at most.
///
/// # Errors
/// As [`ready`].
pub fn extend_timeout(time: Duration) -> io::Result<()> {
    let microseconds = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    notify(&[NotifyState::ExtendTimeoutUsec(microseconds)])
}

/// Within which time systemd wants to hear [`watchdog`] (ask half of it);
/// `None` if it does not watch this process.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// The gateway is alive.
///
/// # Errors
/// As [`ready`].
pub fn watchdog() -> io::Result<()> {
    notify(&[NotifyState::Watchdog])
}

/// Each line of a notification is a variable of its own.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;
    use crate::testing::{helper, passes};

    #[test]
    fn systemd_hears_each_word() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let environment = [("NOTIFY_SOCKET", path.as_os_str())];
        passes(
            helper("systemd::tests::helper_speaks")
                .envs(environment)
                .env("WATCHDOG_USEC", "30000000"),
        );
        socket.set_nonblocking(true).unwrap();
        let hear = || {
            let mut bytes = [0; 1000];
            let length = socket.recv(&mut bytes).unwrap();
            String::from_utf8(bytes[..length].to_vec()).unwrap()
        };
        assert_eq!(hear(), "READY=1\nSTATUS=2 workers\n");
        let reloading = hear();
        let time = reloading
            .strip_prefix("RELOADING=1\nMONOTONIC_USEC=")
            .unwrap();
        assert!(time.trim().parse::<u64>().unwrap() > 0);
        assert_eq!(hear(), "STATUS=a MAINPID=1\n");
        assert_eq!(hear(), "EXTEND_TIMEOUT_USEC=1500000\n");
        assert_eq!(hear(), "EXTEND_TIMEOUT_USEC=4294967295\n");
        assert_eq!(hear(), "WATCHDOG=1\n");
        assert_eq!(hear(), "STOPPING=1\n");
    }

    #[test]
    #[ignore = "run by systemd_hears_each_word"]
    fn helper_speaks() {
        ready("2 workers").unwrap();
        reloading().unwrap();
        status("a\nMAINPID=1").unwrap();
        extend_timeout(Duration::from_millis(1500)).unwrap();
        extend_timeout(Duration::MAX).unwrap();
        watchdog().unwrap();
        stopping().unwrap();
        assert_eq!(watchdog_interval(), Some(Duration::from_secs(30)));
    }

    #[test]
    fn without_systemd_nothing_happens() {
        passes(
            helper("systemd::tests::helper_alone")
                .env_remove("NOTIFY_SOCKET")
                .env_remove("WATCHDOG_USEC"),
        );
    }

    #[test]
    #[ignore = "run by without_systemd_nothing_happens"]
    fn helper_alone() {
        ready("x").unwrap();
        reloading().unwrap();
        stopping().unwrap();
        assert_eq!(watchdog_interval(), None);
    }

    #[test]
    fn a_socket_that_is_gone_is_an_error() {
        passes(helper("systemd::tests::helper_fails").env("NOTIFY_SOCKET", "/nonexistent"));
    }

    #[test]
    #[ignore = "run by a_socket_that_is_gone_is_an_error"]
    fn helper_fails() {
        assert!(ready("x").is_err());
    }
}
