//! The relay under all that peers may do to it: every byte arrives, once and in its place.

mod memory;

use std::ops::RangeInclusive;
use std::os::fd::AsFd;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::task::JoinSet;

use crate::configs;
use crate::support::gateway::Gateway;
use crate::support::load::alone;
use crate::support::pair::{Pair, Server};
use crate::support::plan::Plan;
use crate::support::random::Seed;
use crate::support::talk::{Heard, Leave, Manners};

/// What goes through the gateway in the great run, at the least.
const ALL: u64 = 1_000_000_000;

/// Bytes in a direction that is written or read slowly.
const SLOW: RangeInclusive<u64> = 500_000..=2_000_000;

/// Bytes in any other.
const QUICK: RangeInclusive<u64> = 3_000_000..=15_000_000;

/// Bytes that a side says and hears before it leaves.
const MOST_SAID: u64 = 1 << 20;

/// Tunnels whose client or server leaves.
const LEFT: u64 = 60;

/// What the client of a tunnel has heard, and the server.
pub(crate) type Both = Result<[Heard; 2], String>;

/// Both sides of a tunnel to their end.
async fn talk<S>(number: u64, pair: Pair<S>, plan: Plan) -> Both
where
    S: AsyncRead + AsyncWrite + AsFd + Unpin + Send + 'static,
{
    let client = plan.client.run(pair.client, pair.at_client);
    let server = plan.server.run(pair.server, pair.at_server);
    let (client, server) = tokio::join!(tokio::spawn(client), tokio::spawn(server));
    match (client.unwrap(), server.unwrap()) {
        (Ok(client), Ok(server)) => Ok([client, server]),
        (client, server) => Err(format!("{number}: client {client:?}, server {server:?}")),
    }
}

/// Half of the tunnels talk in both directions at once; in the others one side listens to
/// the other's end and speaks only then.
pub(crate) fn manners(number: u64) -> [Manners; 2] {
    match number % 4 {
        0 => [Manners::Both, Manners::ListensFirst],
        1 => [Manners::ListensFirst, Manners::Both],
        _ => [Manners::Both; 2],
    }
}

/// What all sides have heard; each tunnel's failure, if there are any.
pub(crate) async fn heard(mut talks: JoinSet<Both>) -> Vec<[Heard; 2]> {
    let mut heard = Vec::new();
    let mut failures = Vec::new();
    while let Some(talk) = talks.join_next().await {
        match talk.unwrap() {
            Ok(both) => heard.push(both),
            Err(failure) => failures.push(failure),
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    heard
}

/// Where every third tunnel goes: TCP's buffers are large and grow, those of Unix sockets
/// are small and do not, and the gateway has to wait for them more often.
pub(crate) struct Houses {
    tcp: Server,
    unix: Server<UnixListener>,
    pub(crate) gateway: Gateway,
    _dir: TempDir,
}

impl Houses {
    pub(crate) async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let unix = Server::start_unix(&dir.path().join("server.sock"));
        let tcp = Server::start().await;
        let gateway = Gateway::start(&config(&tcp.address, &unix.address, 1)).await;
        Self {
            tcp,
            unix,
            gateway,
            _dir: dir,
        }
    }

    /// A configuration that leads to the same, and differs for each number.
    pub(crate) fn config(&self, number: u64) -> String {
        config(&self.tcp.address, &self.unix.address, number)
    }

    /// Opens the tunnel; it talks when it is polled.
    pub(crate) async fn open(&self, number: u64, plan: Plan) -> BoxFuture<'static, Both> {
        let Self {
            tcp, unix, gateway, ..
        } = self;
        let first = [plan.first[0].as_slice(), &plan.first[1]];
        if number.is_multiple_of(3) {
            let socket = gateway.dir().join("in.sock");
            let pair = unix.pair_with(&socket, "/unix", first).await;
            talk(number, pair, plan).boxed()
        } else {
            let pair = tcp.pair_with(gateway, plan.lines, first).await;
            talk(number, pair, plan).boxed()
        }
    }
}

fn config(tcp: &str, unix: &str, number: u64) -> String {
    format!(
        "workers = 2\n[reload]\nwatch = false\n{}[[listener]]\naddress = \"unix:{{dir}}/in.sock\"\n\
         [[route]]\nidle_timeout = \"{}m\"\nupstream = \"tcp\"\n[[route]]\npath = \"/unix\"\nupstream = \"unix\"\n{}{}",
        configs::LISTENER,
        number + 60,
        configs::upstream("tcp", &[tcp]),
        configs::upstream("unix", &[unix]),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gigabyte_in_many_tunnels_arrives_byte_by_byte() {
    let _alone = alone().await;
    let seed = Seed::draw();
    let houses = Houses::start().await;
    let mut talks = Vec::new();
    let mut planned = 0;
    while planned < ALL {
        let number = talks.len() as u64;
        let plan = Plan::draw(seed.numbers(number), manners(number), SLOW, QUICK);
        planned += plan.length();
        talks.push(houses.open(number, plan).await);
    }
    let all = talks.len() as u64;
    let heard = heard(talks.into_iter().collect()).await;
    let sum = |of: fn(&Heard) -> u64, side: usize| heard.iter().map(|both| of(&both[side])).sum();
    let bytes: [u64; 2] = [0, 1].map(|side| sum(|heard| heard.bytes, side));
    let messages: [u64; 2] = [0, 1].map(|side| sum(|heard| heard.messages, side));
    assert!(bytes[0] + bytes[1] >= ALL, "{bytes:?}");
    let gateway = houses.gateway;
    gateway
        .counted("the gateway counted the same", |totals| {
            [totals.bytes_from_servers, totals.bytes_from_clients] == bytes
                && [totals.messages_from_servers, totals.messages_from_clients] == messages
                && totals.tunnels_ended["client"] + totals.tunnels_ended["server"] == all
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_side_that_is_left_has_heard_a_right_beginning_and_learns_of_the_end() {
    let _alone = alone().await;
    let seed = Seed::draw();
    let server = Server::start().await;
    let gateway = Gateway::start(&configs::with("workers = 2", &[&server.address])).await;
    let mut talks = JoinSet::new();
    for number in 0..LEFT {
        let mut numbers = seed.numbers(number);
        let leave = Leave {
            said: numbers.size(MOST_SAID),
            at_boundary: number % 4 < 2,
            heard: numbers.one_of(&[0, 1, 100_000, MOST_SAID]),
        };
        let mut manners = [Manners::IsLeft; 2];
        manners[usize::from(number % 2 == 1)] = Manners::Leaves(leave);
        let endless = 1 << 30..=1 << 30;
        let plan = Plan::draw(numbers, manners, endless.clone(), endless);
        let first = [plan.first[0].as_slice(), &plan.first[1]];
        let pair = server.pair_with(&gateway, plan.lines, first).await;
        talks.spawn(talk(number, pair, plan));
    }
    let heard = heard(talks).await;
    // To a client whose server left, and to a server whose client left.
    for (side, expected) in [1011, 1001].into_iter().enumerate() {
        let closes: Vec<u16> = heard.iter().filter_map(|both| both[side].close).collect();
        assert!(!closes.is_empty());
        assert!(closes.iter().all(|code| *code == expected), "{closes:?}");
    }
    gateway
        .counted("who left is counted", |totals| {
            let left = |cause| totals.tunnels_ended.get(cause) == Some(&(LEFT / 2));
            left("client_reset") && left("server_reset")
        })
        .await;
}
