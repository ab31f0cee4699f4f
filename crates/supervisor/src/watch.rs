//! Tells when the configuration's files may have changed.
//!
//! Notifications alone are not enough. A watch on a directory dies silently when the
//! directory itself is replaced, and a changed symlink further up (as Kubernetes swaps
//! them) is seen only where that link lives. So every directory of the chain of
//! links is watched, the set is made anew after each reload, and besides the files
//! are looked at every [`LOOK_EVERY`].

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use wsgate_config::Sources;

use crate::event::{Event, Events};

/// How often the files are looked at, notified or not.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Events that come closer together than this are one change: editors write, rename and touch.
pub(crate) const SETTLE: Duration = Duration::from_millis(100);

/// Longest chain of symlinks that is followed; the kernel's own limit is 40.
const LINKS: usize = 40;

/// Watches until it is dropped.
pub(crate) struct Watch {
    _watcher: RecommendedWatcher,
}

impl Watch {
    /// Watches the directories of all files of `sources`, and those that its includes look into.
    pub(crate) fn start(file: &Path, sources: &Sources, events: &Events) -> notify::Result<Self> {
        let events = events.clone();
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                if event.map_or(true, |event| is_change(&event.kind)) {
                    // Nobody listens only while the supervisor itself ends.
                    drop(events.send(Event::FilesChanged));
                }
            })?;
        for directory in directories(file, sources) {
            if let Err(error) = watcher.watch(&directory, RecursiveMode::NonRecursive) {
                tracing::warn!(directory = %directory.display(), %error, "not watched; its files are looked at every {LOOK_EVERY:?}");
            }
        }
        Ok(Self { _watcher: watcher })
    }
}

/// Reading a file is an event too, and no change; closing one after a write is.
fn is_change(kind: &EventKind) -> bool {
    match kind {
        EventKind::Access(access) => *access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

fn directories(file: &Path, sources: &Sources) -> BTreeSet<PathBuf> {
    let files = sources
        .files
        .iter()
        .map(|source| source.path.as_path())
        .chain([file]);
    let mut found: BTreeSet<PathBuf> = files.flat_map(chain).collect();
    for directory in &sources.include_dirs {
        found.extend(chain(directory));
        found.insert(directory.clone());
    }
    found.retain(|directory| directory.is_dir());
    found
}

/// The directories in which a change of one entry changes what `path` leads to.
fn chain(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut at = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    for _ in 0..LINKS {
        // Any part of the path may be a link, not only the last one.
        found.extend(at.parent().map(Path::to_owned));
        found.extend(at.parent().and_then(Path::parent).map(Path::to_owned));
        let Some(next) = first_link(&at) else { break };
        at = next;
    }
    found
}

/// Resolves the first symlink in a path.
fn first_link(path: &Path) -> Option<PathBuf> {
    let mut parts = path.components();
    let mut so_far = PathBuf::new();
    while let Some(part) = parts.next() {
        so_far.push(part);
        if let Ok(target) = std::fs::read_link(&so_far) {
            let base = so_far.parent().unwrap_or_else(|| Path::new("/"));
            return Some(base.join(target).join(parts.as_path()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn every_directory_of_a_chain_of_links_is_watched() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("v1")).expect("v1");
        std::fs::write(at("v1/wsgate.toml"), "").expect("a file");
        symlink("v1", at("..data")).expect("a link");
        std::fs::create_dir(at("mount")).expect("mount");
        symlink("../..data/wsgate.toml", at("mount/wsgate.toml")).expect("a link");
        let found = chain(&at("mount/wsgate.toml"));
        for wanted in ["mount", "mount/..", "v1"] {
            let wanted = at(wanted).canonicalize().expect("a path");
            let seen = found
                .iter()
                .any(|path| path.canonicalize().is_ok_and(|path| path == wanted));
            assert!(seen, "{} in {found:?}", wanted.display());
        }
    }

    #[test]
    fn reading_is_no_change_and_closing_after_a_write_is() {
        assert!(!is_change(&EventKind::Access(AccessKind::Open(
            AccessMode::Read
        ))));
        assert!(!is_change(&EventKind::Access(AccessKind::Close(
            AccessMode::Read
        ))));
        assert!(is_change(&EventKind::Access(AccessKind::Close(
            AccessMode::Write
        ))));
        assert!(is_change(&EventKind::Create(
            notify::event::CreateKind::File
        )));
    }
}
