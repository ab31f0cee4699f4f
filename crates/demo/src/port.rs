//! Where the demo's gateway may listen.
//!
//! The answer is true when it is given, not for ever: the gateway binds later,
//! and says so if somebody was faster.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};

/// Ports that are tried, the first one included.
const TRIES: u16 = 100;

/// The first free port from `listen` on, with the same IP address. Port 0
/// stands for any free one.
///
/// # Errors
/// When the address is none of this machine's, the port is a privileged one,
/// or 100 ports in a row are taken.
pub fn free_port(listen: SocketAddr) -> io::Result<SocketAddr> {
    let last = listen.port().saturating_add(TRIES - 1);
    for port in listen.port()..=last {
        match bound(SocketAddr::new(listen.ip(), port)) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            done => return done,
        }
    }
    Err(io::Error::new(
        ErrorKind::AddrInUse,
        format!(
            "ports {} to {last} of {} are all in use",
            listen.port(),
            listen.ip()
        ),
    ))
}

/// Checks the address that a user asked for: no other one will do. Port 0
/// becomes a free one.
///
/// # Errors
/// When it cannot be listened on; the message names the address.
pub fn check_free(listen: SocketAddr) -> io::Result<SocketAddr> {
    bound(listen).map_err(|error| {
        let advice = "choose another --listen, or leave it out for a free port";
        io::Error::new(error.kind(), format!("{error} ({advice})"))
    })
}

fn bound(address: SocketAddr) -> io::Result<SocketAddr> {
    TcpListener::bind(address)
        .and_then(|listener| listener.local_addr())
        .map_err(|error| {
            io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_passed_over_or_refused() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();

        let free = free_port(address).unwrap();
        assert_eq!(free.ip(), address.ip());
        assert!(free.port() > address.port());

        let error = check_free(address).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }

    #[test]
    fn an_address_of_another_machine_is_an_error_at_once() {
        let error = free_port("192.0.2.1:8080".parse().unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
    }
}
