//! Workers that another supervisor has left behind become this one's, as if it had started them.

use std::time::Duration;

use super::{Group, Lifecycle};
use crate::{Found, Generation, Moment, Slot, State, Worker, WorkerId};

impl Lifecycle {
    /// Takes over the workers that another supervisor has left behind. To be called first, and once. `active` is
    /// the newest generation that accepts, with its slots and its grace; it is replaced by a
    /// reload, as any other. Returns the workers' names, in their order.
    pub fn adopt(
        &mut self,
        now: Moment,
        active: Option<(Generation, usize, Duration)>,
        found: &[Found],
    ) -> Vec<WorkerId> {
        let names: Vec<WorkerId> = found
            .iter()
            .map(|found| self.adopt_one(now, found))
            .collect();
        if let Some((generation, slots, grace)) = active {
            self.active = Some(Group {
                generation,
                slots,
                grace,
                handover: false,
            });
            self.adopt_slots(now, found, &names);
        }
        names
    }

    fn adopt_one(&mut self, now: Moment, found: &Found) -> WorkerId {
        self.last_worker += 1;
        let state = match found.deadline {
            None => State::Active { since: now },
            // It has closed its listening sockets when it began to drain.
            Some(deadline) => State::Draining {
                deadline,
                released: true,
                dismissed: false,
            },
        };
        self.workers.insert(
            self.last_worker,
            Worker {
                slot: found.slot,
                generation: found.generation,
                started: now,
                state,
            },
        );
        self.last_worker
    }

    /// A slot of the active generation whose worker has died meanwhile gets another one.
    fn adopt_slots(&mut self, now: Moment, found: &[Found], names: &[WorkerId]) {
        let Some(group) = &self.active else { return };
        let (generation, wanted) = (group.generation, group.slots);
        self.slots.resize_with(wanted, Slot::default);
        for (number, slot) in self.slots.iter_mut().enumerate() {
            let accepting = || {
                let accepting = found.iter().zip(names);
                accepting.filter(|(found, _)| {
                    found.generation == generation && found.accepts.contains(&number)
                })
            };
            let own = accepting().find(|(found, _)| found.slot == number);
            if let Some((_, name)) = own.or_else(|| accepting().next()) {
                slot.serve(*name);
            } else {
                slot.vacate(now, true);
            }
            match own {
                Some((_, name)) => slot.own = Some(*name),
                None => slot.schedule_restart(now, &self.settings),
            }
        }
    }
}
