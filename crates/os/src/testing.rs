//! Tests of what belongs to a whole process (limits, environment, signals,
//! exit) run a helper test in a child of their own.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};

/// The test binary, told to run the ignored test of this full name and no other.
pub(crate) fn helper(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]);
    command
}

/// Panics with the helper's output if it failed, or if there is no such helper.
pub(crate) fn passes(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// A runtime as the programs have it.
pub(crate) fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Waits for a state that nothing announces, at most 10 s.
pub(crate) fn until(mut state: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !state() {
        assert!(Instant::now() < deadline, "the state never came");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}
