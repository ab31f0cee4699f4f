//! The giver against a taker that the test plays: whatever that one does, no tunnel is lost, and none is two workers'.

use wsgate_os::channel::Channel;
use wsgate_protocol::board::Cell;
use wsgate_protocol::control::{Refusal, Stays};
use wsgate_protocol::handover::{FromGiver, FromTaker};
use wsgate_proxy::handover::Passport;

use super::rig::{Given, Report, Rig, Tunnel, all_work, until, within};
use crate::handover::give::ASKED_FOR_ROOM;
use crate::handover::parcel::{self, Parcel};
use crate::handover::{BATCH, why_it_stays};

/// The taker's part.
struct Script {
    channel: Channel,
}

impl Script {
    /// A giver is at work, and its first message has come.
    async fn meet(rig: &Rig) -> (Self, Given) {
        let (channel, theirs) = Channel::pair().unwrap();
        let given = rig.giving(theirs, None);
        let script = Self { channel };
        script.hello().await;
        (script, given)
    }

    async fn hello(&self) {
        assert!(matches!(self.hear().await.message, FromGiver::Hello { .. }));
    }

    /// The giver asks for room. How many it says that it has.
    async fn asked(&self) -> usize {
        match self.hear().await.message {
            FromGiver::Ask { holds } => holds,
            other => panic!("{other:?} in place of a question"),
        }
    }

    /// There is no room, however often the giver asks; it has so many.
    async fn never_has_room(&self, holds: usize) {
        for _ in 0..ASKED_FOR_ROOM {
            assert_eq!(self.asked().await, holds);
            self.room(0).await;
        }
    }

    /// The giver has nothing more to say.
    async fn ends(&self) {
        assert!(within(self.channel.recv()).await.unwrap().is_none());
    }

    async fn hear(&self) -> Parcel {
        let (bytes, fds) = within(self.channel.recv()).await.unwrap().unwrap();
        Parcel::open(bytes, fds).unwrap()
    }

    async fn batch(&self) -> (u64, Vec<Passport>, Parcel) {
        let mut parcel = self.hear().await;
        match std::mem::replace(&mut parcel.message, FromGiver::Done) {
            FromGiver::Batch {
                number, tunnels, ..
            } => (number, tunnels, parcel),
            other => panic!("{other:?} in place of a batch"),
        }
    }

    async fn say(&self, answer: FromTaker) {
        parcel::say(&self.channel, &answer).await.unwrap();
    }

    async fn room(&self, tunnels: usize) {
        self.say(FromTaker::Room { tunnels }).await;
    }

    async fn taken(&self, number: u64, room: usize) {
        self.say(FromTaker::Taken { number, room }).await;
    }
}

/// Says something to the server in each: nobody reads it while the tunnel is on its way.
async fn say_meanwhile(tunnels: &mut [Tunnel]) {
    for tunnel in tunnels {
        tunnel.client.say(b"\x82\x80meanwhile").await;
    }
}

async fn hear_meanwhile(tunnels: &mut [Tunnel]) {
    for tunnel in &mut *tunnels {
        assert_eq!(tunnel.server.hear(11).await, b"\x82\x80meanwhile");
    }
    all_work(tunnels).await;
}

#[tokio::test]
async fn a_taker_of_another_version_gets_nothing_and_all_go_on_where_they_are() {
    let rig = Rig::new().await;
    let mut tunnels = rig.tunnels(3).await;
    let (script, mut given) = Script::meet(&rig).await;
    let reason = Refusal::Version;
    script.say(FromTaker::Refused { reason }).await;
    given.breaks(0, reason, 3).await;
    all_work(&mut tunnels).await;
    assert!(within(script.channel.recv()).await.unwrap().is_none());
}

#[tokio::test]
async fn there_is_room_for_some_and_the_others_stay() {
    let rig = Rig::new().await;
    let mut tunnels = rig.tunnels(5).await;
    let (script, mut given) = Script::meet(&rig).await;
    script.room(2).await;
    let (number, passports, parcel) = script.batch().await;
    assert_eq!((passports.len(), parcel.sockets.len()), (2, 4));
    script.taken(number, 0).await;
    script.never_has_room(3).await;
    given.breaks(2, Refusal::NoRoom, 3).await;
    script.ends().await;
    all_work(&mut tunnels[2..]).await;
    // The two have no other owner than the script.
    drop(parcel);
    assert_eq!(tunnels[0].client.rest().await, b"");
    let (script, mut given) = Script::meet(&rig).await;
    script.room(0).await;
    script.never_has_room(3).await;
    given.breaks(0, Refusal::NoRoom, 3).await;
    all_work(&mut tunnels[2..]).await;
}

#[tokio::test]
async fn a_taker_without_room_is_no_failure_while_there_is_nothing_to_give() {
    let rig = Rig::new().await;
    let (script, mut given) = Script::meet(&rig).await;
    script.room(0).await;
    assert!(matches!(script.hear().await.message, FromGiver::Done));
    assert_eq!(given.report().await.broken, None);
    let mut tunnel = rig.tunnel().await;
    script.never_has_room(1).await;
    given.breaks(0, Refusal::NoRoom, 1).await;
    tunnel.works().await;
}

#[tokio::test]
async fn there_is_room_only_later_and_all_move_then() {
    // Only the last time that it asks.
    for refusals in [0, 1, ASKED_FOR_ROOM - 1] {
        let rig = Rig::new().await;
        let _tunnels = rig.tunnels(5).await;
        let (script, mut given) = Script::meet(&rig).await;
        script.room(0).await;
        for _ in 0..refusals {
            assert_eq!(script.asked().await, 5);
            script.room(0).await;
        }
        assert_eq!(script.asked().await, 5);
        script.room(2).await;
        let (number, passports, _two) = script.batch().await;
        assert_eq!((number, passports.len()), (1, 2));
        script.taken(number, 0).await;
        // It may ask as often for the others.
        for _ in 0..refusals {
            assert_eq!(script.asked().await, 3);
            script.room(0).await;
        }
        assert_eq!(script.asked().await, 3);
        script.room(BATCH).await;
        let (number, passports, _three) = script.batch().await;
        assert_eq!((number, passports.len()), (2, 3));
        script.taken(number, 0).await;
        assert!(matches!(script.hear().await.message, FromGiver::Done));
        let report = given.report().await;
        assert_eq!((report.moved, report.broken), (5, None));
        assert_eq!((report.stays, rig.old.tunnels()), (vec![], 0));
    }
}

#[tokio::test]
async fn a_question_for_room_without_a_good_answer_ends_it_and_all_go_on() {
    let reason = Refusal::NoDescriptors;
    let answers = [
        (Some(FromTaker::Refused { reason }), reason),
        (
            Some(FromTaker::Taken { number: 1, room: 9 }),
            Refusal::Unfit,
        ),
        (None, Refusal::Late),
    ];
    for (answer, broken) in answers {
        let rig = Rig::new().await;
        let mut tunnels = rig.tunnels(2).await;
        let (script, mut given) = Script::meet(&rig).await;
        script.room(0).await;
        script.asked().await;
        if let Some(answer) = answer {
            script.say(answer).await;
        }
        given.breaks(0, broken, 2).await;
        script.ends().await;
        all_work(&mut tunnels).await;
    }
}

#[tokio::test]
async fn a_stop_while_there_is_no_room_ends_it_whatever_room_there_is_then() {
    for room in [0, BATCH] {
        let rig = Rig::new().await;
        let mut tunnels = rig.tunnels(2).await;
        let (script, mut given) = Script::meet(&rig).await;
        script.room(0).await;
        script.asked().await;
        given.stop();
        script.room(room).await;
        given.breaks(0, Refusal::Nobody, 2).await;
        script.ends().await;
        all_work(&mut tunnels).await;
    }
}

#[tokio::test]
async fn a_taker_that_closes_in_the_middle_of_a_batch_has_taken_nothing() {
    let rig = Rig::new().await;
    let mut tunnels = rig.tunnels(3).await;
    let (script, mut given) = Script::meet(&rig).await;
    script.room(BATCH).await;
    let batch = script.batch().await;
    say_meanwhile(&mut tunnels).await;
    drop((script, batch));
    given.breaks(0, Refusal::Gone, 3).await;
    hear_meanwhile(&mut tunnels).await;
}

#[tokio::test]
async fn a_taker_that_closes_instead_of_an_introduction_takes_nothing() {
    let rig = Rig::new().await;
    let mut tunnels = rig.tunnels(1).await;
    let (script, mut given) = Script::meet(&rig).await;
    drop(script);
    given.breaks(0, Refusal::Gone, 1).await;
    all_work(&mut tunnels).await;
}

#[tokio::test]
async fn an_answer_that_comes_too_late_finds_no_giver_and_the_tunnels_go_on() {
    let rig = Rig::new().await;
    let mut tunnels = rig.tunnels(3).await;
    let (script, mut given) = Script::meet(&rig).await;
    script.room(BATCH).await;
    let (number, _, parcel) = script.batch().await;
    say_meanwhile(&mut tunnels).await;
    // The giver waits no longer as soon as it has shut the channel down.
    assert!(within(script.channel.recv()).await.unwrap().is_none());
    let taken = FromTaker::Taken { number, room: 1 };
    let late = parcel::say(&script.channel, &taken).await.unwrap_err();
    assert_eq!(late.kind(), std::io::ErrorKind::BrokenPipe);
    drop(parcel);
    given.breaks(0, Refusal::Late, 3).await;
    hear_meanwhile(&mut tunnels).await;
}

#[tokio::test]
async fn a_taker_that_never_introduces_itself_is_given_nothing() {
    let rig = Rig::new().await;
    let mut tunnels = rig.tunnels(1).await;
    let (_script, mut given) = Script::meet(&rig).await;
    given.breaks(0, Refusal::Late, 1).await;
    all_work(&mut tunnels).await;
}

#[tokio::test]
async fn an_acknowledgement_that_was_sent_in_time_counts_when_it_is_read_late() {
    // Behind an answer to something else, and behind words that are none: the giver has shut the channel down by then.
    for before in [&br#"{"type":"taken","number":9,"room":0}"#[..], b"?"] {
        let rig = Rig::new().await;
        let _tunnels = rig.tunnels(3).await;
        let (script, mut given) = Script::meet(&rig).await;
        script.room(BATCH).await;
        let (number, _, _parcel) = script.batch().await;
        for noise in [before, b"??", b"[]"] {
            script.channel.send(noise, &[]).await.unwrap();
        }
        script.taken(number, 1).await;
        let report = given.report().await;
        assert_eq!((report.moved, report.stays), (3, vec![]));
        assert!(report.broken.is_some());
        assert_eq!((rig.old.tunnels(), rig.old.count(Cell::MovedOut)), (0, 3));
    }
}

#[tokio::test]
async fn an_answer_that_is_none_takes_nothing() {
    let answers: [(&[u8], Refusal); 4] = [
        (b"?", Refusal::Unsent),
        (b"{\"type\":\"stolen\"}", Refusal::Unsent),
        (br#"{"type":"taken","number":2,"room":9}"#, Refusal::Unfit),
        (br#"{"type":"room","tunnels":9}"#, Refusal::Unfit),
    ];
    for (answer, broken) in answers {
        let rig = Rig::new().await;
        let mut tunnels = rig.tunnels(2).await;
        let (script, mut given) = Script::meet(&rig).await;
        script.room(BATCH).await;
        let batch = script.batch().await;
        say_meanwhile(&mut tunnels).await;
        script.channel.send(answer, &[]).await.unwrap();
        given.breaks(0, broken, 2).await;
        drop(batch);
        hear_meanwhile(&mut tunnels).await;
        // Nor could it take them any more.
        let taken = FromTaker::Taken { number: 1, room: 1 };
        assert!(parcel::say(&script.channel, &taken).await.is_err());
    }
}

#[tokio::test]
async fn one_unfit_tunnel_stays_and_all_others_move() {
    let rig = Rig::new().await;
    let mut tunnels = rig.tunnels(6).await;
    let unfit = rig.old.gateway.tunnels()[2].clone();
    let (script, mut given) = Script::meet(&rig).await;
    script.room(BATCH).await;
    let (mut sizes, mut moved) = (Vec::new(), Vec::new());
    let report = loop {
        let mut parcel = script.hear().await;
        let message = std::mem::replace(&mut parcel.message, FromGiver::Done);
        let FromGiver::Batch {
            number,
            tunnels: passports,
            more,
        } = message
        else {
            break given.report().await;
        };
        sizes.push((passports.len(), more));
        let text = serde_json::to_string(&passports).unwrap();
        if text.contains(&format!("\"{}\"", unfit.id)) {
            let reason = Refusal::Unfit;
            script.say(FromTaker::Refused { reason }).await;
        } else {
            moved.push(parcel);
            script.taken(number, BATCH).await;
        }
    };
    // It is tried once alone, and once is enough to know.
    let expected = [(6, 0), (1, 5), (1, 4), (1, 3), (1, 3), (1, 2), (1, 1)];
    assert_eq!(sizes, expected);
    let stays = Stays::Refused(Refusal::Unfit);
    let expected = Report {
        moved: 5,
        stays: vec![(stays, 1)],
        broken: None,
    };
    assert_eq!(report, expected);
    assert_eq!(why_it_stays(&unfit, None), Some(stays));
    assert_eq!(rig.old.tunnels(), 1);
    tunnels[2].works().await;
    // One that opens later is not held up by it.
    let _later = rig.tunnel().await;
    assert_eq!(script.asked().await, 2);
    script.room(BATCH).await;
    let (_, passports, _parcel) = script.batch().await;
    assert_eq!(passports.len(), 1);
}

#[tokio::test]
async fn a_tunnel_that_opens_later_moves_later() {
    let rig = Rig::new().await;
    let (script, mut given) = Script::meet(&rig).await;
    script.room(BATCH).await;
    for number in 1..4 {
        assert!(matches!(script.hear().await.message, FromGiver::Done));
        let report = given.report().await;
        assert_eq!((report.moved, report.broken), (number.min(2) - 1, None));
        let _tunnel = rig.tunnel().await;
        // Although there was more room than it needed.
        assert_eq!(script.asked().await, 1);
        script.room(1).await;
        let (of, passports, _parcel) = script.batch().await;
        assert_eq!((of, passports.len()), (number, 1));
        script.taken(of, BATCH).await;
    }
    until(|| rig.old.tunnels() == 0).await;
}

#[tokio::test]
async fn a_stop_lets_the_batch_that_is_under_way_come_to_its_end() {
    let rig = Rig::new().await;
    let mut tunnels = rig.tunnels(BATCH + 3).await;
    let (script, mut given) = Script::meet(&rig).await;
    script.room(BATCH).await;
    let (number, passports, _parcel) = script.batch().await;
    assert_eq!(passports.len(), BATCH);
    given.stop();
    script.taken(number, BATCH).await;
    given.breaks(BATCH as u64, Refusal::Nobody, 3).await;
    assert!(within(script.channel.recv()).await.unwrap().is_none());
    all_work(&mut tunnels[BATCH..]).await;
}

#[tokio::test]
async fn a_stop_while_there_is_nothing_to_give_ends_it() {
    let rig = Rig::new().await;
    let (script, mut given) = Script::meet(&rig).await;
    script.room(BATCH).await;
    assert!(matches!(script.hear().await.message, FromGiver::Done));
    assert_eq!(given.report().await.broken, None);
    given.stop();
    given.breaks(0, Refusal::Nobody, 0).await;
}

#[tokio::test]
async fn another_taker_gets_what_the_first_one_did_not_and_only_once_that_is_settled() {
    for first_takes_it in [true, false] {
        let rig = Rig::new().await;
        let mut tunnels = rig.tunnels(BATCH + 3).await;
        let (first, mut given) = Script::meet(&rig).await;
        first.room(BATCH).await;
        let (number, _, parcel) = first.batch().await;
        let (second, theirs) = Channel::pair().unwrap();
        let second = Script { channel: second };
        let (moved, broken) = match first_takes_it {
            true => (BATCH, Refusal::Nobody),
            false => (0, Refusal::Late),
        };
        let left = (BATCH + 3 - moved) as u64;
        let mut given_anew = rig.giving(theirs, given.giving.take());
        if first_takes_it {
            first.taken(number, BATCH).await;
        } else {
            drop(parcel);
        }
        second.hello().await;
        given.breaks(moved as u64, broken, left).await;
        second.room(1).await;
        let (number, passports, _parcel) = second.batch().await;
        assert_eq!(passports.len(), 1);
        second.taken(number, 0).await;
        second.never_has_room(left as usize - 1).await;
        given_anew.breaks(1, Refusal::NoRoom, left - 1).await;
        all_work(&mut tunnels[moved + 1..]).await;
    }
}
