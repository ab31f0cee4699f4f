//! Workers that another supervisor has left behind: found by their rendezvous sockets, and taken over with
//! all that they hold, as if this supervisor had started them.
//!
//! Nothing is bound, and no worker started, before all of them have been heard: what they hold must not be
//! bound anew.

mod find;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wsgate_lifecycle::{Found, Generation, Moment, WorkerId};
use wsgate_protocol::control::Hello;

pub(crate) use self::find::{LeftBehind, Orphan, find};
use crate::admin;
use crate::generation::{Content, Record};
use crate::link::Link;
use crate::sockets::Sockets;
use crate::supervisor::{Running, Supervisor};

/// Says which workers live elsewhere: an address that cannot be had may be theirs, if `[admin] socket` was
/// edited while they ran.
pub(crate) fn name_strangers() {
    let pids = wsgate_os::process::named(find::WORKER);
    if !pids.is_empty() {
        tracing::error!(
            ?pids,
            "workers of a wsgate with another [admin] socket live: if they are of this one, set `[admin] socket` to what it was, and start again"
        );
    }
}

impl Supervisor {
    /// Takes them over. `content` is what they run, as far as that is known.
    pub(crate) fn adopt(&mut self, left: LeftBehind, content: Content) -> io::Result<()> {
        let now = self.now();
        let orphans = left.workers;
        let mut found = Vec::new();
        for orphan in &orphans {
            let hello = &orphan.hello;
            self.adopt_generation(orphan)?;
            self.instance = self.instance.max(hello.instance + 1);
            if !self.figures.adopt(hello.block) {
                return Err(io::Error::other("two workers count in one block"));
            }
            found.push(Found {
                slot: hello.slot,
                generation: hello.generation,
                accepts: orphan.accepts(),
                deadline: orphan.drains_for().map(|left| now + left),
            });
        }
        same_deadlines(&mut found);
        let active = self.newest_accepting(&found);
        let names = self.lifecycle.adopt(now, active, &found);
        for (name, orphan) in names.into_iter().zip(orphans) {
            let Orphan {
                hello,
                process,
                channel,
                ..
            } = orphan;
            tracing::info!(
                pid = process.pid(),
                slot = hello.slot,
                generation = hello.generation,
                tunnels = self.figures.tunnels_of(hello.block),
                "worker adopted"
            );
            let link = Link::adopt(name, &hello, process, channel, &self.events);
            self.links.insert(name, link);
        }
        self.figures.bury_unclaimed(&self.numbers);
        self.numbers.find(self.figures.counted(&self.board)?);
        self.sockets = Sockets::adopted(left.sockets);
        self.run_adopted(active.map(|(generation, ..)| generation), content);
        self.restore_drains();
        self.redo_plans();
        Ok(())
    }

    fn adopt_generation(&mut self, orphan: &Orphan) -> io::Result<()> {
        let Hello {
            generation, age_ms, ..
        } = orphan.hello;
        self.last_generation = self.last_generation.max(generation);
        let age = Duration::from_millis(age_ms);
        if !self.generations.contains_key(&generation) {
            let record = Record::adopted(Arc::clone(&orphan.config), age)?;
            self.numbers.adopt(&record.config);
            self.generations.insert(generation, record);
        }
        if let Some(record) = self.generations.get_mut(&generation) {
            record.make_older(age);
            let deadline = orphan.hello.drains_for_ms;
            let deadline = deadline.map(|left| Instant::now() + Duration::from_millis(left));
            record.deadline = record.deadline.max(deadline);
        }
        Ok(())
    }

    fn newest_accepting(&self, found: &[Found]) -> Option<(Generation, usize, Duration)> {
        let accepting = found.iter().filter(|found| found.deadline.is_none());
        let generation = accepting.map(|found| found.generation).max()?;
        let config = &self.generations.get(&generation)?.config;
        Some((generation, config.workers, config.drain.grace))
    }

    fn run_adopted(&mut self, active: Option<Generation>, content: Content) {
        let Some(record) = active.and_then(|active| self.generations.get(&active)) else {
            return;
        };
        let config = Arc::clone(&record.config);
        // The configuration that is about to be tried may have another one, or be refused.
        if let Some(address) = config.admin.http {
            match admin::listen_http(address) {
                Ok(listener) => self.switch_http(&config, Some((address, listener))),
                Err(error) => tracing::error!(%address, %error, "[admin] http not served"),
            }
        }
        self.running = Some(Running { config, content });
    }

    /// Drains that go on: their closes get their places in the time that all drains share.
    fn redo_plans(&mut self) {
        let mut drains: BTreeMap<Generation, (Vec<WorkerId>, Moment)> = BTreeMap::new();
        for (id, worker) in self.lifecycle.workers() {
            if let Some(deadline) = worker.deadline() {
                let drain = drains
                    .entry(worker.generation)
                    .or_insert((Vec::new(), deadline));
                drain.0.push(*id);
            }
        }
        for (workers, deadline) in drains.into_values() {
            self.retire(&workers, deadline);
        }
    }
}

/// Each worker knows when its own share of closes ends; the drain ends with the last of them.
fn same_deadlines(found: &mut [Found]) {
    let mut last: BTreeMap<Generation, Moment> = BTreeMap::new();
    for found in found.iter() {
        if let Some(deadline) = found.deadline {
            let last = last.entry(found.generation).or_insert(deadline);
            *last = deadline.max(*last);
        }
    }
    for found in found {
        let last = || last.get(&found.generation).copied();
        found.deadline = found.deadline.and_then(|_| last());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_ends_with_the_last_of_its_workers_and_who_accepts_has_no_deadline() {
        let of = |slot, generation, seconds: Option<u64>| Found {
            slot,
            generation,
            accepts: Vec::new(),
            deadline: seconds.map(Duration::from_secs),
        };
        let mut found = [
            of(0, 1, Some(10)),
            of(1, 1, Some(30)),
            of(2, 1, Some(20)),
            of(0, 2, Some(5)),
            of(1, 2, None),
            of(0, 3, None),
        ];
        same_deadlines(&mut found);
        let seconds = found.map(|found| found.deadline.map(|it| it.as_secs()));
        assert_eq!(seconds, [Some(30), Some(30), Some(30), Some(5), None, None]);
    }
}
