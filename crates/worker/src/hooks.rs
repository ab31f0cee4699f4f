//! Faults on demand, for the tests; debug builds only.
//!
//! `WSGATE_TEST_HOOKS` names a file. Each of its lines is `crash-at-start`, `wait-at-start`,
//! `never-ready` or `crash-at-ready`, with ` slot=N` or ` pid=N` for one alone. Those are looked
//! at when a worker starts; `loop`, `wait` and `busy=MILLISECONDS` at any time.
//!
//! For a handover's batches, counted from 1: `give-crash=N` and `give-wait=N` before batch N is sent, `given-crash=N` behind
//! that, `take-crash=N` and `take-wait=N` before it is acknowledged, `taken-crash=N` behind that. A crash takes all lines with it, so that
//! there is no second one; what waits, waits until its line is gone.

use std::time::{Duration, Instant};

/// Before anything has been built.
pub(crate) fn at_start(slot: usize) {
    if wanted("crash-at-start", slot) {
        std::process::abort();
    }
    while wanted("wait-at-start", slot) {
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// Whether the worker must never say that it is ready.
pub(crate) fn never_ready(slot: usize) -> bool {
    wanted("never-ready", slot)
}

/// Right after `ready` has been said.
pub(crate) fn at_ready(slot: usize) {
    if wanted("crash-at-ready", slot) {
        std::process::abort();
    }
}

/// Now and then, on the runtime.
pub(crate) fn at_beat(slot: usize) {
    if wanted("loop", slot) {
        loop {
            std::hint::spin_loop();
        }
    }
    if wanted("wait", slot) {
        loop {
            std::thread::park();
        }
    }
    let busy = argument("busy=", slot).and_then(|text| text.parse().ok());
    if let Some(milliseconds) = busy {
        let until = Instant::now() + Duration::from_millis(milliseconds);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
    }
}

/// The tunnels of a batch have left their tasks.
pub(crate) fn at_give(slot: usize, batch: u64) {
    crash_or_wait("give", slot, batch);
}

/// The batch has been sent.
pub(crate) fn at_given(slot: usize, batch: u64) {
    crash_or_wait("given", slot, batch);
}

/// A batch has come, and is not acknowledged yet.
pub(crate) fn at_take(slot: usize, batch: u64) {
    crash_or_wait("take", slot, batch);
}

/// The acknowledgement has been sent.
pub(crate) fn at_taken(slot: usize, batch: u64) {
    crash_or_wait("taken", slot, batch);
}

fn crash_or_wait(step: &str, slot: usize, batch: u64) {
    let batch = batch.to_string();
    let is_now = |fault: &str| argument(&format!("{step}-{fault}="), slot).as_ref() == Some(&batch);
    if is_now("crash") {
        if let Some(file) = std::env::var_os("WSGATE_TEST_HOOKS") {
            std::fs::write(file, "").unwrap_or_else(|error| tracing::error!(%error, "hooks stay"));
        }
        std::process::abort();
    }
    while is_now("wait") {
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

fn wanted(fault: &str, slot: usize) -> bool {
    argument(fault, slot).is_some_and(|rest| rest.is_empty())
}

/// What follows `fault` in a line that is meant for this slot.
fn argument(fault: &str, slot: usize) -> Option<String> {
    if !cfg!(debug_assertions) {
        return None;
    }
    let file = std::env::var_os("WSGATE_TEST_HOOKS")?;
    let text = std::fs::read_to_string(file).unwrap_or_else(|_| String::new());
    let mine = [
        format!("slot={slot}"),
        format!("pid={}", std::process::id()),
    ];
    let rests = text.lines().filter_map(|line| line.strip_prefix(fault));
    let mut split = rests.map(|rest| rest.split_once(' ').unwrap_or((rest, "")));
    let (rest, _) =
        split.find(|(_, whose)| whose.is_empty() || mine.iter().any(|it| it == whose))?;
    Some(rest.to_owned())
}
