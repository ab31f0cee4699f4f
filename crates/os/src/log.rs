//! The log of the supervisor and of each worker: lines to stderr or to a file.
//!
//! It must never stop a tunnel. A line is put in a bounded queue and written by a
//! thread of its own; when the queue is full because the reader of stderr has stopped or
//! the disk hangs, lines are dropped and counted. At the end of the process what
//! is queued is written, for at most [`FLUSH_LIMIT`].

mod filter;
mod format;
mod output;

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::Duration;

use tracing::{Level, Subscriber};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Registry, reload};

use filter::Filter;
use format::Format;
use output::{Output, Queue};

/// The target of access lines: one event at INFO for each request or tunnel.
pub const ACCESS: &str = "wsgate::access";

/// How long the end of a process waits for its last lines to be written.
pub const FLUSH_LIMIT: Duration = Duration::from_millis(900);

/// What is logged, where to, and how it looks.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// The least severe level of wsgate's own lines. Those of libraries are
    /// never below INFO.
    pub level: Level,
    /// One JSON object a line, in place of text.
    pub json: bool,
    /// Where to, opened for appending; `None` for stderr.
    pub file: Option<PathBuf>,
    /// Who speaks, in each line: `supervisor`, `worker 0 gen 3`.
    pub process: String,
    /// Whether events of target [`ACCESS`] are logged, which is apart from `level`.
    pub access: bool,
}

/// Starts the log of this process.
///
/// # Errors
/// Those of open(2), with the file's path; `Other` if the process has a log already.
pub fn init(settings: LogSettings) -> io::Result<LogHandle> {
    let output = match &settings.file {
        Some(path) => Output::file(path)?,
        None => Output::stderr()?,
    };
    let ansi = !settings.json && settings.file.is_none() && io::stderr().is_terminal();
    let (subscriber, handle) = build(settings, output, ansi)?;
    tracing::subscriber::set_global_default(subscriber).map_err(io::Error::other)?;
    Ok(handle)
}

fn build(
    settings: LogSettings,
    output: Output,
    ansi: bool,
) -> io::Result<(impl Subscriber + Send + Sync, LogHandle)> {
    let queue = Queue::start(output)?;
    let filter = Filter {
        level: settings.level,
        access: settings.access,
    };
    let (targets, reload) = reload::Layer::new(filter.targets());
    let format = Format::new(&settings.process, settings.json);
    let subscriber = Registry::default()
        .with(targets)
        .with(format.layer(queue.clone(), ansi));
    let handle = LogHandle {
        queue,
        file: settings.file,
        access: settings.access,
        reload,
    };
    Ok((subscriber, handle))
}

/// The running log. Dropping it waits for what is queued, at most [`FLUSH_LIMIT`];
/// keep it until the process ends.
#[derive(Debug)]
pub struct LogHandle {
    queue: Queue,
    file: Option<PathBuf>,
    access: bool,
    reload: reload::Handle<tracing_subscriber::filter::Targets, Registry>,
}

impl LogHandle {
    /// Opens the file anew, after it was renamed by a log rotation. For stderr
    /// there is nothing to do.
    ///
    /// # Errors
    /// Those of open(2), with the file's path; the log then goes on into the old file.
    pub fn reopen(&self) -> io::Result<()> {
        if let Some(path) = &self.file {
            self.queue.switch_to(Output::file(path)?);
        }
        Ok(())
    }

    /// Sets another level. Access lines stay as they are.
    ///
    /// # Errors
    /// `Other` if the log has ended.
    pub fn set_level(&self, level: Level) -> io::Result<()> {
        let filter = Filter {
            level,
            access: self.access,
        };
        self.reload
            .reload(filter.targets())
            .map_err(io::Error::other)
    }

    /// Lines lost so far: the queue was full, or they could not be written.
    pub fn dropped(&self) -> u64 {
        self.queue.dropped()
    }
}

impl Drop for LogHandle {
    fn drop(&mut self) {
        self.queue.flush(FLUSH_LIMIT);
    }
}

#[cfg(test)]
mod tests;
