use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::*;
use crate::channel::Channel;
use crate::pipe::pipe;
use crate::testing::{helper, passes, runtime, until};

fn shell(script: &str, stdin: OwnedFd) -> Process {
    let spawn = Spawn {
        arg0: "wsgate: test",
        args: &["-c", script],
        stdin,
    };
    spawn_program(Path::new("/bin/sh"), spawn).unwrap()
}

/// A process that lives until the returned end is dropped.
fn waiting() -> (Process, OwnedFd) {
    let (read, write) = pipe().unwrap();
    (shell("read line", read), write)
}

#[test]
fn an_exit_is_seen_with_its_code_and_told_again() {
    runtime().block_on(async {
        let (read, _write) = pipe().unwrap();
        let process = shell("exit 3", read);
        assert_eq!(process.wait().await.unwrap(), Exit::Code(3));
        assert_eq!(process.wait().await.unwrap(), Exit::Code(3));
        assert!(process.signal(Signal::SIGKILL).is_err());
    });
}

#[test]
fn a_process_that_was_killed_tells_the_signal() {
    runtime().block_on(async {
        let (process, _stdin) = waiting();
        let waited = tokio::time::timeout(Duration::from_millis(5), process.wait()).await;
        assert!(waited.is_err());
        process.signal(Signal::SIGKILL).unwrap();
        assert_eq!(process.wait().await.unwrap(), Exit::Signal(9));
    });
}

#[test]
fn a_real_time_signal_is_an_exit_too() {
    runtime().block_on(async {
        let (read, _write) = pipe().unwrap();
        let process = shell("kill -40 $$", read);
        assert_eq!(process.wait().await.unwrap(), Exit::Signal(40));
    });
}

#[test]
fn exits_read_as_people_say_them() {
    assert_eq!(Exit::Code(3).to_string(), "exit code 3");
    assert_eq!(Exit::Signal(9).to_string(), "signal 9 (SIGKILL)");
    assert_eq!(Exit::Unknown.to_string(), "unknown exit status");
}

#[test]
fn the_end_of_a_process_that_is_no_child_is_seen() {
    runtime().block_on(async {
        // The shell leaves a grandchild behind, which ends when our pipe does.
        let (read, write) = pipe().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        // In the background, descriptor 0 would be /dev/null.
        let script = format!(
            "exec 3<&0; cat <&3 >/dev/null & echo $! > {}",
            file.display()
        );
        assert_eq!(shell(&script, read).wait().await.unwrap(), Exit::Code(0));
        let pid = fs::read_to_string(file).unwrap().trim().parse().unwrap();
        let grandchild = Process::open(pid).unwrap();
        assert_eq!(grandchild.pid(), pid);
        drop(write);
        assert_eq!(grandchild.wait().await.unwrap(), Exit::Unknown);
    });
}

#[test]
fn a_program_that_cannot_be_started_is_an_error() {
    runtime().block_on(async {
        let (stdin, _write) = pipe().unwrap();
        let spawn = Spawn {
            arg0: "x",
            args: &[],
            stdin,
        };
        let error = spawn_program(Path::new("/nonexistent"), spawn).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    });
}

#[test]
fn the_running_image_is_started_with_its_channel_as_stdin() {
    let environment = [
        ("NOTIFY_SOCKET", "/nonexistent"),
        ("LISTEN_FDS", "1"),
        ("WATCHDOG_USEC", "1"),
        ("KEPT", "yes"),
    ];
    passes(helper("process::tests::helper_parent").envs(environment));
}

#[test]
#[ignore = "run by the_running_image_is_started_with_its_channel_as_stdin"]
fn helper_parent() {
    runtime().block_on(async {
        let (channel, stdin) = Channel::pair().unwrap();
        let spawn = Spawn {
            arg0: "wsgate: worker 0 gen 3",
            args: &["--exact", "process::tests::helper_child", "--ignored"],
            stdin,
        };
        let child = spawn_self(spawn).unwrap();
        let (bytes, fds) = channel.recv().await.unwrap().unwrap();
        let mut report = String::new();
        File::from(fds.into_iter().next().unwrap())
            .read_to_string(&mut report)
            .unwrap();
        assert_eq!(bytes, b"ready");
        assert_eq!(report, "wsgate: worker 0 gen 3 | KEPT");
        assert!(channel.recv().await.unwrap().is_none());
        assert_eq!(child.wait().await.unwrap(), Exit::Code(0));
    });
}

#[test]
#[ignore = "run by helper_parent"]
fn helper_child() {
    runtime().block_on(async {
        let channel = Channel::from_fd(take_stdin().unwrap()).unwrap();
        let wanted = |name: &String| is_systemds(name) || name == "KEPT";
        let mut names: Vec<_> = std::env::vars().map(|(name, _)| name).collect();
        names.retain(wanted);
        let arg0 = std::env::args().next().unwrap();
        let report = format!("{arg0} | {}", names.join(" "));
        let fd = crate::memfd::sealed("report", report.as_bytes()).unwrap();
        // The receiver reads on from the shared offset.
        use std::io::Seek;
        File::from(fd.try_clone().unwrap()).rewind().unwrap();
        channel.send(b"ready", &[fd.as_fd()]).await.unwrap();
        // Nothing of the channel is left at descriptor 0.
        assert_eq!(io::stdin().lines().count(), 0);
    });
}

#[test]
fn a_name_is_cut_at_15_bytes_between_characters() {
    let named = |name: &'static str| {
        std::thread::spawn(move || {
            set_name(name).unwrap();
            fs::read_to_string("/proc/thread-self/comm").unwrap()
        })
        .join()
        .unwrap()
    };
    assert_eq!(named("wsgate: worker 12 gen 3"), "wsgate: worker \n");
    assert_eq!(named("fourteen bytesé"), "fourteen bytes\n");
    assert_eq!(named("a\0b"), "a\n");
}

#[test]
fn a_started_process_is_told_by_its_name_and_takes_nothing_once_gone() {
    runtime().block_on(async {
        let (process, _stdin) = waiting();
        let arguments = format!("/proc/{}/cmdline", process.pid());
        // The kernel lets the parent go on a moment before the arguments are in place.
        until(|| fs::read(&arguments).unwrap().starts_with(b"wsgate: test\0"));
        assert!(usage(process.pid()).is_some());
        process.signal(Signal::SIGTERM).unwrap();
        assert_eq!(process.wait().await.unwrap(), Exit::Signal(15));
        assert_eq!(usage(process.pid()), None);
    });
}

#[test]
fn spawning_does_not_fork() {
    passes(&mut helper("process::tests::helper_spawns_without_fork"));
}

/// Handlers of pthread_atfork(3) run in fork(3), and not in posix_spawn(3).
static FORKS: AtomicU32 = AtomicU32::new(0);

extern "C" fn count_fork() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

#[test]
#[ignore = "run by spawning_does_not_fork"]
fn helper_spawns_without_fork() {
    // SAFETY: the handler is async-signal-safe and lives as long as the program.
    let registered = unsafe { libc::pthread_atfork(Some(count_fork), None, None) };
    assert_eq!(registered, 0);
    runtime().block_on(async {
        let (read, _write) = pipe().unwrap();
        let process = shell("exit 0", read);
        process.wait().await.unwrap();
    });
    assert_eq!(FORKS.load(Ordering::Relaxed), 0);

    // The test can see a fork: this is how std is made to.
    let uid = nix::unistd::getuid().as_raw();
    Command::new("/bin/true").uid(uid).status().unwrap();
    assert_eq!(FORKS.load(Ordering::Relaxed), 1);
}
