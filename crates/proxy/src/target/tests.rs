use http::header::HOST;
use http::request::Parts;
use http::{Request, StatusCode, Version};

use super::{Target, host_of, is_ambiguous, vet};

fn head(target: &str, hosts: &[&str]) -> Parts {
    let mut request = Request::builder().uri(target).version(Version::HTTP_11);
    for host in hosts {
        request = request.header(HOST, *host);
    }
    request.body(()).unwrap().into_parts().0
}

fn target(host: &str, path: &str) -> Target {
    Target {
        host: host.into(),
        path: path.into(),
    }
}

fn refused(head: &mut Parts) -> (StatusCode, &'static str) {
    let refusal = vet(head).unwrap_err();
    (refusal.status, refusal.reason)
}

#[test]
fn the_host_field_names_the_host() {
    let found = vet(&mut head("/ver?token=1", &["Chat.Example.COM.:8080"])).unwrap();
    assert_eq!(found, target("chat.example.com", "/ver"));
}

#[test]
fn an_absolute_target_overrides_the_host_and_becomes_origin_form() {
    let mut head = head("http://Other:81/a?b", &["first"]);
    assert_eq!(vet(&mut head).unwrap(), target("other", "/a"));
    assert_eq!(head.uri, "/a?b");
    assert_eq!(head.headers[HOST], "Other:81");
}

#[test]
fn only_http_1_0_may_leave_the_host_out() {
    let mut head = head("/", &[]);
    assert_eq!(
        refused(&mut head),
        (StatusCode::BAD_REQUEST, "no Host header field")
    );
    head.version = Version::HTTP_10;
    assert_eq!(vet(&mut head).unwrap(), target("", "/"));
}

#[test]
fn a_host_that_is_none_is_refused() {
    let several = refused(&mut head("/", &["a", "a"]));
    assert_eq!(
        several,
        (StatusCode::BAD_REQUEST, "several Host header fields")
    );
    for host in [
        "a b", "a/b", "u@a", "a:b", "a:1:2", "[::1", "[x]", "[::1]x", "::1", "a,b c",
    ] {
        assert_eq!(
            refused(&mut head("/", &[host])).0,
            StatusCode::BAD_REQUEST,
            "{host}"
        );
    }
    assert_eq!(
        refused(&mut head("http://u@a/", &["a"])).1,
        "the target is not valid"
    );
    assert_eq!(
        refused(&mut head("a.example:80", &["a"])).1,
        "the target is not valid"
    );
}

#[test]
fn addresses_are_hosts() {
    assert_eq!(
        host_of("[2001:DB8::0:1]:80").as_deref(),
        Some("[2001:db8::1]")
    );
    assert_eq!(host_of("10.0.0.1:80").as_deref(), Some("10.0.0.1"));
    assert_eq!(host_of("a:").as_deref(), Some("a"));
    assert_eq!(host_of("").as_deref(), Some(""));
}

#[test]
fn a_dot_segment_in_any_disguise_is_ambiguous() {
    for path in [
        "/..",
        "/../",
        "/a/../b",
        "/a/./b",
        "/.",
        "/%2e%2e/",
        "/%2E./b",
        "/a/.%2e",
        "/a%2f..%2fb",
        "/a%2F%2e%2E",
        "/a\\..\\b",
        "/a%5c..",
        "/a/..;x=1/b",
        "/a/..%3bx/b",
        "/a;/../b",
    ] {
        assert!(is_ambiguous(path), "{path}");
        assert_eq!(refused(&mut head(path, &["a"])).1, "ambiguous path");
    }
}

#[test]
fn dots_in_names_are_no_dot_segments() {
    for path in [
        "/",
        "//",
        "/a//b",
        "/...",
        "/a.b",
        "/.a",
        "/a..",
        "/..a/",
        "/%2ea",
        "/a%2fb",
        "/v1.2/x;p=..",
        "/.well-known/x",
    ] {
        assert!(!is_ambiguous(path), "{path}");
    }
}

#[test]
fn codings_other_than_chunked_are_not_served() {
    for (coding, served) in [
        ("chunked", true),
        ("Chunked", true),
        ("gzip, chunked", false),
        ("chunked, chunked", false),
        ("identity", false),
    ] {
        let mut head = head("/", &["a"]);
        head.headers
            .insert("transfer-encoding", coding.parse().unwrap());
        assert_eq!(vet(&mut head).is_ok(), served, "{coding}");
    }
}
