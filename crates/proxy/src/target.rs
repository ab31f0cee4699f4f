//! What a request is for: its host and its path, or why that cannot be said.
//!
//! Whatever two readers could understand differently is refused here, so that no server
//! gets a request by a route that it does not match.

#[cfg(test)]
mod tests;

use std::net::Ipv6Addr;

use http::header::{ALLOW, HOST, HeaderValue, TRANSFER_ENCODING};
use http::request::Parts;
use http::{Method, StatusCode, Uri, Version};

use crate::answer::Refusal;
use crate::headers::members;

/// What a request is for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Lower case, without a port and a trailing dot. Empty if the client named none.
    pub(crate) host: Box<str>,
    /// As it was sent, without the query.
    pub(crate) path: Box<str>,
}

/// Vets a request's head and brings its target into origin-form (RFC 9112 section 3.2).
pub(crate) fn vet(head: &mut Parts) -> Result<Target, Refusal> {
    if head.method == Method::CONNECT {
        let allow = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE");
        let refusal = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not served here");
        return Err(refusal.with_header(ALLOW, allow));
    }
    let named = host_field(head)?;
    let authority = to_origin_form(head)?;
    let authority = authority.or(named).unwrap_or_default();
    let host = host_of(&authority).ok_or_else(|| bad("the host is not valid"))?;
    let path = head.uri.path();
    if is_ambiguous(path) {
        return Err(bad("ambiguous path"));
    }
    if !is_chunked_at_most(head.headers.get_all(TRANSFER_ENCODING).iter()) {
        let reason = "the only transfer coding served here is chunked";
        return Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, reason));
    }
    Ok(Target {
        host: host.into(),
        path: path.into(),
    })
}

/// Whether `Transfer-Encoding` is absent or exactly `chunked`: wsgate takes no other coding off,
/// so it may not pass on what has one.
pub(crate) fn is_chunked_at_most<'a>(mut lines: impl Iterator<Item = &'a HeaderValue>) -> bool {
    lines
        .next()
        .is_none_or(|line| line.as_bytes().eq_ignore_ascii_case(b"chunked"))
        && lines.next().is_none()
}

fn bad(reason: &'static str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, reason)
}

/// RFC 9112 section 3.2: none in HTTP/1.1, or several in any version, is a 400.
fn host_field(head: &Parts) -> Result<Option<String>, Refusal> {
    let mut lines = head.headers.get_all(HOST).iter();
    let first = lines.next();
    if lines.next().is_some() {
        return Err(bad("several Host header fields"));
    }
    match first {
        Some(value) => match value.to_str() {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(_) => Err(bad("the host is not valid")),
        },
        None if head.version == Version::HTTP_10 => Ok(None),
        None => Err(bad("no Host header field")),
    }
}

/// In absolute-form the target's authority counts, and `Host` is made to say the same
/// (RFC 9112 section 3.2.2).
fn to_origin_form(head: &mut Parts) -> Result<Option<String>, Refusal> {
    let Some(authority) = head.uri.authority() else {
        return Ok(None);
    };
    let authority = authority.as_str().to_owned();
    if head.uri.scheme().is_none() || authority.contains('@') {
        return Err(bad("the target is not valid"));
    }
    let value = HeaderValue::try_from(&*authority).map_err(|_| bad("the host is not valid"))?;
    let path = head.uri.path_and_query().cloned();
    head.uri = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    head.headers.insert(HOST, value);
    Ok(Some(authority))
}

/// The host of an authority, as routes know it.
fn host_of(authority: &str) -> Option<String> {
    if let Some(literal) = authority.strip_prefix('[') {
        let (address, port) = literal.split_once(']')?;
        let address: Ipv6Addr = address.parse().ok()?;
        let valid = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return valid.then(|| format!("[{address}]"));
    }
    let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
    let host = host.strip_suffix('.').unwrap_or(host);
    let name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&byte);
    (is_port(port) && host.bytes().all(name)).then(|| host.to_ascii_lowercase())
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether a server could take the path for another one: a segment is `.` or `..`, written
/// plainly, percent-encoded, with a parameter (`..;x`), or between the separators that some
/// servers know besides `/` (`\`, `%2f`, `%5c`).
fn is_ambiguous(path: &str) -> bool {
    // Nearly every path: no dot, so no dot segment.
    if !path.contains('.') && !path.contains("%2e") && !path.contains("%2E") {
        return false;
    }
    let plain = path
        .to_ascii_lowercase()
        .replace("%2e", ".")
        .replace("%2f", "/")
        .replace("%5c", "/")
        .replace("%3b", ";");
    plain
        .split(['/', '\\'])
        .map(|segment| segment.split(';').next().unwrap_or_default())
        .any(|segment| matches!(segment, "." | ".."))
}

/// Whether the client takes trailers (RFC 9110 section 10.1.4).
pub(crate) fn takes_trailers(head: &Parts) -> bool {
    members(&head.headers, &http::header::TE).any(|member| member.eq_ignore_ascii_case("trailers"))
}
