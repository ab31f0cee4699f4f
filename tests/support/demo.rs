//! `wsgate demo`, as started from a terminal.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use http::Method;
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use super::admin::over_tcp;
use super::process;
use super::wait::{SOON, until, within};

/// A running demo. Dropping it kills it: a test that ends well has stopped it before.
pub(crate) struct Demo {
    pub(crate) child: Child,
    _stdout: BufReader<ChildStdout>,
    /// What it printed before the log.
    pub(crate) said: String,
    /// Where the page is, as `127.0.0.1:40000`.
    pub(crate) address: String,
}

impl Demo {
    pub(crate) async fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_wsgate"))
            .args(["demo", "--listen", "127.0.0.1:0"])
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut said = String::new();
        let introduction = async {
            while !said.contains("Ctrl-C") {
                assert!(
                    stdout.read_line(&mut said).await.unwrap() > 0,
                    "it ended: {said}"
                );
            }
        };
        within("the demo introduces itself", SOON, introduction).await;
        let (_, rest) = said.split_once("http://").unwrap();
        let address = rest.split(['/', ' ', '\n']).next().unwrap().to_owned();
        let mut demo = Self {
            child,
            _stdout: stdout,
            said,
            address,
        };
        demo.until_served().await;
        demo
    }

    /// The address is printed before the gateway listens.
    async fn until_served(&mut self) {
        let address = self.address.clone();
        until("the page is served", SOON, async || {
            assert!(self.child.try_wait().unwrap().is_none(), "the demo ended");
            over_tcp(&address, Method::GET, "/")
                .await
                .is_ok_and(|answer| answer.status == 200)
        })
        .await;
    }

    /// The supervisor's process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// Ctrl-C, as a terminal sends it. It must be over within three seconds.
    pub(crate) async fn interrupt(&mut self) -> ExitStatus {
        process::signal(self.pid(), Signal::INT);
        within("the demo ends", Duration::from_secs(3), self.child.wait())
            .await
            .unwrap()
    }

    /// What follows this word on a line of the introduction.
    pub(crate) fn after(&self, word: &str) -> &str {
        let (_, rest) = self
            .said
            .split_once(word)
            .unwrap_or_else(|| panic!("{}", self.said));
        rest.split_whitespace().next().unwrap()
    }
}
