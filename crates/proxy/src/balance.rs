//! Which server of an upstream is next.
//!
//! Only servers that are ready and were not tried for this request yet. It knows nothing of
//! health, and never waits.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use wsgate_config::Balance;

use crate::Ledger;
use crate::answer::Refusal;
use crate::table::{RouteEntry, Server, Table, Upstream};

/// Whose turn it is. Shared by all tables of a configuration.
#[derive(Debug)]
pub(crate) enum Turns {
    /// Each server's credit, by its place: smooth weighted round-robin.
    RoundRobin(Mutex<Vec<i64>>),
    /// Where the search for the fewest tunnels begins, so that ties take turns.
    LeastTunnels(AtomicUsize),
}

impl Turns {
    pub(crate) fn new(balance: Balance, servers: usize) -> Self {
        match balance {
            Balance::RoundRobin => Self::RoundRobin(Mutex::new(vec![0; servers])),
            Balance::LeastTunnels => Self::LeastTunnels(AtomicUsize::new(0)),
        }
    }
}

/// The servers that one request may still try.
#[derive(Debug)]
pub(crate) struct Attempts {
    table: Arc<Table>,
    route: usize,
    tried: Vec<usize>,
    last: Option<Refusal>,
}

/// One server, picked. While it is held the server counts as about to get a tunnel: else all
/// clients that come in the time of one handshake would go to the same server.
#[derive(Debug)]
pub(crate) struct Pick {
    table: Arc<Table>,
    route: usize,
    place: usize,
}

impl Attempts {
    pub(crate) fn new(table: Arc<Table>, route: usize) -> Self {
        Self {
            table,
            route,
            tried: Vec::new(),
            last: None,
        }
    }

    /// The next server, until one was tried and `retries` more. Then how the last try failed.
    pub(crate) fn next(&mut self, ledger: &dyn Ledger) -> Result<Pick, Refusal> {
        match self.next_place(ledger) {
            Some(place) => {
                self.tried.push(place);
                Ok(Pick::new(Arc::clone(&self.table), self.route, place))
            }
            None => Err(self
                .last
                .take()
                .unwrap_or_else(|| Refusal::busy("no server is available"))),
        }
    }

    /// Whether [`Attempts::next`] may find another server if the one picked last fails.
    pub(crate) fn may_go_on(&self) -> bool {
        let servers = &self.table.plan.upstream_of(self.route).servers;
        let mut others = servers.iter().enumerate();
        self.has_retries() && others.any(|(place, server)| self.may_take(place, server))
    }

    /// How the try at the server picked last failed. No other one is tried if that cannot help.
    pub(crate) fn failed(&mut self, refusal: Refusal) {
        self.last = Some(refusal);
    }

    fn next_place(&self, ledger: &dyn Ledger) -> Option<usize> {
        let upstream = self.table.plan.upstream_of(self.route);
        let hopeless = self.last.as_ref().is_some_and(|last| last.everywhere);
        let may = |place: usize, server: &Server| self.may_take(place, server);
        (self.has_retries() && !hopeless).then(|| pick(upstream, may, ledger))?
    }

    fn has_retries(&self) -> bool {
        let retries = self.table.plan.upstream_of(self.route).retries;
        self.tried.len() <= retries as usize
    }

    fn may_take(&self, place: usize, server: &Server) -> bool {
        self.table.is_ready(server.shared.number) && !self.tried.contains(&place)
    }
}

impl Pick {
    fn new(table: Arc<Table>, route: usize, place: usize) -> Self {
        let pick = Self {
            table,
            route,
            place,
        };
        pick.server().waiting.fetch_add(1, Ordering::Relaxed);
        pick
    }

    pub(crate) fn route(&self) -> &RouteEntry {
        self.table.plan.route(self.route)
    }

    pub(crate) fn upstream(&self) -> &Upstream {
        self.table.plan.upstream_of(self.route)
    }

    pub(crate) fn server(&self) -> &Server {
        &self.upstream().servers[self.place]
    }
}

impl Drop for Pick {
    fn drop(&mut self) {
        self.server().waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

fn pick(
    upstream: &Upstream,
    may: impl Fn(usize, &Server) -> bool,
    ledger: &dyn Ledger,
) -> Option<usize> {
    let servers = &upstream.servers;
    let able = || {
        servers
            .iter()
            .enumerate()
            .filter(|(place, server)| may(*place, server))
    };
    match &upstream.turns {
        Turns::RoundRobin(credits) => {
            let mut credits = credits.lock().unwrap_or_else(PoisonError::into_inner);
            round_robin(
                &mut credits,
                able().map(|(place, server)| (place, server.weight)),
            )
        }
        Turns::LeastTunnels(next) => {
            let first = next.fetch_add(1, Ordering::Relaxed) % servers.len().max(1);
            let load = |server: &Server| {
                (
                    ledger.tunnels_to(server.shared.number) + waiting(&server.waiting),
                    server.weight,
                )
            };
            let (before, from): (Vec<_>, Vec<_>) = able().partition(|(place, _)| *place < first);
            let turn = from.into_iter().chain(before);
            least(turn.map(|(place, server)| (place, load(server))))
        }
    }
}

fn waiting(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

/// Every server gets its weight as credit; who has most is picked and pays for all. Over
/// any run of picks that is the sum of the weights, each server is picked by its weight, and as evenly
/// spread as can be.
fn round_robin(credits: &mut [i64], able: impl Iterator<Item = (usize, u32)>) -> Option<usize> {
    let mut total = 0;
    let mut best: Option<usize> = None;
    for (place, weight) in able {
        credits[place] += i64::from(weight);
        total += i64::from(weight);
        if best.is_none_or(|best| credits[place] > credits[best]) {
            best = Some(place);
        }
    }
    credits[best?] -= total;
    best
}

/// The first with the fewest tunnels for its weight.
fn least(loads: impl Iterator<Item = (usize, (u64, u32))>) -> Option<usize> {
    let less = |(a, a_weight): (u64, u32), (b, b_weight): (u64, u32)| {
        u128::from(a) * u128::from(b_weight) < u128::from(b) * u128::from(a_weight)
    };
    loads
        .reduce(|best, next| if less(next.1, best.1) { next } else { best })
        .map(|(place, _)| place)
}

#[cfg(test)]
mod tests {
    use wsgate_config::{Sources, parse};

    use super::*;
    use crate::table::Plan;
    use crate::tests::ledger::Books;

    const THREE: &str = "[[listener]]\naddress = '127.0.0.1:0'\n[[route]]\nupstream = 'a'\n\
        [upstream.a]\nretries = 1\nservers = ['10.0.0.1:1', '10.0.0.2:1', '10.0.0.3:1']\n";

    /// The servers that one request tries if each fails so.
    fn tried(everywhere: bool) -> Vec<String> {
        let config = parse(Sources::from_text("test", THREE)).unwrap().config;
        let table = Arc::new(Table::new(Arc::new(Plan::new(&config)), &[]));
        let route = table.plan.find("any", "/").unwrap();
        let mut attempts = Attempts::new(table, route);
        let mut tried = Vec::new();
        while let Ok(pick) = attempts.next(&*Books::new()) {
            tried.push(pick.server().shared.name.to_string());
            let mut refusal = Refusal::busy("no");
            refusal.everywhere = everywhere;
            attempts.failed(refusal);
        }
        tried
    }

    #[test]
    fn no_other_server_is_tried_where_none_can_help() {
        assert_eq!(tried(false), ["10.0.0.1:1", "10.0.0.2:1"]);
        assert_eq!(tried(true), ["10.0.0.1:1"]);
    }

    #[test]
    fn round_robin_spreads_by_weight_and_evenly() {
        let mut credits = [0; 3];
        let weights = [(0, 5), (1, 1), (2, 1)];
        let picks: Vec<_> = (0..7)
            .filter_map(|_| round_robin(&mut credits, weights.into_iter()))
            .collect();
        assert_eq!(picks, [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(credits, [0; 3]);
    }

    #[test]
    fn round_robin_without_anyone_able_is_nobody() {
        assert_eq!(round_robin(&mut [0; 2], std::iter::empty()), None);
    }

    #[test]
    fn the_fewest_tunnels_for_the_weight_win_and_the_first_of_a_tie() {
        let pick = |loads: &[(u64, u32)]| least(loads.iter().copied().enumerate());
        assert_eq!(pick(&[(10, 1), (15, 2), (9, 1)]), Some(1));
        assert_eq!(pick(&[(4, 2), (2, 1)]), Some(0));
        assert_eq!(pick(&[(u64::MAX, 1000), (u64::MAX, 999)]), Some(0));
        assert_eq!(pick(&[]), None);
    }
}
