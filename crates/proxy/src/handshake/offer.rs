//! What a client offers in its handshake, and whether a server's 101 is an answer to that.

use base64::Engine;
use base64::alphabet::STANDARD as ALPHABET;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use http::header::{
    CONNECTION, HeaderMap, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::request::Parts;
use http::{Method, Response, StatusCode, Version};
use sha1::{Digest, Sha1};

use crate::answer::Refusal;
use crate::headers::{has_token, members, only};

/// RFC 6455 section 1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Some clients make a key of 24 random letters, whose last bits are not zero.
const KEYS: GeneralPurpose = GeneralPurpose::new(
    &ALPHABET,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// Whether a request asks to become a WebSocket. Any other upgrade is answered as if
/// it had not been asked for (RFC 9110 section 7.8).
pub(crate) fn is_upgrade(head: &Parts) -> bool {
    head.method == Method::GET
        && head.version == Version::HTTP_11
        && has_token(&head.headers, &UPGRADE, "websocket")
        && has_token(&head.headers, &CONNECTION, "upgrade")
}

/// What a client offers.
#[derive(Debug)]
pub(super) struct Offer {
    /// The `Sec-WebSocket-Accept` that its key asks for.
    accept: String,
    subprotocols: Vec<String>,
    extensions: bool,
}

impl Offer {
    /// 426 for another version than 13, 400 for what is no handshake (RFC 6455 section 4.2.1).
    pub(super) fn read(headers: &HeaderMap, no_body: bool) -> Result<Self, Refusal> {
        let bad = |reason| Err(Refusal::new(StatusCode::BAD_REQUEST, reason));
        if only(headers, &SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
            return Err(Refusal::wrong_version());
        }
        let Some(key) = only(headers, &SEC_WEBSOCKET_KEY) else {
            return bad("no Sec-WebSocket-Key header field, or several");
        };
        if KEYS.decode(key).ok().is_none_or(|key| key.len() != 16) {
            return bad("Sec-WebSocket-Key is not 16 bytes in base64");
        }
        if !no_body {
            return bad("a WebSocket handshake has no body");
        }
        let subprotocols = members(headers, &SEC_WEBSOCKET_PROTOCOL);
        Ok(Self {
            accept: accept_of(key.as_bytes()),
            subprotocols: subprotocols.map(str::to_owned).collect(),
            extensions: headers.contains_key(SEC_WEBSOCKET_EXTENSIONS),
        })
    }

    /// The subprotocol that a 101 agrees to, or what is wrong with it (RFC 6455 section 4.1).
    pub(super) fn verify<B>(
        &self,
        response: &Response<B>,
    ) -> Result<Option<Box<str>>, &'static str> {
        let headers = response.headers();
        if response.version() != Version::HTTP_11 {
            return Err("a 101 that is not HTTP/1.1");
        }
        if !has_token(headers, &UPGRADE, "websocket") {
            return Err("a 101 without Upgrade: websocket");
        }
        if !has_token(headers, &CONNECTION, "upgrade") {
            return Err("a 101 without Connection: Upgrade");
        }
        if only(headers, &SEC_WEBSOCKET_ACCEPT).is_none_or(|accept| *accept != *self.accept) {
            return Err("a 101 whose Sec-WebSocket-Accept is not for this key");
        }
        if headers.contains_key(SEC_WEBSOCKET_EXTENSIONS) && !self.extensions {
            return Err("a 101 with an extension that the client has not offered");
        }
        self.subprotocol(headers)
    }

    fn subprotocol(&self, headers: &HeaderMap) -> Result<Option<Box<str>>, &'static str> {
        if !headers.contains_key(SEC_WEBSOCKET_PROTOCOL) {
            return Ok(None);
        }
        only(headers, &SEC_WEBSOCKET_PROTOCOL)
            .and_then(|value| self.subprotocols.iter().find(|offered| *value == **offered))
            .map(|agreed| Some(agreed.as_str().into()))
            .ok_or("a 101 with a subprotocol that the client has not offered")
    }
}

/// RFC 6455 section 4.2.2, step 5.4.
pub(super) fn accept_of(key: &[u8]) -> String {
    let hash = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    STANDARD.encode(hash)
}
