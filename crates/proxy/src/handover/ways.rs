//! What tunnels share that arrive one by one: their listener, and the routes and servers that this configuration does not
//! have. Held once, however many arrive.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::Passport;
use crate::{Route, Server};

/// What tunnels that have arrived share.
#[derive(Debug, Default)]
pub(crate) struct Ways {
    known: Mutex<Known>,
}

/// By name or number; there are no more numbers than the board has places for.
#[derive(Debug, Default)]
struct Known {
    listeners: HashMap<Box<str>, Arc<str>>,
    routes: HashMap<u32, Arc<Route>>,
    servers: HashMap<u32, Arc<Server>>,
}

impl Ways {
    pub(super) fn listener(&self, name: &str) -> Arc<str> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(listener) = known.listeners.get(name) {
            return Arc::clone(listener);
        }
        let listener: Arc<str> = name.into();
        known.listeners.insert(name.into(), Arc::clone(&listener));
        listener
    }

    /// The route and the server that a tunnel had.
    pub(super) fn lost(&self, passport: &Passport) -> (Arc<Route>, Arc<Server>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Known {
            routes, servers, ..
        } = &mut *known;
        let (route, server) = (&passport.route, &passport.server);
        let route = shared(
            routes,
            route.number,
            |known| route.is(known),
            || route.route(),
        );
        let server = shared(
            servers,
            server.number,
            |known| server.is(known),
            || server.server(),
        );
        (route, server)
    }
}

/// A number that was given anew has another meaning by now.
fn shared<T>(
    known: &mut HashMap<u32, Arc<T>>,
    number: u32,
    same: impl Fn(&T) -> bool,
    new: impl Fn() -> T,
) -> Arc<T> {
    match known.get(&number).filter(|known| same(known)) {
        Some(known) => Arc::clone(known),
        None => {
            let new = Arc::new(new());
            known.insert(number, Arc::clone(&new));
            new
        }
    }
}
