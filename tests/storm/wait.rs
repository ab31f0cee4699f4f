//! Waiting for a state, with a limit; and the one kind of pause that is no waiting: a fault's own length.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks. A look may ask every worker.
const LOOK: Duration = Duration::from_millis(40);

/// Looks until nothing is amiss any more, and tells how long that took.
///
/// # Errors
/// What is amiss still after `limit`.
pub(crate) fn until(
    what: &str,
    limit: Duration,
    mut amiss: impl FnMut() -> Option<String>,
) -> io::Result<Duration> {
    let began = Instant::now();
    while let Some(problem) = amiss() {
        if began.elapsed() > limit {
            return Err(io::Error::other(format!(
                "not within {limit:?}: {what}: {problem}"
            )));
        }
        thread::park_timeout(LOOK);
    }
    Ok(began.elapsed())
}

/// Lets so much time pass: how long a fault lasts, or until the next is due.
pub(crate) fn pass(time: Duration) {
    let until = Instant::now() + time;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        thread::park_timeout(left);
    }
}
