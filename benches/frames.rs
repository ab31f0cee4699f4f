//! What it costs to know where frames end: `Tracker::advance` alone, and beside it what the
//! relay does to the same bytes anyway, one recv and one send.
//!
//! Small frames come one a call, as in ping-pong, and packed into reads of 64 KiB; large ones only
//! so, each over the border of two reads. Every run checks that all messages were counted:
//! a tracker that has given up framing is fast, and worth nothing.

use std::hint::black_box;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use socket2::SockRef;
use wsgate_load::frame::{BINARY, FIN, Header, LONGEST_HEADER};
use wsgate_proxy::{Side, Tracker};

/// As much as the relay reads at once, in bytes.
const READ: usize = 64 * 1024;

/// Calls in one iteration, where each call gets one frame.
const CALLS: usize = 1024;

/// Bytes in one iteration, where each call gets a full read; about, since it ends with a frame.
const STREAM: usize = 16 * READ;

const SIDES: [(Side, &str); 2] = [(Side::Client, "client"), (Side::Server, "server")];

/// One binary message in one frame. The tracker looks at no payload, so it need not make sense unmasked.
fn frame(sender: Side, payload: usize) -> Vec<u8> {
    let header = Header {
        first: FIN | BINARY,
        length: payload as u64,
        key: (sender == Side::Client).then_some([0x37, 0xfa, 0x21, 0x3d]),
    };
    let mut bytes = vec![0x5a; LONGEST_HEADER + payload];
    let start = header.write_before(&mut bytes, LONGEST_HEADER);
    bytes.split_off(start)
}

fn one_frame_a_call(c: &mut Criterion) {
    let mut group = c.benchmark_group("frames/one a call");
    for payload in [1, 64, 125] {
        for (side, sender) in SIDES {
            let frame = frame(side, payload);
            group.throughput(Throughput::ElementsAndBytes {
                elements: CALLS as u64,
                bytes: (CALLS * frame.len()) as u64,
            });
            let mut tracker = Tracker::new(side);
            group.bench_function(BenchmarkId::new(sender, format!("{payload} B")), |b| {
                b.iter(|| {
                    let seen = |_| tracker.advance(black_box(&frame)).messages;
                    assert_eq!((0..CALLS).map(seen).sum::<u32>(), CALLS as u32);
                });
            });
        }
    }
    group.finish();
}

fn full_reads(c: &mut Criterion) {
    let mut group = c.benchmark_group("frames/64 KiB a call");
    for payload in [1, 64, 125, 64 * 1024] {
        for (side, sender) in SIDES {
            let frame = frame(side, payload);
            let frames = STREAM / frame.len() + 1;
            let stream = frame.repeat(frames);
            group.throughput(Throughput::ElementsAndBytes {
                elements: frames as u64,
                bytes: stream.len() as u64,
            });
            let mut tracker = Tracker::new(side);
            group.bench_function(BenchmarkId::new(sender, format!("{payload} B")), |b| {
                b.iter(|| {
                    let seen = |read| tracker.advance(black_box(read)).messages;
                    assert_eq!(stream.chunks(READ).map(seen).sum::<u32>(), frames as u32);
                });
            });
        }
    }
    group.finish();
}

/// What the tracker's time is a share of. Writing and reading at the two far ends is not measured.
fn floor(c: &mut Criterion) {
    let mut group = c.benchmark_group("frames/recv and send");
    for payload in [64, 64 * 1024] {
        let frame = frame(Side::Client, payload);
        group.throughput(Throughput::ElementsAndBytes {
            elements: 1,
            bytes: frame.len() as u64,
        });
        let mut relay = Relay::new().expect("loopback connects");
        group.bench_function(BenchmarkId::new("client", format!("{payload} B")), |b| {
            b.iter_custom(|messages| relay.run(&frame, messages).expect("loopback relays"));
        });
    }
    group.finish();
}

/// Two connections over loopback, and both ends of each.
struct Relay {
    client: TcpStream,
    source: TcpStream,
    sink: TcpStream,
    server: TcpStream,
}

impl Relay {
    fn new() -> io::Result<Self> {
        let (client, source) = connection()?;
        let (sink, server) = connection()?;
        Ok(Self {
            client,
            source,
            sink,
            server,
        })
    }

    /// Relays so many messages, one after the other, and says how long only that took.
    fn run(&mut self, frame: &[u8], messages: u64) -> io::Result<Duration> {
        let mut buffer = vec![0; READ];
        let mut received = vec![0; frame.len()];
        let mut took = Duration::ZERO;
        for _ in 0..messages {
            self.client.write_all(frame)?;
            let began = Instant::now();
            self.pass(&mut buffer, frame.len())?;
            took += began.elapsed();
            self.server.read_exact(&mut received)?;
        }
        assert_eq!(received, frame);
        Ok(took)
    }

    fn pass(&mut self, buffer: &mut [u8], mut left: usize) -> io::Result<()> {
        while left > 0 {
            let read = self.source.read(buffer)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.sink.write_all(&buffer[..read])?;
            left -= read;
        }
        Ok(())
    }
}

/// Both ends of a connection that takes more than a message before its reader must run.
fn connection() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    for end in [&near, &far] {
        end.set_nodelay(true)?;
        SockRef::from(end).set_send_buffer_size(4 * READ)?;
        SockRef::from(end).set_recv_buffer_size(4 * READ)?;
    }
    Ok((near, far))
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = one_frame_a_call, full_reads, floor
}
criterion_main!(benches);
