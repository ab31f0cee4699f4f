//! The taker against a giver that the test plays: it takes a batch whole or touches nothing of it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use wsgate_os::channel::Channel;
use wsgate_protocol::board::Cell;
use wsgate_protocol::control::Refusal;
use wsgate_protocol::handover::{FromGiver, FromTaker, VERSION};
use wsgate_proxy::handover::{Leaver, Passport, VERSION as PASSPORT_VERSION};

use super::rig::{Rig, Taken, Tunnel, UnixRig, Wish, Worker, all_work, until, within};
use crate::handover::BATCH;
use crate::handover::parcel;

/// The giver's part.
pub(super) struct Script {
    pub(super) channel: Channel,
}

impl Script {
    /// A taker is at work.
    pub(super) fn meet(rig: &Rig) -> (Self, Taken) {
        let (channel, theirs) = Channel::pair().unwrap();
        let taken = rig.taking(theirs);
        (Self { channel }, taken)
    }

    /// The same, and it has said how much room there is.
    pub(super) async fn introduced(rig: &Rig) -> (Self, Taken, usize) {
        let (script, taken) = Self::meet(rig);
        match script.hello(VERSION, PASSPORT_VERSION).await {
            FromTaker::Room { tunnels } => (script, taken, tunnels),
            other => panic!("{other:?} in place of room"),
        }
    }

    async fn hello(&self, version: u32, tunnels: u32) -> FromTaker {
        let hello = FromGiver::<Passport>::Hello {
            version,
            tunnels,
            holds: 1000,
        };
        parcel::say(&self.channel, &hello).await.unwrap();
        self.hear().await
    }

    /// There is something to give again. The room for it.
    async fn ask(&self, holds: usize) -> usize {
        let ask = FromGiver::<Passport>::Ask { holds };
        parcel::say(&self.channel, &ask).await.unwrap();
        match self.hear().await {
            FromTaker::Room { tunnels } => tunnels,
            other => panic!("{other:?} in place of room"),
        }
    }

    /// There is nothing to give, and the taker has understood it: so many have come since it was last said.
    async fn done(&self, taken: &mut Taken, come: u64) {
        let done = FromGiver::<Passport>::Done;
        parcel::say(&self.channel, &done).await.unwrap();
        assert_eq!(taken.report().await, (come, false));
    }

    pub(super) async fn hear(&self) -> FromTaker {
        let (bytes, _) = within(self.channel.recv()).await.unwrap().unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    async fn hears_refusal(&self, reason: Refusal) {
        assert_eq!(self.hear().await, FromTaker::Refused { reason });
    }

    /// A batch is right, and becomes the taker's.
    pub(super) async fn gives(&self, number: u64, batch: Vec<Leaver>) {
        self.gives_for(number, batch, [1000, BATCH]).await;
    }

    /// The same; there are so many besides, and so much room for them.
    async fn gives_for(&self, number: u64, batch: Vec<Leaver>, [more, room]: [usize; 2]) {
        let sent = parcel::send(&self.channel, number, &batch, more).await;
        sent.unwrap();
        let taken = FromTaker::Taken { number, room };
        assert_eq!(self.hear().await, taken);
        batch.into_iter().for_each(Leaver::moved);
    }
}

/// A batch as it goes over a channel, and can be changed.
pub(super) struct Message {
    pub(super) bytes: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

impl Message {
    pub(super) async fn of(batch: &[Leaver]) -> Self {
        let (one, theirs) = Channel::pair().unwrap();
        let other = Channel::from_fd(theirs).unwrap();
        parcel::send(&one, 1, batch, 1000).await.unwrap();
        let (bytes, fds) = other.recv().await.unwrap().unwrap();
        Self { bytes, fds }
    }

    pub(super) async fn go(&self, channel: &Channel) {
        let fds: Vec<_> = self.fds.iter().map(AsFd::as_fd).collect();
        channel.send(&self.bytes, &fds).await.unwrap();
    }

    pub(super) fn replace(&mut self, from: &str, to: &str) {
        let end = self.bytes.iter().position(|byte| *byte == 0).unwrap();
        let tail = self.bytes.split_off(end);
        let text = String::from_utf8(std::mem::take(&mut self.bytes)).unwrap();
        assert!(text.contains(from), "{from} in {text}");
        self.bytes = text.replacen(from, to, 1).into_bytes();
        self.bytes.extend(tail);
    }
}

/// What epoll_ctl(2) does not take.
pub(super) fn no_socket() -> OwnedFd {
    let mut options = File::options();
    // O_NONBLOCK, as sockets are.
    options.read(true).custom_flags(0o4000);
    options.open("/dev/null").unwrap().into()
}

/// How a batch of three is spoilt.
type Spoiler = fn(&mut Message);

#[tokio::test]
async fn what_is_not_understood_is_refused_whole_and_the_next_batch_is_not() {
    let spoilers: [(&str, Spoiler); 14] = [
        ("no JSON", |it| it.bytes = b"{{{{".to_vec()),
        ("no message", |it| {
            it.bytes = b"{\"type\":\"keep\"}".to_vec()
        }),
        ("no text", |it| it.bytes = vec![0xff; 9]),
        ("an end and nothing before it", |it| it.bytes = vec![0]),
        ("no tunnels", |it| {
            it.replace("\"tunnels\":[{", "\"tunnels\":[7,{")
        }),
        ("a socket too few", |it| drop(it.fds.pop())),
        ("a socket too many", |it| {
            let more = it.fds[0].try_clone().unwrap();
            it.fds.push(more);
        }),
        ("no socket", |it| it.fds.clear()),
        ("a file in place of a socket", |it| {
            it.fds[3] = no_socket();
        }),
        ("bytes that belong to no tunnel", |it| it.bytes.push(b'x')),
        ("fewer bytes than said", |it| {
            it.replace("\"pending\":null", PENDING);
        }),
        ("more bytes than an address space", |it| {
            let most = format!("\"bytes\":{}", usize::MAX);
            it.replace("\"pending\":null", &PENDING.replace("\"bytes\":9", &most));
        }),
        ("a long batch that is nowhere", |it| {
            it.bytes = b"{\"type\":\"long\"}".to_vec();
            it.fds.clear();
        }),
        ("a long batch in a file that may change", |it| {
            it.bytes = b"{\"type\":\"long\"}".to_vec();
            it.fds = vec![File::open("/proc/self/exe").unwrap().into()];
        }),
    ];
    let rig = Rig::new().await;
    let mut tunnels = rig.tunnels(3).await;
    let (script, _taken, _) = Script::introduced(&rig).await;
    for (what, spoil) in spoilers {
        let batch = within(rig.old.gateway.leavers(BATCH)).await;
        assert_eq!(batch.len(), 3, "{what}");
        tunnels[1].client.say(b"\x82\x80mean").await;
        let mut message = Message::of(&batch).await;
        spoil(&mut message);
        message.go(&script.channel).await;
        let refused = FromTaker::Refused {
            reason: Refusal::Unfit,
        };
        assert_eq!(script.hear().await, refused, "{what}");
        rig.assert_holds(3, 0);
        batch.into_iter().for_each(Leaver::resume);
        assert_eq!(tunnels[1].server.hear(6).await, b"\x82\x80mean", "{what}");
        all_work(&mut tunnels).await;
    }
    let batch = within(rig.old.gateway.leavers(BATCH)).await;
    script.gives(1, batch).await;
    all_work(&mut tunnels).await;
    rig.assert_holds(0, 3);
}

/// A lane that holds nothing says that it holds nine bytes.
const PENDING: &str =
    "\"pending\":{\"bytes\":9,\"since\":1,\"looked\":1,\"unacknowledged\":null,\"own\":false}";

#[tokio::test]
async fn another_version_is_refused_and_nothing_is_taken() {
    for (version, tunnels) in [
        (VERSION + 1, PASSPORT_VERSION),
        (VERSION, PASSPORT_VERSION + 1),
    ] {
        let rig = Rig::new().await;
        let (script, _taken) = Script::meet(&rig);
        let refused = FromTaker::Refused {
            reason: Refusal::Version,
        };
        assert_eq!(script.hello(version, tunnels).await, refused);
        // It has promised nothing, and so gets nothing.
        let _tunnels = rig.tunnels(1).await;
        let batch = within(rig.old.gateway.leavers(1)).await;
        parcel::send(&script.channel, 1, &batch, 1000)
            .await
            .unwrap();
        script.hears_refusal(Refusal::NoRoom).await;
        batch.into_iter().for_each(Leaver::resume);
        rig.assert_holds(1, 0);
    }
}

#[tokio::test]
async fn more_tunnels_than_were_promised_are_refused() {
    let rig = Rig::with(Wish {
        room: 3,
        ..Wish::default()
    })
    .await;
    let mut tunnels = rig.tunnels(4).await;
    let (script, _taken, room) = Script::introduced(&rig).await;
    assert_eq!(room, 3);
    let batch = within(rig.old.gateway.leavers(4)).await;
    parcel::send(&script.channel, 1, &batch, 1000)
        .await
        .unwrap();
    script.hears_refusal(Refusal::NoRoom).await;
    rig.assert_holds(4, 0);
    batch.into_iter().for_each(Leaver::resume);
    all_work(&mut tunnels).await;
    let batch = within(rig.old.gateway.leavers(2)).await;
    parcel::send(&script.channel, 1, &batch, 1000)
        .await
        .unwrap();
    let taken = FromTaker::Taken { number: 1, room: 0 };
    let answer = script.hear().await;
    // The third place was promised for this batch, and is free for the next one only when this one has come.
    assert_eq!(answer, taken);
    batch.into_iter().for_each(Leaver::moved);
    all_work(&mut tunnels).await;
    rig.assert_holds(2, 2);
}

#[tokio::test]
async fn no_more_is_promised_than_there_is_to_give() {
    let rig = Rig::new().await;
    let (script, mut taken, room) = Script::introduced(&rig).await;
    assert_eq!(room, BATCH);
    for (holds, room) in [(0, 0), (3, 3), (1, 1), (BATCH + 1, BATCH)] {
        assert_eq!(script.ask(holds).await, room);
        // Nothing of what was promised before counts besides.
        assert_eq!(rig.new.gateway.places().grant(2000), 1000 - room);
    }
    script.done(&mut taken, 0).await;
    assert_eq!(rig.new.gateway.places().grant(2000), 1000);
}

#[tokio::test]
async fn what_was_promised_is_given_back_when_there_is_nothing_to_give() {
    let mut rig = Rig::with(Wish {
        room: 5,
        ..Wish::default()
    })
    .await;
    let mut tunnels = rig.tunnels(3).await;
    rig.clients_to_new();
    let (first, mut first_taken, room) = Script::introduced(&rig).await;
    assert_eq!(room, 5);
    first
        .gives_for(1, within(rig.old.gateway.leavers(1)).await, [1000, 0])
        .await;
    assert_eq!(first.ask(1000).await, 4);
    // Four are promised, and one is taken: there is nothing for anybody else.
    let (second, mut second_taken, room) = Script::introduced(&rig).await;
    assert_eq!((room, second.ask(2).await), (0, 0));
    let turned_away = rig.turned_away().await;
    assert!(turned_away.contains(" 503 "), "{turned_away}");
    first.done(&mut first_taken, 1).await;
    // It may give nothing before it has asked anew.
    let batch = within(rig.old.gateway.leavers(1)).await;
    parcel::send(&first.channel, 2, &batch, 0).await.unwrap();
    first.hears_refusal(Refusal::NoRoom).await;
    batch.into_iter().for_each(Leaver::resume);
    assert_eq!(second.ask(2).await, 2);
    second
        .gives_for(1, within(rig.old.gateway.leavers(2)).await, [0, 0])
        .await;
    second.done(&mut second_taken, 2).await;
    for _ in 0..2 {
        tunnels.push(rig.tunnel().await);
    }
    rig.assert_holds(0, 5);
    let turned_away = rig.turned_away().await;
    assert!(turned_away.contains(" 503 "), "{turned_away}");
    assert_eq!(first.ask(1).await, 0);
    all_work(&mut tunnels).await;
}

#[tokio::test]
async fn a_batch_of_no_tunnels_is_taken_and_nothing_happens() {
    let rig = Rig::new().await;
    let (script, _taken, _) = Script::introduced(&rig).await;
    script.gives(1, Vec::new()).await;
    rig.assert_holds(0, 0);
}

#[tokio::test]
async fn a_giver_that_waits_no_longer_keeps_its_tunnels() {
    let rig = Rig::new().await;
    let mut tunnels = rig.tunnels(3).await;
    let (script, mut taken, _) = Script::introduced(&rig).await;
    let batch = within(rig.old.gateway.leavers(BATCH)).await;
    for tunnel in &mut tunnels {
        tunnel.client.say(b"\x82\x80mean").await;
    }
    let message = Message::of(&batch).await;
    // The taker's task does not run between the two.
    message.go(&script.channel).await;
    script.channel.shut_down().unwrap();
    assert_eq!(within(taken.report()).await, (0, true));
    assert!(within(script.channel.recv()).await.unwrap().is_none());
    rig.assert_holds(3, 0);
    batch.into_iter().for_each(Leaver::resume);
    for tunnel in &mut tunnels {
        assert_eq!(tunnel.server.hear(6).await, b"\x82\x80mean");
    }
    all_work(&mut tunnels).await;
    assert_eq!(rig.new.count(Cell::MovedIn), 0);
}

#[tokio::test]
async fn a_giver_that_ends_leaves_what_it_has_given() {
    let rig = Rig::new().await;
    let mut tunnels = rig.tunnels(2).await;
    let (script, mut taken, _) = Script::introduced(&rig).await;
    script
        .gives(1, within(rig.old.gateway.leavers(2)).await)
        .await;
    drop(script);
    assert_eq!(taken.report().await, (2, true));
    assert!(taken.taking.is_over());
    all_work(&mut tunnels).await;
    rig.assert_holds(0, 2);
}

#[tokio::test]
async fn a_taker_that_is_told_to_stop_leaves_the_batch_with_the_giver() {
    let rig = Rig::new().await;
    let mut tunnels = rig.tunnels(2).await;
    let (script, taken, _) = Script::introduced(&rig).await;
    let batch = within(rig.old.gateway.leavers(2)).await;
    Message::of(&batch).await.go(&script.channel).await;
    drop(taken);
    let answer = within(script.channel.recv()).await.unwrap();
    assert!(answer.is_none(), "{answer:?}");
    batch.into_iter().for_each(Leaver::resume);
    all_work(&mut tunnels).await;
    rig.assert_holds(2, 0);
    // What was promised is free again.
    assert_eq!(rig.new.gateway.places().grant(1000), 1000);
}

#[tokio::test]
async fn tunnels_of_unix_sockets_move_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let unix = UnixRig::new(dir.path()).await;
    let mut tunnels: Vec<Tunnel> = Vec::new();
    for _ in 0..3 {
        tunnels.push(unix.tunnel().await);
    }
    let rig = &unix.rig;
    rig.settled(3).await;
    let (script, mut taken, _) = Script::introduced(rig).await;
    script
        .gives(1, within(rig.old.gateway.leavers(3)).await)
        .await;
    all_work(&mut tunnels).await;
    rig.assert_holds(0, 3);
    drop(script);
    assert_eq!(taken.report().await, (3, true), "all are kept");
}

#[tokio::test]
async fn a_tunnel_that_ends_when_it_is_asked_to_leave_ends_once() {
    let rig = Rig::new().await;
    let tunnels = rig.tunnels(60).await;
    let (script, _taken, _) = Script::introduced(&rig).await;
    // None of the tasks has seen an end when it is asked.
    let (mut staying, mut closed) = (Vec::new(), Vec::new());
    for (place, tunnel) in tunnels.into_iter().enumerate() {
        let id = rig.old.gateway.tunnels()[place].id.clone();
        match place % 4 {
            0 => drop(tunnel),
            1 => {
                // As the supervisor does: every worker is told.
                for worker in [&rig.old, &rig.new] {
                    worker.gateway.close_tunnel(&id, 1001, "now");
                }
                closed.push(tunnel);
            }
            _ => staying.push(tunnel),
        }
    }
    for number in 1.. {
        let batch = within(rig.old.gateway.leavers(20)).await;
        if batch.is_empty() {
            break;
        }
        script.gives(number, batch).await;
    }
    for mut tunnel in closed {
        assert_eq!(tunnel.client.hear(7).await, b"\x88\x05\x03\xe9now");
    }
    all_work(&mut staying).await;
    until(|| ended(&rig.old) + ended(&rig.new) == 30).await;
    rig.assert_holds(0, 30);
}

fn ended(worker: &Worker) -> u64 {
    let causes = 0..wsgate_protocol::board::CAUSES.len();
    causes.map(|cause| worker.count(Cell::Ended(cause))).sum()
}
