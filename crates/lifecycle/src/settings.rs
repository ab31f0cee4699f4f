//! The times that govern the machine.

use std::time::Duration;

/// Times that govern the machine.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A worker has to be ready within this.
    pub ready_within: Duration,
    /// A slot that nobody serves for so long is given to another worker.
    pub vacant_for: Duration,
    /// Pause before the first restart in a slot; it doubles with each death.
    pub backoff_first: Duration,
    /// Longest such pause.
    pub backoff_most: Duration,
    /// A restarted worker whose slot another one serves has to live for so long before it accepts.
    pub proving_for: Duration,
    /// A worker that was active for so long has no deaths to its account any more.
    pub settled_after: Duration,
    /// Retired sockets are accepted from for so long at least: a handshake whose SYN-ACK
    /// was lost twice is three seconds late.
    pub retired_for: Duration,
    /// What a draining worker gets beyond its deadline, for polite closes, until it is killed.
    pub overtime: Duration,
    /// A worker that dies so soon after its start has crashed.
    pub crash_within: Duration,
    /// After so many crashes in a row a slot waits for [`Settings::crash_pause`] between two starts.
    pub crashes: u32,
    /// How long it waits then, as long as others serve.
    pub crash_pause: Duration,
    /// A worker that was told to abort is killed after this: a core dump takes its time.
    pub abort_within: Duration,
    /// How often one worker that drains is paired with a taker of its tunnels, with those that are there.
    pub handover_tries: u32,
    /// How often it has these tries, for each commit: once more when a worker accepts that was not there at the last.
    pub handover_rounds: u32,
    /// Before it is paired anew after a handover that broke off although the taker lives.
    pub handover_pause: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ready_within: Duration::from_secs(10),
            vacant_for: Duration::from_millis(500),
            backoff_first: Duration::from_millis(100),
            backoff_most: Duration::from_secs(10),
            proving_for: Duration::from_secs(1),
            settled_after: Duration::from_secs(10),
            retired_for: Duration::from_secs(4),
            overtime: Duration::from_secs(5),
            crash_within: Duration::from_secs(60),
            crashes: 5,
            crash_pause: Duration::from_secs(60),
            abort_within: Duration::from_secs(2),
            handover_tries: 3,
            handover_rounds: 3,
            handover_pause: Duration::from_secs(1),
        }
    }
}
