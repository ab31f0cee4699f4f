use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::tests::ledger::Books;
use crate::tunnel::Ending;
use crate::tunnel::rig::{TIMEOUTS, asked};
use crate::{Cause, ClosePlan, Figure, Record, Route, Server};

use super::Registry;

fn record(server: u32) -> Arc<Record> {
    let route = Route {
        name: "r".into(),
        number: 7,
        timeouts: TIMEOUTS,
    };
    let server = Server {
        name: "s".into(),
        number: server,
        upstream: "u".into(),
    };
    Arc::new(Record::new(asked("1"), route.into(), server.into()))
}

fn plan(windows: &[(Instant, Instant)]) -> ClosePlan {
    ClosePlan {
        code: 1012,
        reason: "later".into(),
        windows: windows.to_vec(),
    }
}

fn at(record: &Record) -> Option<Instant> {
    record.deadline().map(|deadline| deadline.at)
}

fn ending(cause: Cause) -> Ending {
    Ending {
        cause,
        client_code: None,
        server_code: None,
        note: None,
    }
}

#[test]
fn closes_are_spread_evenly_over_the_windows_oldest_first() {
    let registry = Registry::new(Books::new());
    let entries: Vec<_> = (0..4).map(|_| registry.open(record(1))).collect();
    let begin = Instant::now();
    let second = |n| begin + Duration::from_secs(n);
    // Two seconds and six: a tunnel every two.
    registry.retire(&plan(&[(second(10), second(12)), (second(20), second(26))]));
    let moments: Vec<_> = registry.tunnels().iter().map(|record| at(record)).collect();
    let expected = [12, 22, 24, 26].map(|n| Some(second(n)));
    assert_eq!(moments, expected);
    assert_eq!(registry.tunnels()[0].deadline().unwrap().code, 1012);
    drop(entries);
    assert!(registry.tunnels().is_empty());
}

#[test]
fn a_plan_without_windows_closes_now() {
    let registry = Registry::new(Books::new());
    let _entry = registry.open(record(1));
    registry.retire(&plan(&[]));
    assert!(at(&registry.tunnels()[0]).unwrap() <= Instant::now());
}

#[test]
fn a_tunnel_that_opens_late_gets_the_last_moment() {
    let registry = Registry::new(Books::new());
    let end = Instant::now() + Duration::from_secs(9);
    registry.drain_server(1, &plan(&[(Instant::now(), end)]));
    let late = record(1);
    let other = record(2);
    let _entries = (
        registry.open(Arc::clone(&late)),
        registry.open(Arc::clone(&other)),
    );
    assert_eq!((at(&late), at(&other)), (Some(end), None));
    let sooner = end - Duration::from_secs(5);
    registry.retire(&plan(&[(sooner, sooner)]));
    let later = record(3);
    let _entry = registry.open(Arc::clone(&later));
    assert_eq!((at(&late), at(&later)), (Some(sooner), Some(sooner)));
}

#[test]
fn gauges_follow_deadlines_and_ends() {
    let books = Books::new();
    let registry = Registry::new(books.clone());
    let mut entries = vec![registry.open(record(1)), registry.open(record(2))];
    let gauges = || {
        [
            Figure::Tunnels,
            Figure::RouteTunnels(7),
            Figure::RouteDraining(7),
            Figure::ServerTunnels(1),
            Figure::ServerDraining(1),
        ]
        .map(|figure| books.get(figure))
    };
    assert_eq!(gauges(), [2, 2, 0, 1, 0]);
    registry.drain_server(1, &plan(&[]));
    registry.drain_server(1, &plan(&[]));
    assert_eq!(gauges(), [2, 2, 1, 1, 1]);
    registry.retire(&plan(&[]));
    assert_eq!(gauges(), [2, 2, 2, 1, 1]);
    registry.undrain_server(1);
    assert_eq!(gauges(), [2, 2, 2, 1, 1]);
    entries.remove(0).end(&ending(Cause::Drain));
    assert_eq!(gauges(), [1, 1, 1, 0, 0]);
    entries[0].begin();
    drop(entries);
    assert_eq!(gauges(), [0; 5]);
    assert_eq!(books.get(Figure::TunnelsOpened), 2);
    assert_eq!(books.get(Figure::Ended(Cause::Drain)), 1);
    assert_eq!(books.get(Figure::Ended(Cause::WorkerStop)), 1);
}

#[test]
fn a_client_that_leaves_before_its_101_ended_the_tunnel() {
    let books = Books::new();
    let registry = Registry::new(books.clone());
    drop(registry.open(record(1)));
    assert_eq!(books.get(Figure::Ended(Cause::ClientReset)), 1);
    assert_eq!(books.get(Figure::Tunnels), 0);
}

#[test]
fn a_server_that_comes_back_gives_its_tunnels_their_time_back() {
    let books = Books::new();
    let registry = Registry::new(books.clone());
    let tunnel = record(1);
    let _entry = registry.open(Arc::clone(&tunnel));
    registry.drain_server(1, &plan(&[]));
    assert!(tunnel.deadline().is_some());
    registry.undrain_server(1);
    assert_eq!(tunnel.deadline(), None);
    assert_eq!(books.get(Figure::ServerDraining(1)), 0);
    let later = record(1);
    let _later = registry.open(Arc::clone(&later));
    assert_eq!(later.deadline(), None);
}

#[test]
fn handshakes_under_way_take_places() {
    let registry = Registry::new(Books::new());
    let first = registry.reserve(Some(2), 9).unwrap();
    let second = registry.reserve(Some(2), 9).unwrap();
    assert!(registry.reserve(Some(2), 9).is_none());
    assert!(registry.reserve(None, 2).is_none());
    drop(first);
    let _again = registry.reserve(Some(2), 9).unwrap();
    drop(second);
    let _entry = registry.open(record(1));
    assert!(registry.reserve(Some(2), 9).is_none());
}
