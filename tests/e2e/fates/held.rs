//! Reloads that come by themselves and would drain too many tunnels.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use rustix::process::Signal;
use tokio_tungstenite::tungstenite::Message;
use wsgate_protocol::admin::{HeldReload, ReloadOutcome};

use super::events::Listener;
use super::{Crowd, Site};
use crate::support::admin::over_tcp;
use crate::support::backend;
use crate::support::gateway::{Gateway, active_generation, stderr};
use crate::support::process;
use crate::support::wait::{SOON, all_along, eventually, until};

/// What is lost when the file's end is.
const TAIL: &str = "[reload]\nmax_drained = \"20%\"\n";

/// A gateway that watches its file, with its crowd and what is told of it. Three of nine tunnels go to the game.
struct Watched {
    site: Site,
    gateway: Gateway,
    crowd: Crowd,
    listener: Listener,
    head: String,
    http: String,
}

impl Watched {
    async fn start() -> Self {
        let site = Site::start().await;
        let http = backend::nobody().await;
        let head = format!(
            "workers = 2\n[admin]\nsocket = \"{{dir}}/admin.sock\"\nhttp = \"{http}\"\n\
             [drain]\ngrace = \"60s\""
        );
        let gateway = Gateway::start(&site.config(&head, TAIL)).await;
        let crowd = Crowd::of(&gateway).await;
        let listener = Listener::start(&gateway).await;
        Self {
            site,
            gateway,
            crowd,
            listener,
            head,
            http,
        }
    }

    /// All but the game, and the limit with it: a file that parses.
    fn truncate(&self) {
        let whole = self.site.config(&self.head, TAIL);
        let game = whole.find("[[route]]\npath = \"/game\"").unwrap();
        self.gateway.rename_over(&whole[..game]);
    }

    async fn held(&self) -> HeldReload {
        eventually("the reload is held back", SOON, async || {
            self.gateway.status().await.held_reload
        })
        .await
    }

    async fn metric(&self) -> f64 {
        let answer = over_tcp(&self.http, Method::GET, "/metrics").await.unwrap();
        let text = answer.text();
        let samples: BTreeMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.rsplit_once(' '))
            .collect();
        samples["wsgate_reload_held"].parse().unwrap()
    }

    async fn is_released(&self) {
        assert_eq!(self.gateway.status().await.held_reload, None);
        assert_eq!(self.metric().await, 0.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncated_file_is_held_back_and_told_everywhere() {
    let mut it = Watched::start().await;
    it.is_released().await;
    it.truncate();
    let HeldReload { held, .. } = it.held().await;
    assert_eq!((held.fates.kept, held.fates.drained), (6, 3));
    assert_eq!((held.max_drained, held.handover), (0.2, true));
    assert!((held.share - 1.0 / 3.0).abs() < 1e-9, "{}", held.share);
    let line = it
        .gateway
        .logged(&["held back", "3 of 9 tunnels (33.3%)", "20%"])
        .await;
    for words in [
        "WARN",
        "route */game removed: 3 tunnels",
        "--dry-run",
        "--force",
    ] {
        assert!(line.contains(words), "{words} in {line}");
    }
    assert_eq!(it.gateway.log().matches("is held back").count(), 1);
    assert_eq!(it.metric().await, 1.0);
    let event = it.listener.next("reload_held").await;
    assert_eq!(
        (&event["by"], &event["fates"]["drained"]),
        (&"watch".into(), &3.into())
    );
    let status = it.gateway.status().await;
    assert!(status.config.file_differs);
    let last = status.last_reload.unwrap();
    assert!(matches!(last.outcome, ReloadOutcome::Held(_)), "{last:?}");
    let text = it.gateway.ctl(&["status"]).await;
    let text = crate::support::gateway::stdout(&text);
    assert!(text.contains("it would drain 3 of 9 tunnels"), "{text}");
    it.crowd.is_untouched(&it.gateway).await;
    // The watch looks again and again, and finds nothing new.
    all_along("it stays so", Duration::from_secs(6), async || {
        let status = it.gateway.status().await;
        active_generation(&status) == 1 && status.held_reload.is_some()
    })
    .await;
    assert_eq!(it.gateway.log().matches("is held back").count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_has_to_force_what_is_held_back() {
    let mut it = Watched::start().await;
    it.truncate();
    let first = it.held().await;
    let output = it.gateway.ctl(&["reload"]).await;
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    for words in [
        "3 of 9 tunnels",
        "route */game removed: 3 tunnels",
        "--force",
    ] {
        assert!(said.contains(words), "{words} in {said}");
    }
    let answer = it.gateway.reload().await;
    assert_eq!(
        (answer.status.as_u16(), answer.error_code().as_deref()),
        (409, Some("reload_held"))
    );
    let report: serde_json::Value = answer.json();
    assert_eq!(report["error"]["held"]["fates"]["drained"], 3);
    it.gateway.signal(Signal::HUP);
    until("the signal is answered", SOON, async || {
        it.gateway
            .status()
            .await
            .last_reload
            .is_some_and(|last| last.by == "signal")
    })
    .await;
    assert_eq!(it.held().await, first, "since when does not change");
    it.crowd.is_untouched(&it.gateway).await;
    let output = it.gateway.ctl(&["reload", "--force"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    it.is_released().await;
    until("the game drains", SOON, async || {
        let drain = it.gateway.tunnels_where("state=draining").await;
        drain
            .iter()
            .filter(|tunnel| tunnel.route == "*/game")
            .count()
            == 3
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_changed_again_is_judged_anew() {
    let it = Watched::start().await;
    it.truncate();
    it.held().await;
    // Other mistakes: what was held back is no more.
    it.gateway.rename_over("workers = 0\n");
    until("it is no more", SOON, async || {
        it.gateway.status().await.held_reload.is_none()
    })
    .await;
    it.truncate();
    it.held().await;
    let whole = it.site.config(&it.head, TAIL);
    it.gateway.rename_over(&whole.replace(
        "[[route]]\npath = \"/game\"",
        "[[route]]\npath = \"/game*\"",
    ));
    it.gateway.generation(2).await;
    it.is_released().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_back_goes_through_once_few_enough_are_left() {
    let mut it = Watched::start().await;
    it.truncate();
    it.held().await;
    // One of seven is less than a fifth.
    it.crowd.0.drain(4..6);
    it.gateway.holds(7).await;
    let output = it.gateway.ctl(&["reload"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(active_generation(&it.gateway.status().await), 2);
    it.is_released().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operators_reload_of_what_was_never_held_back_is_not_held() {
    let site = Site::start().await;
    let head = "workers = 2\n[reload]\nwatch = false\nmax_drained = \"0%\"";
    let gateway = Gateway::start(&site.config(head, "")).await;
    let _crowd = Crowd::of(&gateway).await;
    gateway.edit(
        &site
            .config(head, "")
            .replace("path = \"/game\"", "path = \"/x\""),
    );
    assert_eq!(gateway.reloaded().await.generation, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_handover_all_tunnels_count() {
    let it = Watched::start().await;
    let text = it.site.config(&it.head, TAIL);
    it.gateway
        .rename_over(&text.replace("[drain]\n", "[drain]\nhandover = false\n"));
    let held = it.held().await.held;
    assert_eq!(
        (held.handover, held.share, held.fates.drained),
        (false, 1.0, 9)
    );
    it.gateway
        .logged(&["held back", "drain.handover is false"])
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_that_nobody_can_judge_count_as_drained() {
    let it = Watched::start().await;
    let workers = it.gateway.active_workers().await;
    let silent = workers.iter().max_by_key(|worker| worker.tunnels).unwrap();
    process::signal(silent.pid, Signal::STOP);
    // It drains nothing.
    let harmless = it.site.config(
        &format!("# changed\n{}", it.head),
        &format!("{TAIL}[stop]\ngrace = \"5s\""),
    );
    it.gateway.rename_over(&harmless);
    let held = it.held().await.held;
    process::signal(silent.pid, Signal::CONT);
    assert_eq!((held.fates.drained, held.unjudged()), (0, silent.tunnels));
    assert_eq!(held.unresponsive_workers[0].pid, silent.pid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_that_a_lower_limit_ends_count_as_well() {
    let mut it = Watched::start().await;
    let whole = it.site.config(&it.head, TAIL);
    let game = "[[route]]\npath = \"/game\"\n";
    it.gateway
        .rename_over(&whole.replace(game, &format!("{game}max_age = \"1ms\"\n")));
    let held = it.held().await.held;
    let fates = &held.fates;
    assert_eq!((fates.kept, fates.ending, fates.drained), (9, 3, 0));
    it.gateway
        .logged(&[
            "it would end 3 of 9 tunnels (33.3%)",
            "a lower idle_timeout or max_age: 3 tunnels",
        ])
        .await;
    it.crowd.is_untouched(&it.gateway).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_says_that_the_content_is_held_back() {
    const SAID: &str = "held back: the watch does not load this; wsctl reload --force does";
    let it = Watched::start().await;
    it.truncate();
    it.held().await;
    assert!(super::dry_run(&it.gateway).await.held);
    let output = it.gateway.ctl(&["reload", "--dry-run"]).await;
    assert!(super::lines(&output).iter().any(|line| line == SAID));
    let whole = it.site.config(&it.head, TAIL);
    it.gateway
        .rename_over(&format!("{whole}[stop]\ngrace = \"5s\"\n"));
    it.gateway.generation(2).await;
    let dry_run = super::dry_run(&it.gateway).await;
    assert!(dry_run.unchanged && !dry_run.held, "{dry_run:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_silent_workers_hold_back_is_loaded_once_they_answer() {
    let mut it = Watched::start().await;
    let workers = it.gateway.active_workers().await;
    let silent = workers.iter().max_by_key(|worker| worker.tunnels).unwrap();
    process::signal(silent.pid, Signal::STOP);
    let harmless = it
        .site
        .config(&it.head, &format!("{TAIL}[stop]\ngrace = \"5s\""));
    it.gateway.rename_over(&harmless);
    let held = it.held().await.held;
    let silent_pid = format!("could not be judged (worker {} did not answer)", silent.pid);
    assert!(held.message().contains(&silent_pid), "{}", held.message());
    assert!(
        !held.message().contains("would drain"),
        "{}",
        held.message()
    );
    process::signal(silent.pid, Signal::CONT);
    // Nobody asks for it: the watch looks every 5 s.
    until("it is loaded", SOON * 2, async || {
        active_generation(&it.gateway.status().await) == 2
    })
    .await;
    it.is_released().await;
    for client in &mut it.crowd.0 {
        client.echo(Message::text("still here")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_supervisor_that_loads_what_was_held_back_says_so() {
    let mut it = Watched::start().await;
    it.truncate();
    it.held().await;
    let state = it.gateway.dir().join("state.json");
    until("it is written down", SOON, async || {
        let text = std::fs::read_to_string(&state).unwrap_or_default();
        let state: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        state["held"].is_string()
    })
    .await;
    it.gateway.kill_supervisor().await;
    it.gateway.revive(1).await;
    it.gateway
        .logged(&["WARN", "the file that was held back", "is loaded now"])
        .await;
    it.is_released().await;
}
