//! Clocks go on while tunnels move: no reload gives a silent, an old or a stuck tunnel its time anew, and wsgate's pings are
//! answered to whoever has the tunnel then.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::time::{interval, timeout};
use wsgate_protocol::admin::NotMoved;

use super::{HEAD, all_move, with_keys};
use crate::configs;
use crate::support::backend::handing_over;
use crate::support::gateway::Gateway;
use crate::support::raw::{BINARY, CLOSE, PING, PONG, TEXT, Wire, frame, masked};
use crate::support::wait::{SOON, until, within};
use crate::support::wire::WireEnd;

/// A ping of wsgate: its head, and a payload of 8 bytes.
const PING_BYTES: usize = 10;

/// Between two reloads.
const PAUSE: Duration = Duration::from_millis(150);

async fn ping(client: &mut Wire) -> Vec<u8> {
    let ping = client.take(PING_BYTES).await;
    assert_eq!((ping[0], ping[1]), (0x80 | PING, 8), "{ping:?}");
    ping
}

fn pong(ping: &[u8]) -> Vec<u8> {
    masked(true, PONG, &ping[2..])
}

/// Reloads until `done` is over, and says what came of it and how many reloads there were.
async fn reloading<T>(
    gateway: &Gateway,
    config: impl Fn(u64) -> String,
    done: impl Future<Output = T>,
) -> (T, u64) {
    let mut done = std::pin::pin!(done);
    let mut pace = interval(PAUSE);
    for number in 2.. {
        let reload = async {
            pace.tick().await;
            gateway.edit(&config(number));
            gateway.reloaded().await
        };
        tokio::select! {
            outcome = &mut done => return (outcome, number - 2),
            reloaded = reload => {
                let closing = |it: &NotMoved| it.reason.contains("polite close");
                assert!(reloaded.stays.iter().all(closing), "{reloaded:?}");
            }
        }
    }
    unreachable!("no more numbers")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_go_on_and_a_silent_client_is_given_up_at_its_time() {
    let (server, mut ends) = handing_over().await;
    let config = |number| with_keys("ping_interval = \"1s\"", &server.address, number);
    let gateway = Gateway::start(&config(1)).await;
    let (mut silent, _) = Wire::tunnel(gateway.address(), "/", "").await;
    let begun = Instant::now();
    let mut silent_server = ends.recv().await.unwrap();
    let (mut answering, _) = Wire::tunnel(gateway.address(), "/", "").await;
    let mut server_end = ends.recv().await.unwrap();
    let answers = async {
        for _ in 0..5 {
            let ping = ping(&mut answering).await;
            answering.send(pong(&ping)).await;
        }
        begun.elapsed()
    };
    let given_up = async {
        let (said, end) = silent.rest().await;
        (begun.elapsed(), said, end)
    };
    let both = async { tokio::join!(answers, given_up) };
    let ((five, (three, said, end)), reloads) = reloading(&gateway, config, both).await;
    assert!(reloads >= 4, "{reloads} reloads only");
    // Two pings and their time, as without reloads: see `timers`.
    assert!(
        (2_900..3_900).contains(&three.as_millis()),
        "given up after {three:?}"
    );
    assert_eq!(said.len(), 2 * PING_BYTES + 4 + "ping timeout".len());
    assert_eq!((said[20], end), (0x80 | CLOSE, WireEnd::Fin));
    assert!((4_900..6_500).contains(&five.as_millis()), "{five:?}");
    // Its server sees what it has said, and no pong.
    let message = masked(true, TEXT, b"here");
    answering.send(&message).await;
    assert_eq!(server_end.take(message.len()).await, message);
    assert_eq!(silent_server.take(1).await, [0x80 | CLOSE]);
}

#[tokio::test]
async fn a_pong_that_is_half_there_when_its_tunnel_moves_is_held_back_still() {
    let (server, mut ends) = handing_over().await;
    let config = |number| with_keys("ping_interval = \"300ms\"", &server.address, number);
    let gateway = Gateway::start(&config(1)).await;
    let (mut client, _) = Wire::tunnel(gateway.address(), "/", "").await;
    let mut server_end = ends.recv().await.unwrap();
    let mut number = 1;
    for cut in [1, 7, 13] {
        let answer = pong(&ping(&mut client).await);
        client.send(&answer[..cut]).await;
        number += 1;
        all_move(&gateway, &config(number), 1).await;
        let message = masked(true, BINARY, &[7; 5]);
        client.send([&answer[cut..], &message].concat()).await;
        assert_eq!(
            server_end.take(message.len()).await,
            message,
            "cut at {cut}"
        );
    }
    // What looks like one at first, and is none, arrives whole.
    let mut other = pong(&ping(&mut client).await);
    other[13] ^= 1;
    client.send(&other[..9]).await;
    all_move(&gateway, &config(number + 1), 1).await;
    client.send(&other[9..]).await;
    assert_eq!(server_end.take(other.len()).await, other);
}

#[tokio::test]
async fn a_route_loses_its_pings_and_has_them_again() {
    let (server, mut ends) = handing_over().await;
    let with = |number| with_keys("ping_interval = \"300ms\"", &server.address, number);
    let without = |number| with_keys("", &server.address, number);
    let gateway = Gateway::start(&without(1)).await;
    let (mut client, _) = Wire::tunnel(gateway.address(), "/", "").await;
    let mut server_end = ends.recv().await.unwrap();
    all_move(&gateway, &with(2), 1).await;
    let first = ping(&mut client).await;
    all_move(&gateway, &without(3), 1).await;
    // One more may have been sent before that. None is from now on.
    let mut pings = vec![first];
    while let Ok(one) = timeout(Duration::from_millis(700), ping(&mut client)).await {
        pings.push(one);
        assert!(pings.len() <= 2, "it is pinged still");
    }
    // It was asked by wsgate, and so wsgate hears it, however late.
    let message = masked(true, BINARY, b"after");
    let last = pong(&pings[pings.len() - 1]);
    client.send([&last[..], &message].concat()).await;
    assert_eq!(server_end.take(message.len()).await, message);
    all_move(&gateway, &with(4), 1).await;
    let answer = pong(&ping(&mut client).await);
    client.send([answer, message.clone()].concat()).await;
    assert_eq!(server_end.take(message.len()).await, message);
}

/// How long after this client's last byte the tunnel's close has begun, and with what. It says one after a while.
async fn silence_of(mut client: Wire) -> (Duration, Vec<u8>) {
    tokio::time::sleep(Duration::from_secs(1)).await;
    client.send(masked(true, BINARY, b"")).await;
    let silent = Instant::now();
    let said = client.take(1).await;
    (silent.elapsed(), said)
}

/// Two seconds, and what a reload and a look may take besides.
fn is_in_time(after: Duration) -> bool {
    (1_950..3_500).contains(&after.as_millis())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_age_and_a_stuck_reader_are_timed_over_all_moves() {
    let (server, mut ends) = handing_over().await;
    let config = |number| {
        let route = |path: &str, key: &str| {
            format!("[[route]]\npath = \"{path}\"\nupstream = \"chat\"\n{key} = \"2s\"\n")
        };
        let routes = [
            route("/idle", "idle_timeout"),
            route("/age", "max_age"),
            route("/stuck", "send_timeout"),
        ]
        .concat();
        format!(
            "{HEAD}[limits]\nhandshake_timeout = \"{}s\"\n{}{routes}{}",
            number + 10,
            configs::LISTENER,
            configs::upstream("chat", &[&server.address])
        )
    };
    let gateway = Gateway::start(&config(1)).await;
    let (stuck, _) = Wire::tunnel(gateway.address(), "/stuck", "").await;
    let mut stuck_server = ends.recv().await.unwrap();
    let (idle, _) = Wire::tunnel(gateway.address(), "/idle", "").await;
    let _idle_server = ends.recv().await.unwrap();
    let (mut aging, _) = Wire::tunnel(gateway.address(), "/age", "").await;
    let mut aging_server = ends.recv().await.unwrap();
    let begun = Instant::now();
    let flood = tokio::spawn(async move {
        let block = frame(true, BINARY, &[7; 60_000]);
        while stuck_server.stream.write_all(&block).await.is_ok() {}
    });
    // Its end takes longer: the client, which reads nothing, and its server have their time for that.
    let given_up = async {
        until("the stuck one is closed", SOON, async || {
            let tunnels = gateway.tunnels_where("state=closing").await;
            tunnels.iter().any(|it| it.path == "/stuck")
        })
        .await;
        begun.elapsed()
    };
    let busy = async {
        let message = masked(true, BINARY, b"busy");
        loop {
            aging.send(&message).await;
            let head = aging_server.take(1).await;
            if head != message[..1] {
                return (begun.elapsed(), head);
            }
            assert_eq!(aging_server.take(message.len() - 1).await, message[1..]);
        }
    };
    let all = async { tokio::join!(given_up, silence_of(idle), busy) };
    let ((stopped, (idle, said), (aged, close)), reloads) = reloading(&gateway, config, all).await;
    assert!(reloads >= 3, "{reloads} reloads only");
    assert!(is_in_time(idle), "idle: {idle:?}");
    assert_eq!(said[0], 0x80 | CLOSE);
    assert!(is_in_time(aged), "max age: {aged:?}");
    assert_eq!(close, [0x80 | CLOSE]);
    assert!(is_in_time(stopped), "send timeout: {stopped:?}");
    let causes = ["idle", "max_age", "send_timeout"];
    gateway
        .counted("each for its own reason", |totals| {
            causes.iter().all(|cause| totals.tunnels_ended[*cause] == 1)
        })
        .await;
    within("its server is told", SOON, flood).await.unwrap();
    drop(stuck);
}
