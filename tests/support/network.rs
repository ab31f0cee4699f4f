//! Tests that change what belongs to the whole machine run in a network of their own, with nothing but
//! a loopback. Where none may be made they show nothing, and say so.

use std::ffi::OsStr;
use std::process::Command;

/// Set for what runs in a network of its own.
const OWN_NETWORK: &str = "WSGATE_TEST_OWN_NETWORK";

/// Runs an ignored test of this program in a network of its own.
#[expect(clippy::print_stderr, reason = "shown with --nocapture")]
pub(crate) fn run_alone(helper: &str) {
    let able = command("true".as_ref(), &[]).output();
    if !able.is_ok_and(|output| output.status.success()) {
        eprintln!("not shown: unshare(1) or ip(8) may not make a network here");
        return;
    }
    let tests = std::env::current_exe().unwrap();
    let args = ["--exact", helper, "--ignored", "--nocapture"];
    let output = command(tests.as_os_str(), &args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Fails a helper that somebody runs by hand.
pub(crate) fn assert_own() {
    let is_ours = std::env::var_os(OWN_NETWORK).is_some();
    assert!(is_ours, "it would change this machine's network");
}

fn command(program: &OsStr, args: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    let script = "ip link set lo up && exec \"$0\" \"$@\"";
    command.args(["--user", "--map-root-user", "--net", "sh", "-c", script]);
    command.arg(program).args(args).env(OWN_NETWORK, "1");
    command
}
