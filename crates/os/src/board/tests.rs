use std::fs::File;
use std::os::unix::fs::MetadataExt;

use super::*;

/// The board as the supervisor and as a worker have it.
fn both() -> (Board, Board, OwnedFd) {
    let (ours, fd) = Board::create().unwrap();
    let theirs = Board::open(fd.try_clone().unwrap()).unwrap();
    (ours, theirs, fd)
}

/// Memory behind the file, in bytes.
fn memory(fd: &OwnedFd) -> u64 {
    File::from(fd.try_clone().unwrap())
        .metadata()
        .unwrap()
        .blocks()
        * 512
}

#[test]
fn what_one_process_counts_another_one_reads() {
    let (supervisor, worker, _) = both();
    supervisor.claim(0);
    supervisor.claim(3);
    worker.general(0, 5).fetch_add(2, Relaxed);
    worker.general(3, 5).fetch_add(40, Relaxed);
    worker.route(3, ROUTES - 1, 1).fetch_add(7, Relaxed);
    worker.server(3, SERVERS - 1, 3).fetch_add(9, Relaxed);
    assert_eq!(supervisor.blocks_in_use(), 4);
    assert_eq!(supervisor.sum_general(5), 42);
    assert_eq!(supervisor.sum_general(6), 0);
    assert_eq!(supervisor.sum_route(ROUTES - 1, 1), 7);
    assert_eq!(supervisor.sum_server(SERVERS - 1, 3), 9);
    assert_eq!(supervisor.server(3, SERVERS - 1, 3).load(Relaxed), 9);
}

#[test]
fn no_two_cells_are_one() {
    let (board, _, _) = both();
    let edges = [
        board.in_use(),
        board.general(0, 0),
        board.general(0, GENERAL - 1),
        board.route(0, 0, 0),
        board.route(0, ROUTES - 1, ROUTE_CELLS - 1),
        board.server(0, 0, 0),
        board.server(0, SERVERS - 1, SERVER_CELLS - 1),
        board.general(1, 0),
        board.server(BLOCKS - 1, SERVERS - 1, SERVER_CELLS - 1),
    ];
    assert!(edges.is_sorted_by(|a, b| std::ptr::from_ref(*a) < std::ptr::from_ref(*b)));
}

#[test]
fn a_sum_below_zero_is_zero_and_recovers() {
    let (board, _, _) = both();
    board.claim(1);
    board.server(0, 1, 0).fetch_sub(1, Relaxed);
    assert_eq!(board.sum_server(1, 0), 0);
    board.server(1, 1, 0).fetch_add(3, Relaxed);
    assert_eq!(board.sum_server(1, 0), 2);
}

#[test]
fn the_high_water_mark_never_falls() {
    let (board, _, _) = both();
    assert_eq!(board.blocks_in_use(), 0);
    board.claim(7);
    board.claim(2);
    assert_eq!(board.blocks_in_use(), 8);
}

#[test]
fn clearing_a_block_zeroes_it_alone_and_frees_its_memory() {
    let (board, worker, fd) = both();
    for block in 0..3 {
        board.claim(block);
        for server in 0..SERVERS {
            worker.server(block, server, 1).store(1, Relaxed);
        }
        worker.general(block, 0).store(1, Relaxed);
    }
    let full = memory(&fd);
    board.clear(1);
    assert!(memory(&fd) + (BLOCK as u64 / 2) < full);
    assert_eq!(board.sum_general(0), 2);
    for server in [0, SERVERS - 1] {
        assert_eq!(worker.server(1, server, 1).load(Relaxed), 0);
        assert_eq!(board.sum_server(server, 1), 2);
    }
    // The block is used again.
    worker.general(1, 0).fetch_add(5, Relaxed);
    assert_eq!(board.sum_general(0), 7);
}

#[test]
fn an_unused_board_takes_next_to_no_memory() {
    let (_, _, fd) = both();
    assert!(memory(&fd) <= 64 * 1024);
}

#[test]
fn the_file_cannot_be_cut_under_a_mapping() {
    let (_, _, fd) = both();
    assert!(ftruncate(&fd, 0).is_err());
}

#[test]
fn what_is_no_board_is_refused() {
    let kind = |fd| Board::open(fd).unwrap_err().kind();
    let sealed = memfd::sealed("test", b"abc").unwrap();
    assert_eq!(kind(sealed), io::ErrorKind::InvalidData);
    let open = memfd::create("test").unwrap();
    ftruncate(&open, SIZE as i64).unwrap();
    assert_eq!(kind(open.try_clone().unwrap()), io::ErrorKind::InvalidData);
    memfd::seal(&open, SEALS).unwrap();
    assert_eq!(kind(open), io::ErrorKind::InvalidData);
}

#[test]
#[should_panic(expected = "cell 4 of server 0")]
fn a_cell_out_of_bounds_is_a_bug() {
    let (board, _, _) = both();
    board.server(0, 0, SERVER_CELLS);
}

#[test]
fn what_is_counted_by_is_found_without_taking_memory() {
    let (board, _, fd) = both();
    board.claim(2);
    board.route(0, 7, 0).store(1, Relaxed);
    board.route(2, ROUTES - 1, 0).store(1, Relaxed);
    board.server(2, SERVERS - 1, 0).store(1, Relaxed);
    // The first cell is the one that counts.
    board.server(1, 9, 2).store(1, Relaxed);
    let before = memory(&fd);
    let counted = board.counted(&fd).unwrap();
    assert_eq!(counted.routes, BTreeSet::from([7, ROUTES as u32 - 1]));
    assert_eq!(counted.servers, BTreeSet::from([SERVERS as u32 - 1]));
    assert_eq!(memory(&fd), before);
}
