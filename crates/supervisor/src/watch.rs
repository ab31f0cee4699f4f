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
        let watched = Watched::new(file, sources);
        let directories = watched.directories();
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                if event.map_or(true, |event| watched.is_change(&event)) {
                    // Nobody listens only while the supervisor itself ends.
                    drop(events.send(Event::FilesChanged));
                }
            })?;
        for directory in directories {
            if let Err(error) = watcher.watch(&directory, RecursiveMode::NonRecursive) {
                tracing::warn!(directory = %directory.display(), %error, "not watched; its files are looked at every {LOOK_EVERY:?}");
            }
        }
        Ok(Self { _watcher: watcher })
    }
}

/// What matters in the directories that are watched: they may be busy ones.
struct Watched {
    /// Files, links and directories on the way to a file.
    entries: BTreeSet<PathBuf>,
    /// Directories in which every entry matters.
    include_dirs: Vec<PathBuf>,
}

impl Watched {
    fn new(file: &Path, sources: &Sources) -> Self {
        let include_dirs = absolute(&sources.include_dirs);
        let files = sources.files.iter().map(|source| source.path.as_path());
        let paths = files
            .chain([file])
            .chain(include_dirs.iter().map(PathBuf::as_path));
        Self {
            entries: paths.flat_map(chain).collect(),
            include_dirs,
        }
    }

    fn directories(&self) -> BTreeSet<PathBuf> {
        let parents = self.entries.iter().filter_map(|entry| entry.parent());
        let all = parents.chain(self.include_dirs.iter().map(PathBuf::as_path));
        all.filter(|directory| directory.is_dir())
            .map(Path::to_owned)
            .collect()
    }

    fn is_change(&self, event: &notify::Event) -> bool {
        let matters = |path: &PathBuf| {
            let included = |directory: &PathBuf| path.parent() == Some(directory);
            self.entries.contains(path) || self.include_dirs.iter().any(included)
        };
        // An event without a path says that others were lost.
        is_change(&event.kind) && (event.paths.is_empty() || event.paths.iter().any(matters))
    }
}

fn absolute(paths: &[PathBuf]) -> Vec<PathBuf> {
    paths
        .iter()
        .map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()))
        .collect()
}

/// Reading a file is an event too, and no change; closing one after a write is.
fn is_change(kind: &EventKind) -> bool {
    match kind {
        EventKind::Access(access) => *access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

/// The entries whose change may change what `path` leads to: itself, its directory (which
/// may be replaced as a whole), and each symlink on the way, with what it leads to.
fn chain(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut at = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    for _ in 0..LINKS {
        found.push(at.clone());
        found.extend(at.parent().map(Path::to_owned));
        let Some((link, next)) = first_link(&at) else {
            break;
        };
        found.push(link);
        at = next;
    }
    found
}

/// The first symlink in a path, and the path with that one resolved.
fn first_link(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut parts = path.components();
    let mut so_far = PathBuf::new();
    while let Some(part) = parts.next() {
        so_far.push(part);
        if let Ok(target) = std::fs::read_link(&so_far) {
            let base = so_far.parent().unwrap_or_else(|| Path::new("/"));
            let next = base.join(target).join(parts.as_path());
            return Some((so_far, next));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn every_entry_of_a_chain_of_links_matters_and_others_do_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("mount/v1")).expect("v1");
        std::fs::write(at("mount/v1/wsgate.toml"), "").expect("a file");
        symlink("v1", at("mount/..data")).expect("a link");
        symlink("..data/wsgate.toml", at("mount/wsgate.toml")).expect("a link");
        let sources = Sources::from_text(at("mount/wsgate.toml"), "");
        let watched = Watched::new(&at("mount/wsgate.toml"), &sources);

        let directories = watched.directories();
        for wanted in ["", "mount", "mount/v1"] {
            let wanted = at(wanted).canonicalize().expect("a path");
            let seen = directories
                .iter()
                .any(|path| path.canonicalize().is_ok_and(|path| path == wanted));
            assert!(seen, "{} in {directories:?}", wanted.display());
        }
        let created = |name: &str| {
            let kind = EventKind::Create(notify::event::CreateKind::Any);
            watched.is_change(&notify::Event::new(kind).add_path(at(name)))
        };
        assert!(
            created("mount/wsgate.toml")
                && created("mount/..data")
                && created("mount/v1/wsgate.toml")
        );
        assert!(!created("mount/other") && !created("other"));
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
