use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use wsgate_config::{Config, ListenAddress, Listener, Server, Sources, Upstream, parse};

use super::{Fate, Judgement, Lost, Reason, RoutedBy, STEP, ending, fate, judge};
use crate::record::{self, Asked, By};
use crate::registry::{Entry, Registry};
use crate::route::tests::{any_host, any_path, any_route, naive};
use crate::table::Plan;
use crate::tests::ledger::Books;
use crate::tunnel::rig::{TIMEOUTS, asked};
use crate::{ClosePlan, Deadline, Record};

const TWO: &str = "[[listener]]\naddress = '127.0.0.1:80'\n[[listener]]\naddress = 'unix:/l'\n\
    [[route]]\nhost = 'h'\npath = '/a'\nupstream = 'a'\nidle_timeout = '10s'\nmax_age = '1h'\n\
    [[route]]\nhost = 'h'\npath = '/b'\nupstream = 'b'\n\
    [upstream.a]\nservers = ['one:1', 'unix:/s']\n[upstream.b]\nservers = ['one:1']\n";

fn config(text: &str) -> Config {
    parse(Sources::from_text("test", text)).unwrap().config
}

fn by<'a>(listener: &'a str, host: &'a str, path: &'a str, server: &'a str) -> RoutedBy<'a> {
    RoutedBy {
        listener,
        host,
        path,
        upstream: "a",
        server,
    }
}

fn reason(plan: &Plan, by: &RoutedBy<'_>) -> Option<Reason> {
    match fate(plan, by) {
        Fate::Kept { .. } => None,
        Fate::Lost(reason) => Some(reason),
    }
}

#[test]
fn a_tunnel_loses_its_way_for_the_first_thing_that_is_gone() {
    let plan = Plan::new(&config(TWO));
    let lost = |by| reason(&plan, &by);
    assert_eq!(lost(by("127.0.0.1:80", "h", "/a/x", "unix:/s")), None);
    assert_eq!(lost(by("unix:/l", "h", "/a", "one:1")), None);
    let listener = Some(Reason::ListenerRemoved);
    assert_eq!(lost(by("0.0.0.0:80", "h", "/a", "one:1")), listener);
    assert_eq!(lost(by("0.0.0.0:80", "no", "/a", "one:1")), listener);
    let route = Some(Reason::RouteRemoved);
    assert_eq!(lost(by("unix:/l", "no", "/a", "one:1")), route);
    assert_eq!(lost(by("unix:/l", "h", "/ab", "one:1")), route);
    let server = Some(Reason::ServerRemoved);
    assert_eq!(lost(by("unix:/l", "h", "/a", "two:1")), server);
    // A tunnel of the upstream `a`, whose path leads to `b` now.
    let other = Some(Reason::OtherUpstream("b".into()));
    assert_eq!(lost(by("unix:/l", "h", "/b", "unix:/s")), other);
    assert_eq!(lost(by("unix:/l", "h", "/b", "one:1")), None);
}

#[test]
fn what_is_kept_gets_the_route_and_the_server_of_the_new_plan() {
    let mut config = config(TWO);
    config.routes[1].number = 7;
    config.upstreams.get_mut("b").unwrap().servers[0].number = 9;
    let plan = Plan::new(&config);
    let Fate::Kept { route, server } = fate(&plan, &by("unix:/l", "h", "/b", "one:1")) else {
        panic!("lost");
    };
    assert_eq!((&*route.shared.name, route.shared.number), ("h/b", 7));
    assert_eq!((&*server.shared.upstream, server.shared.number), ("b", 9));
}

#[test]
fn a_lower_timeout_ends_what_has_passed_it() {
    let second = Duration::from_secs;
    let timeouts = |idle, max_age| record::Timeouts {
        idle: second(idle),
        max_age,
        ..TIMEOUTS
    };
    assert!(ending(&timeouts(5, None), second(5), second(90)));
    assert!(!ending(&timeouts(5, None), second(4), second(90)));
    assert!(ending(
        &timeouts(5, Some(second(90))),
        second(0),
        second(90)
    ));
    assert!(!ending(
        &timeouts(5, Some(second(91))),
        second(0),
        second(90)
    ));
}

/// What matters of a configuration: listeners, routes, upstreams with their servers.
fn any_config() -> impl Strategy<Value = Config> {
    let server = || (0..6u16).prop_map(|port| format!("s:{}", port + 1));
    let upstreams = btree_map("[uvw]", btree_set(server(), 1..5), 1..4);
    let listeners = btree_set(0..4u16, 1..4);
    let routes = vec((any_route(), any::<prop::sample::Index>()), 1..12);
    (upstreams, listeners, routes).prop_map(|(upstreams, listeners, routes)| {
        let mut all = config(TWO);
        let example = all.upstreams["a"].clone();
        let address = |port: &u16| ListenAddress::Tcp(([127, 0, 0, 1], port + 1).into());
        let listener = |port| Listener {
            address: address(port),
        };
        all.listeners = listeners.iter().map(listener).collect();
        all.upstreams = upstreams
            .iter()
            .map(|(name, servers)| (name.clone(), upstream(&example, servers)))
            .collect();
        let names: Vec<&String> = upstreams.keys().collect();
        let leads = |(mut route, to): (wsgate_config::Route, prop::sample::Index)| {
            route.upstream = to.get(&names).to_string();
            route
        };
        all.routes = routes.into_iter().map(leads).collect();
        all
    })
}

fn upstream(example: &Upstream, servers: &std::collections::BTreeSet<String>) -> Upstream {
    let server = |address: &String| Server {
        address: wsgate_config::ServerAddress::Name("s".to_owned(), address[2..].parse().unwrap()),
        ..example.servers[0].clone()
    };
    Upstream {
        servers: servers.iter().map(server).collect(),
        ..example.clone()
    }
}

/// Where a fresh request is led to: the upstream's name and its servers, in words.
fn fresh(config: &Config, listener: &str, host: &str, path: &str) -> Option<(String, Vec<String>)> {
    let mut listeners = config.listeners.iter();
    listeners.find(|it| it.address.to_string() == listener)?;
    let route = &config.routes[naive(&config.routes, host, path)?];
    let servers = config.upstreams[&route.upstream].servers.iter();
    let servers = servers.map(|server| server.address.to_string());
    Some((route.upstream.clone(), servers.collect()))
}

proptest! {
    #[test]
    fn a_tunnel_is_kept_exactly_if_a_fresh_request_would_come_to_an_upstream_that_has_its_server(
        before in any_config(),
        after in any_config(),
        clients in vec((any_host(), any_path(), any::<prop::sample::Index>()), 1..30),
    ) {
        let plan = Plan::new(&after);
        for (host, path, pick) in clients {
            let listener = pick.get(&before.listeners).address.to_string();
            let Some((upstream, servers)) = fresh(&before, &listener, &host, &path) else {
                continue;
            };
            let server = pick.get(&servers);
            let by = RoutedBy {
                listener: &listener, host: &host, path: &path, upstream: &upstream, server,
            };
            let now = fresh(&after, &listener, &host, &path);
            match fate(&plan, &by) {
                Fate::Kept { route, server: to } => {
                    let (name, servers) = now.unwrap();
                    prop_assert!(servers.contains(server), "{by:?}");
                    prop_assert_eq!(&*to.shared.name, server);
                    prop_assert_eq!(&*to.shared.upstream, &name);
                    let place = naive(&after.routes, &host, &path).unwrap();
                    prop_assert_eq!(&*route.shared.name, after.routes[place].name());
                }
                Fate::Lost(Reason::ServerRemoved) => {
                    let (name, servers) = now.unwrap();
                    prop_assert!(name == upstream && !servers.contains(server), "{by:?}");
                }
                Fate::Lost(Reason::OtherUpstream(other)) => {
                    let (name, servers) = now.unwrap();
                    prop_assert!(*name == *other && *name != *upstream, "{by:?}");
                    prop_assert!(!servers.contains(server), "{by:?}");
                }
                Fate::Lost(Reason::RouteRemoved) => {
                    prop_assert_eq!(naive(&after.routes, &host, &path), None);
                }
                Fate::Lost(Reason::ListenerRemoved) => {
                    prop_assert!(after.listeners.iter().all(|it| it.address.to_string() != listener));
                }
            }
        }
    }
}

fn record(path: &str, server: &str, last_byte: Duration, age: Duration) -> Arc<Record> {
    let route = record::Route {
        name: "h/a".into(),
        number: 1,
        timeouts: TIMEOUTS,
    };
    let server = record::Server {
        name: server.into(),
        number: 1,
        upstream: "a".into(),
    };
    let asked = Asked {
        listener: "unix:/l".into(),
        host: "h".into(),
        path: path.into(),
        ..asked("1")
    };
    Arc::new(Record {
        opened: Instant::now() - age,
        last_byte_ms: (last_byte.as_millis() as u64).into(),
        ..Record::new(asked, route.into(), server.into())
    })
}

fn open(registry: &Arc<Registry>, tunnels: &[(&str, &str)]) -> Vec<Entry> {
    let open = |(path, server): &(&str, &str)| {
        registry.open(record(path, server, Duration::ZERO, Duration::ZERO))
    };
    tunnels.iter().map(open).collect()
}

#[tokio::test]
async fn each_tunnel_is_counted_once_and_each_loss_by_its_reason() {
    let registry = Registry::new(Books::new());
    let tunnels = [
        ("/a", "one:1"),
        ("/a", "two:1"),
        ("/a", "two:1"),
        ("/c", "one:1"),
    ];
    let _open = open(&registry, &tunnels);
    let second = Duration::from_secs;
    let _silent = registry.open(record("/a", "one:1", second(3), second(20)));
    let _lively = registry.open(record("/a", "one:1", second(15), second(20)));
    let _old = registry.open(record("/a", "one:1", second(3600), second(3601)));
    // Theirs is the only server that drains.
    let drains = ["/a", "/c"].map(|path| {
        let mut record = record(path, "one:1", Duration::ZERO, Duration::ZERO);
        let server = Arc::get_mut(&mut record).and_then(|it| Arc::get_mut(&mut it.server));
        server.unwrap().number = 2;
        registry.open(record)
    });
    registry.drain_server(
        2,
        &ClosePlan {
            code: 1012,
            reason: "later".into(),
            windows: vec![(Instant::now(), Instant::now() + second(60))],
        },
    );
    assert!(
        drains
            .iter()
            .all(|entry| entry.record().deadline().is_some())
    );
    let closing = open(&registry, &[("/c", "one:1")]);
    closing[0].record().closing.store(true, Ordering::Relaxed);
    let Judgement {
        kept,
        ending,
        drained,
        draining,
        lost,
    } = judge(&registry, &Plan::new(&config(TWO)), true).await;
    assert_eq!((kept, ending, drained, draining), (4, 2, 3, 3));
    let of = |reason, server: &str| Lost {
        reason,
        listener: "unix:/l".into(),
        route: "h/a".into(),
        upstream: "a".into(),
        server: server.into(),
    };
    let expected = [
        (of(Reason::ServerRemoved, "two:1"), 2),
        (of(Reason::RouteRemoved, "one:1"), 1),
    ];
    let lost: BTreeMap<_, _> = lost.iter().map(|(lost, n)| (*n, lost.clone())).collect();
    let expected: BTreeMap<_, _> = expected.map(|(lost, n)| (n, lost)).into();
    assert_eq!(lost, expected);
}

#[tokio::test]
async fn a_deadline_that_a_move_or_the_way_back_takes_away_is_no_drain() {
    let registry = Registry::new(Books::new());
    let entries = open(&registry, &[("/a", "one:1"), ("/c", "one:1")]);
    let judged = async |by, moves| {
        let deadline = Some(Deadline {
            at: Instant::now() + Duration::from_secs(60),
            code: 1012,
            reason: "later".into(),
        });
        for entry in &entries {
            entry.record().orders.set(by, deadline.clone());
        }
        let it = judge(&registry, &Plan::new(&config(TWO)), moves).await;
        for entry in &entries {
            entry.record().orders.set(by, None);
        }
        (it.kept, it.drained, it.draining)
    };
    assert_eq!(judged(By::Retire, true).await, (1, 1, 0));
    assert_eq!(judged(By::Retire, false).await, (0, 0, 2));
    assert_eq!(judged(By::Lost, true).await, (1, 0, 1));
    assert_eq!(judged(By::Server, true).await, (0, 0, 2));
    assert_eq!(judged(By::Admin, true).await, (0, 0, 2));
}

#[tokio::test]
async fn other_tasks_have_their_turn_while_many_tunnels_are_judged() {
    let registry = Registry::new(Books::new());
    let many = STEP * 10 + 1;
    let _open = open(&registry, &vec![("/a", "one:1"); many]);
    let turns = Arc::new(AtomicUsize::new(0));
    let other = tokio::spawn({
        let turns = Arc::clone(&turns);
        async move {
            loop {
                turns.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        }
    });
    let judgement = judge(&registry, &Plan::new(&config(TWO)), true).await;
    other.abort();
    assert_eq!(judgement.kept, many as u64);
    assert!(turns.load(Ordering::Relaxed) >= 10);
}

#[tokio::test]
async fn tunnels_that_open_meanwhile_are_not_judged() {
    let registry = Registry::new(Books::new());
    let _open = open(&registry, &[("/a", "one:1"); STEP]);
    let end = registry.end();
    let _later = open(&registry, &[("/a", "one:1"); 3]);
    let all = registry.some(0, end, usize::MAX);
    assert_eq!(all.len(), STEP);
    let (last, _) = all.last().unwrap();
    assert_eq!(registry.some(*last, end, usize::MAX).len(), 0);
    assert_eq!(registry.some(end + 5, end, usize::MAX).len(), 0);
}
