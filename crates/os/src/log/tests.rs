use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use tracing::subscriber::with_default;
use tracing::{debug, error, info, info_span, warn};

use super::*;
use crate::pipe::pipe;
use crate::testing::{helper, until};

fn settings() -> LogSettings {
    LogSettings {
        level: Level::INFO,
        json: false,
        file: None,
        process: "worker 0 gen 3".to_owned(),
        access: true,
    }
}

/// What `events` logs with these settings.
fn logged(settings: LogSettings, events: impl FnOnce(&LogHandle)) -> String {
    let (read, write) = pipe().unwrap();
    let (subscriber, handle) = build(settings, Output::to(write), false).unwrap();
    with_default(subscriber, || events(&handle));
    drop(handle);
    taken(read)
}

/// What is in a pipe by now: its writer, the log's thread, lives on.
fn taken(read: OwnedFd) -> String {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let mut bytes = Vec::new();
    let end = File::from(read).read_to_end(&mut bytes).unwrap_err();
    assert_eq!(end.kind(), io::ErrorKind::WouldBlock);
    String::from_utf8(bytes).unwrap()
}

/// A pipe that nobody reads, full but for less than a page.
fn full_pipe() -> (OwnedFd, OwnedFd) {
    use nix::fcntl::{FcntlArg, fcntl};
    let (read, write) = pipe().unwrap();
    let size = fcntl(&write, FcntlArg::F_GETPIPE_SZ).unwrap();
    let mut file = File::from(write);
    file.write_all(&vec![b'.'; size as usize]).unwrap();
    (read, file.into())
}

#[test]
fn a_line_tells_time_level_process_target_and_fields() {
    let text = logged(settings(), |_| {
        let span = info_span!("tunnel", id = 7);
        span.in_scope(|| warn!(target: "wsgate_proxy::dial", server = "a:1", "refused"));
    });
    let (time, rest) = text.split_once(' ').unwrap();
    assert_eq!(time.len(), "2026-01-31T12:00:00.000Z".len(), "{time}");
    assert!(humantime::parse_rfc3339(time).is_ok(), "{time}");
    assert_eq!(
        rest,
        " WARN worker 0 gen 3 wsgate_proxy::dial: tunnel{id=7}: refused server=\"a:1\"\n"
    );
}

#[test]
fn json_lines_hold_the_same() {
    let settings = LogSettings {
        json: true,
        process: "quoted \"name\"".to_owned(),
        ..settings()
    };
    let text = logged(
        settings,
        |_| info!(target: "wsgate::x", n = 3, "two\nlines"),
    );
    assert_eq!(text.lines().count(), 1);
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["process"], "quoted \"name\"");
    assert_eq!(line["level"], "INFO");
    assert_eq!(line["target"], "wsgate::x");
    assert_eq!(line["message"], "two\nlines");
    assert_eq!(line["n"], 3);
    let time = line["timestamp"].as_str().unwrap();
    assert_eq!(time.len(), "2026-01-31T12:00:00.000Z".len());
}

#[test]
fn a_peer_can_neither_forge_a_line_nor_steer_the_terminal() {
    let text = logged(settings(), |_| {
        info!(target: "wsgate", path = %"/a\n2026 ERROR \x1b[2Jx\u{9b}", "é");
    });
    assert_eq!(text.lines().count(), 1);
    assert!(text.contains("é path=/a\\n2026 ERROR "), "{text}");
    assert!(!text.trim_end().contains(char::is_control), "{text}");
}

#[test]
fn access_lines_are_apart_from_the_level() {
    let events = |_: &LogHandle| {
        info!(target: ACCESS, "access");
        info!(target: "wsgate_proxy", "own");
        error!(target: "wsgate_proxy", "own");
    };
    let count = |level, access| {
        let settings = LogSettings {
            level,
            access,
            ..settings()
        };
        let text = logged(settings, events);
        let of = |what: &str| text.lines().filter(|line| line.ends_with(what)).count();
        (of("access"), of("own"))
    };
    assert_eq!(count(Level::INFO, true), (1, 2));
    assert_eq!(count(Level::ERROR, true), (1, 1));
    assert_eq!(count(Level::INFO, false), (0, 2));
}

#[test]
fn the_level_changes_while_running_and_libraries_stay_at_info() {
    let text = logged(settings(), |handle| {
        let both = |n| {
            debug!(target: "wsgate_worker", n);
            debug!(target: "hyper", n);
            info!(target: "hyper", n);
        };
        both(1);
        handle.set_level(Level::DEBUG).unwrap();
        both(2);
        handle.set_level(Level::ERROR).unwrap();
        both(3);
        info!(target: ACCESS, n = 4);
    });
    let lines: Vec<_> = text.lines().map(|line| &line[25..]).collect();
    assert_eq!(
        lines,
        [
            " INFO worker 0 gen 3 hyper: n=1",
            "DEBUG worker 0 gen 3 wsgate_worker: n=2",
            " INFO worker 0 gen 3 hyper: n=2",
            " INFO worker 0 gen 3 wsgate::access: n=4",
        ]
    );
}

#[test]
fn a_rotated_file_is_opened_anew_and_appended_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    fs::write(&path, "old\n").unwrap();
    let settings = LogSettings {
        file: Some(path.clone()),
        ..settings()
    };
    let output = Output::file(&path).unwrap();
    let (subscriber, handle) = build(settings, output, false).unwrap();
    with_default(subscriber, || {
        info!(target: "wsgate", "one");
        handle.queue.flush(FLUSH_LIMIT);
        fs::rename(&path, dir.path().join("log.1")).unwrap();
        info!(target: "wsgate", "two");
        handle.queue.flush(FLUSH_LIMIT);
        handle.reopen().unwrap();
        info!(target: "wsgate", "three");
        handle.queue.flush(FLUSH_LIMIT);
        // What cannot be opened leaves the log where it is.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let error = handle.reopen().unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    });
    assert_eq!(handle.dropped(), 0);
    let rotated = fs::read_to_string(dir.path().join("log.1")).unwrap();
    let ends: Vec<_> = rotated
        .lines()
        .filter_map(|l| l.rsplit(' ').next())
        .collect();
    assert_eq!(ends, ["old", "one", "two"]);
}

#[test]
fn a_reopened_file_gets_what_comes_after() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let settings = LogSettings {
        file: Some(path.clone()),
        ..settings()
    };
    let output = Output::file(&path).unwrap();
    let (subscriber, handle) = build(settings, output, false).unwrap();
    with_default(subscriber, || {
        fs::rename(&path, dir.path().join("log.1")).unwrap();
        handle.reopen().unwrap();
        info!(target: "wsgate", "three");
    });
    drop(handle);
    assert!(fs::read_to_string(&path).unwrap().ends_with("three\n"));
    assert_eq!(fs::read(dir.path().join("log.1")).unwrap(), b"");
}

#[test]
fn a_reader_that_stops_blocks_nobody_and_lines_are_counted() {
    let (read, write) = full_pipe();
    let (subscriber, handle) = build(settings(), Output::to(write), false).unwrap();
    let long = "x".repeat(2000);
    with_default(subscriber, || {
        for _ in 0..10_000 {
            info!(target: "wsgate", "{long}");
        }
    });
    let dropped = handle.dropped();
    assert!(dropped > 5000, "{dropped} lines dropped");
    // It reads again: the rest arrives, whole.
    let reader = std::thread::spawn(move || {
        let mut file = File::from(read);
        let mut bytes = vec![0; 1 << 20];
        let mut lines = 0;
        while lines < 10_000 - dropped {
            let length = file.read(&mut bytes).unwrap();
            lines += bytes[..length].iter().filter(|b| **b == b'\n').count() as u64;
        }
    });
    reader.join().unwrap();
    until(|| {
        handle.queue.flush(FLUSH_LIMIT);
        handle.dropped() == dropped
    });
}

#[test]
fn the_end_waits_for_a_reader_that_stopped_less_than_a_second() {
    let (_read, write) = full_pipe();
    let (subscriber, handle) = build(settings(), Output::to(write), false).unwrap();
    with_default(subscriber, || info!(target: "wsgate", "last words"));
    let start = Instant::now();
    drop(handle);
    assert!(start.elapsed() >= FLUSH_LIMIT);
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_process_ends_though_nobody_reads_its_stderr() {
    let (_read, write) = full_pipe();
    let start = Instant::now();
    let status = helper("log::tests::helper_logs_and_exits")
        .env("LINES", "100000")
        .stdout(Stdio::null())
        .stderr(write)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(7));
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn a_process_writes_its_last_lines_before_it_ends() {
    let output = helper("log::tests::helper_logs_and_exits")
        .env("LINES", "2000")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(7));
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 2000);
    assert!(text.ends_with("n=1999\n"));
    assert!(!text.contains('\x1b'), "stderr is no terminal");
}

#[test]
#[ignore = "run by the tests of a process's end"]
fn helper_logs_and_exits() {
    let lines: u32 = std::env::var("LINES").unwrap().parse().unwrap();
    let handle = init(settings()).unwrap();
    for n in 0..lines {
        info!(target: "wsgate", n);
    }
    let start = Instant::now();
    drop(handle);
    assert!(start.elapsed() < Duration::from_secs(1));
    std::process::exit(7);
}

#[test]
fn lines_that_cannot_be_written_are_counted() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let (subscriber, handle) = build(settings(), Output::to(full.into()), false).unwrap();
    with_default(subscriber, || info!(target: "wsgate", "x"));
    handle.queue.flush(FLUSH_LIMIT);
    assert_eq!(handle.dropped(), 1);
}

#[test]
fn a_stderr_that_somebody_made_non_blocking_loses_nothing() {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let (read, write) = full_pipe();
    fcntl(&write, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let (subscriber, handle) = build(settings(), Output::to(write), false).unwrap();
    with_default(subscriber, || info!(target: "wsgate", "kept"));
    let mut file = File::from(read);
    let mut text = String::new();
    while !text.ends_with("kept\n") {
        let mut bytes = [0; 4096];
        let length = file.read(&mut bytes).unwrap();
        text.push_str(std::str::from_utf8(&bytes[..length]).unwrap());
    }
    assert_eq!(handle.dropped(), 0);
}

#[test]
fn a_file_that_cannot_be_opened_is_named() {
    let settings = LogSettings {
        file: Some(Path::new("/nonexistent/log").to_owned()),
        ..settings()
    };
    let error = init(settings).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/log"), "{error}");
}
