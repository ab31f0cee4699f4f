//! Bytes on a connection: HTTP heads and bodies, and WebSocket frames (RFC 6455
//! section 5.2), for tests that no library would let through.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::wait::{SOON, within};
use super::wire::WireEnd;

/// The key of the handshakes here: any 16 bytes in base64 will do.
pub(crate) const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// A connection with what has been read of it and not used yet.
#[derive(Debug)]
pub(crate) struct Wire<S = TcpStream> {
    pub(crate) stream: S,
    unused: Vec<u8>,
}

/// The head of a request or an answer.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) text: String,
}

impl Head {
    /// The first line.
    pub(crate) fn start_line(&self) -> &str {
        self.text.lines().next().unwrap()
    }

    /// The status of an answer.
    pub(crate) fn status(&self) -> u16 {
        let status = self.start_line().split(' ').nth(1);
        status
            .and_then(|word| word.parse().ok())
            .unwrap_or_else(|| panic!("no status: {self:?}"))
    }

    /// All values of a header, joined by commas.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let values: Vec<&str> = self
            .text
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .collect();
        (!values.is_empty()).then(|| values.join(", "))
    }
}

impl Wire {
    pub(crate) async fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::new(stream)
    }

    /// Connects and shakes hands for a tunnel. `extra` is further header lines, each with its end.
    pub(crate) async fn tunnel(address: &str, path: &str, extra: &str) -> (Self, Head) {
        let mut wire = Self::connect(address).await;
        wire.send(&upgrade(path, extra)).await;
        let head = wire.head().await;
        assert_eq!(head.status(), 101, "{head:?}");
        (wire, head)
    }

    /// Ends the connection with a reset.
    pub(crate) fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            unused: Vec::new(),
        }
    }

    /// The stream, and what has been read of it and not used.
    pub(crate) fn into_parts(self) -> (S, Vec<u8>) {
        (self.stream, self.unused)
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within(
            "bytes are sent",
            SOON,
            self.stream.write_all(bytes.as_ref()),
        )
        .await
        .unwrap();
    }

    /// The next head, without the empty line.
    pub(crate) async fn head(&mut self) -> Head {
        self.try_head()
            .await
            .expect("a head, not the end of the stream")
    }

    /// The next head; `None` if the stream ends before one is whole.
    pub(crate) async fn try_head(&mut self) -> Option<Head> {
        loop {
            if let Some(end) = find(&self.unused, b"\r\n\r\n") {
                let head: Vec<u8> = self.unused.drain(..end + 4).collect();
                let text = String::from_utf8(head[..end].to_vec()).unwrap();
                return Some(Head { text });
            }
            if self.more().await.is_err() {
                return None;
            }
        }
    }

    /// Exactly so many bytes.
    pub(crate) async fn take(&mut self, count: usize) -> Vec<u8> {
        while self.unused.len() < count {
            if let Err(end) = self.more().await {
                panic!(
                    "{end:?} after {} of {count} bytes: {:?}",
                    self.unused.len(),
                    self.unused
                );
            }
        }
        self.unused.drain(..count).collect()
    }

    /// One chunk of a chunked body; empty is the last.
    pub(crate) async fn chunk(&mut self) -> Vec<u8> {
        let line = self.line().await;
        let size = usize::from_str_radix(line.split(';').next().unwrap().trim(), 16).unwrap();
        let mut chunk = self.take(size + 2).await;
        chunk.truncate(size);
        chunk
    }

    /// The whole body of an answer with this head.
    pub(crate) async fn body(&mut self, head: &Head) -> Vec<u8> {
        if let Some(length) = head.header("content-length") {
            return self.take(length.parse().unwrap()).await;
        }
        if head.header("transfer-encoding").is_none() {
            return self.rest().await.0;
        }
        let mut body = Vec::new();
        loop {
            let chunk = self.chunk().await;
            if chunk.is_empty() {
                return body;
            }
            body.extend(chunk);
        }
    }

    /// Everything up to the end of the stream, and how it ended.
    pub(crate) async fn rest(&mut self) -> (Vec<u8>, WireEnd) {
        loop {
            if let Err(end) = self.more().await {
                return (std::mem::take(&mut self.unused), end);
            }
        }
    }

    /// Sends a FIN; the other direction stays.
    pub(crate) async fn finish(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    async fn line(&mut self) -> String {
        loop {
            if let Some(end) = find(&self.unused, b"\r\n") {
                let line: Vec<u8> = self.unused.drain(..end + 2).collect();
                return String::from_utf8(line[..end].to_vec()).unwrap();
            }
            self.more()
                .await
                .unwrap_or_else(|end| panic!("{end:?} within a line"));
        }
    }

    async fn more(&mut self) -> Result<(), WireEnd> {
        let read = self.stream.read_buf(&mut self.unused);
        match within("bytes come, or the end", Duration::from_secs(15), read).await {
            Ok(0) => Err(WireEnd::Fin),
            Ok(_) => Ok(()),
            Err(error) => Err(WireEnd::Error(error.kind())),
        }
    }
}

/// A client's opening handshake.
pub(crate) fn upgrade(path: &str, extra: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{extra}\r\n"
    )
}

/// A server's answer to the opening handshake with this head.
pub(crate) fn switching(request: &Head, extra: &str) -> String {
    let key = request.header("sec-websocket-key").unwrap();
    let accept = derive_accept_key(key.as_bytes());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n{extra}\r\n"
    )
}

/// A frame as a server sends it.
pub(crate) fn frame(fin: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
    build(fin, opcode, None, payload)
}

/// A frame as a client sends it.
pub(crate) fn masked(fin: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
    build(fin, opcode, Some([0x37, 0xfa, 0x21, 0x3d]), payload)
}

/// Operation codes (RFC 6455 section 5.2).
pub(crate) const CONTINUATION: u8 = 0;
pub(crate) const TEXT: u8 = 1;
pub(crate) const BINARY: u8 = 2;
pub(crate) const CLOSE: u8 = 8;
pub(crate) const PING: u8 = 9;
pub(crate) const PONG: u8 = 10;

fn build(fin: bool, opcode: u8, mask: Option<[u8; 4]>, payload: &[u8]) -> Vec<u8> {
    let masked = if mask.is_some() { 0x80 } else { 0 };
    let mut bytes = vec![if fin { 0x80 } else { 0 } | opcode];
    match payload.len() {
        short @ 0..126 => bytes.push(masked | u8::try_from(short).unwrap()),
        medium @ 126..0x1_0000 => {
            bytes.push(masked | 126);
            bytes.extend(u16::try_from(medium).unwrap().to_be_bytes());
        }
        long => {
            bytes.push(masked | 127);
            bytes.extend((long as u64).to_be_bytes());
        }
    }
    bytes.extend(mask.into_iter().flatten());
    let key = mask.unwrap_or([0; 4]);
    bytes.extend(
        payload
            .iter()
            .zip(key.iter().cycle())
            .map(|(byte, key)| byte ^ key),
    );
    bytes
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes
        .windows(pattern.len())
        .position(|window| window == pattern)
}

/// Sends one request and reads its whole answer.
pub(crate) async fn ask(wire: &mut Wire, request: &str) -> (Head, String) {
    wire.send(request).await;
    let head = wire.head().await;
    let body = wire.body(&head).await;
    (head, String::from_utf8(body).unwrap())
}

/// A request without a body.
pub(crate) fn get(path: &str, host: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")
}
