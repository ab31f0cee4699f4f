//! Real groups on loopback: who gets how many of so many connections.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};

use super::*;
use crate::socket::{BACKLOG, bind_reuseport, listen, local_addr};

/// Enough that a socket's even share is never missed by a quarter: that would be more than six
/// standard deviations for any share of these tests.
const MANY: usize = 4000;

/// A group whose sockets listen in the order of their slots.
struct Group {
    address: SocketAddr,
    sockets: Vec<TcpListener>,
    clients: Vec<TcpStream>,
}

impl Group {
    fn new(address: &str, size: usize) -> Option<Self> {
        let first = match bind_reuseport(address.parse().unwrap()) {
            Ok(first) => first,
            // A machine without IPv6 has nothing to show here.
            Err(error) => {
                assert!(address.starts_with('['), "{error}");
                return None;
            }
        };
        let address = local_addr(first.as_fd()).unwrap();
        let mut group = Self {
            address,
            sockets: Vec::new(),
            clients: Vec::new(),
        };
        group.join(first);
        while group.sockets.len() < size {
            group.join(bind_reuseport(address).unwrap());
        }
        Some(group)
    }

    fn join(&mut self, socket: OwnedFd) {
        listen(socket.as_fd(), BACKLOG).unwrap();
        self.sockets.push(TcpListener::from(socket));
    }

    fn steer(&self, places: &[usize]) {
        steer(self.sockets[0].as_fd(), places).unwrap();
    }

    /// Connections that each socket gets out of so many.
    fn shares(&mut self, connections: usize) -> Vec<usize> {
        let mut shares = vec![0; self.sockets.len()];
        for _ in 0..connections.div_ceil(500) {
            for _ in 0..500.min(connections) {
                self.clients.push(TcpStream::connect(self.address).unwrap());
            }
            for (share, socket) in shares.iter_mut().zip(&self.sockets) {
                while let Ok((accepted, _)) = socket.accept() {
                    // A reset at the end leaves nothing in TIME_WAIT.
                    SockRef::from(&accepted)
                        .set_linger(Some(Duration::ZERO))
                        .unwrap();
                    *share += 1;
                }
            }
            self.clients.clear();
        }
        assert_eq!(shares.iter().sum::<usize>(), connections);
        shares
    }
}

fn assert_even(shares: &[usize]) {
    let mean = shares.iter().sum::<usize>() / shares.len();
    for share in shares {
        assert!(share.abs_diff(mean) < mean / 4, "{shares:?}");
    }
}

fn on_both(test: impl Fn(Group), size: usize) {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        if let Some(group) = Group::new(address, size) {
            test(group);
        }
    }
}

#[test]
fn new_connections_go_evenly_to_the_first_sockets_and_to_no_other() {
    let test = |mut group: Group| {
        for staying in [3, 1, 2] {
            group.steer(&Vec::from_iter(0..staying));
            let shares = group.shares(MANY);
            assert_even(&shares[..staying]);
            assert!(
                shares[staying..].iter().all(|share| *share == 0),
                "{shares:?}"
            );
        }
        steer_no_more(group.sockets[2].as_fd()).unwrap();
        assert_even(&group.shares(MANY));
    };
    on_both(test, 4);
}

#[test]
fn any_places_can_be_chosen() {
    let test = |mut group: Group| {
        group.steer(&[4, 1]);
        let shares = group.shares(MANY);
        assert_even(&[shares[1], shares[4]]);
        assert_eq!(shares[1] + shares[4], MANY);
    };
    on_both(test, 5);
}

#[test]
fn closing_from_the_last_one_down_leaves_every_place_as_it_was() {
    let test = |mut group: Group| {
        group.steer(&[0, 1]);
        while group.sockets.len() > 2 {
            group.sockets.pop();
            let shares = group.shares(200);
            assert_eq!(shares[2..].iter().sum::<usize>(), 0);
        }
        // One that comes later is the last.
        let next = bind_reuseport(group.address).unwrap();
        group.join(next);
        assert_eq!(group.shares(200)[2], 0);
        group.steer(&[2]);
        assert_eq!(group.shares(200), [0, 0, 200]);
    };
    on_both(test, 5);
}

#[test]
fn a_socket_that_is_closed_leaves_its_place_to_the_last_one() {
    let test = |mut group: Group| {
        group.steer(&[1]);
        let last = group.sockets.pop().unwrap();
        // As the kernel does.
        group.sockets[1] = last;
        assert_eq!(group.shares(200), [0, 200, 0]);
    };
    on_both(test, 4);
}

#[test]
fn a_place_that_does_not_exist_leaves_the_choice_to_the_kernel() {
    let test = |mut group: Group| {
        group.steer(&[2]);
        assert_even(&group.shares(MANY));
    };
    on_both(test, 2);
}

#[test]
fn it_is_the_order_of_listening_that_counts_and_not_that_of_binding() {
    let first = bind_reuseport("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = local_addr(first.as_fd()).unwrap();
    let second = bind_reuseport(address).unwrap();
    let mut group = Group {
        address,
        sockets: Vec::new(),
        clients: Vec::new(),
    };
    group.join(second);
    group.join(first);
    group.steer(&[0]);
    assert_eq!(group.shares(100), [100, 0]);
}

#[test]
fn a_handshake_under_way_stays_with_the_socket_that_got_its_syn() {
    let test = |mut group: Group| {
        group.steer(&[1]);
        let client = socket2::Socket::new(
            socket2::Domain::for_address(group.address),
            socket2::Type::STREAM,
            None,
        )
        .unwrap();
        // Its ACK waits for data to ride on, 200 ms at most: until then there is a SYN_RECV.
        client.set_tcp_quickack(false).unwrap();
        client.connect(&group.address.into()).unwrap();
        assert!(
            group.sockets[1].accept().is_err(),
            "the handshake is over already"
        );
        group.steer(&[0]);
        client.send(b"data").unwrap();
        assert!(group.sockets[1].accept().is_ok());
        assert_eq!(group.shares(100), [100, 0]);
    };
    on_both(test, 2);
}

#[test]
fn a_socket_that_takes_no_handshake_ends_those_that_have_begun() {
    let test = |group: Group| {
        let begun = socket2::Socket::new(
            socket2::Domain::for_address(group.address),
            socket2::Type::STREAM,
            None,
        )
        .unwrap();
        begun.set_tcp_quickack(false).unwrap();
        begun.connect(&group.address.into()).unwrap();
        let listener = group.sockets[0].as_fd();
        take_handshakes(listener, false).unwrap();
        let wait = Duration::from_millis(50);
        let late = TcpStream::connect_timeout(&group.address, wait).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        begun.send(b"data").unwrap();
        assert!(group.sockets[0].accept().is_ok());
        for _ in 0..2 {
            take_handshakes(listener, true).unwrap();
            TcpStream::connect(group.address).unwrap();
            assert!(group.sockets[0].accept().is_ok());
        }
    };
    on_both(test, 1);
}

#[test]
fn nonsense_is_refused() {
    let group = Group::new("127.0.0.1:0", 1).unwrap();
    let socket = group.sockets[0].as_fd();
    for places in [vec![], vec![0; MOST_PLACES + 1]] {
        let error = steer(socket, &places).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
    steer(socket, &vec![1; MOST_PLACES]).unwrap();
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(steer(plain.as_fd(), &[0]).is_err());
}

#[test]
fn a_place_is_noted_on_the_socket_itself() {
    let group = Group::new("127.0.0.1:0", 1).unwrap();
    let copy = group.sockets[0].try_clone().unwrap();
    assert_eq!(noted_place(copy.as_fd()).unwrap(), None);
    for place in [Some(0), Some(7), Some(255), None] {
        note_place(group.sockets[0].as_fd(), place).unwrap();
        assert_eq!(noted_place(copy.as_fd()).unwrap(), place);
    }
}
