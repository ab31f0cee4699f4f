//! What happens, and what has to be done about it: both closed lists.

use std::time::Duration;

use crate::{Generation, Moment, Signs, WorkerId};

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A validated configuration wants a generation.
    Begin {
        /// Its number, higher than any before.
        generation: Generation,
        /// How many slots it has; at least 1.
        slots: usize,
        /// What the tunnels of the generation before it get.
        grace: Duration,
        /// Whether older generations give their live tunnels to its workers.
        handover: bool,
    },
    /// A worker said that it is ready.
    Ready(WorkerId),
    /// A worker holds nothing any more.
    Empty(WorkerId),
    /// A worker's process is gone, or could not be started.
    Exited(WorkerId),
    /// After [`Action::Retire`]: a worker has closed its listening sockets.
    Released(WorkerId),
    /// After [`Action::LetGo`]: a worker has accepted what waited, and closed its sockets.
    LetGo {
        /// The worker.
        worker: WorkerId,
        /// Whose commit retired them.
        retired: Generation,
    },
    /// After [`Action::HandOver`]: the giver says that its taker, which may live, takes nothing any more, and
    /// another try may go better.
    HandoverBroken {
        /// The giver.
        giver: WorkerId,
        /// It lies with the taker: another one is tried first.
        avoid: bool,
    },
    /// The gateway is to stop. A second one may shorten the first.
    Stop {
        /// Connections are accepted for so long still.
        accept_for: Duration,
        /// Tunnels may stay for so long after that.
        grace: Duration,
    },
    /// The supervisor has looked at its workers. This comes several times within `timeout`; if
    /// it comes late, the supervisor itself stood still, and nobody is blamed.
    Beat {
        /// A worker that shows no sign of life for so long is stuck.
        timeout: Duration,
        /// What was seen of each.
        signs: Vec<(WorkerId, Signs)>,
    },
    /// What an old generation holds may stay until then and no longer.
    Expire {
        /// The generation; one of [`crate::Lifecycle::surplus`].
        generation: Generation,
        /// Its new deadline, if it was later.
        deadline: Moment,
    },
    /// The operator wants slots whose workers crash to be tried again at once, and those who found no taker to
    /// have all their tries again.
    Retry,
    /// Nothing but time has passed.
    Tick,
}

/// What has to be done about it, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start a worker.
    Spawn {
        /// Its name from now on.
        worker: WorkerId,
        /// Its slot.
        slot: usize,
        /// Its generation.
        generation: Generation,
    },
    /// The candidate is active from here on: new sockets listen. Nothing rolls back after this.
    Commit(Generation),
    /// Let a worker accept from the sockets of a slot.
    Accept {
        /// The worker.
        worker: WorkerId,
        /// Its own slot, or one that has no worker.
        slot: usize,
    },
    /// Take the sockets of a slot that is not its own back from a worker.
    TakeBack {
        /// The worker.
        worker: WorkerId,
        /// The slot.
        slot: usize,
    },
    /// Let a worker go on with the sockets that a commit retired: slots beyond the new
    /// number, and listeners that are gone.
    Serve {
        /// The worker, of the active generation.
        worker: WorkerId,
        /// Whose commit retired them.
        retired: Generation,
    },
    /// The time of retired sockets is over, and nobody else holds them: let the worker accept
    /// what waits in their queues and close them. [`Event::LetGo`] is the answer.
    LetGo {
        /// The worker that serves them.
        worker: WorkerId,
        /// Whose commit retired them.
        retired: Generation,
    },
    /// No worker holds these retired sockets any more: they are closed for good.
    CloseRetired(Generation),
    /// Let a worker give its live tunnels to another one, in place of whom it gave them to before. It drains, or
    /// is told to by an [`Action::Retire`] that follows.
    HandOver {
        /// The giver, of an older generation.
        from: WorkerId,
        /// The taker, which accepts.
        to: WorkerId,
    },
    /// Let workers accept nothing more and drain; or drain faster than they were told before.
    Retire {
        /// The workers.
        workers: Vec<WorkerId>,
        /// When everything that they hold has been closed.
        deadline: Moment,
    },
    /// Tell a worker that holds nothing to exit.
    Dismiss(WorkerId),
    /// Kill a worker.
    Kill {
        /// The worker.
        worker: WorkerId,
        /// Why, for the log.
        why: &'static str,
    },
    /// End a worker that is stuck so that it leaves a core: others accept from its sockets by now.
    /// [`Action::Kill`] follows if it does not end.
    Abort {
        /// The worker.
        worker: WorkerId,
        /// For how long nothing of it has moved.
        silent: Duration,
    },
    /// A slot's worker died; the next one starts later.
    Restarting {
        /// The slot.
        slot: usize,
        /// Until then.
        after: Duration,
        /// Its workers have crashed so often in a row that it is not tried eagerly any more.
        crash_looping: bool,
    },
    /// The candidate is given up. The active generation, if any, goes on.
    Failed {
        /// The candidate.
        generation: Generation,
        /// Why.
        failure: Failure,
    },
    /// After [`Action::Retire`] of all workers, for good: nobody will accept any more, so the
    /// supervisor closes its listening sockets.
    CloseSockets,
    /// The last worker of a generation that is not active is gone.
    Gone(Generation),
    /// The last worker is gone after a stop.
    Finished,
}

/// Why a candidate was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A worker exited before it was ready, or before the others were.
    Died {
        /// The worker.
        worker: WorkerId,
        /// Its slot.
        slot: usize,
    },
    /// A worker was not ready in time.
    Late {
        /// Its slot.
        slot: usize,
    },
    /// The gateway stops.
    Stopping,
    /// Another candidate is starting.
    Busy,
}
