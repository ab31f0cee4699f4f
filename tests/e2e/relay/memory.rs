//! What the relay holds of what it has read, and for how long.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::interval;

use crate::configs;
use crate::support::backend::Echo;
use crate::support::client::{Client, Sequenced};
use crate::support::flow::{Flood, Flow};
use crate::support::gateway::Gateway;
use crate::support::load::alone;
use crate::support::pair::{ETHERNET, Line, Pair, Server};
use crate::support::process::{memory, raise_descriptors};
use crate::support::queues::Queues;
use crate::support::random::Seed;
use crate::support::script::{Form, Script, Side};
use crate::support::wait::{SOON, within};

const KIB: u64 = 1024;

/// The most that one direction of a tunnel may hold.
const BUFFER: u64 = 64 * KIB;

/// What a worker allocates for other reasons in the course of a test; far less than a page
/// for each tunnel here.
const NOISE: u64 = 256 * KIB;

/// Tunnels with readers that stop.
const STOPPED: u64 = 100;

/// How long they stop, in seconds.
const MINUTE: u64 = 60;

/// Other tunnels of the same worker.
const LIVELY: usize = 10;

/// How often each of them says something.
const PAUSE: Duration = Duration::from_millis(50);

/// Tunnels that carry a megabyte each way, and how many of them do so at once: the kernel
/// needs a multiple of that for each.
const IDLE: u64 = 500;
const MEGABYTE: u64 = 1_000_000;
const AT_ONCE: usize = 50;

/// The kernel takes 1 to 2 MB before this side's sender has to wait for its reader.
const SHORT: Line = Line {
    segment: ETHERNET,
    send: Some(64 << 10),
    receive: None,
};

/// Both directions of a tunnel, the client's first.
fn flows(pair: Pair, seed: &Seed, number: u64) -> [Flow; 2] {
    let (client, server) = (Arc::new(pair.client), Arc::new(pair.server));
    let flow = |side, from: &Arc<_>, to: &Arc<_>| {
        let numbers = seed.numbers(2 * number + side as u64);
        Flow {
            from: Arc::clone(from),
            to: Arc::clone(to),
            script: Script::new(numbers, side, Form::Whole, u64::MAX),
        }
    };
    let up = flow(Side::Client, &client, &server);
    [up, flow(Side::Server, &server, &client)]
}

/// Waits until every sender waits for a byte that the gateway holds, and nothing has moved
/// for a second. The worker's memory stays below `most` all the while.
async fn settled(floods: &[Flood], worker: u32, most: u64) {
    let mut looks = interval(Duration::from_millis(100));
    let (mut last, mut quiet) = (0, 0);
    within("the senders are stopped", SOON * 6, async {
        while quiet < 10 {
            looks.tick().await;
            assert_below(memory(worker), most);
            let said = floods.iter().map(Flood::said).sum::<u64>();
            let queues = Queues::look();
            let all_wait = floods.iter().all(|flood| flood.held(&queues) > 0);
            quiet = if said == last && all_wait {
                quiet + 1
            } else {
                0
            };
            last = said;
        }
    })
    .await;
}

/// The worker's memory once it has been the same for three seconds.
async fn at_rest(worker: u32) -> u64 {
    let mut looks = interval(Duration::from_millis(100));
    let (mut last, mut quiet) = (memory(worker), 0);
    within("the worker's memory is at rest", SOON * 3, async {
        while quiet < 30 {
            looks.tick().await;
            let now = memory(worker);
            quiet = if now == last { quiet + 1 } else { 0 };
            last = now;
        }
    })
    .await;
    last
}

/// None is stopped by more than one buffer of the gateway.
fn assert_one_buffer_each(floods: &[Flood]) {
    let queues = Queues::look();
    for (number, flood) in floods.iter().enumerate() {
        let (held, said) = (flood.held(&queues), flood.said());
        assert!(
            (1..=BUFFER).contains(&held),
            "the gateway holds {held} of {said} bytes of flow {number}"
        );
    }
}

fn assert_below(memory: u64, most: u64) {
    assert!(
        memory <= most,
        "the worker has {memory} bytes of memory, {most} at most"
    );
}

/// In two of five tunnels the client reads nothing, in two the server, in one neither.
fn stop_reading(flows: [Flow; 2], number: u64) -> Vec<Flood> {
    let [up, down] = flows;
    let floods = match number % 5 {
        0 | 1 => vec![down],
        2 | 3 => vec![up],
        _ => vec![up, down],
    };
    floods.into_iter().map(Flood::start).collect()
}

/// Looks every second: not a byte more is taken, and no memory.
async fn a_minute_of_silence(floods: &[Flood], worker: u32) {
    let said = || floods.iter().map(Flood::said).collect::<Vec<_>>();
    let (said_before, most) = (said(), memory(worker) + NOISE);
    let mut seconds = interval(Duration::from_secs(1));
    for second in 0..=MINUTE {
        seconds.tick().await;
        assert!(said() == said_before, "more is taken in second {second}");
        assert_below(memory(worker), most);
    }
    assert_one_buffer_each(floods);
}

/// Nothing lost, and every answer at once.
async fn assert_undisturbed(lively: Vec<Sequenced>) {
    for client in lively {
        let seen = client.stop().await;
        assert!(seen.faults.is_empty(), "{seen:?}");
        assert_eq!(seen.echoed, seen.sent);
        assert!(seen.slowest < Duration::from_secs(1), "{seen:?}");
        let rounds = Duration::from_secs(MINUTE).as_millis() / PAUSE.as_millis();
        assert!(u128::from(seen.sent) > rounds / 2, "{seen:?}");
    }
}

fn config(raw: &Server, echo: &Echo) -> String {
    format!(
        "workers = 1\n{}\
         [[route]]\nupstream = \"raw\"\nsend_timeout = \"10m\"\n\
         [[route]]\npath = \"/echo\"\nupstream = \"echo\"\n{}{}",
        configs::LISTENER,
        configs::upstream("raw", &[&raw.address]),
        configs::upstream("echo", &[&echo.address]),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_stop_for_a_minute_stop_their_senders_for_the_price_of_a_buffer() {
    let busy = alone().await;
    let seed = Seed::draw();
    let (server, echo) = (Server::start().await, Echo::start().await);
    let gateway = Gateway::start(&config(&server, &echo)).await;
    let worker = gateway.active_workers().await[0].pid;
    let mut others = Vec::new();
    for _ in 0..LIVELY {
        others.push(Client::open(&gateway.ws_url("/echo")).await);
    }
    let mut tunnels = Vec::new();
    for number in 0..STOPPED {
        let line = if number % 20 == 0 {
            Line::default()
        } else {
            SHORT
        };
        let pair = server.pair(&gateway, line).await;
        tunnels.push(flows(pair, &seed, number));
    }
    let before = memory(worker);
    let floods: Vec<Flood> = tunnels
        .into_iter()
        .zip(0..)
        .flat_map(|(flows, number)| stop_reading(flows, number))
        .collect();
    let most = before + floods.len() as u64 * BUFFER + NOISE;
    settled(&floods, worker, most).await;
    drop(busy);
    let lively = others
        .into_iter()
        .enumerate()
        .map(|(number, client)| Sequenced::run(client, number.to_string(), PAUSE))
        .collect();
    a_minute_of_silence(&floods, worker).await;
    assert_undisturbed(lively).await;
    let read: JoinSet<()> = floods.into_iter().map(Flood::finish).collect();
    read.join_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_is_idle_again_keeps_no_buffer() {
    raise_descriptors();
    let seed = Seed::draw();
    let server = Server::start().await;
    let gateway = Gateway::start(&configs::with("workers = 1", &[&server.address])).await;
    let worker = gateway.active_workers().await[0].pid;
    let mut tunnels = Vec::new();
    for number in 0..IDLE {
        let pair = server.pair(&gateway, SHORT).await;
        tunnels.push(flows(pair, &seed, number));
    }
    let before = at_rest(worker).await;
    let most = before + 2 * AT_ONCE as u64 * BUFFER + NOISE;
    for group in tunnels.chunks(AT_ONCE) {
        let floods: Vec<Flood> = group.iter().flatten().cloned().map(Flood::start).collect();
        settled(&floods, worker, most).await;
        assert_one_buffer_each(&floods);
        let drains = floods.into_iter().map(|flood| flood.drain(MEGABYTE));
        drains.collect::<JoinSet<Flow>>().join_all().await;
    }
    // Freed memory goes back to the kernel in a quiet second after a connection.
    let _one_more = server.pair(&gateway, SHORT).await;
    assert_below(at_rest(worker).await, before + IDLE * KIB);
}
