//! The opening handshake (RFC 6455 section 4), both sides of it, as far as load needs it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

use crate::check::mix;

/// No head may be longer, in bytes.
pub const LONGEST_HEAD: usize = 16 * 1024;

const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// `Sec-WebSocket-Accept` for a `Sec-WebSocket-Key` (section 4.2.2).
#[must_use]
pub fn accept(key: &[u8]) -> String {
    let digest = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    STANDARD.encode(digest)
}

/// A `Sec-WebSocket-Key` that no other number has. It is not secret.
#[must_use]
pub fn key(number: u64) -> String {
    let mut nonce = [0; 16];
    nonce[..8].copy_from_slice(&mix(number).to_le_bytes());
    nonce[8..].copy_from_slice(&mix(!number).to_le_bytes());
    STANDARD.encode(nonce)
}

/// A client's request.
#[must_use]
pub fn request(host: &str, path: &str, key: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}

/// A server's answer.
#[must_use]
pub fn switching(key: &[u8]) -> String {
    let accept = accept(key);
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    )
}

/// How many bytes the head at the front of `bytes` has, its empty line included.
#[must_use]
pub fn head_length(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some(end + 4)
}

/// The first line of a head, and a field's value by its name in any case.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a>(pub &'a [u8]);

impl<'a> Head<'a> {
    fn lines(self) -> impl Iterator<Item = &'a [u8]> {
        self.0
            .split(|byte| *byte == b'\n')
            .map(<[u8]>::trim_ascii_end)
    }

    /// A field's value.
    #[must_use]
    pub fn field(self, name: &str) -> Option<&'a [u8]> {
        self.lines().skip(1).find_map(|line| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let (found, value) = line.split_at(colon);
            found
                .eq_ignore_ascii_case(name.as_bytes())
                .then(|| value[1..].trim_ascii())
        })
    }

    /// The words of the first line.
    fn words(self) -> impl Iterator<Item = &'a [u8]> {
        let line = self.lines().next().unwrap_or_default();
        line.split(|byte| *byte == b' ')
    }

    /// Method and target of a request.
    #[must_use]
    pub fn request(self) -> Option<(&'a [u8], &'a [u8])> {
        let mut words = self.words();
        Some((words.next()?, words.next()?))
    }

    /// The status of a response.
    #[must_use]
    pub fn status(self) -> Option<u16> {
        let status = self.words().nth(1)?;
        std::str::from_utf8(status).ok()?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_value_is_that_of_the_rfc() {
        // RFC 6455 section 1.3.
        let value = accept(b"dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(value, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn heads_are_read_whatever_the_case_of_their_names() {
        let text = b"HTTP/1.1 101 Switching Protocols\r\nSEC-websocket-Accept:  x=\r\n\r\nmore";
        let length = head_length(text).unwrap();
        assert_eq!(&text[length..], b"more");
        let head = Head(&text[..length]);
        assert_eq!(head.status(), Some(101));
        assert_eq!(head.field("Sec-WebSocket-Accept"), Some(&b"x="[..]));
        assert_eq!(head.field("Upgrade"), None);
        assert_eq!(head_length(&text[..length - 1]), None);
    }

    #[test]
    fn requests_and_answers_fit_each_other() {
        let (one, other) = (key(1), key(2));
        assert_ne!(one, other);
        let request = request("a.example", "/sink?bytes=9", &one);
        let head = Head(request.as_bytes());
        assert_eq!(head.request(), Some((&b"GET"[..], &b"/sink?bytes=9"[..])));
        assert_eq!(head.field("sec-websocket-key"), Some(one.as_bytes()));
        let answer = switching(one.as_bytes());
        let head = Head(answer.as_bytes());
        assert_eq!(
            head.field("sec-websocket-accept"),
            Some(accept(one.as_bytes()).as_bytes())
        );
    }
}
