//! One worker's life.

use crate::{Generation, Moment};

/// A worker that has been started and has not exited yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// Its slot.
    pub slot: usize,
    /// Its generation.
    pub generation: Generation,
    /// Where it is in its life.
    pub state: State,
    /// When it was started.
    pub started: Moment,
}

/// Where a worker is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It has to say `ready` by then.
    Starting {
        /// The time limit.
        until: Moment,
    },
    /// It waits for the rest of its generation, and for the commit.
    Ready,
    /// It replaces one that died, and another worker serves its slot meanwhile: it is
    /// given the slot when it has lived so long.
    Proving {
        /// Until then.
        until: Moment,
    },
    /// It accepts.
    Active {
        /// When it began to.
        since: Moment,
    },
    /// It accepts nothing new.
    Draining {
        /// When what it holds has been closed.
        deadline: Moment,
        /// It has closed its listening sockets.
        released: bool,
        /// It holds nothing any more and has been told to exit.
        dismissed: bool,
    },
    /// It has been killed and is not gone yet.
    Killed,
}

/// A worker that another supervisor has left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its slot.
    pub slot: usize,
    /// Its generation.
    pub generation: Generation,
    /// The slots from whose sockets it accepts.
    pub accepts: Vec<usize>,
    /// If it drains: its deadline.
    pub deadline: Option<Moment>,
}

impl Worker {
    /// Whether it accepts.
    #[must_use]
    pub fn is_active(&self) -> bool {
        matches!(self.state, State::Active { .. })
    }

    /// Whether it accepts nothing any more and is about to go.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        matches!(self.state, State::Draining { .. })
    }

    /// Whether it should answer: it has said `ready` and has not been killed, and others do not
    /// wait for it before they accept.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        let proving = matches!(self.state, State::Proving { .. });
        proving || self.is_active() || self.is_draining()
    }

    /// Its deadline, if it drains.
    #[must_use]
    pub fn deadline(&self) -> Option<Moment> {
        match self.state {
            State::Draining { deadline, .. } => Some(deadline),
            _ => None,
        }
    }
}
