//! Faults on demand, for the tests; debug builds only.
//!
//! `WSGATE_TEST_HOOKS` names a file. Each of its lines is `crash-at-start`,
//! `never-ready` or `crash-at-ready`, with ` slot=N` for one slot alone.

/// Before anything has been built.
pub(crate) fn at_start(slot: usize) {
    if wanted("crash-at-start", slot) {
        std::process::abort();
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

fn wanted(fault: &str, slot: usize) -> bool {
    if !cfg!(debug_assertions) {
        return false;
    }
    let Some(file) = std::env::var_os("WSGATE_TEST_HOOKS") else {
        return false;
    };
    let text = std::fs::read_to_string(file).unwrap_or_else(|_| String::new());
    text.lines()
        .any(|line| line == fault || line == format!("{fault} slot={slot}"))
}
