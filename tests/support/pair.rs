//! Tunnels whose two sides are both in the test's hands, as plain sockets.

use std::path::Path;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};

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
pub(crate) struct Server<L = TcpListener> {
    listener: L,
    /// As it stands in a configuration.
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
pub(crate) struct Pair<S = TcpStream> {
    pub(crate) client: S,
    pub(crate) server: S,
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

    /// Opens a tunnel.
    pub(crate) async fn pair(&self, gateway: &Gateway, line: Line) -> Pair {
        self.pair_with(gateway, [line; 2], [b"", b""]).await
    }

    /// The client's socket and the server's, and what they say in one go with their
    /// handshakes. One at a time: which tunnel a connection belongs to is known by that.
    pub(crate) async fn pair_with(
        &self,
        gateway: &Gateway,
        [client, server]: [Line; 2],
        says: [&[u8]; 2],
    ) -> Pair {
        let listener = SockRef::from(&self.listener);
        listener.set_tcp_mss(server.segment).unwrap();
        let stream = connect(gateway.address(), client).await;
        let accept = async {
            let (stream, _) = self.listener.accept().await.unwrap();
            adjust(&stream, server);
            stream
        };
        meet("/", stream, accept, says).await
    }
}

impl Server<UnixListener> {
    pub(crate) fn start_unix(socket: &Path) -> Self {
        Self {
            listener: UnixListener::bind(socket).unwrap(),
            address: format!("unix:{}", socket.display()),
        }
    }

    /// The same over Unix sockets, at the gateway's path for them.
    pub(crate) async fn pair_with(
        &self,
        gateway: &Path,
        path: &str,
        says: [&[u8]; 2],
    ) -> Pair<UnixStream> {
        let stream = UnixStream::connect(gateway).await.unwrap();
        let accept = async { self.listener.accept().await.unwrap().0 };
        meet(path, stream, accept, says).await
    }
}

/// Both handshakes.
async fn meet<S: AsyncRead + AsyncWrite + Unpin>(
    path: &str,
    client: S,
    accept: impl Future<Output = S>,
    [client_says, server_says]: [&[u8]; 2],
) -> Pair<S> {
    let mut asking = Wire::new(client);
    let request = raw::upgrade(path, "");
    let words = [request.as_bytes(), client_says].concat();
    asking.send(words).await;
    let mut answering = Wire::new(within("a tunnel reaches the server", SOON, accept).await);
    let answer = raw::switching(&answering.head().await, "");
    let words = [answer.as_bytes(), server_says].concat();
    answering.send(words).await;
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
