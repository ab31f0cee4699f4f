use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::Stdio;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

use super::*;
use crate::testing::{helper, passes};

fn localhost() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn kind<T: std::fmt::Debug>(result: io::Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

#[test]
fn a_bound_socket_refuses_connects_until_it_listens() {
    let fd = bind_reuseport(localhost()).unwrap();
    let addr = local_addr(fd.as_fd()).unwrap();
    assert_eq!(kind(TcpStream::connect(addr)), ErrorKind::ConnectionRefused);
    listen(fd.as_fd(), BACKLOG).unwrap();
    TcpStream::connect(addr).unwrap();
    listen(fd.as_fd(), BACKLOG).unwrap();
    TcpStream::connect(addr).unwrap();
}

#[test]
fn sockets_are_born_non_blocking_and_close_on_exec() {
    let dir = tempfile::tempdir().unwrap();
    let tcp = bind_reuseport(localhost()).unwrap();
    let unix = bind_unix(&dir.path().join("s"), 0o600).unwrap().into();
    for fd in [tcp, unix] {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL).unwrap());
        assert!(flags.contains(OFlag::O_NONBLOCK));
        let flags = FdFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFD).unwrap());
        assert!(flags.contains(FdFlag::FD_CLOEXEC));
    }
}

#[test]
fn what_is_accepted_has_no_delay_and_is_kept_alive_by_the_listening_socket() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let Ok(fd) = bind_reuseport(address.parse().unwrap()) else {
            // A machine without IPv6 has nothing to show here.
            assert!(address.starts_with('[') && !has_ipv6());
            continue;
        };
        listen(fd.as_fd(), BACKLOG).unwrap();
        let listener = TcpListener::from(fd);
        listener.set_nonblocking(false).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let accepted = SockRef::from(&accepted);
        assert!(accepted.tcp_nodelay().unwrap() && accepted.keepalive().unwrap());
    }
}

fn has_ipv6() -> bool {
    std::path::Path::new("/proc/net/if_inet6").exists()
}

#[test]
fn several_slots_bind_one_address() {
    let first = bind_reuseport(localhost()).unwrap();
    let addr = local_addr(first.as_fd()).unwrap();
    let second = bind_reuseport(addr).unwrap();
    listen(first.as_fd(), BACKLOG).unwrap();
    let third = bind_reuseport(addr).unwrap();
    listen(second.as_fd(), BACKLOG).unwrap();
    listen(third.as_fd(), BACKLOG).unwrap();
}

#[test]
fn a_probe_sees_whoever_listens_even_with_reuseport() {
    let plain = TcpListener::bind(localhost()).unwrap();
    assert_eq!(
        kind(probe(plain.local_addr().unwrap())),
        ErrorKind::AddrInUse
    );

    let gateway = bind_reuseport(localhost()).unwrap();
    let addr = local_addr(gateway.as_fd()).unwrap();
    listen(gateway.as_fd(), BACKLOG).unwrap();
    let error = probe(addr).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&addr.to_string()), "{error}");
    drop(gateway);
    probe(addr).unwrap();
    // It left nothing behind.
    probe(addr).unwrap();
    TcpListener::bind(addr).unwrap();
}

#[test]
fn connections_in_time_wait_do_not_refuse_a_restart() {
    let fd = bind_reuseport(localhost()).unwrap();
    listen(fd.as_fd(), BACKLOG).unwrap();
    let addr = local_addr(fd.as_fd()).unwrap();
    let listener = TcpListener::from(fd);
    listener.set_nonblocking(false).unwrap();
    let mut client = TcpStream::connect(addr).unwrap();
    // The server closes first, and so keeps the connection in TIME_WAIT.
    drop(listener.accept().unwrap());
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    drop((client, listener));
    probe(addr).unwrap();
    bind_reuseport(addr).unwrap();
}

#[test]
fn the_wildcards_of_both_protocols_are_two_listeners() {
    let Ok(six) = bind_reuseport("[::]:0".parse().unwrap()) else {
        // A machine without IPv6 has nothing to show here.
        assert!(!has_ipv6());
        return;
    };
    listen(six.as_fd(), BACKLOG).unwrap();
    let port = local_addr(six.as_fd()).unwrap().port();
    let four = SocketAddr::from(([0, 0, 0, 0], port));
    probe(four).unwrap();
    listen(bind_reuseport(four).unwrap().as_fd(), BACKLOG).unwrap();
}

#[test]
fn queued_connections_outlive_a_process_that_held_the_socket() {
    let fd = bind_reuseport(localhost()).unwrap();
    listen(fd.as_fd(), BACKLOG).unwrap();
    let mut client = TcpStream::connect(local_addr(fd.as_fd()).unwrap()).unwrap();
    client.write_all(b"early").unwrap();
    // A process that has the same socket ends without accepting.
    let held = Stdio::from(fd.try_clone().unwrap());
    passes(helper("socket::tests::helper_holds_a_socket_and_ends").stdin(held));
    // So does a descriptor in this one.
    drop(fd.try_clone().unwrap());

    let listener = TcpListener::from(fd);
    listener.set_nonblocking(false).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let mut bytes = [0; 5];
    server.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"early");
}

#[test]
#[ignore = "run by queued_connections_outlive_a_process_that_held_the_socket"]
fn helper_holds_a_socket_and_ends() {
    local_addr(io::stdin().as_fd()).unwrap();
}

#[test]
fn a_unix_socket_refuses_connects_until_it_listens_and_has_its_mode() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let bound = bind_unix(&path, 0o666).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o666);
    assert_eq!(
        kind(UnixStream::connect(&path)),
        ErrorKind::ConnectionRefused
    );
    listen(bound.as_fd(), BACKLOG).unwrap();
    UnixStream::connect(&path).unwrap();
}

#[test]
fn a_stale_unix_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    let bound = bind_unix(&path, 0o600).unwrap();
    listen(bound.as_fd(), 0).unwrap();
    // Its queue fills with what nobody accepts, and it is alive all the same.
    for _ in 0..4 {
        assert_eq!(kind(bind_unix(&path, 0o600)), ErrorKind::AddrInUse);
    }
    drop(bound);
    bind_unix(&path, 0o600).unwrap();
}

#[test]
fn what_is_no_stream_socket_is_never_removed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "precious").unwrap();
    assert_eq!(kind(bind_unix(&file, 0o600)), ErrorKind::AlreadyExists);
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");

    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    assert_eq!(kind(bind_unix(&link, 0o600)), ErrorKind::AlreadyExists);

    let datagram = dir.path().join("datagram");
    let _alive = UnixDatagram::bind(&datagram).unwrap();
    assert_eq!(kind(bind_unix(&datagram, 0o600)), ErrorKind::AddrInUse);
}

#[test]
fn a_path_that_is_too_long_is_named() {
    let path = std::path::PathBuf::from("/tmp").join("x".repeat(120));
    let error = bind_unix(&path, 0o600).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("xxx"), "{error}");
}

#[test]
fn unlinking_takes_ones_own_file_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let first = bind_unix(&path, 0o600).unwrap();
    let second = bind_unix(&path, 0o600).unwrap();
    first.unlink().unwrap();
    assert!(path.exists());
    second.unlink().unwrap();
    assert!(!path.exists());
    second.unlink().unwrap();
}
