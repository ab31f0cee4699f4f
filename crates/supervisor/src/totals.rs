//! Figures of the whole gateway: what the board says. Dead workers' totals are on it, too.

use std::sync::atomic::{AtomicU64, Ordering};

use wsgate_os::board::{BLOCKS, Board, GENERAL};
use wsgate_protocol::admin::Totals;
use wsgate_protocol::board::{CAUSES, Cell, STATUSES, route, server};

use crate::numbers::Numbers;

/// The block of those that are gone: no worker has it. So the totals of dead workers outlive the
/// supervisor as well, as long as any worker lives that shares the board.
const OF_THE_DEAD: usize = 0;

/// The board with its blocks' owners.
pub(crate) struct Figures {
    board: Board,
    /// Whether a block belongs to a worker.
    claimed: Vec<bool>,
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
        board.claim(OF_THE_DEAD);
        let mut claimed = vec![false; BLOCKS];
        claimed[OF_THE_DEAD] = true;
        Self { board, claimed }
    }

    /// Whether a worker that another supervisor has left behind keeps its block; `false` if it names one
    /// that cannot be its own.
    pub(crate) fn adopt(&mut self, block: usize) -> bool {
        let free = self.claimed.get(block) == Some(&false);
        if free {
            self.claimed[block] = true;
            self.board.claim(block);
        }
        free
    }

    /// Accounts for workers that died while nobody watched. To be called after the last [`Self::adopt`].
    pub(crate) fn bury_unclaimed(&mut self, numbers: &Numbers) {
        for block in 0..self.board.blocks_in_use() {
            if !self.claimed[block] {
                self.release(block, numbers);
            }
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
            add(self.dead(Cell::Ended(stop)), lost);
        }
        for cell in total_cells() {
            let left = self.board.general(block, cell.index());
            add(self.dead(cell), left.load(Ordering::Relaxed));
        }
        for (_, number) in numbers.servers() {
            for cell in [server::OPENED, server::CONNECT_FAILURES] {
                let of = |block| self.board.server(block, number as usize, cell);
                let left = of(block).load(Ordering::Relaxed);
                // A page that nobody writes to takes no memory.
                if left != 0 {
                    add(of(OF_THE_DEAD), left);
                }
            }
        }
        self.board.clear(block);
        self.claimed[block] = false;
    }

    fn dead(&self, cell: Cell) -> &AtomicU64 {
        self.board.general(OF_THE_DEAD, cell.index())
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
        ServerFigures {
            tunnels: sum(server::TUNNELS),
            draining: sum(server::DRAINING),
            opened: sum(server::OPENED),
            connect_failures: sum(server::CONNECT_FAILURES),
        }
    }

    /// All tunnels.
    pub(crate) fn tunnels(&self) -> u64 {
        self.board.sum_general(Cell::Tunnels.index())
    }

    /// A total over workers that live and workers that are gone.
    fn total(&self, cell: Cell) -> u64 {
        self.board.sum_general(cell.index())
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

/// Only the supervisor writes here.
fn add(total: &AtomicU64, n: u64) {
    total.store(
        total.load(Ordering::Relaxed).wrapping_add(n),
        Ordering::Relaxed,
    );
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
