//! Listeners that come and go, with tunnels that came in by them and clients that knock until they are gone.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::Faults;
use crate::guest::{Door, Guest};
use crate::wait::pass;

/// So long clients knock on after the reload that removed it. They stop before wsgate closes it, which it does some seconds
/// later: who comes in that very moment may be reset in place of being refused.
const KNOCK_ON: Duration = Duration::from_secs(2);

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
        let enough = Arc::new(AtomicBool::new(false));
        let knocking: Vec<_> = doors
            .iter()
            .map(|door| knock(door.clone(), Arc::clone(&enough)))
            .collect();
        let removed = self.remove();
        pass(KNOCK_ON);
        enough.store(true, Ordering::Release);
        let knocked = knocking.into_iter().try_for_each(join);
        removed?;
        self.settle()?;
        for mut guest in guests {
            let served = guest.echo().and_then(|()| guest.close());
            served.map_err(|error| named("a tunnel of a listener that was removed", &error))?;
        }
        knocked?;
        doors.iter().try_for_each(is_gone)
    }

    fn remove(&mut self) -> io::Result<()> {
        let mut shape = self.gateway.next_shape();
        shape.guests = false;
        self.gateway.take(shape)
    }

    fn doors(&self) -> Vec<Door> {
        let site = &self.gateway.site;
        let tcp = site.guests.iter().map(|address| Door::Tcp(*address));
        tcp.chain([Door::Unix(site.guest_path.clone())]).collect()
    }
}

/// One visit after the other, for so long as is wanted or until the listener is gone. Each is served, or finds nobody there.
fn knock(door: Door, enough: Arc<AtomicBool>) -> JoinHandle<io::Result<()>> {
    thread::spawn(move || {
        let mut served = 0;
        while !enough.load(Ordering::Acquire) {
            match Guest::visit(&door) {
                Ok(()) => served += 1,
                Err(error) if finds_nobody(&error) => break,
                Err(error) => {
                    let what = format!("a connection to {door:?}, after {served}");
                    return Err(named(&what, &error));
                }
            }
        }
        Ok(())
    })
}

fn finds_nobody(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused | ErrorKind::NotFound
    )
}

fn is_gone(door: &Door) -> io::Result<()> {
    match Guest::visit(door) {
        Err(error) if finds_nobody(&error) => Ok(()),
        other => Err(io::Error::other(format!(
            "{door:?} after it was removed: {other:?}"
        ))),
    }
}

fn join(thread: JoinHandle<io::Result<()>>) -> io::Result<()> {
    let joined = thread.join();
    joined.unwrap_or_else(|_| Err(io::Error::other("a client panicked")))
}

fn named(what: &str, error: &io::Error) -> io::Error {
    io::Error::other(format!("{what}: {error}"))
}
