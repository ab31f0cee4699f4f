//! The board as the data path sees it.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use wsgate_os::board::Board;
use wsgate_protocol::board::{self, CAUSES, Cell, STATUSES, route, server};
use wsgate_proxy::{Figure, Ledger};

/// Writes this worker's block of the board, and sums all of them.
///
/// Only the runtime's one thread counts, so adding needs no atomic read-modify-write; it would cost
/// more than all the rest of the counting.
pub(crate) struct BoardLedger {
    board: Board,
    block: usize,
}

impl BoardLedger {
    pub(crate) fn new(board: Board, block: usize) -> Self {
        Self { board, block }
    }

    /// Sets the number of log lines dropped by this process.
    pub(crate) fn set_log_lines_dropped(&self, n: u64) {
        self.general(Cell::LogLinesDropped)
            .store(n, Ordering::Relaxed);
    }

    /// The runtime turns.
    pub(crate) fn beat(&self) {
        let beats = self.general(Cell::Beats);
        beats.store(beats.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Differs once a client connection or a tunnel has come or a tunnel has gone: what needs memory for a moment, or leaves some.
    pub(crate) fn comings_and_goings(&self) -> u64 {
        let ended = (0..CAUSES.len()).map(Cell::Ended);
        let cells = [Cell::Connections, Cell::MovedIn, Cell::MovedOut];
        let cells = cells.into_iter().chain(ended);
        let counts = cells.map(|cell| self.general(cell).load(Ordering::Relaxed));
        counts.fold(0, u64::wrapping_add)
    }

    fn general(&self, cell: Cell) -> &AtomicU64 {
        self.board.general(self.block, cell.index())
    }

    fn cell(&self, figure: Figure) -> &AtomicU64 {
        let (board, block) = (&self.board, self.block);
        match figure {
            Figure::Tunnels => self.general(Cell::Tunnels),
            Figure::Opening => self.general(Cell::Opening),
            Figure::TunnelsOpened => self.general(Cell::TunnelsOpened),
            Figure::Ended(cause) => self.general(Cell::Ended(cause as usize)),
            Figure::Connections => self.general(Cell::Connections),
            Figure::Requests => self.general(Cell::Requests),
            Figure::Error(status) => self.general(Cell::Errors(status_index(status))),
            Figure::BytesFromClients => self.general(Cell::BytesFromClients),
            Figure::BytesFromServers => self.general(Cell::BytesFromServers),
            Figure::MessagesFromClients => self.general(Cell::MessagesFromClients),
            Figure::MessagesFromServers => self.general(Cell::MessagesFromServers),
            Figure::MovedIn => self.general(Cell::MovedIn),
            Figure::MovedOut => self.general(Cell::MovedOut),
            Figure::RouteTunnels(n) => board.route(block, n as usize, route::TUNNELS),
            Figure::RouteDraining(n) => board.route(block, n as usize, route::DRAINING),
            Figure::ServerTunnels(n) => board.server(block, n as usize, server::TUNNELS),
            Figure::ServerDraining(n) => board.server(block, n as usize, server::DRAINING),
            Figure::ServerOpened(n) => board.server(block, n as usize, server::OPENED),
            Figure::ServerConnectFailures(n) => {
                board.server(block, n as usize, server::CONNECT_FAILURES)
            }
        }
    }
}

/// An own answer whose status has no cell of its own counts as 500.
fn status_index(status: u16) -> usize {
    let place = |wanted: u16| STATUSES.iter().position(|known| *known == wanted);
    place(status).or_else(|| place(500)).unwrap_or(0)
}

impl Ledger for BoardLedger {
    fn add(&self, figure: Figure, n: u64) {
        let cell = self.cell(figure);
        cell.store(
            cell.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Release,
        );
    }

    fn sub(&self, gauge: Figure, n: u64) {
        let cell = self.cell(gauge);
        cell.store(
            cell.load(Ordering::Relaxed).wrapping_sub(n),
            Ordering::Release,
        );
    }

    fn tunnels(&self) -> u64 {
        // Sequentially consistent with `add`: see `Registry::reserve`.
        fence(Ordering::SeqCst);
        // In this order: a handshake that becomes a tunnel between the two is seen twice, never not at all.
        let gauges = [Cell::Opening, Cell::Tunnels];
        board::tunnels(&gauges, |cell| self.board.sum_general(cell.index()))
    }

    fn tunnels_here(&self) -> u64 {
        let load = |cell: Cell| self.general(cell).load(Ordering::Relaxed);
        load(Cell::Tunnels) + load(Cell::Opening)
    }

    fn tunnels_to(&self, server: u32) -> u64 {
        self.board.sum_server(server as usize, server::TUNNELS)
    }

    fn unacknowledged(&self, stream: BorrowedFd<'_>) -> io::Result<u64> {
        wsgate_os::socket::unacknowledged(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wsgate_proxy::Cause;

    #[test]
    fn causes_have_the_same_order_on_the_board_as_in_the_data_path() {
        for cause in Cause::ALL {
            assert_eq!(CAUSES[cause as usize], cause.name());
        }
        assert_eq!(CAUSES.len(), Cause::ALL.len());
    }

    #[test]
    fn an_unlisted_status_counts_as_500() {
        assert_eq!(STATUSES[status_index(418)], 500);
        assert_eq!(STATUSES[status_index(404)], 404);
    }

    #[test]
    fn what_one_worker_counts_another_sees() {
        let (board, fd) = Board::create().expect("a board");
        board.claim(0);
        board.claim(1);
        let one = BoardLedger::new(Board::open(fd).expect("the same board"), 0);
        let other = BoardLedger::new(board, 1);
        one.add(Figure::ServerTunnels(7), 2);
        one.add(Figure::Tunnels, 2);
        other.add(Figure::ServerTunnels(7), 1);
        other.add(Figure::Opening, 1);
        assert_eq!(other.tunnels_to(7), 3);
        assert_eq!((one.tunnels(), one.tunnels_here()), (3, 2));
        one.sub(Figure::ServerTunnels(7), 2);
        assert_eq!(other.tunnels_to(7), 1);
    }

    #[test]
    fn a_tunnel_that_moves_is_counted_at_every_moment() {
        const MOVING: u64 = 32;
        let (board, _fd) = Board::create().expect("a board");
        let workers = [0, 1].map(|block| {
            board.claim(block);
            BoardLedger::new(board.clone(), block)
        });
        board.claim(2);
        let reader = BoardLedger::new(board, 2);
        workers[0].add(Figure::Tunnels, MOVING);
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let take = |new: &BoardLedger| {
                    for figure in [Figure::Tunnels, Figure::MovedIn] {
                        new.add(figure, MOVING);
                    }
                };
                let give = |old: &BoardLedger| {
                    old.add(Figure::MovedOut, MOVING);
                    old.sub(Figure::Tunnels, MOVING);
                };
                let [one, other] = &workers;
                while !over.load(Ordering::Relaxed) {
                    take(other);
                    give(one);
                    // The acknowledgement is heard before the arrivals are counted.
                    give(other);
                    take(one);
                }
            });
            let least = (0..300_000).map(|_| reader.tunnels()).min();
            over.store(true, Ordering::Relaxed);
            assert_eq!(least, Some(MOVING));
        });
    }
}
