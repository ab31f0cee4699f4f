//! What the supervisor keeps of each generation that lives.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

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
fn digest(sources: &Sources) -> String {
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
