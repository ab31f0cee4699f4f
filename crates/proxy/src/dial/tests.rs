use std::net::{Ipv4Addr, TcpListener};

use nix::sys::socket::{getsockopt, sockopt};
use socket2::{SockAddr, SockRef};
use tokio::net::UnixListener;

use super::*;

const LONG: Duration = Duration::from_secs(10);

/// An address that is nobody's (RFC 5737).
const FOREIGN: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn sources(addresses: &[&str]) -> Sources {
    let addresses: Vec<IpAddr> = addresses.iter().map(|text| ip(text)).collect();
    Sources::new(addresses.into())
}

/// Somebody who listens on a free port.
fn server(address: &str) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((ip(address), 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Where a server sees a connection come from.
async fn seen(listener: &TcpListener, sources: &Sources) -> IpAddr {
    let address = ServerAddress::Ip(listener.local_addr().unwrap());
    let _socket = dial(&address, sources, LONG).await.unwrap();
    listener.accept().unwrap().1.ip()
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

#[tokio::test]
async fn a_connection_has_no_delay_and_is_kept_alive() {
    let (_listener, address) = server("127.0.0.1");
    for sources in [sources(&[]), sources(&["127.0.0.2"])] {
        let socket = dial(&ServerAddress::Ip(address), &sources, LONG).await;
        let Ok(Socket::Tcp(stream)) = socket else {
            panic!("{socket:?}");
        };
        let socket = SockRef::from(&stream);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
    }
}

#[tokio::test]
async fn own_addresses_take_turns_and_those_of_the_other_family_have_none() {
    let (listener, _) = server("127.0.0.1");
    let sources = sources(&["127.0.0.2", "::1", "127.0.0.3"]);
    for expected in ["127.0.0.2", "127.0.0.3", "127.0.0.2", "127.0.0.3"] {
        assert_eq!(seen(&listener, &sources).await, ip(expected));
    }
}

#[tokio::test]
async fn where_no_own_address_is_of_the_servers_family_the_kernel_chooses() {
    let (listener, _) = server("127.0.0.1");
    assert_eq!(seen(&listener, &sources(&[])).await, ip("127.0.0.1"));
    assert_eq!(seen(&listener, &sources(&["::1"])).await, ip("127.0.0.1"));
}

#[tokio::test]
async fn an_ipv6_server_is_reached_from_an_ipv6_address() {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        // A machine without IPv6 has nothing to show here.
        return;
    }
    let (listener, _) = server("::1");
    let sources = sources(&["127.0.0.2", "::1"]);
    assert_eq!(seen(&listener, &sources).await, ip("::1"));
}

#[test]
fn the_port_is_left_to_the_connect() {
    let (_listener, server) = server("127.0.0.1");
    let socket = socket2::Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    source::bind(&socket, ip("127.0.0.2"), server).unwrap();
    let bound = socket.local_addr().unwrap().as_socket().unwrap();
    assert_eq!(bound, "127.0.0.2:0".parse().unwrap());
    assert!(getsockopt(&socket, sockopt::IpBindAddressNoPort).unwrap());
}

#[tokio::test]
async fn an_address_that_is_not_ours_is_named_and_the_next_one_is_used() {
    let (listener, address) = server("127.0.0.1");
    let foreign = Sources::new([FOREIGN].into());
    let failed = dial(&ServerAddress::Ip(address), &foreign, LONG).await;
    let Err(error @ DialError::NotOurs(FOREIGN)) = failed else {
        panic!("{failed:?}");
    };
    let text = error.to_string();
    assert!(
        text.contains("`source` 203.0.113.7 is not an address"),
        "{text}"
    );
    assert!(!error.is_the_servers());
    let both = Sources::new([FOREIGN, ip("127.0.0.3")].into());
    for _ in 0..4 {
        assert_eq!(seen(&listener, &both).await, ip("127.0.0.3"));
    }
}

#[tokio::test]
async fn a_refused_connection_is_the_servers_fault() {
    let (listener, address) = server("127.0.0.1");
    drop(listener);
    for sources in [sources(&[]), sources(&["127.0.0.2", "127.0.0.3"])] {
        let refused = dial(&ServerAddress::Ip(address), &sources, LONG).await;
        let Err(DialError::Failed(error)) = &refused else {
            panic!("{refused:?}");
        };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(refused.is_err_and(|error| error.is_the_servers()));
    }
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up_in_time() {
    let socket = socket2::Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    socket.listen(0).unwrap();
    let address = ServerAddress::Ip(socket.local_addr().unwrap().as_socket().unwrap());
    let short = Duration::from_millis(60);
    let none = sources(&[]);
    // Its queue has room for one; who comes then is not answered.
    let mut waiting = Vec::new();
    let late = loop {
        match dial(&address, &none, short).await {
            Ok(socket) => waiting.push(socket),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(late, DialError::TimedOut(limit) if limit == short),
        "{late}"
    );
    assert!(late.is_the_servers() && !waiting.is_empty());
}

#[tokio::test]
async fn a_name_that_nobody_knows_is_the_servers_fault() {
    let address = ServerAddress::Name("nobody.invalid".to_owned(), 9);
    let unknown = dial(&address, &sources(&[]), LONG).await;
    assert!(matches!(unknown, Err(DialError::Failed(_))), "{unknown:?}");
}

#[test]
fn what_this_machine_lacks_is_said_in_words_and_never_the_servers_fault() {
    let server: SocketAddr = "10.0.0.1:9000".parse().unwrap();
    let own = ip("10.0.0.5");
    for (error, words) in [
        (errno(libc::EMFILE).into(), "raise LimitNOFILE"),
        (errno(libc::ENFILE).into(), "raise fs.file-max"),
        (errno(libc::ENOBUFS).into(), "no memory"),
        (errno(libc::ENOMEM).into(), "no memory"),
        (
            errno(libc::ENOSPC).into(),
            "raise fs.epoll.max_user_watches",
        ),
        (
            unconnected(errno(libc::EADDRNOTAVAIL), None, server),
            "no free local port to 10.0.0.1:9000: give the upstream's `source` more addresses",
        ),
        (
            unconnected(errno(libc::EADDRNOTAVAIL), Some(own), server),
            "no free local port from 10.0.0.5 to 10.0.0.1:9000",
        ),
        (
            unconnected(errno(libc::EINVAL), Some(own), server),
            "`source` 10.0.0.5 cannot be used to reach 10.0.0.1:9000",
        ),
        (
            unbound(errno(libc::EADDRNOTAVAIL), own, server),
            "`source` 10.0.0.5 is not an address of this machine",
        ),
        (
            unbound(errno(libc::EACCES), own, server),
            "`source` 10.0.0.5 cannot be used",
        ),
        (unbound(errno(libc::ENOMEM), own, server), "no memory"),
    ] {
        let text = DialError::to_string(&error);
        assert!(text.contains(words), "{text}");
        assert!(!error.is_the_servers(), "{text}");
    }
    let unreachable = unconnected(errno(libc::ENETUNREACH), Some(own), server);
    assert!(unreachable.is_the_servers(), "{unreachable}");
}

#[test]
fn another_server_is_worth_a_try_only_where_it_can_be_reached() {
    let four = ServerAddress::Ip("10.0.0.1:9000".parse().unwrap());
    let six = ServerAddress::Ip("[2001:db8::1]:9000".parse().unwrap());
    let name = ServerAddress::Name("a".to_owned(), 9000);
    let unix = ServerAddress::Unix("/run/a".into());
    let lack = DialError::Short(Shortage::Descriptors);
    let foreign = DialError::NotOurs(FOREIGN);
    let (server, from) = ("10.0.0.1:9000".parse().unwrap(), Some(FOREIGN));
    let full = DialError::NoPort { server, from };
    let at = |error: &DialError| {
        [&four, &six, &name, &unix].map(|other| u8::from(error.may_differ_at(other)))
    };
    assert_eq!(at(&lack), [0, 0, 0, 0]);
    assert_eq!(at(&foreign), [0, 1, 1, 1]);
    assert_eq!(at(&full), [1, 1, 1, 1]);
    assert_eq!(
        at(&DialError::Failed(errno(libc::ECONNREFUSED))),
        [1, 1, 1, 1]
    );
}

#[tokio::test]
async fn a_unix_socket_with_a_full_queue_is_waited_for() {
    let dir = std::env::temp_dir().join(format!("wsgate-dial-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("full.sock");
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    socket.listen(0).unwrap();
    socket.set_nonblocking(true).unwrap();
    let listener = UnixListener::from_std(std::os::fd::OwnedFd::from(socket).into()).unwrap();
    let mut waiting = Vec::new();
    let full = loop {
        match UnixStream::connect(&path).await {
            Ok(stream) => waiting.push(stream),
            Err(error) => break error,
        }
    };
    assert_eq!(full.kind(), io::ErrorKind::WouldBlock);

    let address = ServerAddress::Unix(path);
    let short = dial(&address, &sources(&[]), Duration::from_millis(60)).await;
    assert!(matches!(short, Err(DialError::TimedOut(_))), "{short:?}");
    let dialled = tokio::spawn(async move {
        let none = sources(&[]);
        dial(&address, &none, LONG).await
    });
    let (_first, _) = listener.accept().await.unwrap();
    let dialled = dialled.await.unwrap();
    assert!(dialled.is_ok(), "{dialled:?}");
    std::fs::remove_dir_all(dir).unwrap();
}

#[tokio::test]
async fn an_address_that_is_not_ours_does_not_hide_what_another_one_lacked() {
    // 127.0.0.1 goes with the second server, and not with the first.
    let (_listener, second) = server("127.0.0.1");
    let first: SocketAddr = "192.0.2.77:9".parse().unwrap();
    let both = sources(&["127.0.0.1", "203.0.113.7"]);
    for _ in 0..2 {
        let error = begin(first, &both).unwrap_err();
        assert!(error.may_differ_at(&ServerAddress::Ip(second)), "{error}");
    }
    assert!(begin(second, &both).is_ok());
}
