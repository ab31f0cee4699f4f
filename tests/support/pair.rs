//! Tunnels whose two sides are both in the test's hands, as plain sockets.

use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::gateway::Gateway;
use super::raw::{self, Wire};
use super::wait::{SOON, within};

/// What a connection over Ethernet has, in bytes. The loopback's own segments are so large
/// that the kernel takes megabytes before it says stop.
pub(crate) const ETHERNET: u32 = 1448;

/// What every host must take (RFC 9293 section 3.7.1).
pub(crate) const SMALLEST: u32 = 536;

/// A server's listening socket.
#[derive(Debug)]
pub(crate) struct Server {
    listener: TcpListener,
    pub(crate) address: String,
}

/// How one side's socket is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Line {
    /// Longest segment that the gateway may send; 0 is the loopback's own.
    pub(crate) segment: u32,
    /// Bytes of its buffers, in place of the kernel's choice.
    pub(crate) send: Option<usize>,
    pub(crate) receive: Option<usize>,
}

/// A tunnel's two sides.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) client: TcpStream,
    pub(crate) server: TcpStream,
    /// What has been read already of what the other side said.
    pub(crate) at_client: Vec<u8>,
    pub(crate) at_server: Vec<u8>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        Self { listener, address }
    }

    /// Opens a tunnel over plain sockets.
    pub(crate) async fn pair(&self, gateway: &Gateway, line: Line) -> Pair {
        self.pair_with(gateway, [line; 2], [b"", b""]).await
    }

    /// The client's socket and the server's, and what they say in one go with their
    /// handshakes. One at a time: which tunnel a connection belongs to is known by that.
    pub(crate) async fn pair_with(
        &self,
        gateway: &Gateway,
        [client, server]: [Line; 2],
        [client_says, server_says]: [&[u8]; 2],
    ) -> Pair {
        SockRef::from(&self.listener)
            .set_tcp_mss(server.segment)
            .unwrap();
        let mut asking = Wire::new(connect(gateway.address(), client).await);
        let request = raw::upgrade("/", "");
        asking
            .send([request.as_bytes(), client_says].concat())
            .await;
        let accepted = within("a tunnel reaches the server", SOON, self.listener.accept()).await;
        let (stream, _) = accepted.unwrap();
        adjust(&stream, server);
        let mut answering = Wire::new(stream);
        let head = answering.head().await;
        let answer = raw::switching(&head, "");
        answering
            .send([answer.as_bytes(), server_says].concat())
            .await;
        assert_eq!(asking.head().await.status(), 101);
        let (client, at_client) = asking.into_parts();
        let (server, at_server) = answering.into_parts();
        Pair {
            client,
            server,
            at_client,
            at_server,
        }
    }
}

async fn connect(address: &str, line: Line) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    SockRef::from(&socket).set_tcp_mss(line.segment).unwrap();
    let stream = socket.connect(address.parse().unwrap()).await.unwrap();
    adjust(&stream, line);
    stream
}

fn adjust(stream: &TcpStream, line: Line) {
    stream.set_nodelay(true).unwrap();
    let socket = SockRef::from(stream);
    if let Some(bytes) = line.send {
        socket.set_send_buffer_size(bytes).unwrap();
    }
    if let Some(bytes) = line.receive {
        socket.set_recv_buffer_size(bytes).unwrap();
    }
}
