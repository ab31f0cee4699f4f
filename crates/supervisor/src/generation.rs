//! What the supervisor keeps of each generation that lives.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use wsgate_config::{Config, Sources};
use wsgate_os::memfd;

/// A generation, as long as any of its workers lives.
pub(crate) struct Record {
    pub(crate) config: Arc<Config>,
    /// The same for the workers: a sealed memfd with JSON.
    pub(crate) memfd: Arc<OwnedFd>,
    pub(crate) started: Instant,
    pub(crate) started_at: SystemTime,
    /// When its drain ends.
    pub(crate) deadline: Option<Instant>,
}

impl Record {
    pub(crate) fn new(config: Config) -> io::Result<Self> {
        let text = serde_json::to_vec(&config)?;
        Ok(Self {
            memfd: Arc::new(memfd::sealed("wsgate-config", &text)?),
            config: Arc::new(config),
            started: Instant::now(),
            started_at: SystemTime::now(),
            deadline: None,
        })
    }

    /// One that another supervisor began, `age` ago.
    pub(crate) fn adopted(memfd: Arc<OwnedFd>, age: Duration) -> io::Result<Self> {
        let config = serde_json::from_slice(&memfd::read(memfd.try_clone()?)?)?;
        let now = Instant::now();
        Ok(Self {
            memfd,
            config: Arc::new(config),
            started: now.checked_sub(age).unwrap_or(now),
            started_at: SystemTime::now() - age,
            deadline: None,
        })
    }
}

impl Record {
    /// One of its workers is so old: it is so itself, at least.
    pub(crate) fn make_older(&mut self, age: Duration) {
        if age > self.started.elapsed() {
            self.started = Instant::now().checked_sub(age).unwrap_or(self.started);
            self.started_at = SystemTime::now() - age;
        }
    }
}

/// The text that runs, for comparing it with what is on disk.
#[derive(Clone)]
pub(crate) struct Content {
    pub(crate) sources: Arc<Sources>,
    pub(crate) sha256: String,
    pub(crate) active_since: SystemTime,
}

impl Content {
    pub(crate) fn new(sources: Sources) -> Self {
        Self {
            sha256: digest(&sources),
            sources: Arc::new(sources),
            active_since: SystemTime::now(),
        }
    }
}

/// SHA-256 over the texts, each with its length before it so that borders count. For
/// a file without includes it is that of the file alone, as `sha256sum` prints it.
pub(crate) fn digest(sources: &Sources) -> String {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    if let [only] = sources.files.as_slice() {
        hash.update(only.text.as_bytes());
    } else {
        for file in &sources.files {
            hash.update((file.text.len() as u64).to_be_bytes());
            hash.update(file.text.as_bytes());
        }
    }
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
