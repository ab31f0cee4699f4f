//! The other languages' programs: where they are, and how they are run.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::support::wait::{SOON, eventually, within};

/// 32 MiB there and back, deflated and inflated, on a busy machine.
const CLIENT_LIMIT: Duration = Duration::from_secs(120);

fn tools() -> PathBuf {
    let installed = std::env::var_os("WSGATE_TEST_TOOLS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools"),
        PathBuf::from,
    );
    assert!(
        installed.is_dir(),
        "{} is not there: `scripts/test` installs what these tests need",
        installed.display()
    );
    installed
}

/// A command that runs this program (`client`, `server`, `browser`) in this language.
pub(crate) fn command(language: &str, program: &str) -> Command {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers");
    let mut command = match language {
        "python" => {
            let mut command = Command::new(tools().join("python/bin/python"));
            command.arg(scripts.join(format!("python/{program}.py")));
            command
        }
        _ => {
            let mut command = Command::new("node");
            command.env("NODE_PATH", tools().join("node/node_modules"));
            command.arg(scripts.join(format!("node/{program}.cjs")));
            command
        }
    };
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs a client to its end, and returns what it met.
pub(crate) async fn client(language: &str, url: &str) -> Value {
    let running = command(language, "client").arg(url).output();
    let output = within("the client ends", CLIENT_LIMIT, running)
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the client of {language}: {said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A running echo server. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: String,
    said: Arc<Mutex<Vec<String>>>,
    _child: Child,
}

impl Server {
    pub(crate) async fn start(language: &str) -> Self {
        let mut child = command(language, "server")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&said);
        tokio::spawn(async move {
            let mut reader = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = reader.next_line().await {
                lines.lock().unwrap().push(line);
            }
        });
        let port = eventually("the server listens", SOON, async || {
            let said = said.lock().unwrap();
            said.iter()
                .find_map(|line| line.strip_prefix("port ").map(str::to_owned))
        })
        .await;
        Self {
            address: format!("127.0.0.1:{port}"),
            said,
            _child: child,
        }
    }

    /// Whether it has printed this line.
    pub(crate) fn said(&self, line: &str) -> bool {
        self.said.lock().unwrap().iter().any(|said| said == line)
    }
}
