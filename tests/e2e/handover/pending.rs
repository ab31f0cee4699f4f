//! What is on its way in a tunnel goes along: bytes that its reader does not read, and where in a frame it is.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinSet;
use tokio::time::interval;

use super::{HEAD, all_move, with_keys};
use crate::configs;
use crate::support::backend::{Raw, handing_over};
use crate::support::flow::{Flood, Flow};
use crate::support::gateway::Gateway;
use crate::support::load::alone;
use crate::support::pair::{Line, Pair, SMALLEST, Server};
use crate::support::queues::Queues;
use crate::support::random::Seed;
use crate::support::raw::{BINARY, CLOSE, CONTINUATION, PING, TEXT, Wire, frame, masked};
use crate::support::script::{Form, Script, Side};
use crate::support::wait::{SOON, within};
use crate::support::wire::WireEnd;

/// Bytes on their way: in each direction of those with a little, and in both together of those with as much as the kernel takes,
/// which shares its memory out as it likes.
const LEAST: u64 = 400_000;
const MOST: u64 = 10_000_000;

/// Tunnels with a little on their way, and with as much as the kernel takes.
const LITTLE: u64 = 36;
const MUCH: u64 = 4;

/// The kernel takes some 50 KB for this side.
const NARROW: Line = Line {
    segment: SMALLEST,
    send: None,
    receive: Some(4 << 10),
};

fn flows(pair: Pair, seed: &Seed, number: u64, bytes: u64) -> [Flow; 2] {
    let (client, server) = (Arc::new(pair.client), Arc::new(pair.server));
    let flow = |side, from: &Arc<_>, to: &Arc<_>| {
        let numbers = seed.numbers(2 * number + side as u64);
        Flow {
            from: Arc::clone(from),
            to: Arc::clone(to),
            script: Script::new(numbers, side, Form::Fragmented, bytes),
        }
    };
    let up = flow(Side::Client, &client, &server);
    [up, flow(Side::Server, &server, &client)]
}

/// Waits until nobody has been able to say more for half a second.
async fn stuck(floods: &[Flood]) {
    let mut looks = interval(Duration::from_millis(50));
    let (mut last, mut quiet) = (0, 0);
    within("the senders are stopped", SOON * 3, async {
        while quiet < 10 {
            looks.tick().await;
            let said = floods.iter().map(Flood::said).sum();
            quiet = if said == last { quiet + 1 } else { 0 };
            last = said;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_whose_readers_do_not_read_move_with_all_that_is_on_its_way() {
    let _alone = alone().await;
    let seed = Seed::draw();
    let server = Server::start().await;
    let config = |number| with_keys("send_timeout = \"10m\"", &server.address, number);
    let gateway = Gateway::start(&config(1)).await;
    let mut floods = Vec::new();
    for number in 0..LITTLE {
        let pair = server.pair(&gateway, NARROW).await;
        let flows = flows(pair, &seed, number, LEAST);
        floods.extend(flows.map(Flood::start));
    }
    for number in LITTLE..LITTLE + MUCH {
        let pair = server.pair(&gateway, Line::default()).await;
        floods.extend(flows(pair, &seed, number, u64::MAX).map(Flood::rush));
    }
    stuck(&floods).await;
    let said: Vec<u64> = floods.iter().map(Flood::said).collect();
    let (little, much) = said.split_at(2 * LITTLE as usize);
    assert!(little.iter().all(|said| *said >= LEAST), "{little:?}");
    let both = |said: &[u64]| said.iter().sum::<u64>() >= MOST;
    assert!(much.chunks(2).all(both), "{much:?}");
    let queues = Queues::look();
    // Of the others the kernel may have taken all.
    let full = &floods[2 * LITTLE as usize..];
    let held: Vec<u64> = full.iter().map(|flood| flood.held(&queues)).collect();
    assert!(held.iter().all(|held| *held > 0), "{held:?}");
    for number in 2..5 {
        all_move(&gateway, &config(number), LITTLE + MUCH).await;
    }
    let read: JoinSet<()> = floods.into_iter().map(Flood::finish).collect();
    read.join_all().await;
    gateway.holds(0).await;
}

/// A gateway, and the server's ends of its tunnels.
struct Hands {
    gateway: Gateway,
    server: Raw,
    ends: Receiver<Wire>,
    reloads: u64,
    tunnels: u64,
}

impl Hands {
    async fn start() -> Self {
        let (server, ends) = handing_over().await;
        let gateway = Gateway::start(&configs::numbered(HEAD, &[&server.address], 1)).await;
        Self {
            gateway,
            server,
            ends,
            reloads: 0,
            tunnels: 0,
        }
    }

    /// Both ends of a tunnel.
    async fn tunnel(&mut self) -> (Wire, Wire) {
        let (client, _) = Wire::tunnel(self.gateway.address(), "/", "").await;
        self.tunnels += 1;
        (client, self.ends.recv().await.unwrap())
    }

    async fn reload(&mut self) {
        self.reloads += 1;
        let config = configs::numbered(HEAD, &[&self.server.address], self.reloads + 1);
        all_move(&self.gateway, &config, self.tunnels).await;
    }

    /// Messages from this client, once it has so many bytes.
    async fn messages(&self, client: &Wire, bytes: u64) -> u64 {
        let client = client.stream.local_addr().unwrap().to_string();
        crate::support::wait::eventually("the bytes are counted", SOON, async || {
            let tunnels = self.gateway.tunnels().await;
            let tunnel = tunnels.iter().find(|it| it.client == client).unwrap();
            (tunnel.bytes_from_client == bytes).then_some(tunnel.messages_from_client)
        })
        .await
    }

    async fn close(&self, client: &Wire) {
        let client = client.stream.local_addr().unwrap().to_string();
        let tunnels = self.gateway.tunnels().await;
        let tunnel = tunnels.iter().find(|it| it.client == client).unwrap();
        let path = format!("/v1/tunnels/{}", tunnel.id);
        let answer = self.gateway.call(Method::DELETE, &path, "").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

/// A piece of a payload, each another one.
fn piece(number: u64) -> Vec<u8> {
    let numbers = number << 20..(number << 20) + (1 << 18);
    numbers.flat_map(|it| (it as u32).to_le_bytes()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_inside_of_a_frame_of_a_gigabyte_knows_where_it_is_after_several_moves() {
    let mut hands = Hands::start().await;
    let (mut up_client, mut up_server) = hands.tunnel().await;
    let (mut down_client, mut down_server) = hands.tunnel().await;
    let head = |mask: u8| {
        [
            &[0x80 | BINARY, mask | 127][..],
            &(1_u64 << 30).to_be_bytes(),
        ]
        .concat()
    };
    let masked_head = [head(0x80), vec![1, 2, 3, 4]].concat();
    let plain_head = head(0);
    up_client.send(&masked_head).await;
    assert_eq!(up_server.take(14).await, masked_head);
    down_server.send(&plain_head).await;
    assert_eq!(down_client.take(10).await, plain_head);
    for number in 0..8 {
        // Before, between and after: and some of it while they move.
        let piece = piece(number);
        let (first, second) = piece.split_at(piece.len() / 3);
        up_client.send(first).await;
        down_server.send(first).await;
        if number % 2 == 1 && number < 7 {
            hands.reload().await;
        }
        up_client.send(second).await;
        down_server.send(second).await;
        assert!(up_server.take(piece.len()).await == piece, "{number}");
        assert!(down_client.take(piece.len()).await == piece, "{number}");
    }
    assert_eq!(hands.reloads, 3);
    // Whoever took the payload for headers would have found none in it.
    for tunnel in hands.gateway.tunnels().await {
        assert!(!tunnel.unframed, "{tunnel:?}");
        assert_eq!(
            (tunnel.messages_from_client, tunnel.messages_from_server),
            (0, 0)
        );
    }
    hands.close(&up_client).await;
    hands.close(&down_client).await;
    // No Close frame in the middle of a frame: it would be payload. In the other direction there is one.
    let (rest, end) = up_server.rest().await;
    assert_eq!((rest, end), (vec![], WireEnd::Fin));
    let (rest, end) = down_client.rest().await;
    assert_eq!((rest, end), (vec![], WireEnd::Fin));
    assert_eq!(up_client.take(1).await, [0x80 | CLOSE]);
    assert_eq!(down_server.take(1).await, [0x80 | CLOSE]);
}

#[tokio::test]
async fn a_tunnel_in_the_middle_of_a_frames_header_goes_on_with_the_rest_of_it() {
    let mut hands = Hands::start().await;
    let (mut client, mut server) = hands.tunnel().await;
    let message = masked(true, BINARY, &vec![5; 70_000]);
    // The 14 bytes of the header in four pieces, with a move between two of them.
    let mut sent = 0;
    for (place, until) in [(0, 1), (1, 3), (2, 8), (3, 13)] {
        client.send(&message[sent..until]).await;
        assert_eq!(server.take(until - sent).await, message[sent..until]);
        sent = until;
        if place < 3 {
            hands.reload().await;
        }
    }
    client.send(&message[sent..]).await;
    assert!(server.take(message.len() - sent).await == message[sent..]);
    assert_eq!(hands.messages(&client, message.len() as u64).await, 1);
    // Were it not at a boundary there would be no Close frame, but a FIN after two seconds.
    hands.close(&client).await;
    assert_eq!(server.take(1).await, [0x80 | CLOSE]);
}

#[tokio::test]
async fn messages_in_several_frames_are_counted_once_however_they_move() {
    let mut hands = Hands::start().await;
    let (mut client, mut server) = hands.tunnel().await;
    let frames = [
        (masked(false, TEXT, b"one, "), 0),
        (masked(true, PING, b"in between"), 0),
        (masked(false, CONTINUATION, b"two, "), 0),
        (masked(true, CONTINUATION, b"three"), 1),
        (masked(true, TEXT, b"another"), 2),
    ];
    let mut bytes = 0;
    for (place, (frame, messages)) in frames.into_iter().enumerate() {
        client.send(&frame).await;
        assert_eq!(server.take(frame.len()).await, frame);
        bytes += frame.len() as u64;
        if place < 3 {
            hands.reload().await;
        }
        assert_eq!(hands.messages(&client, bytes).await, messages, "{place}");
    }
    let totals = hands.gateway.status().await.totals;
    assert_eq!(totals.messages_from_clients, 2);
}

#[tokio::test]
async fn half_closed_tunnels_move_and_go_on_in_their_other_direction() {
    let mut hands = Hands::start().await;
    let (mut one_client, mut one_server) = hands.tunnel().await;
    let (mut other_client, mut other_server) = hands.tunnel().await;
    one_client.send(masked(true, TEXT, b"last words")).await;
    one_client.finish().await;
    assert_eq!(one_server.rest().await.1, WireEnd::Fin);
    other_server.send(frame(true, TEXT, b"last words")).await;
    other_server.finish().await;
    assert_eq!(other_client.rest().await.1, WireEnd::Fin);
    for number in 0..3 {
        hands.reload().await;
        let down = frame(true, TEXT, format!("down {number}").as_bytes());
        one_server.send(&down).await;
        assert_eq!(one_client.take(down.len()).await, down);
        let up = masked(true, TEXT, format!("up {number}").as_bytes());
        other_client.send(&up).await;
        assert_eq!(other_server.take(up.len()).await, up);
    }
    one_server.finish().await;
    assert_eq!(one_client.rest().await, (vec![], WireEnd::Fin));
    other_client.finish().await;
    assert_eq!(other_server.rest().await, (vec![], WireEnd::Fin));
    // Who was first is known still.
    let ended = |cause: &str, totals: &wsgate_protocol::admin::Totals| totals.tunnels_ended[cause];
    hands
        .gateway
        .counted("each ended by its own side", |totals| {
            (ended("client", totals), ended("server", totals)) == (1, 1)
        })
        .await;
}
