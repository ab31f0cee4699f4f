//! The faults, one function each. Every one does what its name says, checks what it alone can see, and leaves the gateway
//! to settle. One that could not do its part is an error, never silently less.

mod configs;
mod handover;
mod listeners;
mod supervisor;
mod workers;

use std::io;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use wsgate_protocol::admin::ServerState;

use crate::gateway::{Gateway, SETTLE};
use crate::judge::Break;
use crate::plan::{Kind, Plan, Step};
use crate::random::Numbers;
use crate::room::Room;

/// A slot that crashes is waited for so long, if it is not started soon: longer than any pause between eager starts.
const CRASHES: Duration = Duration::from_secs(12);

/// What faults work with, and what they leave for the judge.
pub(crate) struct Faults<'a> {
    gateway: &'a mut Gateway,
    room: Option<&'a Room>,
    tunnels: u32,
    slots: u32,
    watchdog: Option<Duration>,
    pub(crate) breaks: Vec<Break>,
    pub(crate) notes: Vec<String>,
    /// Which fault it is.
    number: usize,
    /// Holds the address of a configuration that wants one in use.
    taken: Option<TcpListener>,
}

impl<'a> Faults<'a> {
    pub(crate) fn new(gateway: &'a mut Gateway, room: Option<&'a Room>, plan: &Plan) -> Self {
        Self {
            room,
            tunnels: plan.tunnels,
            slots: plan.slots,
            watchdog: gateway.site.watchdog,
            gateway,
            breaks: Vec::new(),
            notes: Vec::new(),
            number: 0,
            taken: None,
        }
    }

    /// Does one. Whether there was anything to do it to.
    pub(crate) fn strike(&mut self, number: usize, step: &Step) -> io::Result<bool> {
        self.number = number;
        let mut numbers = step.numbers.clone();
        match step.kind {
            Kind::Reload => self.reload()?,
            Kind::Signal => self.reload_by_signal()?,
            Kind::File => self.reload_by_file()?,
            Kind::KillActive => self.kill_active(&mut numbers)?,
            Kind::KillDraining => self.kill_draining(&mut numbers)?,
            Kind::Stop => self.stop_worker(&mut numbers)?,
            Kind::Slots => {
                self.set_slots(step.slots.unwrap_or_else(|| self.other_slots(&mut numbers)))?
            }
            Kind::Grow => self.set_slots(self.gateway.shape.slots.max(self.slots) + 1)?,
            Kind::Listeners => self.listeners()?,
            Kind::BadSyntax => self.bad("workers = = 2\n")?,
            Kind::BadKey => self.bad("wokers = 2\n")?,
            Kind::AddressInUse => self.address_in_use()?,
            Kind::FullDisk => return self.full_disk(),
            Kind::KillSupervisor => self.kill_supervisor(false)?,
            Kind::KillSupervisorBadFile => self.kill_supervisor(true)?,
            Kind::Drain => self.toggle_server()?,
            Kind::Close => self.close_some(&mut numbers)?,
            Kind::KillMidHandover => return self.hit_mid_handover(&mut numbers, Signal::KILL),
            Kind::StopMidHandover => return self.hit_mid_handover(&mut numbers, Signal::STOP),
            Kind::CrashMidHandover => return self.crash_mid_handover(&mut numbers),
            Kind::ReloadTwice => self.reload_twice(&mut numbers)?,
            Kind::KillSupervisorMidHandover => self.kill_supervisor_mid_handover(&mut numbers)?,
        }
        Ok(true)
    }

    /// Waits until the gateway is as it should be. Where the storm has killed the worker of a slot so often that wsgate tries
    /// that slot seldom, it does what an operator does: a reload.
    pub(crate) fn settle(&mut self) -> io::Result<Duration> {
        let began = Instant::now();
        let settled = self.gateway.settle(self.tunnels, CRASHES)?;
        if settled {
            return Ok(began.elapsed());
        }
        self.notes.push(format!(
            "fault {}: a slot crashed too often for its next start to be soon; a reload started it",
            self.number
        ));
        self.reload()?;
        self.gateway.settle(self.tunnels, SETTLE)?;
        Ok(began.elapsed())
    }

    /// As it was at the beginning, whatever the faults have made of it.
    pub(crate) fn put_back(&mut self) -> io::Result<()> {
        self.taken = None;
        self.gateway.set_server(ServerState::Ready)?;
        let mut shape = self.gateway.next_shape();
        (shape.slots, shape.guests) = (self.slots, false);
        self.gateway.take(shape)?;
        self.settle().map(drop)
    }

    fn toggle_server(&mut self) -> io::Result<()> {
        let state = match self.gateway.server {
            ServerState::Ready => ServerState::Drain,
            _ => ServerState::Ready,
        };
        self.gateway.set_server(state)
    }

    /// A disk without room, while the operator and a reload have something to be kept.
    fn full_disk(&mut self) -> io::Result<bool> {
        let Some(room) = self.room else {
            return Ok(false);
        };
        room.fill()?;
        let done = self.toggle_server().and_then(|()| self.reload());
        let settled = done.and_then(|()| self.settle());
        room.empty()?;
        settled.map(|_| true)
    }

    fn other_slots(&self, numbers: &mut Numbers) -> u32 {
        loop {
            let slots = numbers.one_of(&[1, 2, 4]);
            if slots != self.gateway.shape.slots {
                return slots;
            }
        }
    }

    fn set_slots(&mut self, slots: u32) -> io::Result<()> {
        let mut shape = self.gateway.next_shape();
        shape.slots = slots;
        self.gateway.take(shape)
    }
}
