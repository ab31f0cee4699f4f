//! What becomes of the tunnels, said before it is done: dry runs, over real tunnels.

mod events;
mod held;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use http::Method;
use rustix::process::Signal;
use tokio_tungstenite::tungstenite::Message;
use wsgate_protocol::admin::{DryRun, Fates, LastReload, ListenerStatus, ReloadOutcome, Tunnel};

use crate::configs;
use crate::support::backend::{self, Echo};
use crate::support::client::Client;
use crate::support::gateway::{Gateway, Launch, stderr, stdout};
use crate::support::process;
use crate::support::wait::{SOON, until};

/// Two servers of a chat and one of a game, behind two listeners.
struct Site {
    servers: [Echo; 3],
}

/// Tunnels by all of its ways.
struct Crowd(Vec<Client>);

impl Site {
    async fn start() -> Self {
        Self {
            servers: [
                Echo::start().await,
                Echo::start().await,
                Echo::start().await,
            ],
        }
    }

    fn address(&self, server: usize) -> &str {
        &self.servers[server].address
    }

    /// The game comes last, and what stands at the `tail` behind it.
    fn config(&self, head: &str, tail: &str) -> String {
        let [one, two, three] = [0, 1, 2].map(|server| self.address(server));
        format!(
            "{head}\n{}[[listener]]\naddress = \"unix:{{dir}}/l.sock\"\n\
             [[route]]\npath = \"/chat\"\nupstream = \"chat\"\n{}\
             [[route]]\npath = \"/game\"\nupstream = \"game\"\n{}{tail}\n",
            configs::LISTENER,
            configs::upstream("chat", &[one, two]),
            configs::upstream("game", &[three]),
        )
    }
}

impl Crowd {
    /// Six to the chat and three to the game, two of all by the Unix listener.
    async fn of(gateway: &Gateway) -> Self {
        let mut clients = Vec::new();
        for path in ["/chat/a", "/chat/b", "/chat", "/chat/c", "/game", "/game/1"] {
            clients.push(Client::open(&gateway.ws_url(path)).await);
        }
        let socket = gateway.dir().join("l.sock");
        clients.push(Client::open_unix(&socket, "/chat").await);
        clients.push(Client::open_unix(&socket, "/game").await);
        clients.push(Client::open(&gateway.ws_url("/chat")).await);
        gateway.holds(9).await;
        Self(clients)
    }

    async fn is_untouched(&mut self, gateway: &Gateway) {
        for client in &mut self.0 {
            client.echo(Message::text("still here")).await;
        }
        let tunnels = gateway.tunnels().await;
        assert_eq!(tunnels.len(), self.0.len());
        let untouched = |tunnel: &Tunnel| tunnel.deadline_at.is_none() && tunnel.generation == 1;
        assert!(tunnels.iter().all(untouched), "{tunnels:?}");
    }
}

const UNWATCHED: &str = "workers = 2\n[reload]\nwatch = false";

async fn running(head: &str) -> (Site, Gateway, Crowd) {
    let site = Site::start().await;
    let gateway = Gateway::start(&site.config(head, "")).await;
    let crowd = Crowd::of(&gateway).await;
    (site, gateway, crowd)
}

async fn dry_run(gateway: &Gateway) -> DryRun {
    let output = gateway.ctl(&["reload", "--dry-run", "--json"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    match serde_json::from_slice(&output.stdout).unwrap() {
        ReloadOutcome::DryRun(dry_run) => dry_run,
        other => panic!("no dry run: {other:?}"),
    }
}

/// As the list of tunnels has them.
async fn count(gateway: &Gateway, is_meant: impl Fn(&Tunnel) -> bool) -> u64 {
    let tunnels = gateway.tunnels().await;
    tunnels.iter().filter(|tunnel| is_meant(tunnel)).count() as u64
}

fn said(tunnels: u64) -> String {
    let plural = if tunnels == 1 { "" } else { "s" };
    format!("{tunnels} tunnel{plural}")
}

fn lines(output: &Output) -> Vec<String> {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    stdout(output).lines().map(str::to_owned).collect()
}

/// What must be as it was, whatever a dry run looks at.
#[derive(Clone, Debug, PartialEq)]
struct State {
    pids: Vec<u32>,
    generations: usize,
    reloads: (u64, u64),
    listeners: Vec<ListenerStatus>,
    last_reload: Option<LastReload>,
    open: BTreeMap<u32, usize>,
}

async fn state(gateway: &Gateway) -> State {
    let status = gateway.status().await;
    let pids: Vec<u32> = status.workers.iter().map(|worker| worker.pid).collect();
    let open = [gateway.pid].into_iter().chain(pids.iter().copied());
    State {
        open: open.map(|pid| (pid, open_files(pid))).collect(),
        pids,
        generations: status.generations.len(),
        reloads: (status.totals.reloads, status.totals.reloads_failed),
        listeners: status.listeners,
        last_reload: status.last_reload,
    }
}

/// Once connections of the admin socket have ended.
async fn settled(gateway: &Gateway) -> State {
    let mut last = state(gateway).await;
    until("nothing changes any more", SOON, async || {
        let now = state(gateway).await;
        now == std::mem::replace(&mut last, now.clone())
    })
    .await;
    last
}

/// Connections of the admin socket take a moment to end.
async fn is_as_before(gateway: &Gateway, before: State) {
    until("everything is as before", SOON, async || {
        before == state(gateway).await
    })
    .await;
}

/// Descriptors that could stay behind.
fn open_files(pid: u32) -> usize {
    let names = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let is_one = |link: PathBuf| {
        let text = link.to_string_lossy().into_owned();
        ["/memfd:", "pipe:", "socket:"]
            .iter()
            .any(|kind| text.starts_with(kind))
    };
    let links = names.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    links.filter(|link| is_one(link.clone())).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_change_is_named_with_its_tunnels_and_nothing_is_done() {
    let (site, gateway, mut crowd) = running(UNWATCHED).await;
    let before = settled(&gateway).await;
    let old = site.config(UNWATCHED, "");
    let two = site.address(1);
    let to_two = count(&gateway, |it| it.server == two).await;
    assert!((1..6).contains(&to_two), "both servers have some");
    let socket = gateway.dir().join("l.sock").display().to_string();
    let one_and_two = format!("{:?}", [site.address(0), two]);
    let changes = [
        (
            old.replace(&one_and_two, &format!("{:?}", [site.address(0)])),
            vec![format!(
                "route */chat: upstream chat: server {two} removed: {}",
                said(to_two)
            )],
            to_two,
        ),
        (
            old.replace("path = \"/game\"", "path = \"/other\""),
            vec!["route */game removed: 3 tunnels".to_owned()],
            3,
        ),
        (
            old.replace("[[listener]]\naddress = \"unix:{dir}/l.sock\"\n", ""),
            vec![format!("listener unix:{socket} removed: 2 tunnels")],
            2,
        ),
        (
            old.replace("upstream = \"game\"", "upstream = \"chat\""),
            vec![format!(
                "route */game: leads to upstream chat now, which does not have server {}: 3 tunnels",
                site.address(2)
            )],
            3,
        ),
        // Only its name is another one: the server is there.
        (
            old.replace("upstream = \"game\"", "upstream = \"play\"")
                .replace("[upstream.game]", "[upstream.play]"),
            Vec::new(),
            0,
        ),
    ];
    for (text, reasons, drained) in changes {
        gateway.edit(&text);
        let output = gateway.ctl(&["reload", "--dry-run"]).await;
        let kept = 9 - drained;
        let sums =
            format!("dry run: 9 tunnels: {kept} kept, {drained} drained, 0 draining already");
        let expected: Vec<String> = [sums].into_iter().chain(reasons).collect();
        assert_eq!(lines(&output), expected, "{text}");
        let DryRun {
            unchanged,
            handover,
            fates,
            ..
        } = dry_run(&gateway).await;
        assert_eq!((unchanged, handover), (false, true));
        assert_eq!(
            (fates.kept, fates.drained, fates.ending),
            (kept, drained, 0)
        );
        let sum: u64 = fates.why.iter().map(|loss| loss.tunnels).sum();
        assert_eq!(sum, drained);
    }
    crowd.is_untouched(&gateway).await;
    is_as_before(&gateway, before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_says_the_same_is_unchanged() {
    let (site, gateway, mut crowd) = running(UNWATCHED).await;
    gateway.edit(&format!("# a comment\n{}", site.config(UNWATCHED, "")));
    let dry_run = dry_run(&gateway).await;
    assert!(dry_run.unchanged);
    assert_eq!(
        dry_run.fates,
        Fates {
            kept: 9,
            ..Fates::default()
        }
    );
    let output = gateway.ctl(&["reload", "--dry-run"]).await;
    assert_eq!(
        lines(&output),
        ["dry run: unchanged, this content runs; 9 tunnels not touched"]
    );
    crowd.is_untouched(&gateway).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_that_a_lower_limit_ends_are_told() {
    let (site, gateway, mut crowd) = running(UNWATCHED).await;
    let lower = "upstream = \"game\"\nidle_timeout = \"1s\"";
    gateway.edit(
        &site
            .config(UNWATCHED, "")
            .replace("upstream = \"game\"", lower),
    );
    until("the game has been silent for a second", SOON, async || {
        count(&gateway, |it| {
            it.route == "*/game" && it.idle_seconds >= 1.0
        })
        .await
            == 3
    })
    .await;
    let output = gateway.ctl(&["reload", "--dry-run"]).await;
    let expected = [
        "dry run: 9 tunnels: 9 kept, 0 drained, 0 draining already",
        "3 of those kept end at once: by a lower idle_timeout or max_age",
    ];
    assert_eq!(lines(&output), expected);
    crowd.is_untouched(&gateway).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_handover_all_tunnels_would_drain_where_they_are() {
    let (site, gateway, mut crowd) = running(UNWATCHED).await;
    gateway.edit(&site.config(&format!("{UNWATCHED}\n[drain]\nhandover = false"), ""));
    let output = gateway.ctl(&["reload", "--dry-run"]).await;
    let expected = [
        "dry run: 9 tunnels: 0 kept, 9 drained, 0 draining already",
        "drain.handover is false: all tunnels would stay where they are, and drain",
    ];
    assert_eq!(lines(&output), expected);
    crowd.is_untouched(&gateway).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_that_drain_already_are_told_apart() {
    let (site, gateway, _crowd) = running(UNWATCHED).await;
    let three = site.address(2);
    let path = format!("/v1/upstreams/game/servers/{three}");
    let drain = r#"{"state": "drain", "grace_seconds": 600}"#;
    assert_eq!(gateway.call(Method::PUT, &path, drain).await.status, 200);
    until("the game drains", SOON, async || {
        count(&gateway, |it| it.deadline_at.is_some()).await == 3
    })
    .await;
    let without_game = site
        .config(UNWATCHED, "")
        .replace("path = \"/game\"", "path = \"/x\"");
    gateway.edit(&without_game);
    let fates = dry_run(&gateway).await.fates;
    assert_eq!((fates.kept, fates.drained, fates.draining), (6, 0, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_reload_would_refuse_is_refused() {
    let (site, gateway, mut crowd) = running(UNWATCHED).await;
    let before = settled(&gateway).await;
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    gateway.write("file", "no socket");
    let listener = |address: &str| {
        site.config(
            UNWATCHED,
            &format!("[[listener]]\naddress = \"{address}\"\n"),
        )
    };
    let http = format!("{UNWATCHED}\n[admin]\nsocket = \"{{dir}}/admin.sock\"\nhttp = \"{taken}\"");
    let other_socket = format!("{UNWATCHED}\n[admin]\nsocket = \"{{dir}}/other.sock\"");
    for (text, code, words) in [
        ("workers = 0\n[[listner]]\n".to_owned(), 422, "listner"),
        (listener(&taken), 409, taken.as_str()),
        (listener("unix:{dir}/file"), 409, "no socket"),
        (
            listener("unix:/no/such/directory/l.sock"),
            409,
            "No such file",
        ),
        (site.config(&http, ""), 409, "[admin] http"),
        (site.config(&other_socket, ""), 409, "admin.socket"),
        (
            site.config(&UNWATCHED.replace('2', "256"), &many_listeners()),
            409,
            "descriptors",
        ),
    ] {
        gateway.edit(&text);
        let answer = gateway
            .call(Method::POST, "/v1/reload", r#"{"dry_run": true}"#)
            .await;
        assert_eq!(answer.status, code, "{}", answer.text());
        assert!(
            answer.text().contains(words),
            "{words} in {}",
            answer.text()
        );
        let output = gateway.ctl(&["reload", "--dry-run"]).await;
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(words), "{}", stderr(&output));
    }
    let both = gateway
        .call(
            Method::POST,
            "/v1/reload",
            r#"{"dry_run": true, "force": true}"#,
        )
        .await;
    assert_eq!(both.error_code().as_deref(), Some("invalid_request"));
    crowd.is_untouched(&gateway).await;
    is_as_before(&gateway, before).await;
}

/// More than the supervisor has descriptors for, with many workers.
fn many_listeners() -> String {
    let one = |port| format!("[[listener]]\naddress = \"127.0.0.3:{}\"\n", 20_000 + port);
    (0..4_000).map(one).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_addresses_are_tried_and_left_alone() {
    let (site, gateway, mut crowd) = running(UNWATCHED).await;
    let free = backend::nobody().await;
    let http = backend::nobody().await;
    let head = format!("{UNWATCHED}\n[admin]\nsocket = \"{{dir}}/admin.sock\"\nhttp = \"{http}\"");
    let new = format!(
        "[[listener]]\naddress = \"{free}\"\n[[listener]]\naddress = \"unix:{{dir}}/new.sock\"\n"
    );
    let before = settled(&gateway).await;
    gateway.edit(&site.config(&head, &new));
    let fates = dry_run(&gateway).await.fates;
    assert_eq!((fates.kept, fates.drained), (9, 0));
    assert!(!gateway.dir().join("new.sock").exists());
    assert!(std::net::TcpListener::bind(&free).is_ok(), "nobody has it");
    is_as_before(&gateway, before).await;
    crowd.is_untouched(&gateway).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_under_way_is_not_disturbed() {
    let site = Site::start().await;
    let text = site.config(UNWATCHED, "");
    let gateway = Launch::new(&text)
        .env("WSGATE_TEST_READY_WITHIN_MS", "60000")
        .start()
        .await;
    let mut crowd = Crowd::of(&gateway).await;
    let free = backend::nobody().await;
    let new = format!(
        "[[listener]]\naddress = \"{free}\"\n[[listener]]\naddress = \"unix:{{dir}}/new.sock\"\n"
    );
    // The new workers wait: their sockets are bound, and nobody listens.
    gateway.hooks("wait-at-start");
    gateway.edit(&site.config(UNWATCHED, &new));
    let (socket, path) = (gateway.socket(), "/v1/reload");
    let reload = tokio::spawn(async move {
        crate::support::admin::over_unix(&socket, Method::POST, path, "").await
    });
    until("the reload has begun", SOON, async || {
        gateway.dir().join("new.sock").exists()
    })
    .await;
    let fates = dry_run(&gateway).await.fates;
    assert_eq!((fates.kept, fates.drained), (9, 0));
    crowd.is_untouched(&gateway).await;
    gateway.hooks("");
    assert_eq!(reload.await.unwrap().unwrap().status, 200);
    for mut client in [
        Client::open(&format!("ws://{free}/chat")).await,
        Client::open_unix(&gateway.dir().join("new.sock"), "/game").await,
    ] {
        client.echo(Message::text("hello")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_does_not_answer_is_named() {
    let (site, gateway, _crowd) = running(UNWATCHED).await;
    let workers = gateway.active_workers().await;
    let silent = workers.iter().find(|worker| worker.tunnels > 0).unwrap();
    gateway.edit(&site.config(UNWATCHED, "[stop]\ngrace = \"1s\""));
    process::signal(silent.pid, Signal::STOP);
    let began = std::time::Instant::now();
    let output = gateway.ctl(&["reload", "--dry-run"]).await;
    let took = began.elapsed();
    process::signal(silent.pid, Signal::CONT);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains(&silent.pid.to_string()),
        "{}",
        stderr(&output)
    );
    let kept = format!("{}: {0} kept", 9 - silent.tunnels);
    assert!(
        stdout(&output).contains(&kept.replacen(": ", " tunnels: ", 1)),
        "{}",
        stdout(&output)
    );
    assert!(took < Duration::from_secs(3), "{took:?}");
    // Once it goes on, all is as it was.
    until("it answers again", SOON, async || {
        gateway.ctl(&["reload", "--dry-run"]).await.status.code() == Some(0)
    })
    .await;
    assert_eq!(dry_run(&gateway).await.fates.kept, 9);
}
