//! What `GET /v1/events` tells while it happens. Part of [`crate::admin`].

use serde::{Deserialize, Serialize};

use crate::admin::{Fates, Held, NotMoved, ReloadOutcome, ServerState};

/// Something that happened: the `data` of a server-sent event, whose name is that of its kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Counts up by one, so that gaps are seen. [`EventKind::Lost`] has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// When.
    pub at: String,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// A reload has been answered.
    Reload {
        /// Who asked, as in the status.
        by: String,
        /// What came of it.
        #[serde(flatten)]
        outcome: ReloadOutcome,
    },
    /// A reload is held back, in place of [`EventKind::Reload`].
    ReloadHeld {
        /// Who asked, as in the status.
        by: String,
        /// Why.
        #[serde(flatten)]
        held: Held,
    },
    /// A generation enters another part of its life.
    Generation {
        /// Its number.
        generation: u64,
        /// Which part.
        state: GenerationChange,
    },
    /// A worker process.
    Worker {
        /// What became of it.
        state: WorkerChange,
        /// Its process.
        pid: u32,
        /// Its slot.
        slot: u64,
        /// Its generation.
        generation: u64,
        /// With `ended`: how, as in the log.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        how: Option<String>,
        /// With `ended`: tunnels that were lost with it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tunnels: Option<u64>,
    },
    /// The operator has said something about a server.
    Server {
        /// The upstream's name.
        upstream: String,
        /// The server's address.
        server: String,
        /// Its state before.
        was: ServerState,
        /// Its state now.
        state: ServerState,
    },
    /// Live tunnels have moved to the workers of a generation.
    Handover {
        /// Theirs.
        generation: u64,
        /// How many have moved.
        moved: u64,
        /// What becomes of these.
        fates: Fates,
        /// Those that have not moved.
        stays: Vec<NotMoved>,
        /// From the commit until every tunnel had moved or was to stay.
        milliseconds: f64,
        /// The longest time for which a tunnel was with no worker.
        longest_pause_milliseconds: f64,
    },
    /// wsgate begins to stop.
    Stop {
        /// Tunnels that are left.
        tunnels: u64,
        /// When what is left is ended.
        deadline_in_seconds: f64,
    },
    /// The reader was too slow: so many events are not told.
    Lost {
        /// How many.
        events: u64,
    },
}

impl EventKind {
    /// The name that it has in the stream.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Reload { .. } => "reload",
            Self::ReloadHeld { .. } => "reload_held",
            Self::Generation { .. } => "generation",
            Self::Worker { .. } => "worker",
            Self::Server { .. } => "server",
            Self::Handover { .. } => "handover",
            Self::Stop { .. } => "stop",
            Self::Lost { .. } => "lost",
        }
    }
}

/// A part of a generation's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GenerationChange {
    /// Its workers are started.
    Starting,
    /// It accepts.
    Active,
    /// It was given up before it was active.
    Failed,
    /// It accepts nothing new.
    Draining,
    /// Its last worker has ended.
    Gone,
}

/// What became of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerChange {
    /// It was started.
    Started,
    /// It has ended.
    Ended,
    /// It is stuck, and is ended.
    Stuck,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Unchanged;

    #[test]
    fn every_kind_is_flat_json_that_names_itself() {
        let unchanged = ReloadOutcome::Unchanged(Unchanged {
            generation: 3,
            active_since: "then".to_owned(),
            draining_tunnels: 0,
            draining_generations: 0,
            deadline_at: None,
        });
        let kinds = [
            EventKind::Reload {
                by: "admin".to_owned(),
                outcome: unchanged,
            },
            EventKind::Generation {
                generation: 2,
                state: GenerationChange::Active,
            },
            EventKind::Worker {
                state: WorkerChange::Ended,
                pid: 7,
                slot: 0,
                generation: 2,
                how: Some("signal 9".to_owned()),
                tunnels: Some(4),
            },
            EventKind::Handover {
                generation: 2,
                moved: 3,
                fates: Fates::default(),
                stays: Vec::new(),
                milliseconds: 1.5,
                longest_pause_milliseconds: 0.25,
            },
            EventKind::Lost { events: 9 },
        ];
        for kind in kinds {
            let event = Event {
                id: Some(1),
                at: "now".to_owned(),
                kind,
            };
            let text = serde_json::to_string(&event).unwrap();
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(json["event"], event.kind.name(), "{text}");
            assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
        }
    }
}
