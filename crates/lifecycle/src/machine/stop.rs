//! The end of the gateway: announced, while clients are still let in, or at once.

use std::time::Duration;

use super::{Lifecycle, Phase};
use crate::{Action, Failure, Moment, Slot, State};

impl Lifecycle {
    pub(super) fn stop(
        &mut self,
        now: Moment,
        accept_for: Duration,
        grace: Duration,
        actions: &mut Vec<Action>,
    ) {
        self.fail(Failure::Stopping, actions);
        match self.phase {
            Phase::Running if !accept_for.is_zero() => {
                self.phase = Phase::Announced {
                    until: now + accept_for,
                    grace,
                };
            }
            Phase::Announced { until, .. } if !accept_for.is_zero() => {
                self.phase = Phase::Announced {
                    until: until.min(now + accept_for),
                    grace,
                };
            }
            _ => self.stop_accepting(now, grace, actions),
        }
    }

    pub(super) fn stop_accepting(
        &mut self,
        now: Moment,
        grace: Duration,
        actions: &mut Vec<Action>,
    ) {
        self.phase = Phase::Stopping;
        let deadline = now + grace;
        self.give_up_starting("wsgate stops", actions);
        for slot in &mut self.slots {
            *slot = Slot::default();
        }
        self.retired.clear();
        self.handovers.clear();
        let later = self.pick(|worker| match worker.state {
            State::Draining {
                deadline: own,
                dismissed,
                ..
            } => own > deadline && !dismissed,
            _ => worker.is_active(),
        });
        self.retire(later, deadline, actions);
        actions.push(Action::CloseSockets);
    }
}
