use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use wsgate_config::{HostPattern, PathPattern, Route};

use super::Routes;

fn route(hosts: &[HostPattern], path: PathPattern) -> Route {
    Route {
        hosts: hosts.to_vec(),
        path,
        upstream: "u".to_owned(),
        idle_timeout: Duration::from_secs(1),
        send_timeout: Duration::from_secs(1),
        max_age: None,
        ping_interval: None,
        number: 0,
    }
}

fn exact(host: &str) -> HostPattern {
    HostPattern::Exact(host.to_owned())
}

fn below(host: &str) -> HostPattern {
    HostPattern::Below(host.to_owned())
}

fn only(path: &str) -> PathPattern {
    PathPattern::Exact(path.to_owned())
}

fn segments(path: &str) -> PathPattern {
    PathPattern::Segments(path.to_owned())
}

fn prefix(path: &str) -> PathPattern {
    PathPattern::Prefix(path.to_owned())
}

#[test]
fn the_longest_match_wins_and_the_exact_path_before_all() {
    let routes = Routes::new(&[
        route(&[], segments("")),
        route(&[], segments("/ver")),
        route(&[], only("/ver")),
        route(&[], prefix("/ver")),
        route(&[], segments("/ver/deep")),
        route(&[], prefix("/ver/de")),
    ]);
    let table = [
        ("/", 0),
        ("/other", 0),
        ("/ver", 2),
        ("/ver/", 1),
        ("/ver/x", 1),
        ("/version", 3),
        ("/ver%2fx", 3),
        ("/ver/deep", 4),
        ("/ver/deep/er", 4),
        ("/ver/deeper", 5),
        ("//ver", 0),
        ("/VER", 0),
    ];
    for (path, place) in table {
        assert_eq!(routes.find("any", path), Some(place), "{path}");
    }
    assert_eq!(routes.find("any", "*"), None);
}

#[test]
fn the_most_specific_host_that_has_the_path_wins() {
    let routes = Routes::new(&[
        route(&[], segments("")),
        route(&[below("example.com")], segments("/chat")),
        route(&[below("eu.example.com")], segments("/eu")),
        route(&[exact("a.eu.example.com"), exact("b")], segments("/a")),
        route(&[exact("a.eu.example.com")], segments("/chat")),
    ]);
    let table = [
        ("a.eu.example.com", "/a", 3),
        ("b", "/a/x", 3),
        ("a.eu.example.com", "/chat", 4),
        ("a.eu.example.com", "/eu", 2),
        ("b.eu.example.com", "/chat", 1),
        ("x.y.example.com", "/chat", 1),
        ("a.eu.example.com", "/none", 0),
        ("example.com", "/chat", 0),
        ("notexample.com", "/chat", 0),
        ("eu.example.com", "/eu", 0),
        ("", "/chat", 0),
    ];
    for (host, path, place) in table {
        assert_eq!(routes.find(host, path), Some(place), "{host}{path}");
    }
}

#[test]
fn no_route_is_no_route() {
    let routes = Routes::new(&[route(&[exact("a")], segments("/x"))]);
    assert_eq!(routes.find("a", "/x"), Some(0));
    assert_eq!(routes.find("a", "/xy"), None);
    assert_eq!(routes.find("b", "/x"), None);
    assert_eq!(routes.find("a", ""), None);
}

/// How well a route matches, by looking at that route alone: greater is better.
fn rank(route: &Route, host: &str, path: &str) -> Option<(usize, usize, usize)> {
    let host_rank = match route.hosts.as_slice() {
        [] => Some(0),
        hosts => hosts
            .iter()
            .filter_map(|pattern| match pattern {
                HostPattern::Exact(name) => (name == host).then_some(usize::MAX),
                HostPattern::Below(name) => host
                    .ends_with(&format!(".{name}"))
                    .then_some(1 + name.len()),
            })
            .max(),
    }?;
    let (length, kind) = match &route.path {
        PathPattern::Exact(text) => (text == path).then_some((usize::MAX, 0)),
        PathPattern::Segments(text) => {
            (path == text || path.starts_with(&format!("{text}/"))).then_some((text.len(), 1))
        }
        PathPattern::Prefix(text) => path.starts_with(text).then_some((text.len(), 0)),
    }?;
    Some((host_rank, length, kind))
}

pub(crate) fn naive(routes: &[Route], host: &str, path: &str) -> Option<usize> {
    let ranked = routes
        .iter()
        .enumerate()
        .filter_map(|(place, route)| Some((rank(route, host, path)?, place)));
    ranked
        .max_by_key(|(rank, place)| (*rank, std::cmp::Reverse(*place)))
        .map(|(_, place)| place)
}

pub(crate) fn any_host() -> impl Strategy<Value = String> {
    vec(prop_oneof!["a", "b", "ab"], 1..4).prop_map(|labels| labels.join("."))
}

pub(crate) fn any_path() -> impl Strategy<Value = String> {
    vec(prop_oneof!["/", "/a", "/b", "a", "b"], 0..6)
        .prop_map(|parts| format!("/{}", parts.concat()))
}

pub(crate) fn any_route() -> impl Strategy<Value = Route> {
    let host = (any_host(), any::<bool>()).prop_map(|(host, whole)| match whole {
        true => HostPattern::Exact(host),
        false => HostPattern::Below(host),
    });
    let path = (any_path(), 0..3).prop_map(|(path, kind)| match kind {
        0 => PathPattern::Exact(path),
        1 => PathPattern::Segments(path.trim_end_matches('/').to_owned()),
        _ => PathPattern::Prefix(path),
    });
    (vec(host, 0..3), path).prop_map(|(hosts, path)| route(&hosts, path))
}

proptest! {
    #[test]
    fn every_lookup_is_what_a_look_at_every_route_finds(
        routes in vec(any_route(), 0..40),
        asked in vec((any_host(), any_path()), 1..40),
    ) {
        let table = Routes::new(&routes);
        for (host, path) in asked {
            prop_assert_eq!(
                table.find(&host, &path), naive(&routes, &host, &path), "{}{}", host, path
            );
        }
    }
}
