//! Listeners that come and go, with tunnels that came in by them and clients that knock until they are gone.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use super::Faults;
use crate::guest::{Door, Guest};

/// Tunnels through each of them, that must outlive it.
const STAY: usize = 4;

impl Faults<'_> {
    pub(super) fn listeners(&mut self) -> io::Result<()> {
        let mut shape = self.gateway.next_shape();
        shape.guests = true;
        self.gateway.take(shape)?;
        self.settle()?;
        let doors = self.doors();
        let mut guests = Vec::new();
        for door in doors.iter().cycle().take(STAY * doors.len()) {
            let mut guest = Guest::ask(door)?;
            guest.opened()?;
            guest.echo()?;
            guests.push(guest);
        }
        let gone = Arc::new(AtomicBool::new(false));
        let knocking: Vec<_> = doors
            .into_iter()
            .map(|door| knock(door, Arc::clone(&gone)))
            .collect();
        let removed = self.remove();
        gone.store(true, Ordering::Release);
        let knocked = knocking
            .into_iter()
            .try_for_each(|thread| join(thread).map(drop));
        removed?;
        for mut guest in guests {
            let served = guest.echo().and_then(|()| guest.close());
            served.map_err(|error| named("a tunnel of a listener that was removed", &error))?;
        }
        knocked
    }

    fn remove(&mut self) -> io::Result<()> {
        let mut shape = self.gateway.next_shape();
        shape.guests = false;
        self.gateway.take(shape)?;
        self.settle().map(drop)
    }

    fn doors(&self) -> Vec<Door> {
        let site = &self.gateway.site;
        let tcp = site.guests.iter().map(|address| Door::Tcp(*address));
        tcp.chain([Door::Unix(site.guest_path.clone())]).collect()
    }
}

/// One visit after the other, until the listener is gone. Each is served, or finds nobody there.
fn knock(door: Door, gone: Arc<AtomicBool>) -> JoinHandle<io::Result<u64>> {
    thread::spawn(move || {
        let mut served = 0;
        loop {
            let last = gone.load(Ordering::Acquire);
            match Guest::visit(&door) {
                Ok(()) => served += 1,
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::ConnectionRefused | ErrorKind::NotFound
                    ) =>
                {
                    return Ok(served);
                }
                Err(error) => {
                    return Err(named(
                        &format!("a connection to {door:?}, after {served}"),
                        &error,
                    ));
                }
            }
            if last {
                let problem = format!("{door:?} still answers after it was removed");
                return Err(io::Error::other(problem));
            }
        }
    })
}

fn join(thread: JoinHandle<io::Result<u64>>) -> io::Result<u64> {
    let joined = thread.join();
    joined.unwrap_or_else(|_| Err(io::Error::other("a client panicked")))
}

fn named(what: &str, error: &io::Error) -> io::Error {
    io::Error::other(format!("{what}: {error}"))
}
