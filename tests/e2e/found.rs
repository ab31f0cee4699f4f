//! Which workers the next supervisor finds, and with how little it can take them over.

use std::process::Output;

use rustix::net::{self, AddressFamily, SendFlags, SocketAddrUnix, SocketType};
use rustix::process::Signal;
use tokio_tungstenite::tungstenite::Message;

use crate::configs;
use crate::support::backend::Echo;
use crate::support::client::Client;
use crate::support::gateway::{Gateway, Launch, active_generation, stderr, stdout};
use crate::support::process::{self, Process};
use crate::support::wait::{SOON, until};

/// Two workers that reload only when told.
const QUIET: &str = "workers = 2\n[reload]\nwatch = false\n";

/// More connections than miss a slot by chance: half of them each, of two.
const MANY: usize = 60;

async fn assert_all_are_served(gateway: &Gateway) {
    for _ in 0..MANY {
        let mut client = Client::open(&gateway.ws_url("/")).await;
        client.echo(Message::text("new")).await;
    }
}

/// A gateway whose supervisor has died while the worker of slot 0, which replaces one that was killed, had only begun: it
/// has read nothing that it was told, and waits until the hooks are empty.
async fn with_one_that_has_only_begun(echo: &Echo) -> (Gateway, u32) {
    let head = "workers = 2\n[reload]\nwatch = false\n[watchdog]\ntimeout = \"20s\"\n";
    let gateway = Gateway::start(&configs::with(head, &[&echo.address])).await;
    let before = gateway.rendezvous();
    let first = gateway.active_workers().await;
    let first = first.iter().find(|worker| worker.slot == 0).unwrap();
    gateway.hooks("wait-at-start slot=0");
    process::signal(first.pid, Signal::KILL);
    let new = || gateway.rendezvous().difference(&before).next().copied();
    until("it begins", SOON, async || new().is_some()).await;
    let pid = new().unwrap();
    // Its supervisor has told it all there is when it asks others to stand in for it.
    gateway.logged(&["slot is served by another worker"]).await;
    gateway.kill_supervisor().await;
    (gateway, pid)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_has_only_begun_serves_without_a_supervisor() {
    let echo = Echo::start().await;
    let (mut gateway, new) = with_one_that_has_only_begun(&echo).await;
    let other = gateway.rendezvous().into_iter().find(|pid| *pid != new);
    gateway.hooks("");
    // The one that stood in for it may go: it serves its own slot.
    process::signal(other.unwrap(), Signal::KILL);
    let process = Process::open(new).unwrap();
    until("it serves", SOON, async || {
        let client = Client::try_open(&gateway.ws_url("/")).await;
        assert!(!process.has_ended(), "it was needed");
        client.is_ok()
    })
    .await;
    let status = gateway.revive(1).await;
    assert_eq!(status.totals.workers_adopted, 1);
    assert_all_are_served(&gateway).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_has_only_begun_is_found() {
    let echo = Echo::start().await;
    let (mut gateway, new) = with_one_that_has_only_begun(&echo).await;
    gateway.restart();
    gateway
        .logged(&["a worker without a supervisor does not answer yet"])
        .await;
    assert!(gateway.rendezvous().contains(&new));
    gateway.hooks("");
    let status = gateway.generation(2).await;
    assert_eq!(status.totals.workers_adopted, 2);
    assert_all_are_served(&gateway).await;
    until("it goes with its generation", SOON, async || {
        gateway.rendezvous().len() == 2 && !gateway.rendezvous().contains(&new)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_can_be_taken_over_with_the_descriptors_that_a_reload_needs() {
    let echo = Echo::start().await;
    let many = |addresses: &[String]| {
        let text = configs::with("workers = 30\n[reload]\nwatch = false\n", &[&echo.address]);
        let further = addresses
            .iter()
            .map(|address| format!("[[listener]]\naddress = \"{address}\"\n"));
        further.fold(text, |text, further| text + "\n" + &further)
    };
    let unix: Vec<String> = (0..10).map(|n| format!("unix:{{dir}}/{n}.sock")).collect();
    // Two of them are spare.
    let mut gateway = Launch::new(&many(&unix)).descriptors(422).start().await;
    gateway.kill_supervisor().await;
    let status = gateway.revive(1).await;
    assert_eq!(status.totals.workers_adopted, 30);
    let mut client = Client::open(&gateway.ws_url("/")).await;
    client.echo(Message::text("new")).await;
}

/// `wsgate end-orphans --now` in a shell that has set its limit of descriptors like this.
async fn end_orphans_with(limit: &str, gateway: &Gateway) -> Output {
    let script = format!("ulimit {limit}; exec \"$0\" end-orphans --now --config \"$1\"");
    let command = tokio::process::Command::new("sh")
        .args(["-c", &script, env!("CARGO_BIN_EXE_wsgate")])
        .arg(gateway.config())
        .env_remove("WSGATE_SOCKET")
        .kill_on_drop(true)
        .output();
    tokio::time::timeout(SOON, command).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_want_of_descriptors_is_no_fault_of_the_workers() {
    let echo = Echo::start().await;
    let config = configs::with("workers = 6\n[reload]\nwatch = false\n", &[&echo.address]);
    let gateway = Gateway::start(&config).await;
    let workers = gateway.workers();
    gateway.kill_supervisor().await;

    let short = end_orphans_with("-n 16", &gateway).await;
    let said = stderr(&short);
    assert_eq!(short.status.code(), Some(1), "{said}");
    assert!(
        said.contains("Too many open files") && said.contains("LimitNOFILE"),
        "{said}"
    );
    assert!(
        !said.contains("version") && !said.contains("user"),
        "{said}"
    );
    assert!(!workers.values().any(Process::has_ended));

    // The soft limit alone is its own affair.
    let ended = end_orphans_with("-Sn 16", &gateway).await;
    assert_eq!(
        stdout(&ended),
        "ended 6 workers with 0 tunnels, 0 by SIGKILL\n",
        "{}",
        stderr(&ended)
    );
    assert!(workers.values().all(Process::has_ended));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_room_for_a_rendezvous_workers_start_all_the_same_and_drain_when_they_are_alone() {
    let echo = Echo::start().await;
    let head = "workers = 1\n[reload]\nwatch = false\n[drain]\ngrace = \"1s\"";
    let parent = tempfile::tempdir().unwrap();
    let (run, away) = (parent.path().join("run"), parent.path().join("away"));
    let socket = run.join("admin.sock");
    let admin = format!("\n[admin]\nsocket = \"{}\"\n", socket.display());
    let text = configs::with(head, &[&echo.address]) + &admin;
    let gateway = Launch::new(&text).socket(&socket).start().await;
    let first = gateway.active_workers().await[0].pid;
    std::fs::rename(&run, &away).unwrap();
    process::signal(first, Signal::KILL);
    gateway.logged(&["no rendezvous: "]).await;
    let mut client = Client::open(&gateway.ws_url("/")).await;
    client.echo(Message::text("served")).await;
    std::fs::rename(&away, &run).unwrap();
    let second = gateway.active_workers().await[0].pid;
    assert!(!gateway.rendezvous().contains(&second));

    let process = Process::open(second).unwrap();
    gateway.kill_supervisor().await;
    client.echo(Message::text("still here")).await;
    let end = client.end(SOON).await;
    assert!(end.is_polite(1012), "{end:?}");
    until("it ends", SOON, async || process.has_ended()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_supervisor_was_started_with_is_no_change_even_if_its_first_reload_failed() {
    let echo = Echo::start().await;
    let config = |head: &str| {
        let head = format!("workers = 1\n[reload]\nwatch = false\n{head}");
        configs::with(&head, &[&echo.address])
    };
    let mut gateway = Gateway::start(&config("")).await;
    gateway.kill_supervisor().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let log = "[log]\nformat = \"json\"\n";
    let wanted = format!(
        "{}\n[[listener]]\naddress = \"{}\"\n",
        config(log),
        taken.local_addr().unwrap()
    );
    gateway.edit(&wanted);
    gateway.restart();
    gateway.logged(&["the new generation cannot begin"]).await;
    drop(taken);
    assert!(gateway.reloaded().await.generation > 1);

    gateway.edit(&config(""));
    let refused = gateway.reload().await;
    let said = String::from_utf8_lossy(&refused.body);
    assert!(said.contains("log.format cannot change"), "{said}");
    assert!(active_generation(&gateway.status().await) > 1);
}

/// A process that is no worker of this version, at the place where a worker would wait: this one. It says `words` to
/// whoever comes, and hangs up.
fn pretend_to_be_a_worker(gateway: &Gateway, words: &'static [u8]) -> std::thread::JoinHandle<()> {
    let name = format!("worker-{}.sock", std::process::id());
    let address = SocketAddrUnix::new(gateway.dir().join(name)).unwrap();
    let socket = net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    net::bind(&socket, &address).unwrap();
    net::listen(&socket, 1).unwrap();
    std::thread::spawn(move || {
        let visitor = net::accept(&socket).unwrap();
        if !words.is_empty() {
            net::send(&visitor, words, SendFlags::empty()).unwrap();
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_lives_and_cannot_be_taken_over_is_not_taken_for_dead() {
    let echo = Echo::start().await;
    let mut gateway = Gateway::start(&configs::with(QUIET, &[&echo.address])).await;
    let held = gateway.workers();
    gateway.kill_supervisor().await;
    let pid = std::process::id();
    let cases: [(&'static [u8], String); 2] = [
        (b"", format!("process {pid} hangs up")),
        (b"what?", format!("by `kill -9 {pid}`")),
    ];
    for (words, told) in cases {
        let pretender = pretend_to_be_a_worker(&gateway, words);
        gateway.restart();
        assert_eq!(gateway.exited(SOON).await.code(), Some(1));
        assert!(gateway.log().contains(&told), "{}", gateway.log());
        pretender.join().unwrap();
        let file = gateway.dir().join(format!("worker-{pid}.sock"));
        std::fs::remove_file(file).unwrap();
    }
    assert!(!held.values().any(Process::has_ended));
    let status = gateway.revive(1).await;
    assert_eq!(status.totals.workers_adopted, 2);
    assert_all_are_served(&gateway).await;
}
