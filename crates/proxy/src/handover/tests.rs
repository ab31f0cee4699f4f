//! Two gateways of one process: tunnels leave the one, and go on in the other.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;

use super::{Leaver, Passport};
use crate::fate::{Judgement, Reason};
use crate::frames::Side;
use crate::tests::rig::{Backend, Peer, Rig, config, server, tunnel, until, within};
use crate::tunnel::rig::{close_frame, read_to_end};
use crate::{Cause, ClosePlan, Figure, Gateway, ServerState};

/// The gateway that has the tunnels, the one that gets them, and the server behind both.
struct Pair {
    old: Rig,
    new: Rig,
    backend: Backend,
}

impl Pair {
    async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// The new one's configuration may be another.
    async fn with(change: impl FnOnce(&mut wsgate_config::Config)) -> Self {
        let backend = Backend::new().await;
        let same = || config(vec![server(backend.address, 3)]);
        let mut other = same();
        change(&mut other);
        Self {
            old: Rig::new(same()),
            new: Rig::new(other),
            backend,
        }
    }

    async fn tunnel(&mut self) -> (Peer, Peer) {
        tunnel(&self.old, &mut self.backend).await
    }

    /// Moves all tunnels, and says what becomes of them.
    async fn move_all(&self) -> Judgement {
        move_all(&self.old.gateway, &self.new.gateway).await
    }
}

async fn move_all(old: &Arc<Gateway>, new: &Arc<Gateway>) -> Judgement {
    let mut judgement = Judgement::default();
    for leaver in within(old.leavers(usize::MAX)).await {
        carry(leaver, new, &mut judgement);
    }
    judgement
}

/// As one process hands it to another: by text, duplicates of the sockets, and bytes.
fn carry(leaver: Leaver, new: &Arc<Gateway>, judgement: &mut Judgement) {
    let text = serde_json::to_string(leaver.passport()).unwrap();
    let passport: Passport = serde_json::from_str(&text).unwrap();
    assert_eq!(&passport, leaver.passport());
    let duplicate =
        |fd: std::os::fd::BorrowedFd<'_>| -> OwnedFd { fd.try_clone_to_owned().unwrap() };
    let sockets = leaver.sockets().map(duplicate);
    assert_eq!(passport.pending(), leaver.pending().map(<[u8]>::len));
    let until = Instant::now() + Duration::from_secs(20);
    let adopted = new
        .adopt(passport, sockets, leaver.pending(), until)
        .unwrap();
    leaver.moved();
    adopted.begin(judgement);
}

fn gauges(rig: &Rig) -> [u64; 3] {
    [
        Figure::Tunnels,
        Figure::RouteTunnels(7),
        Figure::ServerTunnels(3),
    ]
    .map(|figure| rig.books.get(figure))
}

#[tokio::test]
async fn a_tunnel_goes_on_elsewhere_with_its_record_and_both_count_it_once() {
    let mut pair = Pair::start().await;
    let (mut client, mut server) = pair.tunnel().await;
    client.send("\u{1}").await;
    assert_eq!(server.exactly(1).await, "\u{1}");
    let before = Arc::clone(&pair.old.gateway.tunnels()[0]);
    assert_eq!(pair.move_all().await.kept, 1);
    assert!(pair.old.gateway.tunnels().is_empty());
    let after = Arc::clone(&pair.new.gateway.tunnels()[0]);
    assert_eq!((&after.id, &after.path), (&before.id, &before.path));
    assert_eq!(
        (after.client, after.opened_at),
        (before.client, before.opened_at)
    );
    assert_eq!((after.handovers, after.from_client()), (1, (1, 0)));
    assert!(
        after.opened.max(before.opened) - after.opened.min(before.opened)
            < Duration::from_millis(2)
    );
    client.send("up").await;
    assert_eq!(server.exactly(2).await, "up");
    server.send("down").await;
    assert_eq!(client.exactly(4).await, "down");
    assert_eq!(after.from_client().0, 3);
    assert_eq!((gauges(&pair.old), gauges(&pair.new)), ([0; 3], [1; 3]));
    let count = |rig: &Rig, figure| rig.books.get(figure);
    assert_eq!(count(&pair.old, Figure::MovedOut), 1);
    assert_eq!(count(&pair.new, Figure::MovedIn), 1);
    assert_eq!(count(&pair.new, Figure::TunnelsOpened), 0);
    drop((client, server));
    until(|| gauges(&pair.new) == [0; 3]).await;
    for (rig, ended) in [(&pair.old, 0), (&pair.new, 1)] {
        let causes = Cause::ALL.into_iter();
        let all: u64 = causes.map(|cause| count(rig, Figure::Ended(cause))).sum();
        assert_eq!(all, ended);
    }
}

#[tokio::test]
async fn what_did_not_move_goes_on_where_it_was() {
    let mut pair = Pair::start().await;
    let (mut client, mut server) = pair.tunnel().await;
    let leavers = within(pair.old.gateway.leavers(9)).await;
    assert_eq!(leavers.len(), 1);
    assert_eq!(gauges(&pair.old), [1; 3]);
    client.send("meanwhile").await;
    // Nobody reads it now, and nobody is asked twice.
    assert!(within(pair.old.gateway.leavers(9)).await.is_empty());
    leavers.into_iter().for_each(Leaver::resume);
    assert_eq!(server.exactly(9).await, "meanwhile");
    for leaver in within(pair.old.gateway.leavers(9)).await {
        leaver.refused(4);
    }
    assert!(!pair.old.gateway.has_movable());
    assert_eq!(pair.old.gateway.tunnels()[0].refused(), 4);
    server.send("still").await;
    assert_eq!(client.exactly(5).await, "still");
    pair.old.gateway.forget_refusals();
    assert_eq!(pair.move_all().await.kept, 1);
    assert_eq!(pair.new.gateway.tunnels()[0].handovers, 1);
}

#[tokio::test]
async fn a_half_closed_tunnel_goes_on_in_its_other_direction() {
    let mut pair = Pair::start().await;
    let (mut client, mut server) = pair.tunnel().await;
    client.send("last words").await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(server.rest().await.unwrap(), "last words");
    assert_eq!(pair.move_all().await.kept, 1);
    server.send("answer").await;
    assert_eq!(client.exactly(6).await, "answer");
    drop(server);
    assert_eq!(client.rest().await.unwrap(), "");
    // Who began the end is known still.
    until(|| pair.new.books.get(Figure::Ended(Cause::Client)) == 1).await;
}

#[tokio::test]
async fn a_reader_that_does_not_read_gets_all_of_it_after_several_moves() {
    let mut pair = Pair::start().await;
    let (mut client, mut server) = pair.tunnel().await;
    let said = "0123456789abcdef".repeat(1 << 20);
    let writing = tokio::spawn({
        let said = said.clone();
        async move {
            server.send(&said).await;
            server
        }
    });
    // The kernel's buffers are full, and one of the gateway.
    let pending = |gateway: &Gateway| gateway.tunnels()[0].from_server().0;
    let mut last = 0;
    until(|| {
        let now = pending(&pair.old.gateway);
        std::mem::replace(&mut last, now) == now && now > 1 << 16
    })
    .await;
    let mut pendings = Vec::new();
    for (old, new) in [
        (&pair.old, &pair.new),
        (&pair.new, &pair.old),
        (&pair.old, &pair.new),
    ] {
        let mut judgement = Judgement::default();
        for leaver in within(old.gateway.leavers(9)).await {
            pendings.push(leaver.pending()[0].len());
            carry(leaver, &new.gateway, &mut judgement);
        }
        assert_eq!(judgement.kept, 1);
    }
    assert!(pendings.iter().any(|pending| *pending > 0), "{pendings:?}");
    assert!(client.exactly(said.len()).await == said);
    drop(within(writing).await.unwrap());
    assert_eq!(client.rest().await.unwrap(), "");
}

#[tokio::test]
async fn a_tunnel_that_has_lost_its_server_gets_a_deadline_and_loses_it_when_the_server_is_back() {
    let mut pair = Pair::with(|config| {
        let upstream = config.upstreams.get_mut("up").unwrap();
        upstream.servers = vec![server("127.0.0.1:9".parse().unwrap(), 4)];
    })
    .await;
    let (mut client, mut server) = pair.tunnel().await;
    let judgement = pair.move_all().await;
    let lost: Vec<_> = judgement.lost.iter().collect();
    assert_eq!((judgement.drained, judgement.kept), (1, 0));
    assert_eq!((&lost[0].0.reason, lost[0].1), (&Reason::ServerRemoved, &1));
    let record = Arc::clone(&pair.new.gateway.tunnels()[0]);
    let provisional = record.deadline().unwrap();
    assert_eq!(
        (provisional.code, &*provisional.reason),
        (1012, "service restart")
    );
    assert_eq!(pair.new.books.get(Figure::ServerDraining(3)), 1);
    let end = Instant::now() + Duration::from_secs(3);
    let plan = ClosePlan {
        code: 1012,
        reason: "later".into(),
        windows: vec![(end, end)],
    };
    pair.new.gateway.drain_lost(&plan);
    assert_eq!(record.deadline().unwrap().at, end);
    // A plan is for those that came since the last one.
    pair.new.gateway.drain_lost(&ClosePlan {
        windows: Vec::new(),
        ..plan
    });
    assert_eq!(record.deadline().unwrap().at, end);
    // On to a third one that does not have the server either, and back to one that has.
    let third = Rig::new(pair.new.gateway.config.as_ref().clone());
    let judgement = move_all(&pair.new.gateway, &third.gateway).await;
    assert_eq!((judgement.drained, judgement.draining), (0, 1));
    let deadline = third.gateway.tunnels()[0].deadline().unwrap().at;
    assert!(deadline.max(end) - deadline.min(end) < Duration::from_millis(2));
    assert_eq!(move_all(&third.gateway, &pair.old.gateway).await.kept, 1);
    assert_eq!(pair.old.gateway.tunnels()[0].deadline(), None);
    assert_eq!(pair.old.books.get(Figure::ServerDraining(3)), 0);
    client.send("on").await;
    assert_eq!(server.exactly(2).await, "on");
}

#[tokio::test]
async fn a_servers_drain_goes_along_unless_it_has_been_taken_back() {
    let mut pair = Pair::start().await;
    let _tunnel = pair.tunnel().await;
    let end = Instant::now() + Duration::from_secs(20);
    let plan = ClosePlan {
        code: 1012,
        reason: "drain".into(),
        windows: vec![(end, end)],
    };
    pair.old.gateway.drain_server(3, &plan);
    pair.old.gateway.retire(&ClosePlan {
        windows: vec![(Instant::now(), end - Duration::from_secs(10))],
        ..plan.clone()
    });
    pair.new.gateway.set_servers(&[(3, ServerState::Drain)]);
    assert_eq!(pair.move_all().await.draining, 1);
    // That of the generation it has left behind.
    let at = pair.new.gateway.tunnels()[0].deadline().unwrap().at;
    assert!(at.max(end) - at.min(end) < Duration::from_millis(2));
    // The new one knows of the drain from the tunnel alone, and takes it back all the same.
    pair.new.gateway.undrain_all_but(&[]);
    assert_eq!(pair.new.gateway.tunnels()[0].deadline(), None);
    pair.new.gateway.drain_server(3, &plan);
    assert_eq!(
        move_all(&pair.new.gateway, &pair.old.gateway).await.kept,
        1,
        "ready there"
    );
}

#[tokio::test]
async fn a_drain_of_a_server_that_is_removed_then_goes_on_to_its_own_deadline() {
    let mut pair = Pair::with(|config| {
        let upstream = config.upstreams.get_mut("up").unwrap();
        upstream.servers = vec![server("127.0.0.1:9".parse().unwrap(), 4)];
    })
    .await;
    let _tunnel = pair.tunnel().await;
    let end = Instant::now() + Duration::from_secs(5);
    let plan = ClosePlan {
        code: 1012,
        reason: "drain".into(),
        windows: vec![(end, end)],
    };
    pair.old.gateway.drain_server(3, &plan);
    let judgement = pair.move_all().await;
    assert_eq!((judgement.draining, judgement.drained), (1, 0));
    // The operator's word is forgotten with the server, and takes no deadline back.
    pair.new.gateway.undrain_all_but(&[]);
    let later = end + Duration::from_secs(60);
    pair.new.gateway.drain_lost(&ClosePlan {
        windows: vec![(later, later)],
        ..plan
    });
    let at = pair.new.gateway.tunnels()[0].deadline().unwrap().at;
    assert!(at.max(end) - at.min(end) < Duration::from_millis(2));
}

#[tokio::test]
async fn a_close_by_name_reaches_a_tunnel_that_is_on_its_way() {
    let mut pair = Pair::start().await;
    let (mut client, _server) = pair.tunnel().await;
    let places = pair.new.gateway.places();
    let leavers = within(pair.old.gateway.leavers(9)).await;
    let id = pair.old.gateway.tunnels()[0].id.clone();
    assert!(!pair.new.gateway.close_tunnel(&id, 4001, "enough"));
    let mut judgement = Judgement::default();
    for leaver in leavers {
        carry(leaver, &pair.new.gateway, &mut judgement);
    }
    drop(places);
    let farewell = read_to_end(&mut client.stream).await;
    assert_eq!(
        close_frame(Side::Server, &farewell),
        (4001, "enough".into())
    );
}

#[tokio::test]
async fn a_tunnel_that_is_being_closed_stays() {
    let mut pair = Pair::start().await;
    let (_client, _server) = pair.tunnel().await;
    let id = pair.old.gateway.tunnels()[0].id.clone();
    assert!(pair.old.gateway.close_tunnel(&id, 1001, ""));
    until(|| pair.old.gateway.tunnels()[0].closing()).await;
    assert!(!pair.old.gateway.has_movable());
    assert!(within(pair.old.gateway.leavers(9)).await.is_empty());
}

#[tokio::test]
async fn places_are_promised_once_and_by_what_there_is() {
    let backend = Backend::new().await;
    let servers = vec![server(backend.address, 3)];
    let rig = Rig::with(config(servers), |settings| settings.tunnels_here = 10);
    let mut places = rig.gateway.places();
    assert_eq!(places.grant(4), 4);
    let mut others = rig.gateway.places();
    assert_eq!((others.grant(4), places.grant_more(4)), (4, 2));
    let registry = &rig.gateway.registry;
    // A promise is kept: a client gets none of these places.
    assert!(registry.reserve(None, 10).is_none());
    places.arrived();
    assert_eq!(places.granted(), 2);
    assert!(registry.reserve(None, 10).is_some());
    drop((places, others));
    assert_eq!(rig.gateway.places().grant(99), 10);
}

#[tokio::test]
async fn a_lower_timeout_ends_a_tunnel_and_is_told_as_such() {
    let mut pair =
        Pair::with(|config| config.routes[0].idle_timeout = Duration::from_millis(1)).await;
    let (mut client, mut server) = pair.tunnel().await;
    client.send("x").await;
    server.exactly(1).await;
    let record = Arc::clone(&pair.old.gateway.tunnels()[0]);
    until(|| record.idle() > Duration::from_millis(5)).await;
    let judgement = pair.move_all().await;
    assert_eq!((judgement.kept, judgement.ending), (1, 1));
    drop((client, server));
    until(|| pair.new.books.get(Figure::Ended(Cause::Idle)) == 1).await;
}

#[tokio::test]
async fn a_passport_that_contradicts_itself_is_refused_and_the_tunnel_goes_on() {
    let mut pair = Pair::start().await;
    let (mut client, mut server) = pair.tunnel().await;
    let mut leavers = within(pair.old.gateway.leavers(9)).await;
    let leaver = leavers.pop().unwrap();
    let duplicate = || {
        leaver
            .sockets()
            .map(|fd| fd.as_fd().try_clone_to_owned().unwrap())
    };
    let until = Instant::now();
    let adopt = |passport| {
        pair.new
            .gateway
            .adopt(passport, duplicate(), [b"", b""], until)
    };
    let text = serde_json::to_string(leaver.passport()).unwrap();
    for (right, wrong) in [
        ("\"have\":0", "\"have\":9"),
        ("\"sender\":\"client\"", "\"sender\":\"server\""),
        (
            "\"pending\":null",
            "\"pending\":{\"bytes\":3,\"since\":1,\"looked\":1,\"unacknowledged\":null,\"own\":false}",
        ),
    ] {
        assert!(text.contains(right), "{right} in {text}");
        let passport = serde_json::from_str(&text.replacen(right, wrong, 1)).unwrap();
        assert!(adopt(passport).is_err(), "{wrong}");
    }
    drop(adopt(leaver.passport().clone()).unwrap());
    leaver.resume();
    client.send("unharmed").await;
    assert_eq!(server.exactly(8).await, "unharmed");
    assert_eq!(gauges(&pair.new), [0; 3]);
}
