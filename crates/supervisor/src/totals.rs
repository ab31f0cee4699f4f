//! Figures of the whole gateway: what the board says. Dead workers' totals are on it, too.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use wsgate_os::board::{BLOCKS, Board, Counted, GENERAL};
use wsgate_protocol::admin::Totals;
use wsgate_protocol::board::{self, CAUSES, Cell, STATUSES, route, server};

use crate::numbers::Numbers;

/// The block of those that are gone: no worker has it. So the totals of dead workers outlive the
/// supervisor as well, as long as any worker lives that shares the board.
const OF_THE_DEAD: usize = 0;

/// The board with its blocks' owners.
pub(crate) struct Figures {
    board: Board,
    /// Whether a block belongs to a worker.
    claimed: Vec<bool>,
    /// Workers have gone whose tunnels are not accounted for.
    unsettled: bool,
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
        Self {
            board,
            claimed,
            unsettled: false,
        }
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
        self.settle();
    }

    /// A block for a new worker, all zero; `None` if there are as many workers as blocks.
    pub(crate) fn claim(&mut self) -> Option<usize> {
        let block = self.claimed.iter().position(|claimed| !claimed)?;
        self.claimed[block] = true;
        self.board.claim(block);
        Some(block)
    }

    /// A worker is gone: its totals are kept, its gauges are cleared. What becomes of the tunnels that it
    /// held is for [`Self::settle`].
    pub(crate) fn release(&mut self, block: usize, numbers: &Numbers) {
        add(self.dead(Cell::Tunnels), self.tunnels_of(block));
        self.unsettled = true;
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
        self.bury_moves(block);
        self.board.clear(block);
        self.claimed[block] = false;
    }

    /// What a dead worker has given and taken goes to the dead. Other workers count tunnels meanwhile, and take off what was taken more than
    /// given: in this order they have too many at any moment, never too few.
    fn bury_moves(&self, block: usize) {
        let of = |cell: Cell| self.board.general(block, cell.index());
        let [taken, given] = [Cell::MovedIn, Cell::MovedOut].map(of);
        add(self.dead(Cell::MovedOut), given.load(Ordering::Relaxed));
        let left = taken.swap(0, Ordering::SeqCst);
        add(self.dead(Cell::MovedIn), left);
        given.store(0, Ordering::Release);
    }

    /// Accounts for the tunnels of workers that are gone. To be called while none is on its way from one worker to
    /// another: then what was taken and given differs by what the dead did not come to count.
    pub(crate) fn settle(&mut self) {
        if !std::mem::take(&mut self.unsettled) {
            return;
        }
        let held = self.tunnels_of(OF_THE_DEAD);
        // A tunnel that opened late may move even now. It is no one's that is gone: what it changes between two looks is to be seen by neither.
        let given_before = self.total(Cell::MovedOut);
        let (taken, given) = (self.total(Cell::MovedIn), self.total(Cell::MovedOut));
        // It gave them, and they live elsewhere.
        let alive = taken.saturating_sub(given).min(held);
        add(self.dead(Cell::MovedOut), alive);
        // They were given to it, and ended with it.
        let unseen = given_before.saturating_sub(taken);
        add(self.dead(Cell::MovedIn), unseen);
        // A worker that ends with tunnels takes them with it, whatever ended it.
        if let Some(stop) = CAUSES.iter().position(|cause| *cause == "worker_stop") {
            add(self.dead(Cell::Ended(stop)), held - alive + unseen);
        }
        self.dead(Cell::Tunnels).store(0, Ordering::Relaxed);
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

    /// Tunnels that others have taken from one worker.
    pub(crate) fn given_by(&self, block: usize) -> u64 {
        sane(self.board.general(block, Cell::MovedOut.index()))
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

    /// Tunnels of one worker, out of those to these servers, that have a deadline.
    pub(crate) fn draining_of(&self, block: usize, servers: impl Iterator<Item = u32>) -> u64 {
        let of = |number: u32| self.board.server(block, number as usize, server::DRAINING);
        servers.map(|number| sane(of(number))).sum()
    }

    /// Routes and servers that tunnels go by, whether they have a name or not.
    pub(crate) fn counted(&self, board: &OwnedFd) -> io::Result<Counted> {
        self.board.counted(board)
    }

    /// All tunnels, those that move counted once.
    pub(crate) fn tunnels(&self) -> u64 {
        board::tunnels(&[Cell::Tunnels], |cell| self.total(cell))
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
            handovers: self.total(Cell::MovedIn),
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
        Ordering::Release,
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
        figures.settle();
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

    /// Two workers with these gauges: tunnels, taken over, given.
    fn moving(old: [u64; 3], new: [u64; 3]) -> (Figures, usize, usize) {
        let (board, _fd) = Board::create().expect("a board");
        let mut figures = Figures::new(board.clone());
        let mut claim = |counted: [u64; 3]| {
            let block = figures.claim().expect("a block");
            let cells = [Cell::Tunnels, Cell::MovedIn, Cell::MovedOut];
            for (cell, n) in cells.into_iter().zip(counted) {
                let cell = board.general(block, cell.index());
                cell.store(n, Ordering::Relaxed);
            }
            block
        };
        let (old, new) = (claim(old), claim(new));
        (figures, old, new)
    }

    fn stopped(figures: &Figures) -> u64 {
        figures.totals().tunnels_ended["worker_stop"]
    }

    #[test]
    fn a_tunnel_that_moves_is_one_tunnel() {
        // 32 of 100 are in the new worker, and 10 of these in the old one still.
        let (figures, _, _) = moving([78, 0, 22], [32, 32, 0]);
        assert_eq!((figures.tunnels(), figures.totals().handovers), (100, 32));
    }

    #[test]
    fn what_a_dead_giver_had_given_lives_on() {
        let (mut figures, old, _) = moving([78, 0, 22], [32, 32, 0]);
        figures.release(old, &Numbers::default());
        assert_eq!(
            (figures.tunnels(), stopped(&figures)),
            (100, 0),
            "not known before it is settled"
        );
        figures.settle();
        assert_eq!((figures.tunnels(), stopped(&figures)), (32, 68));
        figures.settle();
        assert_eq!((figures.tunnels(), stopped(&figures)), (32, 68));
    }

    #[test]
    fn what_a_dead_taker_had_counted_and_not_taken_is_with_the_giver() {
        let (mut figures, _, new) = moving([100, 0, 0], [32, 32, 0]);
        figures.release(new, &Numbers::default());
        figures.settle();
        assert_eq!((figures.tunnels(), stopped(&figures)), (100, 0));
    }

    #[test]
    fn what_a_dead_taker_had_taken_and_not_counted_has_ended() {
        let (mut figures, _, new) = moving([68, 0, 32], [0, 0, 0]);
        figures.release(new, &Numbers::default());
        figures.settle();
        assert_eq!((figures.tunnels(), stopped(&figures)), (68, 32));
        assert_eq!(figures.totals().handovers, 32);
    }
}
