//! Workers that are killed, workers that are stopped, and tunnels that are closed.

use std::io;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use wsgate_load::machine::now;
use wsgate_protocol::admin::{CLOSE_CODE, GenerationState, Tunnel, WorkerState, WorkerStatus};

use super::Faults;
use crate::guest::{Door, Guest};
use crate::judge::Break;
use crate::process::{lives, signal};
use crate::random::Numbers;
use crate::wait::until;

/// For a process to end that was killed: it has its memory to give back.
pub(super) const END: Duration = Duration::from_secs(10);

/// What the watchdog may need beyond its `timeout` until the process is gone: the steps from its sockets' other worker to
/// SIGKILL, and a machine that is busy.
const SLACK: Duration = Duration::from_secs(5);

/// So many tunnels are closed by the operator at once, or a quarter of all.
const CLOSED: usize = 100;

/// Connections that are begun when a worker has just been stopped, for its queue and the others'.
const QUEUED: usize = 32;

/// One that has no answer after so long waits in the queue of the one that is stopped.
const WAITS: Duration = Duration::from_millis(100);

impl Faults<'_> {
    pub(super) fn kill_active(&mut self, numbers: &mut Numbers) -> io::Result<()> {
        let victim = self.active_victim(numbers)?;
        self.kill(&victim)
    }

    /// Where no old generation holds a tunnel a reload makes one.
    pub(super) fn kill_draining(&mut self, numbers: &mut Numbers) -> io::Result<()> {
        if self.victim(numbers, WorkerState::Draining)?.is_none() {
            self.reload()?;
        }
        let victim = self.victim(numbers, WorkerState::Draining)?;
        let victim = victim.ok_or_else(|| io::Error::other("no worker drains after a reload"))?;
        self.kill(&victim)
    }

    fn kill(&mut self, victim: &WorkerStatus) -> io::Result<()> {
        let mut cut = self.begin(victim.pid)?;
        signal(victim.pid, Signal::KILL);
        ended(victim.pid, END)?;
        cut.gone = now();
        self.breaks.push(cut);
        self.forgotten(victim.pid)
    }

    /// Until the gateway knows that a worker has ended: before that it may look as if all were well.
    pub(super) fn forgotten(&self, pid: u32) -> io::Result<()> {
        let what = "the gateway sees that the worker has ended";
        until(what, END, || match self.gateway.status() {
            Ok(status) if status.workers.iter().all(|it| it.pid != pid) => None,
            Ok(_) => Some(format!("it lists {pid}")),
            Err(error) => Some(error.to_string()),
        })
        .map(drop)
    }

    /// Until none of these tunnels is there any more.
    fn closed(&self, worker: u32, tunnels: &[Tunnel]) -> io::Result<()> {
        until("tunnels close", END, || {
            match self.gateway.tunnels(worker) {
                Ok(left) => {
                    let is_left = |it: &&Tunnel| left.iter().any(|one| one.id == it.id);
                    let count = tunnels.iter().filter(is_left).count();
                    (count > 0).then(|| format!("{count} are left"))
                }
                Err(error) => Some(error.to_string()),
            }
        })
        .map(drop)
    }

    /// SIGSTOP: the watchdog must see it, and end it. Without one the worker goes on after the limit.
    pub(super) fn stop_worker(&mut self, numbers: &mut Numbers) -> io::Result<()> {
        let victim = self.active_victim(numbers)?;
        let limit = self.watchdog.unwrap_or_default() + SLACK;
        let mut cut = self.begin(victim.pid)?;
        let began = Instant::now();
        signal(victim.pid, Signal::STOP);
        let queued = queue(&Door::Tcp(self.gateway.site.listeners[0]));
        let end = ended(victim.pid, limit);
        match &end {
            Ok(()) => {
                cut.gone = now();
                self.breaks.push(cut);
            }
            Err(_) => signal(victim.pid, Signal::CONT),
        }
        let took = began.elapsed().as_secs_f64();
        if end.is_ok() {
            self.forgotten(victim.pid)?;
        }
        let queued = queued?;
        let waited = queued.len();
        let served = queued.into_iter().try_for_each(serve);
        end?;
        served.map_err(|error| {
            io::Error::other(format!(
                "a connection that waited for a stopped worker: {error}"
            ))
        })?;
        self.notes.push(format!(
            "fault {}: a stopped worker was gone after {took:.2} s; of {QUEUED} connections {waited} waited, and all were served",
            self.number
        ));
        Ok(())
    }

    /// Names the tunnels that will break.
    fn begin(&self, pid: u32) -> io::Result<Break> {
        let tunnels = self.gateway.tunnels(pid)?;
        self.name(&tunnels, None)
    }

    fn name(&self, tunnels: &[Tunnel], close: Option<u16>) -> io::Result<Break> {
        let listed = now();
        let clients = tunnels.iter().map(|tunnel| tunnel.client.parse());
        Ok(Break {
            fault: self.number,
            listed,
            from: listed,
            gone: listed,
            tunnels: clients
                .collect::<Result<_, _>>()
                .map_err(io::Error::other)?,
            moving: Vec::new(),
            most: usize::MAX,
            close,
        })
    }

    /// The operator closes some tunnels of one worker. They come back to the active generation, so that kills of its
    /// workers find some there.
    pub(super) fn close_some(&mut self, numbers: &mut Numbers) -> io::Result<()> {
        let mut workers = self.gateway.status()?.workers;
        workers.sort_by_key(|worker| worker.tunnels);
        let Some(fullest) = workers.last() else {
            return Err(io::Error::other("no worker"));
        };
        let mut tunnels = self.gateway.tunnels(fullest.pid)?;
        let most = (self.tunnels as usize / 4).min(CLOSED).min(tunnels.len());
        while tunnels.len() > most {
            tunnels.swap_remove(numbers.below(tunnels.len() as u64) as usize);
        }
        let mut cut = self.name(&tunnels, Some(CLOSE_CODE))?;
        tunnels
            .iter()
            .try_for_each(|tunnel| self.gateway.close(&tunnel.id))?;
        self.closed(fullest.pid, &tunnels)?;
        cut.gone = now();
        self.breaks.push(cut);
        Ok(())
    }

    /// One that accepts, and holds tunnels: where none does some are brought there.
    fn active_victim(&mut self, numbers: &mut Numbers) -> io::Result<WorkerStatus> {
        let workers = self.gateway.status()?.workers;
        let active = workers.iter().filter(|it| it.state == WorkerState::Active);
        if active.map(|it| it.tunnels).sum::<u64>() < u64::from(self.tunnels) / 10 {
            self.close_some(numbers)?;
            self.settle()?;
        }
        let victim = self.victim(numbers, WorkerState::Active)?;
        victim.ok_or_else(|| io::Error::other("no worker is active"))
    }

    /// A worker by chance: of the active generation, or one of the others that holds tunnels.
    fn victim(
        &self,
        numbers: &mut Numbers,
        state: WorkerState,
    ) -> io::Result<Option<WorkerStatus>> {
        let status = self.gateway.status()?;
        let old = |worker: &WorkerStatus| {
            let of = status
                .generations
                .iter()
                .find(|it| it.generation == worker.generation);
            of.is_some_and(|it| it.state == GenerationState::Draining)
        };
        let fits = |worker: &&WorkerStatus| {
            worker.state == state
                && (state == WorkerState::Active || old(worker) && worker.tunnels > 0)
        };
        let all: Vec<&WorkerStatus> = status.workers.iter().filter(fits).collect();
        Ok(match all.len() {
            0 => None,
            count => Some(all[numbers.below(count as u64) as usize].clone()),
        })
    }
}

/// Waits for the end of a process that is another's child. Its number is not given to another one so soon.
pub(super) fn ended(pid: u32, limit: Duration) -> io::Result<()> {
    until("the worker ends", limit, || {
        lives(pid).then(|| format!("{pid} lives"))
    })
    .map(drop)
}

/// Begins connections; those that wait.
fn queue(door: &Door) -> io::Result<Vec<Guest>> {
    let mut asked = (0..QUEUED)
        .map(|_| Guest::ask(door))
        .collect::<io::Result<Vec<_>>>()?;
    // The others are served by now, or look like it: these must be in any case.
    let mut waiting = Vec::new();
    for mut guest in asked.drain(..) {
        match guest.waits(WAITS)? {
            true => waiting.push(guest),
            false => serve(guest)?,
        }
    }
    Ok(waiting)
}

fn serve(mut guest: Guest) -> io::Result<()> {
    guest.opened()?;
    guest.echo()?;
    guest.close()
}
