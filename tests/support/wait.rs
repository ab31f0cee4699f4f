//! Waiting for a state, always with a deadline. A test never sleeps for a time in the
//! hope that something has happened by then.

use std::time::{Duration, Instant};

/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// Long enough for anything that should happen at once, on a busy machine too.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Looks until `probe` finds something, and fails the test after `limit`.
pub(crate) async fn eventually<T>(
    what: &str,
    limit: Duration,
    mut probe: impl AsyncFnMut() -> Option<T>,
) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(started.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Looks until `condition` holds, and fails the test after `limit`.
pub(crate) async fn until(what: &str, limit: Duration, mut condition: impl AsyncFnMut() -> bool) {
    eventually(what, limit, async || condition().await.then_some(())).await;
}

/// Waits for an event, and fails the test after `limit`.
pub(crate) async fn within<T>(what: &str, limit: Duration, event: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, event).await {
        Ok(value) => value,
        Err(_) => panic!("not within {limit:?}: {what}"),
    }
}

/// Looks for the whole of `span`, and fails the test if `condition` ever does not hold.
/// For what must not happen: there is no event to wait for.
pub(crate) async fn all_along(
    what: &str,
    span: Duration,
    mut condition: impl AsyncFnMut() -> bool,
) {
    let started = Instant::now();
    while started.elapsed() < span {
        assert!(
            condition().await,
            "not so after {:?}: {what}",
            started.elapsed()
        );
        tokio::time::sleep(PAUSE).await;
    }
}
