//! Header fields that are for one connection only (RFC 9110 section 7.6.1), and those that a
//! proxy adds.
//!
//! What is not named here passes untouched. `Trailer` and `Proxy-Authorization` are no
//! such fields: the one announces trailers, which pass, and the other is for the first proxy
//! that asks for it, which wsgate does not.

use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING,
    UPGRADE,
};

use crate::socket::Peer;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// The members of a list field, from all its lines, in their order.
pub(crate) fn members<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|member| !member.is_empty())
}

/// Whether a list field has a token, in any case.
pub(crate) fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    members(headers, name).any(|member| member.eq_ignore_ascii_case(token))
}

/// The only line of a field; `None` if it has none or several.
pub(crate) fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut lines = headers.get_all(name).iter();
    lines.next().filter(|_| lines.next().is_none())
}

/// Removes what is for this connection only, and what `Connection` names.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = members(headers, &CONNECTION)
        .filter_map(|member| HeaderName::try_from(member).ok())
        // No option may name these: without them the message would be another.
        .filter(|name| *name != HOST && *name != CONTENT_LENGTH)
        .collect();
    let fixed = [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
    ];
    for name in named.into_iter().chain(fixed) {
        headers.remove(name);
    }
}

/// Says anew that this connection becomes a WebSocket.
pub(crate) fn set_upgrade(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

/// Says anew that trailers are welcome (RFC 9110 section 10.1.4).
pub(crate) fn set_te_trailers(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("TE"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
}

/// Appends the client's address to `X-Forwarded-For` and sets `X-Real-IP` to it. A client on a Unix
/// socket has none: what it says of the one before it is left alone.
pub(crate) fn set_forwarded(headers: &mut HeaderMap, peer: Peer) {
    let Peer::Tcp(address) = peer else { return };
    let ip = address.ip().to_canonical().to_string();
    let chain: Vec<&str> = members(headers, &FORWARDED_FOR).chain([&*ip]).collect();
    for (name, value) in [(FORWARDED_FOR, chain.join(", ")), (REAL_IP, ip)] {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(
                HeaderName::try_from(*name).unwrap(),
                HeaderValue::try_from(*value).unwrap(),
            );
        }
        headers
    }

    #[test]
    fn fields_for_one_connection_are_removed_and_others_stay() {
        let mut headers = map(&[
            ("Host", "a"),
            ("Connection", "keep-alive, X-Private"),
            ("Connection", "upgrade,host, content-length ,,bad name"),
            ("X-Private", "1"),
            ("X-Private", "2"),
            ("Keep-Alive", "timeout=5"),
            ("Proxy-Connection", "keep-alive"),
            ("Proxy-Authorization", "Basic eA=="),
            ("TE", "trailers"),
            ("Trailer", "x-sum"),
            ("Transfer-Encoding", "chunked"),
            ("Upgrade", "h2c"),
            ("Content-Length", "3"),
            ("Cookie", "c=1"),
        ]);
        strip_hop_by_hop(&mut headers);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(
            left,
            [
                "content-length",
                "cookie",
                "host",
                "proxy-authorization",
                "trailer"
            ]
        );
    }

    #[test]
    fn tokens_are_found_in_any_line_and_case_but_only_whole() {
        let headers = map(&[
            ("Connection", "keep-alive"),
            ("Connection", " foo ,UPGRADE"),
        ]);
        assert!(has_token(&headers, &CONNECTION, "upgrade"));
        assert!(!has_token(&headers, &CONNECTION, "keep"));
        assert!(!has_token(&headers, &UPGRADE, "websocket"));
    }

    #[test]
    fn the_chain_of_addresses_grows_and_the_real_one_is_replaced() {
        let mut headers = map(&[
            ("X-Forwarded-For", "192.0.2.1"),
            ("X-Forwarded-For", "192.0.2.2, 192.0.2.3"),
            ("X-Real-IP", "192.0.2.9"),
        ]);
        set_forwarded(&mut headers, Peer::Unix);
        assert_eq!(headers[REAL_IP], "192.0.2.9");
        set_forwarded(&mut headers, Peer::Tcp("[2001:db8::1]:99".parse().unwrap()));
        assert_eq!(
            headers[FORWARDED_FOR],
            "192.0.2.1, 192.0.2.2, 192.0.2.3, 2001:db8::1"
        );
        assert_eq!(headers.get_all(FORWARDED_FOR).iter().count(), 1);
        assert_eq!(headers[REAL_IP], "2001:db8::1");
    }
}
