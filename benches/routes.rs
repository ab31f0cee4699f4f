//! Route lookup, as every request does it once: among 10, 1,000 and 10,000 routes.
//!
//! Tenants of five routes each: paths of a host of their own, hosts below it, and a path for any
//! host. Requests ask for them all over the table. Every run checks which route each request got.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use wsgate_config::Sources;
use wsgate_proxy::Routes;

/// Routes of a tenant.
const PER_TENANT: usize = 5;

/// Lookups in one iteration.
const LOOKUPS: usize = 1024;

/// What a host and a path lead to, if to anything.
struct Request {
    host: String,
    path: String,
    expected: Option<usize>,
}

/// The routes of one tenant, as an operator writes them; [`requests`] knows their places.
fn routes_of(tenant: usize) -> String {
    let own = own_host(tenant);
    let hook = hook(tenant);
    [
        format!("host = '{own}'\npath = '/chat'"),
        format!("host = '{own}'\npath = '/chat/rooms'"),
        format!("host = '{own}'\npath = '=/healthz'"),
        format!("host = '*.{own}'\npath = '/v*'"),
        format!("path = '{hook}'"),
    ]
    .map(|route| format!("[[route]]\nupstream = 'chat'\n{route}\n"))
    .concat()
}

/// The routing of a whole configuration with so many tenants.
fn routes(tenants: usize) -> Routes {
    let rest =
        "[[listener]]\naddress = '127.0.0.1:0'\n[upstream.chat]\nservers = ['127.0.0.1:9']\n";
    let text = (0..tenants).map(routes_of).collect::<String>() + rest;
    let loaded = wsgate_config::parse(Sources::from_text("wsgate.toml", text));
    let config = loaded.expect("the configuration has no mistakes").config;
    assert_eq!(config.routes.len(), tenants * PER_TENANT);
    Routes::new(&config.routes)
}

fn own_host(tenant: usize) -> String {
    format!("tenant{tenant}.example.com")
}

fn hook(tenant: usize) -> String {
    format!("/hooks/tenant{tenant}")
}

/// What is asked of a tenant's routes, by the hop of the lookup that it ends at.
fn requests(kind: &str, tenant: usize) -> Vec<Request> {
    let own = own_host(tenant);
    let edge = format!("eu.edge.{own}");
    let hook = hook(tenant);
    let ask = |host: &str, path: &str, place: Option<usize>| Request {
        host: host.to_owned(),
        path: path.to_owned(),
        expected: place.map(|place| tenant * PER_TENANT + place),
    };
    match kind {
        "exact host" => vec![
            ask(&own, "/chat", Some(0)),
            ask(&own, "/chat/lobby/7", Some(0)),
            ask(&own, "/chat/rooms/42", Some(1)),
            ask(&own, "/healthz", Some(2)),
        ],
        "wildcard" => vec![
            ask(&edge, "/v2/socket", Some(3)),
            ask(&format!("eu.{own}"), "/version", Some(3)),
        ],
        "any host" => vec![
            ask("www.example.org", &format!("{hook}/push"), Some(4)),
            ask(&own, &hook, Some(4)),
        ],
        "miss" => vec![
            ask(&own, "/chatter", None),
            ask(&edge, "/chat", None),
            ask("www.example.org", &format!("{hook}s"), None),
        ],
        _ => ["exact host", "wildcard", "any host", "miss"]
            .into_iter()
            .flat_map(|kind| requests(kind, tenant))
            .collect(),
    }
}

/// As many as one iteration asks, of tenants all over the table.
fn shuffled(kind: &str, tenants: usize) -> Vec<Request> {
    // A prime that divides no number of tenants here: none has a second turn before all had one.
    let tenant = |turn: usize| turn * 7919 % tenants;
    (0..)
        .flat_map(|turn| requests(kind, tenant(turn)))
        .take(LOOKUPS)
        .collect()
}

fn lookup(c: &mut Criterion) {
    let mut group = c.benchmark_group("routes");
    group.throughput(Throughput::Elements(LOOKUPS as u64));
    for count in [10, 1_000, 10_000] {
        let tenants = count / PER_TENANT;
        let routes = routes(tenants);
        for kind in ["exact host", "wildcard", "any host", "miss", "mix"] {
            let requests = shuffled(kind, tenants);
            group.bench_function(BenchmarkId::new(kind, count), |b| {
                b.iter(|| {
                    for request in black_box(&requests) {
                        let found = routes.find(&request.host, &request.path);
                        assert_eq!(found, request.expected);
                    }
                });
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = lookup
}
criterion_main!(benches);
