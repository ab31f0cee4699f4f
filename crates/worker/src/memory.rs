//! What a burst of handshakes has needed goes back to the kernel when it is over, and so does what many tunnels leave that
//! come from another worker, or end.
//!
//! A handshake needs 45 KB for some milliseconds, a tunnel 1.5 KB for hours.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

/// How long no connection and no tunnel has come or gone. A tick that stands also spares a system call for each handshake:
/// the runtime wakes itself for a timer that is due before all others, and those of handshakes never are.
const QUIET: Duration = Duration::from_secs(1);

/// Looks every second at the number of those that have come and gone so far; for ever.
pub(crate) async fn give_back_when_quiet(count: impl Fn() -> u64) {
    let mut ticks = interval(QUIET);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut last, mut done) = (0, 0);
    loop {
        ticks.tick().await;
        let now = count();
        if now == last && now != done {
            wsgate_os::memory::give_back();
            done = now;
        }
        last = now;
    }
}
