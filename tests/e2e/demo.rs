//! `wsgate demo`: what its user sees in the terminal and in the page.

use http::Method;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio_tungstenite::tungstenite::Message;

use crate::support::admin::over_tcp;
use crate::support::client::Client;
use crate::support::demo::Demo;
use crate::support::gateway::{ctl, stderr};
use crate::support::process;
use crate::support::wait::SOON;

struct Member {
    client: Client,
}

impl Member {
    async fn join(demo: &Demo) -> Self {
        let client = Client::open(&format!("ws://{}/chat", demo.address)).await;
        let mut member = Self { client };
        member.hears("welcome").await;
        member
    }

    /// The next message of this type.
    async fn hears(&mut self, kind: &str) -> Value {
        loop {
            let Message::Text(text) = self.client.receive().await else {
                continue;
            };
            let message: Value = serde_json::from_str(&text).unwrap();
            if message["type"] == kind {
                return message;
            }
        }
    }

    async fn says(&mut self, text: &str) {
        let message = json!({"type": "say", "text": text});
        self.client.send(Message::text(message.to_string())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_chat_goes_on_through_three_reloads_and_ctrl_c_ends_it_all() {
    let mut demo = Demo::start().await;
    let page = over_tcp(&demo.address, Method::GET, "/").await.unwrap();
    assert!(
        page.headers["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/html")
    );
    assert!(page.text().contains("id=\"status\""));
    let (mut one, mut two) = (Member::join(&demo).await, Member::join(&demo).await);
    let config = demo.after("configuration is").to_owned();
    let socket = demo.after("--socket").to_owned();
    for reload in 1..=3 {
        let text = std::fs::read_to_string(&config).unwrap();
        let edited = format!("{text}\n[limits]\nhandshake_timeout = \"{reload}0s\"\n");
        std::fs::write(&config, edited).unwrap();
        // The watch may have been faster; then it is unchanged, and so done.
        let output = ctl(&["--socket", &socket, "reload"]).await;
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        std::fs::write(&config, text).unwrap();
        let words = format!("after reload {reload}");
        one.says(&words).await;
        assert_eq!(two.hears("said").await["text"], words);
    }
    let processes = process::children(demo.pid());
    assert!(processes.len() >= 2);
    assert!(demo.interrupt().await.success());
    assert!(processes.values().all(process::Process::has_ended));
    assert!(
        !std::path::Path::new(&config).exists(),
        "its directory is removed"
    );
    let end = one.client.end(SOON).await;
    assert!(end.close.is_some(), "{end:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_that_the_terminal_shows_works() {
    let mut demo = Demo::start().await;
    let commands: Vec<String> = demo
        .said
        .lines()
        .filter(|line| line.contains(" ctl "))
        .map(|line| line.trim().to_owned())
        .collect();
    assert!(commands.len() >= 2, "{}", demo.said);
    for command in commands {
        let output = Command::new("sh")
            .args(["-c", &command])
            .output()
            .await
            .unwrap();
        assert!(output.status.success(), "{command}: {}", stderr(&output));
    }
    demo.interrupt().await;
}

#[tokio::test]
async fn a_taken_address_that_was_asked_for_is_refused() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = crate::support::gateway::wsgate(&["demo", "--listen", &address]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(&address), "{}", stderr(&output));
}
