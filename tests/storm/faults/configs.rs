//! New configurations, by each way that a reload has, and such as must be refused.

use std::io;
use std::net::TcpListener;
use std::time::Duration;

use rustix::process::Signal;
use wsgate_protocol::admin::{GenerationState, ReloadOutcome};

use super::Faults;
use crate::gateway::SETTLE;
use crate::process::signal;
use crate::wait::until;

impl Faults<'_> {
    pub(super) fn reload(&mut self) -> io::Result<()> {
        let shape = self.gateway.next_shape();
        self.gateway.take(shape)
    }

    pub(super) fn reload_by_signal(&mut self) -> io::Result<()> {
        let before = self.active()?;
        self.gateway.write(self.gateway.next_shape())?;
        signal(self.gateway.pid(), Signal::HUP);
        self.newer_than(before).map(drop)
    }

    pub(super) fn reload_by_file(&mut self) -> io::Result<()> {
        let before = self.active()?;
        self.gateway.write(self.gateway.next_shape())?;
        self.newer_than(before).map(drop)
    }

    /// A configuration that begins with this: it must be refused, and change nothing.
    pub(super) fn bad(&mut self, text: &str) -> io::Result<()> {
        let rest = self.gateway.site.text(&self.gateway.next_shape());
        self.refused(&format!("{text}{rest}"))
    }

    pub(super) fn address_in_use(&mut self) -> io::Result<()> {
        let taken = TcpListener::bind("127.0.0.1:0")?;
        let address = taken.local_addr()?;
        let rest = self.gateway.site.text(&self.gateway.next_shape());
        self.taken = Some(taken);
        self.refused(&format!("{rest}[[listener]]\naddress = \"{address}\"\n"))
    }

    fn refused(&mut self, text: &str) -> io::Result<()> {
        let before = self.active()?;
        self.gateway.write_text(text)?;
        let answer = self.gateway.reload()?;
        if answer.0 < 400 {
            return Err(io::Error::other("a bad configuration was taken"));
        }
        self.gateway.write(self.gateway.shape.clone())?;
        self.taken = None;
        let answer: ReloadOutcome = self.gateway.reload()?.json()?;
        match answer {
            ReloadOutcome::Unchanged(unchanged) if unchanged.generation == before => Ok(()),
            other => Err(io::Error::other(format!(
                "a bad configuration left this behind: {other:?}"
            ))),
        }
    }

    /// The number of the active generation.
    pub(super) fn active(&self) -> io::Result<u64> {
        let generations = self.gateway.status()?.generations;
        let active = generations
            .iter()
            .find(|it| it.state == GenerationState::Active);
        Ok(active.map_or(0, |it| it.generation))
    }

    fn newer_than(&self, generation: u64) -> io::Result<Duration> {
        until("a new generation is active", SETTLE, || {
            match self.active() {
                Ok(active) if active > generation => None,
                other => Some(format!("{other:?}")),
            }
        })
    }
}
