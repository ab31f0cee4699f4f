//! What must outlive the supervisor: the operator's word about servers, numbers that must
//! not come twice, and the configuration that ran last.
//!
//! Files are replaced whole, so that a crash leaves the old content or the new. That they cannot be
//! written never stops anything: it is logged, counted, and told to whoever changed something.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use wsgate_config::{Loaded, Sources};
use wsgate_os::file;

use crate::runtime::{self, RuntimeDirectory};
use crate::servers::Saved;
use crate::supervisor::Supervisor;

/// The layout of both files.
const VERSION: u32 = 1;

/// `state.json`
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct State {
    version: u32,
    /// Of the supervisor that wrote it. Ids of tunnels begin with it.
    pub(crate) instance: u64,
    /// The last generation.
    pub(crate) generation: u64,
    /// Servers that are not `ready`.
    pub(crate) servers: Vec<Saved>,
    /// What was held back: the digest of its text.
    #[serde(default)]
    pub(crate) held: Option<String>,
}

/// `last-good.json`
#[derive(Debug, Serialize, Deserialize)]
struct LastGood {
    version: u32,
    /// The file given with `--config`.
    config: PathBuf,
    sources: Sources,
}

impl State {
    /// What is there. A file that cannot be used is as good as none, but is told of.
    pub(crate) fn load(directory: &RuntimeDirectory) -> Self {
        let path = directory.state();
        match read::<Self>(&path) {
            Ok(Some(state)) if state.version == VERSION => state,
            Ok(None) => Self::default(),
            Ok(Some(Self { version, .. })) => {
                tracing::error!(path = %path.display(), version, "state file of another version: every server is ready");
                Self::default()
            }
            Err(problem) => {
                tracing::error!(path = %path.display(), problem, "state file not read: every server is ready");
                Self::default()
            }
        }
    }
}

/// The configuration that ran when the last supervisor of this file died; `None` if it stopped by itself.
pub(crate) fn last_good(directory: &RuntimeDirectory, config: &Path) -> Option<Loaded> {
    let last: LastGood = read(&directory.last_good()).ok().flatten()?;
    let ours = last.version == VERSION && last.config == config;
    // What ran may be refused by a newer version.
    ours.then(|| wsgate_config::parse(last.sources).ok())?
}

/// The same for a file that may not even tell its runtime directory any more: then `WSGATE_SOCKET`, which
/// tells `wsctl`, does.
pub(crate) fn what_ran_last(config: &Path) -> Option<(RuntimeDirectory, Loaded)> {
    let told = std::env::var_os("WSGATE_SOCKET").map(PathBuf::from);
    let sockets = [Some(wsgate_config::admin_socket(config)), told];
    sockets.into_iter().flatten().find_map(|socket| {
        let directory = RuntimeDirectory::of(&socket);
        let loaded = last_good(&directory, config)?;
        Some((directory, loaded))
    })
}

/// `None` if there is no such file.
fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Option<T>, String> {
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.to_string()),
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| error.to_string()),
    }
}

impl Supervisor {
    /// Writes the state down. A warning, if that cannot be done.
    pub(crate) fn save_state(&mut self) -> Option<String> {
        let state = State {
            version: VERSION,
            instance: self.instance,
            generation: self.last_generation,
            servers: self.states.saved(),
            held: self.reloads.held.as_ref().map(|held| held.digest()),
        };
        let path = self.directory.state();
        self.save(&path, &state)
    }

    /// Tries again what could not be written down: the disk may have room by now.
    pub(crate) fn save_again(&mut self) {
        if self.unsaved {
            self.save_all();
            if !self.unsaved {
                tracing::info!("the state is saved again");
            }
        }
    }

    /// Writes down what runs.
    pub(crate) fn save_last_good(&mut self, sources: &Sources) -> Option<String> {
        let last = LastGood {
            version: VERSION,
            config: self.options.config.clone(),
            sources: sources.clone(),
        };
        let path = self.directory.last_good();
        self.save(&path, &last)
    }

    /// After a stop nobody wants what ran before: the file that is there then is meant.
    pub(crate) fn forget_last_good(&self) {
        runtime::remove(&self.directory.last_good());
    }

    fn save(&mut self, path: &Path, content: &impl Serialize) -> Option<String> {
        let written = serde_json::to_vec(content)
            .map_err(std::io::Error::from)
            .and_then(|text| file::replace(path, &text));
        let error = written.err()?;
        self.state_write_failures += 1;
        self.unsaved = true;
        tracing::error!(%error, "not saved: it would not survive the supervisor's death");
        Some(format!(
            "{error}: this would not survive the supervisor's death; free space, and it is written within 5 s"
        ))
    }
}
