//! The operator's word about servers, when a commit changes which servers there are.
//!
//! It never gets lost silently: it goes along with an upstream that has another name now, or the reload's answer tells that it is forgotten.

use std::time::SystemTime;

use wsgate_config::Config;
use wsgate_lifecycle::Generation;
use wsgate_protocol::control::ToWorker;

use crate::actions::owner_of_server;
use crate::supervisor::Supervisor;

impl Supervisor {
    /// Workers of the new generation have been started with what was said about the old names.
    pub(super) fn follow_states(&mut self, config: &Config, generation: Generation) {
        let before = self.running.as_ref().map(|running| &*running.config);
        let followed = self.states.follow(before, config);
        for warning in followed.forgotten {
            self.reloads.warn(warning);
        }
        if followed.renamed.is_empty() {
            return;
        }
        let states = self.states.by_number(&self.numbers);
        for link in self.links.values() {
            if link.generation == generation {
                let states = states.clone();
                link.send(ToWorker::Servers { states });
            }
        }
        for renamed in &followed.renamed {
            let (from, to, server) = (&renamed.from, &renamed.to, &renamed.server);
            let state = self.states.get(to, server);
            tracing::info!(from, to, server, %state, "upstream renamed: the server keeps its state");
        }
        self.reloads.renamed.extend(followed.renamed);
    }

    /// The tunnels have moved, and count by the new number: their closes are planned by it.
    pub(super) fn redo_renamed_drains(&mut self) {
        for renamed in std::mem::take(&mut self.reloads.renamed) {
            if let Some(old) = self.numbers.server(&renamed.from, &renamed.server) {
                self.closes.release(owner_of_server(old));
            }
            let drains = self.states.drains().into_iter();
            let mut drains = drains.filter(|(upstream, server, ..)| {
                (upstream, server) == (&renamed.to, &renamed.server)
            });
            let Some((upstream, server, deadline, rate)) = drains.next() else {
                continue;
            };
            let left = deadline
                .duration_since(SystemTime::now())
                .unwrap_or_default();
            if let Some(number) = self.numbers.server(&upstream, &server)
                && let Some(warning) = self.drain_server_within(number, left, rate)
            {
                self.reloads.warn(warning);
            }
        }
    }
}
