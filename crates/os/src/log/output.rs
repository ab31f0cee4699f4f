//! From any thread to the descriptor: a bounded queue, and the thread that empties it.
//!
//! tracing-appender would do, but for its end: when its guard is dropped while the
//! queue is full it waits 1.1 s and prints to stdout, which may be the same
//! full pipe and then blocks for ever. It also loses without a count what cannot be written.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing_subscriber::fmt::MakeWriter;

use crate::context;

/// The most bytes that wait to be written, with [`LINE_OVERHEAD`] for each line.
const QUEUE_BYTES: usize = 8 << 20;
/// What the queue itself takes for a line, about.
const LINE_OVERHEAD: usize = 64;

/// Where lines go. Owned by the log's thread, which alone may block on it.
#[derive(Debug)]
pub(super) struct Output {
    file: File,
}

impl Output {
    /// A duplicate of stderr, so that a write that hangs does not hold std's lock
    /// on it: a panic must still be able to end the process.
    pub(super) fn stderr() -> io::Result<Self> {
        Ok(Self::to(io::stderr().as_fd().try_clone_to_owned()?))
    }

    /// A file, for appending.
    pub(super) fn file(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .map_err(|error| {
                let path = path.display();
                let advice = "its directory must be there, and wsgate must be able to write to it";
                context(error, format_args!("log file {path} ({advice})"))
            })?;
        Ok(Self { file })
    }

    pub(super) fn to(fd: OwnedFd) -> Self {
        Self { file: fd.into() }
    }

    /// In one write(2) where the kernel takes it: lines of several processes do
    /// not mix in a file, nor, up to 4096 bytes, in a pipe.
    fn write_line(&mut self, mut line: &[u8]) -> io::Result<()> {
        while !line.is_empty() {
            match self.file.write(line) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => line = &line[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Somebody who shares our stderr made it non-blocking.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait()?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn wait(&self) -> io::Result<()> {
        let mut ready = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
        match poll(&mut ready, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// The near end, for any thread. No call waits but [`flush`](Self::flush).
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Held for moments only, never across a write.
    state: Mutex<State>,
    /// There is a line to write.
    filled: Condvar,
    /// All lines are written.
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Box<[u8]>>,
    /// Of the lines, and of the one that is being written.
    bytes: usize,
    dropped: u64,
    /// The output to go on with: left here, so that nobody waits for a write that hangs.
    next: Option<Output>,
}

impl Queue {
    /// Starts the log's thread, which lives as long as the process.
    pub(super) fn start(output: Output) -> io::Result<Self> {
        let queue = Self::default();
        let shared = Arc::clone(&queue.shared);
        thread::Builder::new()
            .name("wsgate-log".to_owned())
            .spawn(move || shared.write_all(output))?;
        Ok(queue)
    }

    /// Goes on with another output from the next line on.
    pub(super) fn switch_to(&self, output: Output) {
        self.shared.lock().next = Some(output);
    }

    /// Lines that found no room or could not be written.
    pub(super) fn dropped(&self) -> u64 {
        self.shared.lock().dropped
    }

    /// Waits until all lines are written, or this time is over.
    pub(super) fn flush(&self, limit: Duration) {
        let state = self.shared.lock();
        // At the limit what is left is lost; there is nobody to tell.
        drop(
            self.shared
                .emptied
                .wait_timeout_while(state, limit, |state| state.bytes > 0),
        );
    }

    fn push(&self, line: &[u8]) {
        let mut state = self.shared.lock();
        let bytes = state.bytes + line.len() + LINE_OVERHEAD;
        if bytes > QUEUE_BYTES {
            state.dropped += 1;
            return;
        }
        state.bytes = bytes;
        state.lines.push_back(line.into());
        self.shared.filled.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done by a thread that panicked with it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The log's thread.
    fn write_all(&self, mut output: Output) {
        loop {
            let (line, next) = self.wait_for_line();
            output = next.unwrap_or(output);
            let result = output.write_line(&line);

            let mut state = self.lock();
            state.bytes -= line.len() + LINE_OVERHEAD;
            state.dropped += u64::from(result.is_err());
            if state.bytes == 0 {
                self.emptied.notify_all();
            }
        }
    }

    fn wait_for_line(&self) -> (Box<[u8]>, Option<Output>) {
        let mut state = self.lock();
        loop {
            if let Some(line) = state.lines.pop_front() {
                return (line, state.next.take());
            }
            let filled = self.filled.wait(state);
            state = filled.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The subscriber writes each line whole, with one call.
impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
