//! The board: shared memory in which each worker counts, and which everyone sums.
//!
//! One memory file, mapped by the supervisor and by every worker. It begins with
//! a header page; then come [`BLOCKS`] blocks of cells, each for one worker at a
//! time, each on pages of its own. Only the owner of a block writes its cells,
//! so counting takes no lock and shares no cache line; readers sum over blocks.
//! The file is sparse: memory is taken by the pages that were touched.
//!
//! All access is relaxed: a sum is a moment's estimate, never a snapshot. A gauge
//! may be raised in one block and lowered in another, so cells wrap and only
//! sums are clamped.
//!
//! If the system (or the cgroup) has no page left, touching a cell raises SIGBUS,
//! as touching any other memory would end the process.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, SealFlag, fallocate};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;

use crate::context;
use crate::memfd;

/// Blocks, and so the most workers at one time.
pub const BLOCKS: usize = 1024;
/// Cells of a block that belong to no route or server.
pub const GENERAL: usize = 128;
/// Routes with cells of their own.
pub const ROUTES: usize = 16_384;
/// Cells of each route.
pub const ROUTE_CELLS: usize = 2;
/// Servers with cells of their own.
pub const SERVERS: usize = 16_384;
/// Cells of each server.
pub const SERVER_CELLS: usize = 4;

/// Routes and servers of which a cell of this index is not zero in some block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Numbers of routes, ascending.
    pub routes: BTreeSet<u32>,
    /// Numbers of servers, ascending.
    pub servers: BTreeSet<u32>,
}

const CELL: usize = size_of::<AtomicU64>();
const PAGE: usize = 4096;
const BLOCK_CELLS: usize = GENERAL + ROUTES * ROUTE_CELLS + SERVERS * SERVER_CELLS;
/// Whole pages, so that clearing a block gives its memory back.
const BLOCK: usize = (BLOCK_CELLS * CELL).next_multiple_of(PAGE);
const SIZE: usize = PAGE + BLOCKS * BLOCK;

/// Cells of the header page.
const LAYOUT_CELL: usize = 0;
const IN_USE_CELL: usize = 1;
/// "wsgate" and the version of this layout.
const LAYOUT: u64 = u64::from_be_bytes(*b"wsgate\x00\x01");

/// Nobody can cut the file under a mapping (SIGBUS), nor take that promise back.
const SEALS: SealFlag = SealFlag::F_SEAL_SHRINK
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_SEAL);

/// The board, mapped. Clones share one mapping.
#[derive(Clone, Debug)]
pub struct Board {
    mapping: Arc<Mapping>,
}

impl Board {
    /// A new board with all cells zero, and its descriptor for the workers.
    ///
    /// # Errors
    /// Those of memfd_create(2), ftruncate(2), fcntl(2) and mmap(2). The mapping takes
    /// 772 MiB of address space (not of memory), which RLIMIT_AS must allow.
    pub fn create() -> io::Result<(Self, OwnedFd)> {
        let fd = memfd::create("wsgate-board")?;
        ftruncate(&fd, SIZE as i64)
            .map_err(|errno| context(errno.into(), "the size of the board"))?;
        memfd::seal(&fd, SEALS)?;
        let copy = fd.try_clone()?;
        let board = Self::map(fd)?;
        board
            .mapping
            .cell(LAYOUT_CELL * CELL)
            .store(LAYOUT, Relaxed);
        Ok((board, copy))
    }

    /// Maps a board that [`create`](Self::create) made.
    ///
    /// # Errors
    /// `InvalidData` if it is not sealed or has another layout; else those of fstat(2) and mmap(2).
    pub fn open(fd: OwnedFd) -> io::Result<Self> {
        memfd::require_seals(&fd, SEALS)?;
        let size = fstat(&fd)?.st_size;
        if size != SIZE as i64 {
            return Err(other_layout());
        }
        let board = Self::map(fd)?;
        if board.mapping.cell(LAYOUT_CELL * CELL).load(Relaxed) != LAYOUT {
            return Err(other_layout());
        }
        Ok(board)
    }

    /// The routes and servers whose first cell is not zero in some block in use, whoever knows them. It is read from
    /// the file, not from the mapping: pages that nobody has written to are to take no memory.
    ///
    /// # Errors
    /// Those of pread(2).
    pub fn counted(&self, fd: &OwnedFd) -> io::Result<Counted> {
        let file = File::from(fd.try_clone()?);
        let mut bytes = vec![0; BLOCK];
        let mut counted = Counted::default();
        for block in 0..self.blocks_in_use() {
            file.read_exact_at(&mut bytes, (PAGE + block * BLOCK) as u64)?;
            let (_, rest) = bytes.split_at(GENERAL * CELL);
            let (routes, servers) = rest.split_at(ROUTES * ROUTE_CELLS * CELL);
            counted.routes.extend(not_zero(routes, ROUTE_CELLS));
            let servers = &servers[..SERVERS * SERVER_CELLS * CELL];
            counted.servers.extend(not_zero(servers, SERVER_CELLS));
        }
        Ok(counted)
    }

    /// One of the general cells of a block.
    ///
    /// # Panics
    /// If `block` is not below [`BLOCKS`] or `i` not below [`GENERAL`].
    pub fn general(&self, block: usize, i: usize) -> &AtomicU64 {
        assert!(i < GENERAL, "general cell {i}");
        self.block_cell(block, i)
    }

    /// One of a route's cells in a block.
    ///
    /// # Panics
    /// If `block` is not below [`BLOCKS`], `route` not below [`ROUTES`] or `i` not below [`ROUTE_CELLS`].
    pub fn route(&self, block: usize, route: usize, i: usize) -> &AtomicU64 {
        assert!(
            route < ROUTES && i < ROUTE_CELLS,
            "cell {i} of route {route}"
        );
        self.block_cell(block, GENERAL + route * ROUTE_CELLS + i)
    }

    /// One of a server's cells in a block.
    ///
    /// # Panics
    /// If `block` is not below [`BLOCKS`], `server` not below [`SERVERS`] or `i` not below [`SERVER_CELLS`].
    pub fn server(&self, block: usize, server: usize, i: usize) -> &AtomicU64 {
        assert!(
            server < SERVERS && i < SERVER_CELLS,
            "cell {i} of server {server}"
        );
        let first = GENERAL + ROUTES * ROUTE_CELLS;
        self.block_cell(block, first + server * SERVER_CELLS + i)
    }

    /// How many blocks, counted from the first, have ever been claimed: what sums run over.
    pub fn blocks_in_use(&self) -> usize {
        // A bug in another process must not make this one panic.
        usize::try_from(self.in_use().load(Relaxed)).map_or(BLOCKS, |blocks| blocks.min(BLOCKS))
    }

    /// Makes sums run over this block too. To be called before its worker counts in it.
    ///
    /// # Panics
    /// If `block` is not below [`BLOCKS`].
    pub fn claim(&self, block: usize) {
        assert!(block < BLOCKS, "block {block}");
        self.in_use().fetch_max(block as u64 + 1, Relaxed);
    }

    /// Zeroes all cells of a block whose worker is gone, and gives their memory back.
    ///
    /// # Panics
    /// If `block` is not below [`BLOCKS`].
    pub fn clear(&self, block: usize) {
        assert!(block < BLOCKS, "block {block}");
        if self.mapping.punch(PAGE + block * BLOCK, BLOCK).is_err() {
            for i in 0..BLOCK_CELLS {
                self.block_cell(block, i).store(0, Relaxed);
            }
        }
    }

    /// The sum of a general cell over the blocks in use; 0 if it is below zero for a moment.
    ///
    /// # Panics
    /// As [`general`](Self::general).
    pub fn sum_general(&self, i: usize) -> u64 {
        self.sum(|block| self.general(block, i))
    }

    /// The sum of a route's cell over the blocks in use; 0 if it is below zero for a moment.
    ///
    /// # Panics
    /// As [`route`](Self::route).
    pub fn sum_route(&self, route: usize, i: usize) -> u64 {
        self.sum(|block| self.route(block, route, i))
    }

    /// The sum of a server's cell over the blocks in use; 0 if it is below zero for a moment.
    ///
    /// # Panics
    /// As [`server`](Self::server).
    pub fn sum_server(&self, server: usize, i: usize) -> u64 {
        self.sum(|block| self.server(block, server, i))
    }

    fn sum<'a>(&'a self, cell: impl Fn(usize) -> &'a AtomicU64) -> u64 {
        let sum = (0..self.blocks_in_use())
            .map(|block| cell(block).load(Acquire))
            .fold(0, u64::wrapping_add);
        if i64::try_from(sum).is_ok() { sum } else { 0 }
    }

    fn block_cell(&self, block: usize, i: usize) -> &AtomicU64 {
        assert!(block < BLOCKS, "block {block}");
        self.mapping.cell(PAGE + block * BLOCK + i * CELL)
    }

    fn in_use(&self) -> &AtomicU64 {
        self.mapping.cell(IN_USE_CELL * CELL)
    }

    fn map(fd: OwnedFd) -> io::Result<Self> {
        let mapping = Arc::new(Mapping::new(fd)?);
        Ok(Self { mapping })
    }
}

/// The numbers of those with a first cell that is not zero; `cells` each.
fn not_zero(bytes: &[u8], cells: usize) -> impl Iterator<Item = u32> {
    let all = bytes.chunks_exact(cells * CELL).zip(0..);
    all.filter(|(its, _)| its[..CELL] != [0; CELL])
        .map(|(_, number)| number)
}

fn other_layout() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the descriptor is no board of this version",
    )
}

/// The file's pages in this process. All access goes through atomics.
#[derive(Debug)]
struct Mapping {
    base: NonNull<libc::c_void>,
    fd: OwnedFd,
}

// SAFETY: the mapping belongs to the process, not to a thread, and gives out
// nothing but shared references to atomics.
unsafe impl Send for Mapping {}
// SAFETY: as for Send.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// The file must have [`SIZE`] bytes and [`SEALS`].
    fn new(fd: OwnedFd) -> io::Result<Self> {
        const LENGTH: NonZeroUsize = NonZeroUsize::new(SIZE).expect("the board is not empty");
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        // SAFETY: the kernel chooses an address that is free, so that no other mapping is replaced.
        let base = unsafe { mmap(None, LENGTH, protection, flags, &fd, 0) }
            .map_err(|errno| context(errno.into(), "mapping the board"))?;
        Ok(Self { base, fd })
    }

    /// The cell at this offset in bytes.
    fn cell(&self, offset: usize) -> &AtomicU64 {
        debug_assert!(offset + CELL <= SIZE && offset.is_multiple_of(CELL));
        // SAFETY: the offset is inside the mapping and a multiple of 8, for every caller's
        // indices are checked or constant. The pages stay valid for as long as `self`: the
        // file is sealed against shrinking. Any bit pattern is a valid u64, and all
        // processes access the cells by atomics alone.
        unsafe { self.base.byte_add(offset).cast::<AtomicU64>().as_ref() }
    }

    /// Replaces this range of the file by zeroes without memory behind them.
    fn punch(&self, offset: usize, length: usize) -> Result<(), Errno> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        loop {
            match fallocate(&self.fd, flags, offset as i64, length as i64) {
                Err(Errno::EINTR) => {}
                done => return done,
            }
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and size are those that mmap returned and was given, and no
        // reference to a cell outlives the mapping.
        let unmapped = unsafe { munmap(self.base, SIZE) };
        debug_assert!(unmapped.is_ok(), "munmap refuses only bad arguments");
    }
}

#[cfg(test)]
mod tests;
