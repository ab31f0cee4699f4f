//! What happens, as it is told while it happens: `wsctl events`.

use std::process::Stdio;
use std::time::Duration;

use http::Method;
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::{Site, UNWATCHED};
use crate::support::gateway::{self, Gateway};
use crate::support::process;
use crate::support::wait::{SOON, within};

/// A `wsctl events --json` that runs.
pub(super) struct Listener {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

fn start(gateway: &Gateway, args: &[&str]) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_wsctl"))
        .arg("--socket")
        .arg(gateway.socket())
        .arg("events")
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

async fn say(gateway: &Gateway, state: &str) {
    let upstreams = gateway.status().await.upstreams;
    let upstream = upstreams.iter().find(|it| it.name == "chat").unwrap();
    let path = format!("/v1/upstreams/chat/servers/{}", upstream.servers[0].address);
    let body = format!(r#"{{"state": "{state}"}}"#);
    assert_eq!(gateway.call(Method::PUT, &path, &body).await.status, 200);
}

/// Says something about a server until it is told: from then on nothing is missed.
async fn heard(gateway: &Gateway, lines: &mut Lines<BufReader<ChildStdout>>) -> String {
    let said = async {
        loop {
            say(gateway, "maint").await;
            let next = lines.next_line();
            if let Ok(line) = tokio::time::timeout(Duration::from_millis(50), next).await {
                return line.unwrap().unwrap();
            }
        }
    };
    let first = within("events come", SOON, said).await;
    say(gateway, "ready").await;
    first
}

impl Listener {
    pub(super) async fn start(gateway: &Gateway) -> Self {
        let (child, mut lines) = start(gateway, &["--json"]);
        heard(gateway, &mut lines).await;
        Self { child, lines }
    }

    /// The next event of this kind; ids count up.
    pub(super) async fn next(&mut self, kind: &str) -> Value {
        let next = async {
            let mut last = None;
            loop {
                let line = self.lines.next_line().await.unwrap().unwrap();
                let event: Value = serde_json::from_str(&line).unwrap();
                let id = event["id"].as_u64().unwrap();
                assert!(
                    last.is_none_or(|last| id == last + 1),
                    "{id} after {last:?}"
                );
                last = Some(id);
                if event["event"] == kind {
                    return event;
                }
            }
        };
        within(&format!("an event {kind}"), SOON, next).await
    }

    async fn ended(mut self) -> Option<i32> {
        let status = within("wsctl ends", SOON, self.child.wait()).await;
        status.unwrap().code()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_matters_is_told_in_order() {
    let site = Site::start().await;
    let gateway = Gateway::start(&site.config(UNWATCHED, "")).await;
    let mut listener = Listener::start(&gateway).await;
    let back = loop {
        let server = listener.next("server").await;
        if server["state"] == "ready" {
            break server;
        }
    };
    assert_eq!(
        (&back["was"], &back["upstream"]),
        (&"maint".into(), &"chat".into())
    );

    gateway.edit("workers = 0\n");
    assert_eq!(gateway.reload().await.status, 422);
    let failed = listener.next("reload").await;
    assert_eq!(
        (&failed["by"], &failed["result"]),
        (&"admin".into(), &"failed".into())
    );

    gateway.edit(&site.config(UNWATCHED, "[stop]\ngrace = \"1s\"\n"));
    let generation = gateway.reloaded().await.generation;
    let starting = listener.next("generation").await;
    assert_eq!(
        (&starting["generation"], &starting["state"]),
        (&generation.into(), &"starting".into())
    );
    let worker = listener.next("worker").await;
    assert_eq!(
        (&worker["state"], &worker["generation"]),
        (&"started".into(), &generation.into())
    );
    let active = listener.next("generation").await;
    assert_eq!(
        (&active["generation"], &active["state"]),
        (&generation.into(), &"active".into())
    );
    let draining = listener.next("generation").await;
    assert_eq!(
        (&draining["generation"], &draining["state"]),
        (&1.into(), &"draining".into())
    );
    assert_eq!(listener.next("reload").await["result"], "reloaded");
    assert_eq!(listener.next("generation").await["state"], "gone");

    let victim = gateway.active_workers().await[0].pid;
    process::signal(victim, Signal::KILL);
    let ended = loop {
        let worker = listener.next("worker").await;
        if worker["pid"] == victim && worker["state"] == "ended" {
            break worker;
        }
    };
    assert_eq!(ended["tunnels"], 0);
    assert!(ended["how"].as_str().unwrap().contains("KILL"), "{ended}");

    gateway.signal(Signal::TERM);
    assert_eq!(listener.next("stop").await["tunnels"], 0);
    assert_eq!(listener.ended().await, Some(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_get_a_line_for_each_and_an_interrupt_is_the_end() {
    let site = Site::start().await;
    let gateway = Gateway::start(&site.config(UNWATCHED, "")).await;
    let (child, mut lines) = start(&gateway, &[]);
    let line = heard(&gateway, &mut lines).await;
    let server = format!("server chat/{} is maint, was ready", site.address(0));
    assert!(line.ends_with(&server), "{line}");
    process::signal(child.id().unwrap(), Signal::INT);
    let output = within("wsctl ends", SOON, child.wait_with_output())
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_the_supervisor_is_told() {
    let site = Site::start().await;
    let gateway = Gateway::start(&site.config(UNWATCHED, "")).await;
    let (child, mut lines) = start(&gateway, &[]);
    heard(&gateway, &mut lines).await;
    drop(gateway);
    let output = within("wsctl ends", SOON, child.wait_with_output())
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let said = gateway::stderr(&output);
    assert!(said.contains("the supervisor has ended, at "), "{said}");
    let nobody = gateway::ctl(&["--socket", "/no/such/admin.sock", "events"]).await;
    assert_eq!(nobody.status.code(), Some(3));
}
