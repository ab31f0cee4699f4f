//! A supervisor that dies, and the one that comes after it: what clients see (nothing), and what
//! the operator sees.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use http::Method;
use rustix::process::Signal;
use tokio_tungstenite::tungstenite::Message;
use wsgate_protocol::admin::{GenerationState, ServerState, Status, TunnelState, WorkerState};

use crate::configs;
use crate::support::backend::Echo;
use crate::support::client::{Client, Sequenced};
use crate::support::gateway::{Gateway, Launch, active_generation, stderr, stdout, wsgate};
use crate::support::load::{Storm, alone, problems};
use crate::support::process::{self, Process};
use crate::support::wait::{SOON, eventually, until};

/// Two workers that reload only when told.
const QUIET: &str = "workers = 2\n[reload]\nwatch = false\n";

async fn tunnels(gateway: &Gateway, count: usize) -> Vec<Sequenced> {
    let mut tunnels = Vec::new();
    for number in 0..count {
        let client = Client::open(&gateway.ws_url("/")).await;
        let pause = Duration::from_millis(20);
        tunnels.push(Sequenced::run(client, number.to_string(), pause));
    }
    gateway.holds(count as u64).await;
    tunnels
}

async fn assert_whole(tunnels: Vec<Sequenced>) {
    for tunnel in tunnels {
        assert!(!tunnel.has_ended(), "a tunnel has ended");
        let outcome = tunnel.stop().await;
        assert!(outcome.faults.is_empty(), "{outcome:?}");
        assert_eq!(outcome.echoed, outcome.sent);
    }
}

async fn ids(gateway: &Gateway) -> BTreeSet<String> {
    let tunnels = gateway.tunnels().await.into_iter();
    tunnels.map(|tunnel| tunnel.id).collect()
}

fn state_of(status: &Status, generation: u64) -> Option<GenerationState> {
    let mut generations = status.generations.iter();
    generations
        .find(|found| found.generation == generation)
        .map(|found| found.state)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_the_supervisor_is_noticed_by_nobody() {
    let _alone = alone().await;
    let echo = Echo::start().await;
    let mut gateway = Gateway::start(&configs::with(QUIET, &[&echo.address])).await;
    let held = tunnels(&gateway, 40).await;
    let (before, first) = (ids(&gateway).await, gateway.status().await);
    let storm = Storm::start(&gateway.ws_url("/"), 100);
    until("the storm is on", SOON, async || echo.sessions().len() > 80).await;

    gateway.kill_supervisor().await;
    let at = echo.sessions().len();
    until(
        "new clients are served without a supervisor",
        SOON,
        async || echo.sessions().len() > at + 100,
    )
    .await;
    let status = gateway.revive(active_generation(&first)).await;

    assert_eq!(status.totals.workers_adopted, 2);
    assert_eq!(state_of(&status, 2), Some(GenerationState::Active));
    // Counted on by the same board, and by the same names.
    assert!(status.totals.tunnels_opened >= first.totals.tunnels_opened + 100);
    assert!(before.is_subset(&ids(&gateway).await));
    let at = echo.sessions().len();
    until("the storm goes on", SOON, async || {
        echo.sessions().len() > at + 100
    })
    .await;
    until(
        "the adopted workers go when their tunnels have moved",
        SOON,
        async || {
            let status = gateway.status().await;
            status.generations.len() == 1 && gateway.rendezvous().len() == 2
        },
    )
    .await;
    assert!(before.is_subset(&ids(&gateway).await));
    let attempts = storm.stop().await;
    assert_eq!(problems(&attempts), [""; 0]);
    assert_whole(held).await;
    let all = status.workers.iter().filter(|worker| !worker.adopted);
    let own: BTreeSet<u32> = all.map(|worker| worker.pid).collect();
    assert_eq!(gateway.rendezvous(), own);
    assert_eq!(gateway.status().await.totals.worker_restarts, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_may_die_again_and_again_and_ids_never_come_twice() {
    let echo = Echo::start().await;
    let mut gateway = Gateway::start(&configs::with(QUIET, &[&echo.address])).await;
    let (mut held, mut seen) = (Vec::new(), BTreeSet::new());
    for round in 1..=3 {
        for number in 0..4 {
            let client = Client::open(&gateway.ws_url("/")).await;
            let name = format!("{round}.{number}");
            held.push(Sequenced::run(client, name, Duration::from_millis(20)));
        }
        gateway.holds(held.len() as u64).await;
        seen.extend(ids(&gateway).await);
        assert_eq!(seen.len(), held.len());
        gateway.kill_supervisor().await;
        gateway.revive(round).await;
    }
    let status = gateway.status().await;
    assert_eq!(active_generation(&status), 4);
    // Those of the first round were adopted three times, and moved as often.
    assert_eq!(status.totals.handovers, 4 + 8 + 12);
    assert_eq!(ids(&gateway).await, seen);
    // Not by luck: they begin with what no two supervisors share, however quickly one follows the other.
    let instances: BTreeSet<&str> = seen.iter().filter_map(|id| id.split('-').next()).collect();
    assert_eq!(instances.len(), 3);
    assert_whole(held).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_may_die_at_any_moment_of_its_start() {
    let _alone = alone().await;
    let echo = Echo::start().await;
    let mut gateway = Gateway::start(&configs::with(QUIET, &[&echo.address])).await;
    let held = tunnels(&gateway, 20).await;
    let storm = Storm::start(&gateway.ws_url("/"), 50);
    gateway.kill_supervisor().await;
    // Before it has the lock, while it meets the workers, starts its own, commits, and writes that down.
    for milliseconds in (0..160).step_by(8) {
        gateway.restart();
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        gateway.kill_supervisor().await;
    }
    let status = gateway.revive(1).await;
    assert!(status.totals.workers_adopted >= 2);
    assert_eq!(problems(&storm.stop().await), [""; 0]);
    assert_whole(held).await;
    until("none is left over", SOON, async || {
        let status = gateway.status().await;
        status.generations.len() == 1 && gateway.rendezvous().len() == 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_broken_configuration_what_ran_last_runs_on() {
    let echo = Echo::start().await;
    let good = configs::with(QUIET, &[&echo.address]);
    let mut gateway = Gateway::start(&good).await;
    let held = tunnels(&gateway, 6).await;
    gateway.kill_supervisor().await;
    gateway.edit(&format!("{good}\nupsteam = 1\n"));
    let status = gateway.revive(1).await;

    let why = status.config.fallback.unwrap();
    assert_eq!(why, "the configuration has 1 mistake");
    gateway.logged(&["ERROR", "upsteam"]).await;
    gateway
        .logged(&["ERROR", "the last good configuration runs"])
        .await;
    let shown = stdout(&gateway.ctl(&["status"]).await);
    assert!(
        shown.contains("the last good configuration runs"),
        "{shown}"
    );
    Client::open(&gateway.ws_url("/"))
        .await
        .echo(Message::text("new"))
        .await;
    assert_eq!(gateway.reload().await.status, 422);
    assert!(gateway.status().await.config.fallback.is_some());

    gateway.edit(&good);
    assert_eq!(gateway.reload().await.status, 200);
    assert_eq!(gateway.status().await.config.fallback, None);
    assert_whole(held).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_does_not_even_tell_its_directory_harms_nobody_where_the_environment_does() {
    let echo = Echo::start().await;
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    let text = format!(
        "{}[admin]\nsocket = {socket:?}\n",
        configs::with(QUIET, &[&echo.address])
    );
    let launch = Launch::new(&text).socket(&socket);
    let mut gateway = launch
        .env("WSGATE_SOCKET", socket.to_str().unwrap())
        .start()
        .await;
    let held = tunnels(&gateway, 4).await;
    gateway.kill_supervisor().await;
    std::fs::remove_file(gateway.config()).unwrap();
    let status = gateway.revive(1).await;
    assert!(status.config.fallback.is_some());
    assert_whole(held).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_of_all_what_ran_last_runs_on_and_after_a_stop_the_file_counts() {
    let echo = Echo::start().await;
    let good = configs::with(QUIET, &[&echo.address]);
    let mut gateway = Gateway::start(&good).await;
    let workers = gateway.workers();
    gateway.kill_supervisor().await;
    workers
        .values()
        .for_each(|worker| worker.signal(Signal::KILL));
    gateway.edit("nonsense");
    let status = gateway.revive(1).await;
    assert!(status.config.fallback.is_some());
    assert_eq!(status.totals.workers_adopted, 0);

    gateway.ctl(&["stop", "--now"]).await;
    gateway.exited(SOON).await;
    gateway.restart();
    assert_eq!(gateway.exited(SOON).await.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operators_word_stands_and_so_do_deadlines() {
    let (one, two) = (Echo::start().await, Echo::start().await);
    let head = format!("{QUIET}[drain]\nclose_rate = 1000\n");
    let mut gateway = Gateway::start(&configs::with(&head, &[&one.address, &two.address])).await;
    let mut clients = Vec::new();
    while one.open() < 2 || two.open() < 2 {
        clients.push(Client::open(&gateway.ws_url("/")).await);
    }
    gateway.holds(clients.len() as u64).await;
    let path = format!("/v1/upstreams/chat/servers/{}", one.address);
    let drain = r#"{"state":"drain","grace_seconds":3600}"#;
    assert_eq!(gateway.call(Method::PUT, &path, drain).await.status, 200);
    gateway.kill_supervisor().await;
    gateway.revive(1).await;

    let status = gateway.status().await;
    let server = &status.upstreams[0].servers[0];
    assert_eq!(server.state, ServerState::Drain);
    let query = format!("server={}", one.address);
    for tunnel in gateway.tunnels_where(&query).await {
        assert_eq!(tunnel.state, TunnelState::Draining);
        let left = tunnel.deadline_in_seconds.unwrap();
        assert!((3500.0..=3600.0).contains(&left), "{left}");
    }
    let held = one.open();
    for _ in 0..6 {
        clients.push(Client::open(&gateway.ws_url("/")).await);
    }
    assert_eq!(one.open(), held, "a server that drains gets nothing new");

    let ready = r#"{"state":"ready"}"#;
    assert_eq!(gateway.call(Method::PUT, &path, ready).await.status, 200);
    gateway.kill_supervisor().await;
    let status = gateway.revive(2).await;
    assert_eq!(status.upstreams[0].servers[0].state, ServerState::Ready);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_goes_on_and_ends_by_its_deadline() {
    let echo = Echo::start().await;
    let head = configs::draining("4s", 1000);
    let number = |number| configs::numbered(&head, &[&echo.address], number);
    let mut gateway = Gateway::start(&number(1)).await;
    let mut client = Client::open(&gateway.ws_url("/")).await;
    gateway.holds(1).await;
    gateway.edit(&number(2));
    gateway.reloaded().await;
    let began = Instant::now();
    gateway.kill_supervisor().await;
    client.echo(Message::text("still here")).await;
    let status = gateway.revive(2).await;
    assert_eq!(state_of(&status, 1), Some(GenerationState::Draining));
    let end = client.end(SOON).await;
    assert!(end.is_polite(1012), "{end:?}");
    assert!(
        began.elapsed() >= Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    until("its generation is gone", SOON, async || {
        state_of(&gateway.status().await, 1).is_none()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_orphan_grace_workers_without_a_supervisor_drain_and_end() {
    let echo = Echo::start().await;
    let head = "workers = 2\n[drain]\norphan_grace = \"2s\"";
    let gateway = Gateway::start(&configs::with(head, &[&echo.address])).await;
    let mut clients = Vec::new();
    for _ in 0..6 {
        clients.push(Client::open(&gateway.ws_url("/")).await);
    }
    let workers = gateway.workers();
    assert_eq!(workers.len(), 2);
    gateway.kill_supervisor().await;
    until("no client gets in", SOON, async || {
        Client::try_open(&gateway.ws_url("/")).await.is_err()
    })
    .await;
    for client in &mut clients {
        client.echo(Message::text("still here")).await;
    }
    for client in &mut clients {
        let end = client.end(SOON).await;
        assert!(end.is_polite(1012), "{end:?}");
    }
    until("the workers end", SOON, async || {
        workers.values().all(Process::has_ended)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_serve_on_are_named_and_can_be_ended() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&configs::with(QUIET, &[&echo.address])).await;
    let mut client = Client::open(&gateway.ws_url("/")).await;
    let config = gateway.config();
    let end = ["end-orphans", "--config", config.to_str().unwrap()];
    let refused = wsgate(&end).await;
    let said = stderr(&refused);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said.contains(&format!("process {}", gateway.pid)), "{said}");

    let workers = gateway.workers();
    gateway.kill_supervisor().await;
    let output = gateway.ctl(&["status"]).await;
    assert_eq!(output.status.code(), Some(3));
    let said = stderr(&output);
    for pid in workers.keys() {
        assert!(said.contains(&format!("{pid} (worker ")), "{said}");
    }
    client.echo(Message::text("still here")).await;

    let ended = wsgate(&[end.as_slice(), &["--now"]].concat()).await;
    assert_eq!(ended.status.code(), Some(0), "{}", stderr(&ended));
    assert_eq!(
        stdout(&ended),
        "ended 2 workers with 1 tunnels, 0 by SIGKILL\n"
    );
    let end = client.end(SOON).await;
    assert!(end.is_polite(1012), "{end:?}");
    assert!(workers.values().all(Process::has_ended));
    assert_eq!(gateway.rendezvous(), BTreeSet::new());
    assert!(!stderr(&gateway.ctl(&["status"]).await).contains("worker"));
    let none = wsgate(&["end-orphans", "--config", config.to_str().unwrap()]).await;
    let runtime = gateway.dir().display();
    assert_eq!(
        stdout(&none),
        format!("no workers without a supervisor in {runtime}\n")
    );
    // A file that is not there says nothing about them.
    let unknown = wsgate(&["end-orphans", "--config", "/nonexistent/wsgate.toml"]).await;
    assert_eq!(unknown.status.code(), Some(1));
    assert!(stderr(&unknown).contains("by --config"), "{unknown:?}");
}

/// Three workers, whose tunnels have been told apart.
async fn three(echo: &Echo) -> (Gateway, Vec<Sequenced>) {
    let head = "workers = 3\n[reload]\nwatch = false\n[watchdog]\ntimeout = \"3s\"\n";
    let gateway = Gateway::start(&configs::with(head, &[&echo.address])).await;
    let held = tunnels(&gateway, 30).await;
    (gateway, held)
}

/// Those whose workers are left go on, and no others.
async fn assert_so_many_are_whole(gateway: &Gateway, held: Vec<Sequenced>) -> usize {
    let left = gateway.status().await.totals.tunnels as usize;
    until("the others have noticed", SOON, async || {
        held.iter().filter(|tunnel| tunnel.has_ended()).count() == 30 - left
    })
    .await;
    let whole = held.into_iter().filter(|tunnel| !tunnel.has_ended());
    assert_whole(whole.collect()).await;
    for _ in 0..9 {
        let mut client = Client::open(&gateway.ws_url("/")).await;
        client.echo(Message::text("new")).await;
    }
    left
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_died_is_replaced_and_one_that_is_stopped_goes_on() {
    let echo = Echo::start().await;
    let (mut gateway, held) = three(&echo).await;
    let workers = gateway.active_workers().await;
    gateway.kill_supervisor().await;
    process::signal(workers[0].pid, Signal::KILL);
    process::signal(workers[1].pid, Signal::STOP);
    let status = gateway.revive(1).await;
    assert_eq!(status.totals.workers_adopted, 2);
    let lost = workers[0].tunnels as usize;
    assert_eq!(assert_so_many_are_whole(&gateway, held).await, 30 - lost);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_stuck_does_not_hold_up_the_others() {
    let echo = Echo::start().await;
    let (mut gateway, held) = three(&echo).await;
    let workers = gateway.active_workers().await;
    let stuck = Process::open(workers[1].pid).unwrap();
    gateway.hooks(&format!("loop pid={}", stuck.pid));
    // Seen after a second without an answer, and the watchdog waits for three.
    until("it loops", SOON, async || {
        let workers = gateway.status().await.workers;
        let states = workers.iter().map(|worker| worker.state);
        states
            .filter(|state| *state == WorkerState::Unresponsive)
            .count()
            == 1
    })
    .await;
    gateway.kill_supervisor().await;
    let status = gateway.revive(1).await;
    assert!(stuck.has_ended());
    assert_eq!(status.totals.workers_adopted, 2);
    let words = ["ERROR", &stuck.pid.to_string(), "does not answer"];
    gateway.logged(&words).await;
    assert_so_many_are_whole(&gateway, held).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_with_unix_sockets_alone_is_taken_over_as_it_is() {
    let echo = Echo::start().await;
    let listener = "[[listener]]\naddress = \"unix:{dir}/front.sock\"\n";
    let upstream = configs::upstream("chat", &[&echo.address]);
    let text = format!("{QUIET}{listener}{}{upstream}", configs::ROUTE);
    let mut gateway = Gateway::start(&text).await;
    gateway.kill_supervisor().await;
    // The new generation fails, so the adopted one stays: two workers, and no others.
    gateway.hooks("crash-at-start");
    gateway.restart();
    gateway.logged(&["ERROR", "reload failed"]).await;
    let status = gateway.status().await;
    assert_eq!(status.workers.iter().filter(|it| it.adopted).count(), 2);
    assert_eq!((status.workers.len(), status.vacant_slots.len()), (2, 0));
    gateway.hooks("");
    let front = gateway.dir().join("front.sock");
    for _ in 0..8 {
        let mut client = Client::open_unix(&front, "/").await;
        client.echo(Message::text("hello")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidate_does_not_outlive_the_supervisor_that_began_it() {
    let echo = Echo::start().await;
    let head = configs::draining("10m", 100);
    let number = |number| configs::numbered(&head, &[&echo.address], number);
    let mut gateway = Gateway::start(&number(1)).await;
    let held = tunnels(&gateway, 4).await;
    let active: BTreeSet<u32> = gateway.workers().into_keys().collect();
    gateway.hooks("never-ready slot=1");
    gateway.edit(&number(2));
    gateway.signal(Signal::HUP);
    let all = eventually("the candidate starts", SOON, async || {
        let all = gateway.workers();
        (all.len() == 4).then_some(all)
    })
    .await;
    gateway.kill_supervisor().await;
    until("the candidate's workers end", SOON, async || {
        all.iter()
            .all(|(pid, worker)| active.contains(pid) || worker.has_ended())
    })
    .await;
    gateway.hooks("");
    let status = gateway.revive(1).await;
    assert_eq!(status.totals.workers_adopted, 2);
    assert_whole(held).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_written_down_is_told_and_stops_nothing() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&configs::with(QUIET, &[&echo.address])).await;
    // Written last, by renaming what has its place taken below.
    let saved = gateway.dir().join("last-good.json");
    until("all is saved", SOON, async || saved.exists()).await;
    // Nobody writes into a directory, not even root.
    for name in ["state.json.new", "last-good.json.new"] {
        std::fs::create_dir(gateway.dir().join(name)).unwrap();
    }
    let path = format!("/v1/upstreams/chat/servers/{}", echo.address);
    let answer = gateway
        .call(Method::PUT, &path, r#"{"state":"maint"}"#)
        .await;
    assert_eq!(answer.status, 200);
    let text = answer.text();
    assert!(
        text.contains("would not survive the supervisor's death"),
        "{text}"
    );
    gateway
        .call(Method::PUT, &path, r#"{"state":"ready"}"#)
        .await;
    gateway.edit(&configs::with(
        &QUIET.replace("workers = 2", "workers = 3"),
        &[&echo.address],
    ));
    gateway.reloaded().await;
    gateway
        .counted("that it is not saved", |totals| {
            totals.state_write_failures >= 4
        })
        .await;
    for name in ["state.json.new", "last-good.json.new"] {
        std::fs::remove_dir(gateway.dir().join(name)).unwrap();
    }
    gateway.logged(&["INFO", "the state is saved again"]).await;
    let saved = std::fs::read_to_string(gateway.dir().join("last-good.json")).unwrap();
    assert!(saved.contains("workers = 3"), "{saved}");
    Client::open(&gateway.ws_url("/"))
        .await
        .echo(Message::text("hello"))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_of_every_kind_come_back() {
    let echo = Echo::start().await;
    let text = format!(
        "{QUIET}{}[[listener]]\naddress = \"[::1]:0\"\n[[listener]]\naddress = \"unix:{{dir}}/front.sock\"\n{}{}",
        configs::LISTENER,
        configs::ROUTE,
        configs::upstream("chat", &[&echo.address]),
    );
    let mut gateway = Gateway::start(&text).await;
    let bound = |status: &Status| -> Vec<String> {
        status.listeners.iter().map(|it| it.bound.clone()).collect()
    };
    let before = bound(&gateway.status().await);
    gateway.kill_supervisor().await;
    let status = gateway.revive(1).await;
    assert_eq!(bound(&status), before);
    for listener in &status.listeners {
        assert_eq!(
            listener.sockets,
            if listener.address.starts_with("unix") {
                1
            } else {
                2
            }
        );
    }
    let front = gateway.dir().join("front.sock");
    for _ in 0..8 {
        for address in &before[..2] {
            let mut client = Client::open(&format!("ws://{address}/")).await;
            client.echo(Message::text("hello")).await;
        }
        let mut client = Client::open_unix(&front, "/").await;
        client.echo(Message::text("hello")).await;
    }
    gateway.ctl(&["stop", "--now"]).await;
    gateway.exited(SOON).await;
    assert!(!front.exists(), "the socket file is left");
}
