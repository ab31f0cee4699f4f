use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode, Version};

use super::offer::{Offer, accept_of};

/// The example of RFC 6455 section 1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

fn map(lines: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        let name = HeaderName::try_from(*name).unwrap();
        headers.append(name, HeaderValue::try_from(*value).unwrap());
    }
    headers
}

fn offer(more: &[(&str, &str)]) -> Offer {
    let lines = [
        &[("sec-websocket-version", "13"), ("sec-websocket-key", KEY)],
        more,
    ]
    .concat();
    Offer::read(&map(&lines), true).unwrap()
}

fn status(lines: &[(&str, &str)]) -> StatusCode {
    Offer::read(&map(lines), true).unwrap_err().status
}

fn verify(offer: &Offer, lines: &[(&str, &str)]) -> Result<Option<Box<str>>, &'static str> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = map(lines);
    offer.verify(&response)
}

const UPGRADE: (&str, &str) = ("upgrade", "WebSocket");
const CONNECTION: (&str, &str) = ("connection", "keep-alive, Upgrade");
const ACCEPTED: (&str, &str) = ("sec-websocket-accept", ACCEPT);

#[test]
fn the_key_of_the_rfc_has_the_accept_of_the_rfc() {
    assert_eq!(accept_of(KEY.as_bytes()), ACCEPT);
}

#[test]
fn a_right_101_is_right() {
    let right = [UPGRADE, CONNECTION, ACCEPTED];
    assert_eq!(verify(&offer(&[]), &right), Ok(None));
}

#[test]
fn a_101_that_lacks_something_is_wrong() {
    let other = ("sec-websocket-accept", "AAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    for wrong in [
        vec![CONNECTION, ACCEPTED],
        vec![UPGRADE, ACCEPTED],
        vec![UPGRADE, CONNECTION],
        vec![UPGRADE, CONNECTION, other],
        vec![UPGRADE, CONNECTION, ACCEPTED, ACCEPTED],
        vec![("upgrade", "h2c"), CONNECTION, ACCEPTED],
    ] {
        assert!(verify(&offer(&[]), &wrong).is_err(), "{wrong:?}");
    }
    let mut old = Response::new(());
    *old.headers_mut() = map(&[UPGRADE, CONNECTION, ACCEPTED]);
    *old.version_mut() = Version::HTTP_10;
    assert!(offer(&[]).verify(&old).is_err());
}

#[test]
fn only_an_offered_subprotocol_can_be_agreed() {
    let offer = offer(&[
        ("sec-websocket-protocol", "chat, superchat"),
        ("sec-websocket-protocol", "x"),
    ]);
    let answer = |lines: &[(&str, &str)]| {
        verify(&offer, &[&[UPGRADE, CONNECTION, ACCEPTED], lines].concat())
    };
    assert_eq!(answer(&[]), Ok(None));
    assert_eq!(
        answer(&[("sec-websocket-protocol", "x")]),
        Ok(Some("x".into()))
    );
    assert_eq!(
        answer(&[("sec-websocket-protocol", "superchat")]),
        Ok(Some("superchat".into()))
    );
    assert!(answer(&[("sec-websocket-protocol", "Chat")]).is_err());
    assert!(answer(&[("sec-websocket-protocol", "chat, x")]).is_err());
    let twice = ("sec-websocket-protocol", "x");
    assert!(answer(&[twice, twice]).is_err());
}

#[test]
fn extensions_must_have_been_offered() {
    let extension = ("sec-websocket-extensions", "permessage-deflate");
    let answer = [UPGRADE, CONNECTION, ACCEPTED, extension];
    assert!(verify(&offer(&[]), &answer).is_err());
    assert!(verify(&offer(&[extension]), &answer).is_ok());
}

#[test]
fn another_version_is_426_and_a_bad_key_400() {
    let version = ("sec-websocket-version", "13");
    let key = ("sec-websocket-key", KEY);
    assert_eq!(status(&[key]), StatusCode::UPGRADE_REQUIRED);
    assert_eq!(
        status(&[("sec-websocket-version", "8"), key]),
        StatusCode::UPGRADE_REQUIRED
    );
    assert_eq!(
        status(&[version, version, key]),
        StatusCode::UPGRADE_REQUIRED
    );
    assert_eq!(status(&[version]), StatusCode::BAD_REQUEST);
    assert_eq!(status(&[version, key, key]), StatusCode::BAD_REQUEST);
    for bad in [
        "",
        "short",
        "AAAAAAAAAAAAAAAAAAAAAAAA",
        "dGhlIHNhbXBsZSBub25j",
        "!!!!!!!!!!!!!!!!!!!!!!==",
    ] {
        assert_eq!(
            status(&[version, ("sec-websocket-key", bad)]),
            StatusCode::BAD_REQUEST,
            "{bad}"
        );
    }
    // Random letters, whose last bits are not zero.
    assert!(
        Offer::read(
            &map(&[version, ("sec-websocket-key", "zzzzzzzzzzzzzzzzzzzzzz==")]),
            true
        )
        .is_ok()
    );
    assert_eq!(
        Offer::read(&map(&[version, key]), false)
            .unwrap_err()
            .status,
        StatusCode::BAD_REQUEST
    );
}
