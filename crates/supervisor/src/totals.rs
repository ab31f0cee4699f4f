//! Figures of the whole gateway: what the board says now, and what dead workers left.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use wsgate_os::board::{BLOCKS, Board, GENERAL};
use wsgate_protocol::admin::Totals;
use wsgate_protocol::board::{CAUSES, Cell, STATUSES, route, server};

use crate::numbers::Numbers;

/// The board with its blocks' owners, and the totals of workers that are gone.
pub(crate) struct Figures {
    board: Board,
    /// Whether a block belongs to a worker.
    claimed: Vec<bool>,
    /// General totals of dead workers, by cell.
    kept: BTreeMap<usize, u64>,
    /// Totals of dead workers by server number: opened, connect failures.
    kept_servers: BTreeMap<u32, [u64; 2]>,
}

/// What is known of one server.
pub(crate) struct ServerFigures {
    pub(crate) tunnels: u64,
    pub(crate) draining: u64,
    pub(crate) opened: u64,
    pub(crate) connect_failures: u64,
}

impl Figures {
    pub(crate) fn new(board: Board) -> Self {
        Self {
            board,
            claimed: vec![false; BLOCKS],
            kept: BTreeMap::new(),
            kept_servers: BTreeMap::new(),
        }
    }

    /// A block for a new worker, all zero; `None` if there are as many workers as blocks.
    pub(crate) fn claim(&mut self) -> Option<usize> {
        let block = self.claimed.iter().position(|claimed| !claimed)?;
        self.claimed[block] = true;
        self.board.claim(block);
        Some(block)
    }

    /// A worker is gone: its totals are kept, its gauges are cleared.
    pub(crate) fn release(&mut self, block: usize, numbers: &Numbers) {
        // A worker that ends with tunnels takes them with it, whatever ended it.
        let lost = self.tunnels_of(block);
        if let Some(stop) = CAUSES.iter().position(|cause| *cause == "worker_stop") {
            *self.kept.entry(Cell::Ended(stop).index()).or_default() += lost;
        }
        for cell in total_cells() {
            let n = self
                .board
                .general(block, cell.index())
                .load(Ordering::Relaxed);
            let kept = self.kept.entry(cell.index()).or_default();
            *kept = kept.wrapping_add(n);
        }
        for (_, number) in numbers.servers() {
            let read = |cell| {
                self.board
                    .server(block, number as usize, cell)
                    .load(Ordering::Relaxed)
            };
            let (opened, failures) = (read(server::OPENED), read(server::CONNECT_FAILURES));
            if (opened, failures) != (0, 0) {
                let kept = self.kept_servers.entry(number).or_default();
                kept[0] = kept[0].wrapping_add(opened);
                kept[1] = kept[1].wrapping_add(failures);
            }
        }
        self.board.clear(block);
        self.claimed[block] = false;
    }

    /// Tunnels of one worker.
    pub(crate) fn tunnels_of(&self, block: usize) -> u64 {
        sane(self.board.general(block, Cell::Tunnels.index()))
    }

    /// Differs once a worker has counted anything: a hash of the cells that do not belong to a server or route.
    pub(crate) fn counted_by(&self, block: usize) -> u64 {
        use std::hash::{DefaultHasher, Hasher};
        let mut hasher = DefaultHasher::new();
        for cell in 0..GENERAL {
            hasher.write_u64(self.board.general(block, cell).load(Ordering::Relaxed));
        }
        hasher.finish()
    }

    /// Tunnels and handshakes under way of one worker.
    pub(crate) fn held_by(&self, block: usize) -> u64 {
        self.tunnels_of(block) + sane(self.board.general(block, Cell::Opening.index()))
    }

    /// Tunnels of one worker to one server.
    pub(crate) fn tunnels_of_to(&self, block: usize, number: u32) -> u64 {
        sane(self.board.server(block, number as usize, server::TUNNELS))
    }

    /// Tunnels by a route: all, and those with a deadline.
    pub(crate) fn route(&self, number: u32) -> (u64, u64) {
        let number = number as usize;
        (
            self.board.sum_route(number, route::TUNNELS),
            self.board.sum_route(number, route::DRAINING),
        )
    }

    /// What is known of a server.
    pub(crate) fn server(&self, number: u32) -> ServerFigures {
        let sum = |cell| self.board.sum_server(number as usize, cell);
        let kept = self.kept_servers.get(&number).copied().unwrap_or([0, 0]);
        ServerFigures {
            tunnels: sum(server::TUNNELS),
            draining: sum(server::DRAINING),
            opened: sum(server::OPENED).wrapping_add(kept[0]),
            connect_failures: sum(server::CONNECT_FAILURES).wrapping_add(kept[1]),
        }
    }

    /// All tunnels.
    pub(crate) fn tunnels(&self) -> u64 {
        self.board.sum_general(Cell::Tunnels.index())
    }

    /// A total over workers that live and workers that are gone.
    fn total(&self, cell: Cell) -> u64 {
        self.board.sum_general(cell.index()) + self.kept.get(&cell.index()).copied().unwrap_or(0)
    }

    /// Everything that workers count; the rest is the supervisor's to fill in.
    pub(crate) fn totals(&self) -> Totals {
        let causes = CAUSES.iter().enumerate();
        let statuses = STATUSES.iter().enumerate();
        Totals {
            tunnels: self.tunnels(),
            tunnels_opened: self.total(Cell::TunnelsOpened),
            tunnels_ended: causes
                .map(|(n, cause)| ((*cause).to_owned(), self.total(Cell::Ended(n))))
                .collect(),
            connections: self.total(Cell::Connections),
            requests: self.total(Cell::Requests),
            errors: statuses
                .map(|(n, status)| (status.to_string(), self.total(Cell::Errors(n))))
                .collect(),
            bytes_from_clients: self.total(Cell::BytesFromClients),
            bytes_from_servers: self.total(Cell::BytesFromServers),
            messages_from_clients: self.total(Cell::MessagesFromClients),
            messages_from_servers: self.total(Cell::MessagesFromServers),
            log_lines_dropped: self.total(Cell::LogLinesDropped),
            ..Totals::default()
        }
    }
}

/// A gauge as a worker wrote it. A worker gone wild must not bring the supervisor's sums down.
fn sane(gauge: &AtomicU64) -> u64 {
    gauge.load(Ordering::Relaxed).min(u64::from(u32::MAX))
}

/// The general cells that are totals; the others are gauges.
fn total_cells() -> impl Iterator<Item = Cell> {
    let plain = [
        Cell::TunnelsOpened,
        Cell::Connections,
        Cell::Requests,
        Cell::BytesFromClients,
        Cell::BytesFromServers,
        Cell::MessagesFromClients,
        Cell::MessagesFromServers,
        Cell::LogLinesDropped,
    ];
    let ended = (0..CAUSES.len()).map(Cell::Ended);
    let errors = (0..STATUSES.len()).map(Cell::Errors);
    plain.into_iter().chain(ended).chain(errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_workers_totals_stay_and_its_gauges_go() {
        let (board, _fd) = Board::create().expect("a board");
        let mut figures = Figures::new(board.clone());
        let block = figures.claim().expect("a block");
        board
            .general(block, Cell::Tunnels.index())
            .store(3, Ordering::Relaxed);
        board
            .general(block, Cell::TunnelsOpened.index())
            .store(9, Ordering::Relaxed);
        let drained = CAUSES.iter().position(|cause| *cause == "drain");
        let drained = drained.expect("a cause");
        board
            .general(block, Cell::Ended(drained).index())
            .store(6, Ordering::Relaxed);
        assert_eq!(
            (figures.totals().tunnels, figures.totals().tunnels_opened),
            (3, 9)
        );

        figures.release(block, &Numbers::default());
        let totals = figures.totals();
        assert_eq!((totals.tunnels, totals.tunnels_opened), (0, 9));
        assert_eq!(totals.tunnels_ended["drain"], 6);
        assert_eq!(
            totals.tunnels_ended["worker_stop"], 3,
            "every tunnel that was opened has ended"
        );
        assert_eq!(figures.claim(), Some(block));
        assert_eq!(figures.totals().tunnels_opened, 9);
    }
}
