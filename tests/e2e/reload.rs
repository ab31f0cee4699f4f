//! Reloads: how they begin, what they change, and what they must not touch.

use std::time::{Duration, Instant};

use http::Method;
use rustix::process::Signal;
use tokio_tungstenite::tungstenite::Message;
use wsgate_protocol::admin::{ReloadOutcome, TunnelState};

use crate::configs;
use crate::support::backend::Echo;
use crate::support::client::Client;
use crate::support::gateway::{Gateway, Launch, active_generation};
use crate::support::load::{self, Fleet, Storm};
use crate::support::wait::{SOON, all_along, until};

/// Two servers; the configuration leads to the first, and its successor to the second.
struct Two {
    old: Echo,
    new: Echo,
}

impl Two {
    async fn start() -> Self {
        Self {
            old: Echo::start().await,
            new: Echo::start().await,
        }
    }

    fn before(&self, head: &str) -> String {
        configs::with(head, &[&self.old.address])
    }

    fn after(&self, head: &str) -> String {
        configs::with(head, &[&self.new.address])
    }

    /// The old tunnel has lost its server, and lives on until its deadline, in the new generation; a new client meets the
    /// new server.
    async fn assert_moved_on(&self, gateway: &Gateway, client: &mut Client) {
        gateway.generation(2).await;
        until("the old generation is gone", SOON, async || {
            gateway.status().await.generations.len() == 1
        })
        .await;
        client.echo(Message::text("still here")).await;
        assert_eq!((self.old.open(), self.new.open()), (1, 0));
        let mut newcomer = Client::open(&gateway.ws_url("/")).await;
        newcomer.echo(Message::text("hello")).await;
        assert_eq!((self.old.open(), self.new.open()), (1, 1));
        let mut tunnels = gateway.tunnels().await;
        tunnels.sort_by_key(|tunnel| tunnel.handovers);
        let moved: Vec<_> = tunnels
            .iter()
            .map(|it| (it.generation, it.handovers))
            .collect();
        assert_eq!(moved, [(2, 0), (2, 1)]);
        assert_eq!(tunnels[0].state, TunnelState::Open);
        assert_eq!(tunnels[1].state, TunnelState::Draining);
    }
}

const UNWATCHED: &str = "workers = 2\n[reload]\nwatch = false";
const WATCHED: &str = "workers = 2";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_admin_call_reloads() {
    let two = Two::start().await;
    let gateway = Gateway::start(&two.before(UNWATCHED)).await;
    let mut client = Client::open(&gateway.ws_url("/")).await;
    gateway.edit(&two.after(UNWATCHED));
    assert!(gateway.status().await.config.file_differs);
    let reloaded = gateway.reloaded().await;
    assert_eq!(reloaded.generation, 2);
    assert_eq!((reloaded.moved, reloaded.fates.drained), (1, 1));
    assert_eq!(reloaded.draining_tunnels, 1);
    assert!(reloaded.deadline_at.is_some());
    assert!(!gateway.status().await.config.file_differs);
    two.assert_moved_on(&gateway, &mut client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sighup_reloads() {
    let two = Two::start().await;
    let gateway = Gateway::start(&two.before(UNWATCHED)).await;
    let mut client = Client::open(&gateway.ws_url("/")).await;
    gateway.edit(&two.after(UNWATCHED));
    gateway.signal(Signal::HUP);
    two.assert_moved_on(&gateway, &mut client).await;
    let last = gateway.status().await.last_reload.unwrap();
    assert_eq!(last.by, "signal");
    // Who asked, for the one who reads the log later.
    gateway
        .logged(&["HUP", &std::process::id().to_string()])
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edited_file_reloads_by_itself() {
    let two = Two::start().await;
    let gateway = Gateway::start(&two.before(WATCHED)).await;
    let mut client = Client::open(&gateway.ws_url("/")).await;
    gateway.edit(&two.after(WATCHED));
    two.assert_moved_on(&gateway, &mut client).await;
    assert_eq!(gateway.status().await.last_reload.unwrap().by, "watch");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_renamed_over_the_config_reloads_by_itself() {
    let two = Two::start().await;
    let gateway = Gateway::start(&two.before(WATCHED)).await;
    let mut client = Client::open(&gateway.ws_url("/")).await;
    gateway.rename_over(&two.after(WATCHED));
    two.assert_moved_on(&gateway, &mut client).await;
    // The watch holds the new file too.
    gateway.rename_over(&two.before(WATCHED));
    gateway.generation(3).await;
    gateway.edit(&two.after(WATCHED));
    gateway.generation(4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_symlink_swapped_as_kubernetes_does_reloads_by_itself() {
    let two = Two::start().await;
    let gateway = Launch::new(&two.before(WATCHED)).mounted().start().await;
    let mut client = Client::open(&gateway.ws_url("/")).await;
    gateway.swap_mount("v2", &two.after(WATCHED));
    two.assert_moved_on(&gateway, &mut client).await;
    gateway.swap_mount("v3", &two.before(WATCHED));
    gateway.generation(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_included_file_reloads_by_itself() {
    let two = Two::start().await;
    let main = format!(
        "include = [\"conf.d/*.toml\"]\nworkers = 2\n{}",
        configs::LISTENER
    );
    let part = |server: &Echo| {
        format!(
            "{}{}",
            configs::ROUTE,
            configs::upstream("chat", &[&server.address])
        )
    };
    let gateway = Launch::new(&main)
        .file("conf.d/chat.toml", &part(&two.old))
        .start()
        .await;
    let mut client = Client::open(&gateway.ws_url("/")).await;
    gateway.write("conf.d/chat.toml", &part(&two.new));
    two.assert_moved_on(&gateway, &mut client).await;
    // A file that the pattern did not match before.
    let more = format!(
        "[[route]]\npath = \"/more\"\nupstream = \"more\"\n{}",
        configs::upstream("more", &[&two.old.address])
    );
    gateway.write("conf.d/more.toml", &more);
    let status = gateway.generation(3).await;
    assert_eq!(status.upstreams.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unchanged_configuration_makes_no_generation() {
    let echo = Echo::start().await;
    let config = configs::with(UNWATCHED, &[&echo.address]);
    let gateway = Gateway::start(&config).await;
    let workers = gateway.active_workers().await;
    for _ in 0..2 {
        let answer = gateway.reload().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let outcome: ReloadOutcome = answer.json();
        assert!(
            matches!(&outcome, ReloadOutcome::Unchanged(unchanged) if unchanged.generation == 1),
            "{outcome:?}"
        );
        gateway.rename_over(&config);
    }
    let pids = |workers: &[wsgate_protocol::admin::WorkerStatus]| {
        workers.iter().map(|worker| worker.pid).collect::<Vec<_>>()
    };
    assert_eq!(pids(&gateway.active_workers().await), pids(&workers));
    assert_eq!(gateway.status().await.totals.reloads, 0);
}

/// Five mistakes, on the lines 2, 4, 7, 10 and 12.
const FIVE_MISTAKES: &str = r#"
workers = "many"
[drain]
grase = "5s"

[[listener]]
address = "127.0.0.1"

[[route]]
upstream = "chta"
[upstream.chat]
servers = ["127.0.0.1:9001", "127.0.0.1:99999"]
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_mistakes_are_five_messages_and_change_nothing() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&configs::with(UNWATCHED, &[&echo.address])).await;
    let mut client = Client::open(&gateway.ws_url("/")).await;
    gateway.edit(FIVE_MISTAKES);
    let answer = gateway.reload().await;
    assert!(answer.status.is_client_error(), "{}", answer.status);
    let error = answer.json::<wsgate_protocol::admin::ErrorBody>().error;
    assert_eq!(error.code, "config_invalid");
    assert_eq!(error.details.len(), 5, "{}", error.details.join("\n"));
    let wrong = ["\"many\"", "grase", "\"127.0.0.1\"", "chta", "99999"];
    for (line, word) in [2, 4, 7, 10, 12].into_iter().zip(wrong) {
        let place = format!("wsgate.toml:{line}:");
        let detail = error.details.iter().find(|detail| detail.contains(&place));
        let detail = detail.unwrap_or_else(|| panic!("{place} in {:#?}", error.details));
        assert!(detail.contains(word), "{detail}");
        let column = detail.split_once(&place).unwrap().1;
        assert!(column.starts_with(|c: char| c.is_ascii_digit()), "{detail}");
    }
    client.echo(Message::text("still here")).await;
    Client::open(&gateway.ws_url("/"))
        .await
        .echo(Message::text("hello"))
        .await;
    let status = gateway.status().await;
    assert_eq!(active_generation(&status), 1);
    assert_eq!(status.totals.reloads_failed, 1);
    let last = status.last_reload.unwrap();
    let ReloadOutcome::Failed { errors, .. } = last.outcome else {
        panic!("{last:?}");
    };
    assert_eq!(errors, error.details);
    gateway.logged(&["wsgate.toml:4:1", "grase"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mistake_that_the_watch_meets_changes_nothing_until_it_is_mended() {
    let two = Two::start().await;
    let gateway = Gateway::start(&two.before(WATCHED)).await;
    let mut client = Client::open(&gateway.ws_url("/")).await;
    gateway.edit(FIVE_MISTAKES);
    until("the failure shows", SOON, async || {
        gateway.status().await.totals.reloads_failed == 1
    })
    .await;
    client.echo(Message::text("still here")).await;
    gateway.edit(&two.after(WATCHED));
    two.assert_moved_on(&gateway, &mut client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_at_the_same_time_get_the_generation_with_their_content() {
    let two = Two::start().await;
    let gateway = Gateway::start(&two.before(UNWATCHED)).await;
    gateway.edit(&two.after(UNWATCHED));
    let calls = (0..10).map(|_| gateway.reload());
    for answer in futures_util::future::join_all(calls).await {
        assert_eq!(answer.status, 200, "{}", answer.text());
        let generation = match answer.json() {
            ReloadOutcome::Reloaded(reloaded) => reloaded.generation,
            ReloadOutcome::Unchanged(unchanged) => unchanged.generation,
            other => panic!("{other:?}"),
        };
        assert_eq!(generation, 2);
    }
    assert_eq!(gateway.status().await.totals.reloads, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_during_a_reload_gets_the_content_of_its_own_time() {
    let two = Two::start().await;
    let gateway = Gateway::start(&two.before(UNWATCHED)).await;
    // Workers of the next generation wait for a moment, so the second call comes meanwhile.
    gateway.edit(&configs::with(
        &format!("# first\n{UNWATCHED}\n[stop]\ngrace = \"1s\""),
        &[&two.old.address],
    ));
    let socket = gateway.socket();
    let first = tokio::spawn(async move {
        crate::support::admin::over_unix(&socket, Method::POST, "/v1/reload", "").await
    });
    tokio::task::yield_now().await;
    gateway.edit(&two.after(UNWATCHED));
    let second = gateway.reload().await;
    assert_eq!(second.status, 200, "{}", second.text());
    assert_eq!(first.await.unwrap().unwrap().status, 200);
    Client::open(&gateway.ws_url("/"))
        .await
        .echo(Message::text("hello"))
        .await;
    assert_eq!(
        two.new.sessions().len(),
        1,
        "the content at the time of the second call runs"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_come_and_go_with_a_reload() {
    let echo = Echo::start().await;
    let gateway = Gateway::start(&configs::with(UNWATCHED, &[&echo.address])).await;
    let before = gateway.address().to_owned();
    let both = format!(
        "[[listener]]\naddress = \"unix:{{dir}}/chat.sock\"\n{}",
        configs::with("", &[&echo.address])
    );
    gateway.edit(&format!("{UNWATCHED}\n{both}"));
    assert_eq!(gateway.reloaded().await.generation, 2);
    let mut over_unix = Client::open_unix(&gateway.dir().join("chat.sock"), "/").await;
    over_unix.echo(Message::text("new listener")).await;
    Client::open(&gateway.ws_url("/"))
        .await
        .echo(Message::text("old listener"))
        .await;
    assert_eq!(
        gateway.status().await.listeners[1].bound,
        before,
        "it keeps its port"
    );
    let only_unix = both.replace(configs::LISTENER, "");
    gateway.edit(&format!("{UNWATCHED}\n{only_unix}"));
    assert_eq!(gateway.reloaded().await.generation, 3);
    until("the old listener is gone", SOON, async || {
        Client::try_open(&gateway.ws_url("/")).await.is_err()
    })
    .await;
    over_unix.echo(Message::text("still here")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_in_use_fails_the_reload_and_changes_nothing() {
    let echo = Echo::start().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = Gateway::start(&configs::with(UNWATCHED, &[&echo.address])).await;
    let mut client = Client::open(&gateway.ws_url("/")).await;
    let address = taken.local_addr().unwrap().to_string();
    gateway.edit(&format!(
        "{}\n[[listener]]\naddress = \"{address}\"\n",
        configs::with(UNWATCHED, &[&echo.address])
    ));
    let answer = gateway.reload().await;
    assert!(!answer.status.is_success(), "{}", answer.text());
    assert!(answer.text().contains(&address), "{}", answer.text());
    client.echo(Message::text("still here")).await;
    Client::open(&gateway.ws_url("/"))
        .await
        .echo(Message::text("hello"))
        .await;
    assert_eq!(active_generation(&gateway.status().await), 1);
}

/// A fleet and a storm on a gateway, while something is done to it.
async fn undisturbed(gateway: &Gateway, echo: &Echo, what: impl AsyncFnOnce()) {
    let url = gateway.ws_url("/");
    let fleet = Fleet::launch(&url, 30, Duration::from_millis(100)).await;
    let storm = Storm::start(&url, 50);
    what().await;
    assert_eq!(fleet.ended(), 0, "a tunnel was cut");
    let attempts = storm.stop().await;
    assert_eq!(load::problems(&attempts), [""; 0]);
    let seen = fleet.stop().await;
    load::assert_no_faults(&seen, echo);
}

async fn a_generation_that_fails(hook: &str) {
    let two = Two::start().await;
    let gateway = Launch::new(&two.before(UNWATCHED))
        .env("WSGATE_TEST_READY_WITHIN_MS", "1500")
        .start()
        .await;
    let workers = gateway.active_workers().await;
    gateway.edit(&two.after(UNWATCHED));
    gateway.hooks(hook);
    undisturbed(&gateway, &two.old, async || {
        let began = Instant::now();
        let answer = gateway.reload().await;
        assert!(
            began.elapsed() < Duration::from_secs(4),
            "{:?}",
            began.elapsed()
        );
        assert!(!answer.status.is_success(), "{}", answer.text());
        assert_eq!(answer.error_code().as_deref(), Some("reload_failed"));
        let status = gateway.status().await;
        assert_eq!(active_generation(&status), 1);
        assert_eq!(status.totals.reloads_failed, 1);
        let last = status.last_reload.unwrap().outcome;
        assert!(matches!(last, ReloadOutcome::Failed { .. }), "{last:?}");
    })
    .await;
    until("nothing of it is left", SOON, async || {
        let status = gateway.status().await;
        status.generations.len() == 1 && status.workers.len() == 2
    })
    .await;
    let pids: Vec<u32> = workers.iter().map(|worker| worker.pid).collect();
    let now: Vec<u32> = gateway
        .active_workers()
        .await
        .iter()
        .map(|worker| worker.pid)
        .collect();
    assert_eq!(now, pids);
    assert!(two.new.sessions().is_empty());
    gateway.hooks("");
    gateway.reloaded().await;
    Client::open(&gateway.ws_url("/"))
        .await
        .echo(Message::text("hello"))
        .await;
    assert_eq!(two.new.sessions().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generation_whose_workers_crash_at_their_start_is_rolled_back() {
    a_generation_that_fails("crash-at-start").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generation_with_one_worker_that_crashes_is_rolled_back() {
    a_generation_that_fails("crash-at-start slot=1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generation_that_never_gets_ready_is_rolled_back() {
    a_generation_that_fails("never-ready").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generation_with_one_worker_that_never_gets_ready_is_rolled_back() {
    a_generation_that_fails("never-ready slot=0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_workers_cost_no_connection() {
    let echo = Echo::start().await;
    let workers = |count: u32| {
        configs::with(
            &format!("workers = {count}\n[reload]\nwatch = false"),
            &[&echo.address],
        )
    };
    let gateway = Gateway::start(&workers(1)).await;
    undisturbed(&gateway, &echo, async || {
        for count in [2, 4] {
            gateway.edit(&workers(count));
            gateway.reloaded().await;
            assert_eq!(gateway.active_workers().await.len(), count as usize);
        }
        // Each of them gets clients: the storm goes on.
        until(
            "all slots hold tunnels or have held some",
            SOON,
            async || {
                let status = gateway.status().await;
                status.listeners[0].sockets == 4 && status.totals.connections > 100
            },
        )
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_fewer_workers_every_connection_is_served() {
    let echo = Echo::start().await;
    let workers = |count: u32| {
        configs::with(
            &format!("workers = {count}\n[reload]\nwatch = false"),
            &[&echo.address],
        )
    };
    let gateway = Gateway::start(&workers(4)).await;
    for count in [2, 1] {
        gateway.edit(&workers(count));
        gateway.reloaded().await;
        assert_eq!(gateway.active_workers().await.len(), count as usize);
        // More than enough to meet every socket that still listens.
        for _ in 0..40 {
            let mut client = Client::open(&gateway.ws_url("/")).await;
            client.echo(Message::text("hello")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_refused_by_the_watch_setting_waits_for_a_call() {
    let two = Two::start().await;
    let gateway = Gateway::start(&two.before(UNWATCHED)).await;
    gateway.edit(&two.after(UNWATCHED));
    // Longer than the watch looks at the file besides (5 s).
    all_along("nothing reloads", Duration::from_secs(6), async || {
        active_generation(&gateway.status().await) == 1
    })
    .await;
    assert!(gateway.status().await.config.file_differs);
}
