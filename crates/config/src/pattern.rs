//! What a route is for: hosts and paths as they are written in `[[route]]`.

use std::net::Ipv6Addr;

use crate::error::Complaint;
use crate::{HostPattern, PathPattern};

/// `chat.example.com` or `*.example.com`, in any case.
pub(crate) fn host(text: &str) -> Result<HostPattern, Complaint> {
    let wrong = |help: String| Err(Complaint::new(format!("`{text}` is not a host"), help));
    if let Some((_, rest)) = text.split_once("://") {
        let name = rest.split(['/', ':']).next().unwrap_or_default();
        return wrong(if_right(
            host(name),
            format!("write the host alone: \"{name}\""),
        ));
    }
    if text.is_empty() {
        return wrong("leave `host` out: the route is for any host then".to_owned());
    }
    if text == "*" || text == "*." {
        return wrong(
            "leave `host` out for any host, or write \"*.example.com\" for those below a name"
                .to_owned(),
        );
    }
    if let Some(address) = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        return match address.parse::<Ipv6Addr>() {
            Ok(address) => Ok(HostPattern::Exact(format!("[{address}]"))),
            Err(_) => wrong("write an IPv6 address as \"[2001:db8::1]\"".to_owned()),
        };
    }
    if let Ok(address) = text.parse::<Ipv6Addr>() {
        return wrong(format!("write \"[{address}]\""));
    }
    if let Some((name, _)) = text.split_once(':') {
        let help = format!("a host has no port here: write \"{name}\"");
        return wrong(if_right(host(name), help));
    }
    if let Some((name, _)) = text.split_once('/') {
        let help = format!("write host = \"{name}\" and the path as `path`");
        return wrong(if_right(host(name), help));
    }
    let (below, name) = match text.strip_prefix("*.") {
        Some(name) => (true, name),
        None => (false, text),
    };
    if text.ends_with('.') {
        let name = text.trim_end_matches('.');
        let help = format!("write it without the point at the end: \"{name}\"");
        return wrong(if_right(host(name), help));
    }
    if name.contains('*') {
        return wrong("`*` stands for whole labels at the beginning: \"*.example.com\"".to_owned());
    }
    if !name.is_ascii() {
        return wrong("write its ASCII form, which begins with \"xn--\"".to_owned());
    }
    if !is_host_name(name) {
        return wrong("write for example \"chat.example.com\"".to_owned());
    }
    let name = name.to_ascii_lowercase();
    Ok(if below {
        HostPattern::Below(name)
    } else {
        HostPattern::Exact(name)
    })
}

/// `help`, which suggests what was `tried`; if that is wrong as well, what is said of it.
fn if_right<T>(tried: Result<T, Complaint>, help: String) -> String {
    match tried {
        Ok(_) => help,
        Err(complaint) => complaint.help.unwrap_or(help),
    }
}

/// Labels of letters, digits, `-` and `_`, at most 63 and 253 long (RFC 1035
/// section 2.3.4; the underscore is in use all the same).
pub(crate) fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// `/ver`, `=/ver` or `/ver*`.
pub(crate) fn path(text: &str) -> Result<PathPattern, Complaint> {
    let wrong = |help: String| Err(Complaint::new(format!("`{text}` is not a path"), help));
    let (exact, rest) = match text.strip_prefix('=') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (prefix, rest) = match rest.strip_suffix('*') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    if exact && prefix {
        return wrong("`=` is one path alone and `*` many: leave one of them out".to_owned());
    }
    if !rest.starts_with('/') {
        let (before, after) = (if exact { "=" } else { "" }, if prefix { "*" } else { "" });
        return wrong(match rest {
            "" => "write \"/\" for all paths".to_owned(),
            "~" | "^" => "a path is no regular expression: write \"/ver\"".to_owned(),
            _ => {
                let right = format!("{before}/{rest}{after}");
                if_right(path(&right), format!("it begins with a slash: \"{right}\""))
            }
        });
    }
    if let Some((before, _)) = rest.split_once(['?', '#']) {
        let help = format!("the query is not looked at: write \"{before}\"");
        return wrong(if_right(path(before), help));
    }
    if rest.contains('*') {
        return wrong("`*` may stand at the end only: \"/ver*\"".to_owned());
    }
    if !is_path(rest) {
        return wrong(
            "other characters than letters, digits and -._~!$&'()+,;=:@/ are written as %XX"
                .to_owned(),
        );
    }
    if has_dot_segment(rest, prefix) {
        return Err(Complaint::new(
            format!("`{text}` can match no request"),
            "a path with a segment `.` or `..` (also as %2e) is answered with 400: write it without",
        ));
    }
    Ok(match (exact, prefix) {
        (true, _) => PathPattern::Exact(rest.to_owned()),
        (_, true) => PathPattern::Prefix(rest.to_owned()),
        _ => PathPattern::Segments(rest.trim_end_matches('/').to_owned()),
    })
}

/// Whether wsgate refuses every request that the pattern would match, because a server
/// could take its path for another one: a segment is `.` or `..`, plain or
/// percent-encoded, with a parameter or without, between slashes or what some servers
/// take for one. `open`: the last segment may go on, as `.` does in `/.well-known`.
fn has_dot_segment(path: &str, open: bool) -> bool {
    let decoded = [("%2e", "."), ("%2f", "/"), ("%5c", "/"), ("%3b", ";")]
        .iter()
        .fold(path.to_ascii_lowercase(), |path, (code, plain)| {
            path.replace(code, plain)
        });
    let mut segments = decoded.split('/');
    // A parameter ends the name, whatever follows.
    let last = segments
        .next_back()
        .filter(|last| !open || last.contains(';'));
    segments
        .chain(last)
        .any(|segment| matches!(segment.split(';').next(), Some("." | "..")))
}

/// `pchar` and `/` of RFC 3986 section 3.3.
fn is_path(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()+,;=:@/".contains(&b);
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let hex = |byte: Option<u8>| byte.is_some_and(|b| b.is_ascii_hexdigit());
        let escaped = byte == b'%' && hex(bytes.next()) && hex(bytes.next());
        if !escaped && !plain(byte) {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn help<T: std::fmt::Debug>(result: Result<T, Complaint>) -> String {
        result.unwrap_err().help.unwrap()
    }

    /// What stands in quotes in the help, if anything is wrong.
    fn suggested<T>(result: Result<T, Complaint>) -> Option<String> {
        let help = result.err()?.help.unwrap();
        help.split('"').nth(1).map(str::to_owned)
    }

    #[test]
    fn hosts_are_exact_or_below_a_name() {
        let exact = |name: &str| Ok(HostPattern::Exact(name.to_owned()));
        assert_eq!(host("Chat.Example.COM"), exact("chat.example.com"));
        assert_eq!(host("localhost"), exact("localhost"));
        assert_eq!(host("10.0.0.1"), exact("10.0.0.1"));
        assert_eq!(host("[2001:DB8::0:1]"), exact("[2001:db8::1]"));
        assert_eq!(
            host("*.example.com"),
            Ok(HostPattern::Below("example.com".to_owned()))
        );
    }

    #[test]
    fn wrong_hosts_say_what_to_write() {
        assert!(help(host("chat.example.com:443")).contains("\"chat.example.com\""));
        assert!(help(host("https://chat.example.com/x")).contains("\"chat.example.com\""));
        assert!(help(host("chat.example.com/x")).contains("`path`"));
        assert!(help(host("*")).contains("leave `host` out"));
        for text in ["*", "*.", "*..", "*:80", "https://*./x"] {
            let help = help(host(text));
            assert!(help.starts_with("leave `host` out for any host"), "{help}");
            assert!(help.contains("\"*.example.com\""), "{help}");
        }
        assert!(help(host("a*.example.com")).contains("\"*.example.com\""));
        assert!(help(host("example.com.")).contains("\"example.com\""));
        assert!(help(host("bücher.example")).contains("xn--"));
        assert!(help(host("::1")).contains("\"[::1]\""));
        for text in ["a b", "a..b", "-a", "*.", "[x]", ""] {
            assert!(host(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn paths_have_three_kinds() {
        let segments = |path: &str| Ok(PathPattern::Segments(path.to_owned()));
        assert_eq!(path("/ver"), segments("/ver"));
        assert_eq!(path("/ver/"), segments("/ver"));
        assert_eq!(path("/"), segments(""));
        assert_eq!(path("=/ver/"), Ok(PathPattern::Exact("/ver/".to_owned())));
        assert_eq!(path("/ver*"), Ok(PathPattern::Prefix("/ver".to_owned())));
        assert_eq!(path("/*"), Ok(PathPattern::Prefix("/".to_owned())));
        assert_eq!(path("/a%20b"), segments("/a%20b"));
    }

    #[test]
    fn wrong_paths_say_what_to_write() {
        assert!(help(path("ver")).contains("\"/ver\""));
        assert!(help(path("=ver")).contains("\"=/ver\""));
        assert!(help(path("ver*")).contains("\"/ver*\""));
        assert!(help(path("")).contains("\"/\""));
        assert!(help(path("*")).contains("\"/\""));
        assert!(help(path("/ver?room=1")).contains("\"/ver\""));
        assert!(help(path("/a*b")).contains("\"/ver*\""));
        assert!(help(path("/ü")).contains("%XX"));
        for text in ["=/a*", "/100%", "/%zz", "/a b"] {
            assert!(path(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_path_that_every_request_is_refused_for_is_a_mistake() {
        for text in [
            "/a/../b",
            "/..",
            "/.",
            "=/a/./b",
            "/a/../",
            "/%2e%2E/b",
            "/a/.%2e",
            "/a/..;x=1/b",
            "/a%2f..%2Fb",
            "/a%5C..",
            "/..%3bx",
            "/a/../b*",
            "/a/..;*",
            "/a/..%2f*",
        ] {
            let complaint = path(text).unwrap_err();
            assert_eq!(complaint.message, format!("`{text}` can match no request"));
            assert!(complaint.help.unwrap().contains("400"), "{text}");
        }
        assert!(help(path("../b")).contains("400"));
        assert!(help(path("/a/..?x")).contains("400"));
    }

    #[test]
    fn a_path_with_other_dots_is_right() {
        for text in [
            "/.well-known",
            "/a..b",
            "/...",
            "/a.",
            "/..a/b",
            "=/a;..",
            "/%2e%2e%2e",
            "/.*",
            "/a/..*",
            "/a/%2e*",
        ] {
            assert!(path(text).is_ok(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_them_panic(text in "\\PC{0,20}|[=*/%a-f.:\\[\\]?#]{0,20}") {
            let _ = host(&text);
            let _ = path(&text);
        }

        #[test]
        fn what_is_shown_reads_as_the_same(text in "=?/[a-c./]{0,8}\\*?") {
            if let Ok(pattern) = path(&text) {
                prop_assert_eq!(path(&pattern.to_string()), Ok(pattern));
            }
        }

        #[test]
        fn what_is_suggested_is_right(
            name in "(https://)?[*a-c.:/\\[\\]-]{0,9}",
            text in "=?/?[a-c./?#*%2e;]{0,8}\\*?",
        ) {
            if let Some(name) = suggested(host(&name)) {
                prop_assert!(host(&name).is_ok(), "{}", name);
            }
            if let Some(text) = suggested(path(&text)) {
                prop_assert!(path(&text).is_ok(), "{}", text);
            }
        }
    }
}
