//! The echo server and the fleet against each other, in one process.

#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use wsgate_load::echo::{Echo, Stop};
use wsgate_load::fleet::Fleet;
use wsgate_load::job::{Mode, Open, Run, Until, Work};
use wsgate_load::report::{End, Report};

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(10);

/// A server in a thread; dropping it stops it.
struct Server {
    address: SocketAddr,
    stop: Stop,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Server {
    fn start() -> Self {
        let echo = Echo::bind(&["127.0.0.1:0".parse().unwrap()]).unwrap();
        Self {
            address: echo.addresses()[0],
            stop: echo.stopper(),
            thread: Some(thread::spawn(move || echo.run())),
        }
    }

    fn fleet(&self, tunnels: usize) -> Fleet {
        Fleet::open(open(self.address, tunnels)).unwrap()
    }

    fn raw(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    /// A connection behind its handshake.
    fn upgraded(&self) -> TcpStream {
        let mut stream = self.raw();
        let request = wsgate_load::handshake::request("a.example", "/echo", "k");
        stream.write_all(request.as_bytes()).unwrap();
        let mut head = vec![0; wsgate_load::handshake::switching(b"k").len()];
        stream.read_exact(&mut head).unwrap();
        assert!(head.ends_with(b"\r\n\r\n"));
        stream
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.stop().unwrap();
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

fn open(address: SocketAddr, tunnels: usize) -> Open {
    Open {
        targets: vec![address],
        tunnels,
        ..Open::default()
    }
}

fn messages(window: u32, size: usize, until: Until) -> Run {
    Run {
        work: Work::Messages { window },
        size,
        until,
        ..Run::default()
    }
}

fn sound(report: &Report) -> &Report {
    report.sound().unwrap();
    report
}

#[test]
fn every_size_and_window_comes_back_whole() {
    let server = Server::start();
    let mut fleet = server.fleet(3);
    for (window, size, total) in [
        (1, 16, 100),
        (1, 64, 300),
        (16, 1024, 1000),
        (4, 65_536, 50),
    ] {
        let report = fleet
            .run(&messages(window, size, Until::Total(total)))
            .unwrap();
        sound(&report);
        assert_eq!(
            (report.messages, report.bytes),
            (total, total * size as u64)
        );
        assert!(report.round_trips.count > 0 && report.round_trips.max > 0);
    }
    let report = fleet.close().unwrap();
    assert_eq!(sound(&report).ends["polite"], 3);
}

#[test]
fn each_tunnel_sends_its_share_a_few_at_a_time() {
    let server = Server::start();
    let mut fleet = server.fleet(20);
    let each = Until::Each {
        messages: 7,
        active: 3,
    };
    let report = fleet.run(&messages(2, 5000, each)).unwrap();
    assert_eq!(sound(&report).messages, 20 * 7);
    assert_eq!(report.open, 20);
}

#[test]
fn a_sink_checks_and_answers_by_bytes() {
    let server = Server::start();
    for bytes in [0, 10_000] {
        let open = Open {
            mode: Mode::Sink { bytes },
            ..open(server.address, 2)
        };
        let mut fleet = Fleet::open(open).unwrap();
        let elapsed = Until::Elapsed(Duration::from_millis(50));
        // What a sink has not answered yet stays in flight, less than its bytes.
        let report = fleet.run(&messages(64, 1000, elapsed)).unwrap();
        assert!(report.messages > 0 && !report.faults.any());
        assert_eq!((report.unanswered, report.stuck), (0, 0));
        sound(&fleet.close().unwrap());
    }
}

#[test]
fn short_tunnels_open_echo_and_close() {
    let server = Server::start();
    let mut fleet = server.fleet(0);
    for (echoes, total) in [(0, 20), (1, 50), (3, 7)] {
        let work = Work::Lives {
            concurrency: 4,
            echoes,
        };
        let run = Run {
            work,
            until: Until::Total(total),
            ..Run::default()
        };
        let report = fleet.run(&run).unwrap();
        sound(&report);
        assert_eq!((report.lives, report.handshakes.count), (total, total));
        assert_eq!((report.messages, report.open), (total * echoes, 0));
    }
}

#[test]
fn rates_are_kept_and_tunnels_renewed() {
    let server = Server::start();
    let run = |work| Run {
        work,
        until: Until::Elapsed(Duration::from_millis(500)),
        ..Run::default()
    };
    let mut fleet = server.fleet(10);
    let report = fleet
        .run(&run(Work::Rate {
            per_second: 20.0,
            renewals: 20.0,
        }))
        .unwrap();
    sound(&report);
    assert_eq!(report.open, 10);
    // Less than 100 and 10 only by what is under way at the end, or missed by a renewal.
    assert!((50..=100).contains(&report.messages), "{report:?}");
    assert!((5..=10).contains(&report.ends["polite"]), "{report:?}");

    let mut fleet = server.fleet(0);
    let work = Work::Arrivals {
        per_second: 100.0,
        echoes: 1,
    };
    let report = fleet.run(&run(work)).unwrap();
    assert_eq!(sound(&report).open, 0);
    assert!((30..=51).contains(&report.ends["polite"]), "{report:?}");
}

#[test]
fn connections_that_are_held_are_half_open_and_served_later() {
    let server = Server::start();
    let held = Duration::from_millis(50);
    let open = Open {
        held,
        ..open(server.address, 0)
    };
    let mut fleet = Fleet::open(open).unwrap();
    let port = format!(":{:04X} ", server.address.port());
    let half_open = thread::spawn(move || {
        let began = std::time::Instant::now();
        loop {
            let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
            // Local address, remote address, 03 is SYN_RECV.
            let found = sockets.lines().any(|line| {
                let mut fields = line.split_whitespace().skip(1);
                let local = fields.next().unwrap_or_default();
                format!("{local} ").ends_with(&port) && fields.nth(1) == Some("03")
            });
            if found || began.elapsed() > LIMIT {
                return found;
            }
        }
    });
    let run = Run {
        work: Work::Arrivals {
            per_second: 100.0,
            echoes: 1,
        },
        until: Until::Elapsed(Duration::from_millis(500)),
        ..Run::default()
    };
    let report = fleet.run(&run).unwrap();
    sound(&report);
    assert!(report.ends["polite"] > 10, "{report:?}");
    assert!(report.handshakes.count > 0);
    assert!(
        report.handshakes.p50 >= held.as_nanos() as u64,
        "{report:?}"
    );
    assert!(half_open.join().unwrap(), "none was half open");
}

#[test]
fn a_run_until_halted_goes_on_until_then() {
    let server = Server::start();
    let mut fleet = server.fleet(5);
    let halt = fleet.halter();
    let run = Run {
        work: Work::Rate {
            per_second: 20.0,
            renewals: 0.0,
        },
        until: Until::Halted,
        ..Run::default()
    };
    let (halted, waits) = std::sync::mpsc::channel::<()>();
    let halter = thread::spawn(move || {
        // Nobody sends: it is the time that it takes.
        assert!(waits.recv_timeout(Duration::from_millis(300)).is_err());
        halt.halt();
    });
    let report = fleet.run(&run).unwrap();
    halter.join().unwrap();
    drop(halted);
    assert!(sound(&report).messages > 0);
    assert!(report.elapsed >= Duration::from_millis(300), "{report:?}");
    assert!(report.elapsed < Duration::from_secs(5), "{report:?}");
    assert_eq!(report.open, 5);
}

#[test]
fn each_end_is_told_with_its_address_and_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let (mut peer, from) = listener.accept().unwrap();
        let mut request = vec![0; 1024];
        let count = peer.read(&mut request).unwrap();
        let head = wsgate_load::handshake::Head(&request[..count]);
        let key = head.field("sec-websocket-key").unwrap();
        let answer = wsgate_load::handshake::switching(key);
        peer.write_all(answer.as_bytes()).unwrap();
        // One message, unanswered; what is not read makes a reset of the end.
        assert_eq!(peer.peek(&mut request).unwrap().min(1), 1);
        from
    });
    let before = wsgate_load::machine::now();
    let (mut fleet, report) = Fleet::try_open(open(address, 1)).unwrap();
    assert!(report.endings.is_empty());
    let report = fleet
        .run(&messages(1, 64, Until::Elapsed(Duration::from_millis(100))))
        .unwrap();
    let from = server.join().unwrap();
    let [ending] = report.endings.as_slice() else {
        panic!("{report:?}");
    };
    assert_eq!(ending.local, Some(from));
    assert_eq!((ending.end, ending.opened), (End::Reset, true));
    assert_eq!(ending.unanswered, 1);
    assert!(before <= ending.began && ending.began < ending.ended);
    assert!(ending.ended <= wsgate_load::machine::now());
}

#[test]
fn warm_up_and_time_limit_bound_what_is_measured() {
    let server = Server::start();
    let mut fleet = server.fleet(2);
    let run = Run {
        warm_up: Duration::from_millis(50),
        until: Until::Elapsed(Duration::from_millis(100)),
        clocks: vec![std::process::id()],
        ..Run::default()
    };
    let report = fleet.run(&run).unwrap();
    sound(&report);
    assert!(report.elapsed >= Duration::from_millis(100), "{report:?}");
    assert!(report.elapsed < Duration::from_secs(1), "{report:?}");
    assert!(report.cpu > 0);
}

#[test]
fn whoever_does_not_answer_right_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answers: [&[u8]; 4] = [
        b"HTTP/1.1 503 Service Unavailable\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: x\r\n\r\n",
        b"SSH-2.0-none\r\n\r\n",
        b"",
    ];
    let server = thread::spawn(move || {
        for answer in answers {
            let (mut peer, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            assert!(peer.read(&mut request).unwrap() > 0);
            peer.write_all(answer).unwrap();
        }
    });
    for end in ["status 503", "bad answer", "bad answer", "fin before 101"] {
        let (_, report) = Fleet::try_open(open(address, 1)).unwrap();
        assert_eq!(report.ends.get(end), Some(&1), "{report:?}");
    }
    server.join().unwrap();
    let (_, report) = Fleet::try_open(open(address, 1)).unwrap();
    assert_eq!(report.ends.get("refused"), Some(&1), "{report:?}");
}

#[test]
fn who_cannot_connect_tries_again_and_stops_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let (mut fleet, _) = Fleet::try_open(open(address, 0)).unwrap();
    let run = Run {
        work: Work::Lives {
            concurrency: 2,
            echoes: 1,
        },
        until: Until::Elapsed(Duration::from_millis(350)),
        ..Run::default()
    };
    let report = fleet.run(&run).unwrap();
    // Two at once, and again after each 100 ms.
    let refused = report.ends["refused"];
    assert!((2..=8).contains(&refused), "{report:?}");
    assert!(report.sound().unwrap_err().contains("refused"));
}

#[test]
fn pings_closes_and_nonsense_are_answered() {
    let server = Server::start();
    let exchange = |bytes: &[u8]| {
        let mut stream = server.upgraded();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        answer
    };
    // A ping "a" and a Close 1000, both with a key of zeros.
    let polite = [
        0x89, 0x81, 0, 0, 0, 0, b'a', 0x88, 0x82, 0, 0, 0, 0, 3, 0xe8,
    ];
    assert_eq!(exchange(&polite), [0x8a, 1, b'a', 0x88, 2, 3, 0xe8]);
    let protocol_error = [0x88, 2, 3, 0xea];
    assert_eq!(exchange(&[0x82, 1, b'a']), protocol_error, "not masked");
    assert_eq!(
        exchange(&[0x83, 0x80, 0, 0, 0, 0]),
        protocol_error,
        "opcode 3"
    );
    let mut plain = server.raw();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    plain.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

#[test]
fn a_peer_that_reads_nothing_is_not_read_from() {
    let server = Server::start();
    let mut stream = server.upgraded();
    stream
        .set_write_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let frame = {
        let mut frame = vec![0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        frame.resize(14 + 65_536, 7);
        frame
    };
    // Both directions' kernel buffers, and the server's own; far less than is offered.
    let mut taken = 0;
    while taken < 256 << 20 && stream.write_all(&frame).is_ok() {
        taken += frame.len();
    }
    assert!(taken < 256 << 20, "all of it was taken");
    // Others are served.
    let report = server
        .fleet(1)
        .run(&messages(1, 64, Until::Total(10)))
        .unwrap();
    assert_eq!(sound(&report).messages, 10);
}
