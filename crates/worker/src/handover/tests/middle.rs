//! Both sides, with the test between them: it sees each message, and may change it.

use std::fs::File;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wsgate_os::channel::{Channel, MAX_MESSAGE};
use wsgate_protocol::control::{Refusal, Stays};

use super::rig::{Given, Report, Rig, Taken, Tunnel, Wish, all_work, until, within};
use super::taker::{Message, Script, no_socket};
use crate::handover::why_it_stays;

struct Middle {
    giver: Channel,
    taker: Channel,
}

impl Middle {
    fn start(rig: &Rig) -> (Self, Given, Taken) {
        let (giver, to_giver) = Channel::pair().unwrap();
        let (taker, to_taker) = Channel::pair().unwrap();
        let taken = rig.taking(to_taker);
        let given = rig.giving(to_giver, None);
        (Self { giver, taker }, given, taken)
    }

    /// Passes all on until the giver has something to tell. `look` gets what it says.
    async fn until_told(&self, given: &mut Given, mut look: impl FnMut(&mut Message)) -> Report {
        loop {
            let (from_giver, received) = tokio::select! {
                biased;
                received = self.giver.recv() => (true, received),
                received = self.taker.recv() => (false, received),
                report = given.report() => return report,
            };
            let Some((bytes, fds)) = received.unwrap() else {
                return given.report().await;
            };
            let mut message = Message { bytes, fds };
            if from_giver {
                look(&mut message);
                message.go(&self.taker).await;
            } else {
                message.go(&self.giver).await;
            }
        }
    }
}

#[tokio::test]
async fn a_taker_of_another_version_is_left_alone() {
    for word in ["\"version\":1", "\"tunnels\":1"] {
        let rig = Rig::new().await;
        let mut tunnels = rig.tunnels(40).await;
        let (middle, mut given, _taken) = Middle::start(&rig);
        let other = word.replace('1', "2");
        let newer = |message: &mut Message| {
            let text = String::from_utf8(message.bytes.clone()).unwrap();
            message.bytes = text.replace(word, &other).into_bytes();
        };
        let report = within(middle.until_told(&mut given, newer)).await;
        let stays = vec![(Stays::Refused(Refusal::Version), 40)];
        assert_eq!((report.moved, report.stays), (0, stays));
        assert_eq!(report.broken, Some(Refusal::Version));
        all_work(&mut tunnels).await;
        rig.assert_holds(40, 0);
    }
}

/// Where in a batch this tunnel is.
fn place(message: &Message, id: &str) -> Option<usize> {
    let end = message.bytes.iter().position(|byte| *byte == 0)?;
    let batch: serde_json::Value = serde_json::from_slice(&message.bytes[..end]).unwrap();
    let tunnels = batch["tunnels"].as_array().unwrap();
    tunnels.iter().position(|tunnel| tunnel["id"] == id)
}

#[tokio::test]
async fn tunnels_that_cannot_be_served_stay_and_all_others_of_their_batches_move() {
    let rig = Rig::new().await;
    let mut tunnels = rig.tunnels(70).await;
    let unfit: Vec<_> = [0, 17, 18, 69]
        .map(|place| rig.old.gateway.tunnels()[place].clone())
        .into();
    let (middle, mut given, mut taken) = Middle::start(&rig);
    let mut messages = 0;
    let spoil = |message: &mut Message| {
        messages += 1;
        for record in &unfit {
            if let Some(place) = place(message, &record.id) {
                // epoll_ctl(2) takes no file.
                message.fds[2 * place + 1] = no_socket();
            }
        }
    };
    let report = within(middle.until_told(&mut given, spoil)).await;
    let stays = vec![(Stays::Refused(Refusal::Unfit), 4)];
    assert_eq!(
        (report.moved, report.stays, report.broken),
        (66, stays, None)
    );
    // Hello and Done; 32 that are spoilt, each alone, 32 and each alone again, the last ones and each alone.
    assert!(messages < 90, "{messages} messages");
    for record in &unfit {
        let why = why_it_stays(record, None);
        assert_eq!(why, Some(Stays::Refused(Refusal::Unfit)));
    }
    all_work(&mut tunnels).await;
    rig.assert_holds(4, 66);
    drop((middle, given));
    assert_eq!(taken.report().await, (66, false));
    // Another taker may do better.
    let (middle, mut given, _taken) = Middle::start(&rig);
    let report = within(middle.until_told(&mut given, |_| {})).await;
    assert_eq!((report.moved, report.stays), (4, vec![]));
    rig.assert_holds(0, 70);
    all_work(&mut tunnels).await;
}

const LONG: &[u8] = b"{\"type\":\"long\"}";

fn memfd_length(message: &Message) -> u64 {
    let memfd = message.fds.last().unwrap().try_clone().unwrap();
    File::from(memfd).metadata().unwrap().len()
}

/// Numbers, so that every byte has its place.
fn numbers(seed: u32, bytes: usize) -> Vec<u8> {
    (0..bytes as u32 / 4)
        .flat_map(|number| (number ^ seed << 20).to_le_bytes())
        .collect()
}

/// More than the kernel holds for a reader that does not read: up to tcp_wmem and tcp_rmem, on both sides of the gateway.
const MUCH: usize = 24 << 20;

/// Enough for a batch that is longer than a message, with a buffer of the gateway's for each direction.
const STUFFED: usize = 4;

/// Both peers say [`MUCH`], and nobody reads yet.
struct Stuffed {
    writing: [tokio::task::JoinHandle<()>; 2],
    reading: [tokio::io::ReadHalf<Box<dyn super::rig::Stream>>; 2],
    said: [Vec<u8>; 2],
}

impl Stuffed {
    fn start(tunnel: Tunnel, number: u32) -> Self {
        let said = [2 * number, 2 * number + 1].map(|seed| numbers(seed, MUCH));
        let (from_client, mut to_server) = tokio::io::split(tunnel.client.0);
        let (from_server, mut to_client) = tokio::io::split(tunnel.server.0);
        let [up, down] = said.clone();
        let up = tokio::spawn(async move {
            to_server.write_all(&up).await.unwrap();
            to_server.shutdown().await.unwrap();
        });
        let down = tokio::spawn(async move {
            to_client.write_all(&down).await.unwrap();
            to_client.shutdown().await.unwrap();
        });
        Self {
            writing: [up, down],
            reading: [from_server, from_client],
            said,
        }
    }

    async fn read(self) {
        let [mut at_server, mut at_client] = self.reading;
        let (mut up, mut down) = (Vec::new(), Vec::new());
        let (one, other) = tokio::join!(
            at_server.read_to_end(&mut up),
            at_client.read_to_end(&mut down)
        );
        one.unwrap();
        other.unwrap();
        assert!(self.said == [up, down], "other bytes than were said");
        for writing in self.writing {
            writing.await.unwrap();
        }
    }
}

/// Waits until the kernel takes nothing more of anybody.
async fn stuck(rig: &Rig) {
    let mut looks = tokio::time::interval(std::time::Duration::from_millis(50));
    let (mut last, mut quiet) = (0, 0);
    within(async {
        while quiet < 6 {
            looks.tick().await;
            let tunnels = rig.old.gateway.tunnels();
            let bytes = |record: &Arc<wsgate_proxy::Record>| {
                record.from_client().0 + record.from_server().0
            };
            let now: u64 = tunnels.iter().map(bytes).sum();
            quiet = if now == last && now > 0 { quiet + 1 } else { 0 };
            last = now;
        }
    })
    .await;
}

#[tokio::test]
async fn a_batch_that_is_longer_than_a_message_arrives_with_every_byte() {
    let rig = Rig::with(Wish {
        short: true,
        ..Wish::default()
    })
    .await;
    let tunnels = rig.tunnels(STUFFED).await;
    let stuffed: Vec<Stuffed> = tunnels
        .into_iter()
        .zip(0..)
        .map(|(tunnel, number)| Stuffed::start(tunnel, number))
        .collect();
    stuck(&rig).await;
    let (middle, mut given, _taken) = Middle::start(&rig);
    let (mut long, mut most) = (0, 0);
    let look = |message: &mut Message| {
        assert!(message.bytes.len() <= MAX_MESSAGE);
        if message.bytes == LONG {
            long += 1;
            most = memfd_length(message);
            assert_eq!(message.fds.len(), 2 * STUFFED + 1);
        }
    };
    let report = within(middle.until_told(&mut given, look)).await;
    assert_eq!((report.moved, report.broken), (STUFFED as u64, None));
    assert_eq!(long, 1);
    assert!(most > MAX_MESSAGE as u64, "{most} bytes only");
    within(async {
        for one in stuffed {
            one.read().await;
        }
    })
    .await;
    until(|| rig.new.tunnels() == 0).await;
}

#[tokio::test]
async fn what_was_read_ahead_of_the_handshakes_end_is_longer_than_a_message_and_arrives() {
    let rig = Rig::with(Wish {
        short: true,
        limits: "[limits]\nheader_bytes = \"1MiB\"",
        ..Wish::default()
    })
    .await;
    let said = numbers(1, 900 << 10);
    let (script, _taken, _) = Script::introduced(&rig).await;
    let mut held = 0;
    // How much is there to be read at once is chance.
    for number in 1..=20 {
        let gateway = Arc::clone(&rig.old.gateway);
        // A task that waits for it asks before the tunnel's own one has been polled at all. A giver would have to ask for room
        // first, and the kernel takes most of it meanwhile.
        let asking = tokio::spawn(async move {
            while !gateway.has_movable() {
                gateway.movable().await;
            }
            gateway.leavers(1).await
        });
        let mut tunnel = rig.tunnel_that([&said, b""], 500 << 10).await;
        let batch = within(asking).await.unwrap();
        assert_eq!(batch.len(), 1);
        let message = Message::of(&batch).await;
        if message.bytes == LONG {
            held = memfd_length(&message);
        }
        drop(message);
        script.gives(number, batch).await;
        assert!(tunnel.server.hear(said.len()).await == said);
        tunnel.works().await;
        rig.assert_holds(0, 1);
        drop(tunnel);
        until(|| rig.new.tunnels() == 0).await;
        if held > MAX_MESSAGE as u64 {
            return;
        }
        assert!(number < 20, "{held} bytes at the most");
    }
}

/// So many move, and none stays.
async fn moves_all(given: &mut Given, moved: u64) {
    let report = given.report().await;
    assert_eq!((report.moved, report.broken), (moved, None));
    assert_eq!(report.stays, vec![]);
}

#[tokio::test]
async fn several_givers_share_few_places() {
    const GIVERS: usize = 16;
    let mut rig = Rig::with(Wish {
        room: 40,
        ..Wish::default()
    })
    .await;
    let mut tunnels = rig.tunnels(2).await;
    let mut givers = Vec::new();
    for block in 2..=GIVERS {
        givers.push(rig.another_old(block));
        tunnels.extend(rig.tunnels(2).await);
    }
    // All at once: nobody is asked before the last one has begun.
    let mut pairs = vec![rig.pair()];
    for giver in givers {
        rig.old = giver;
        pairs.push(rig.pair());
    }
    assert_eq!(pairs.len(), GIVERS);
    for (given, _) in &mut pairs {
        moves_all(given, 2).await;
    }
    rig.assert_holds(0, 2 * GIVERS);
    all_work(&mut tunnels).await;
    // None of them keeps the eight others from anybody.
    for (_, taken) in &mut pairs {
        assert_eq!(taken.report().await, (2, false));
    }
    assert_eq!(rig.new.gateway.places().grant(100), 8);
}

#[tokio::test]
async fn there_is_no_room_at_first_and_then_all_move() {
    let rig = Rig::with(Wish {
        room: 40,
        ..Wish::default()
    })
    .await;
    let mut tunnels = rig.tunnels(40).await;
    let mut promised = rig.new.gateway.places();
    assert_eq!(promised.grant(1000), 40);
    let (middle, mut given, _taken) = Middle::start(&rig);
    let mut questions = 0;
    let look = |message: &mut Message| {
        if message.bytes == b"{\"type\":\"ask\",\"holds\":40}" {
            assert_eq!(rig.new.tunnels(), 0);
            questions += 1;
            if questions == 3 {
                promised.give_back();
            }
        }
    };
    let report = within(middle.until_told(&mut given, look)).await;
    assert_eq!((report.moved, report.broken), (40, None));
    assert_eq!((report.stays, questions), (vec![], 3));
    rig.assert_holds(0, 40);
    all_work(&mut tunnels).await;
}
