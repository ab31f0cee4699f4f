//! The demo's page in a headless Chromium: what a visitor of the demo sees.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout};

use crate::support::demo::Demo;
use crate::support::gateway::{ctl, stderr};
use crate::support::wait::within;
use crate::tools::command;

/// A browser's start is slow where nothing of it is in the page cache.
const LIMIT: Duration = Duration::from_secs(60);

/// Two tabs with the page open.
struct Tabs {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Tabs {
    fn open(url: &str, screenshot: &Path) -> Self {
        let mut child = command("node", "browser")
            .arg(url)
            .arg(screenshot)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            stdin: child.stdin.take().unwrap(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    /// The next thing that the browser tells.
    async fn tell(&mut self) -> Value {
        let mut line = String::new();
        let read = self.stdout.read_line(&mut line);
        assert!(
            within("the browser answers", LIMIT, read).await.unwrap() > 0,
            "it ended"
        );
        serde_json::from_str(&line).unwrap()
    }

    /// Says something in the first tab, and waits until the second shows it.
    async fn say(&mut self, text: &str) -> Value {
        self.stdin
            .write_all(format!("{text}\n").as_bytes())
            .await
            .unwrap();
        let told = self.tell().await;
        assert_eq!(told["heard"], text);
        told
    }

    async fn close(mut self) {
        drop(self.stdin);
        let ended = within("the browser ends", LIMIT, self.child.wait())
            .await
            .unwrap();
        assert!(ended.success(), "{ended}");
    }
}

/// Writes the configuration with one more value, and waits until it runs.
async fn reload(config: &str, original: &str, socket: &str, number: u32) {
    let text = format!("{original}\n[limits]\nhandshake_timeout = \"{number}0s\"\n");
    std::fs::write(config, text).unwrap();
    // The watch may have been faster; then it is unchanged, and so done.
    let output = ctl(&["--socket", socket, "reload"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tabs_chat_on_the_same_sockets_through_three_reloads() {
    let mut demo = Demo::start().await;
    let config = demo.after("configuration is").to_owned();
    let socket = demo.after("--socket").to_owned();
    let screenshot = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../demo.png");
    let mut tabs = Tabs::open(&format!("http://{}/", demo.address), &screenshot);
    let opened = tabs.tell().await;
    let told = tabs.say("Hello from the first tab").await;
    assert_eq!(told["tabs"], opened["tabs"]);
    let original = std::fs::read_to_string(&config).unwrap();
    // The default is ten seconds.
    for number in 2..=4 {
        reload(&config, &original, &socket, number).await;
        let told = tabs
            .say(&format!("Still the same socket after reload {number}"))
            .await;
        assert_eq!(
            told["tabs"], opened["tabs"],
            "the same sockets, open since the same moment"
        );
        assert_eq!(told["problems"], serde_json::json!([]));
    }
    for tab in opened["tabs"].as_array().unwrap() {
        assert_eq!(tab["state"], "open");
        assert_eq!(
            (tab["reconnects"].as_str(), tab["socket"].as_str()),
            (Some("0"), Some("1"))
        );
        assert!(tab["since"].as_str().unwrap().ends_with('Z'), "{tab}");
    }
    let output = ctl(&["--socket", &socket, "tunnels", "--json"]).await;
    let held: Value = serde_json::from_slice(&output.stdout).unwrap();
    let held = held.as_array().unwrap();
    let moves: Vec<_> = held
        .iter()
        .map(|tunnel| tunnel["handovers"].as_u64())
        .collect();
    assert_eq!(moves, [Some(3); 2], "both have moved with each reload");
    tabs.close().await;
    assert!(std::fs::metadata(&screenshot).unwrap().len() > 10_000);
    assert!(demo.interrupt().await.success());
}
