//! Reading the configuration and what it includes.
//!
//! An editor or a copy may be half-way, and a truncated TOML file can be valid:
//! a file counts as read when two looks at it show the same. Whatever is read
//! here is kept as it was, for the digest and for showing mistakes.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use glob::{MatchOptions, Pattern};
use toml::de::DeValue;

use crate::error::{Complaint, Errors, Found};
use crate::syntax;

/// Larger is not a configuration but a slip.
const LARGEST_FILE: u64 = 1 << 20;
/// A file that was written so lately may be being written still.
const FRESH: Duration = Duration::from_secs(2);
/// Between two looks at a fresh file.
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);
/// How often a file may differ from the look before.
const MOST_LOOKS: usize = 50;

/// Everything that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// The main file first, then the included ones, sorted by path.
    pub files: Vec<SourceFile>,
    /// Directories that the patterns of `include` look into, sorted. One that
    /// does not exist yet is among them.
    pub include_dirs: Vec<PathBuf>,
}

/// One file as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// As given, or as found by the pattern.
    pub path: PathBuf,
    /// All of it.
    pub text: String,
}

impl Sources {
    /// Reads the file and what it includes, and does not look at what they say.
    ///
    /// Blocks: on the disk, and for 20 ms (at most 1 s, if it keeps changing)
    /// for each file that was written within the last 2 s.
    ///
    /// # Errors
    ///
    /// Files that cannot be read, are larger than 1 MiB, are not UTF-8 or keep
    /// changing, and patterns that are wrong.
    pub fn read(path: &Path) -> Result<Self, Errors> {
        let (sources, found) = read(path);
        if found.is_empty() {
            Ok(sources)
        } else {
            Err(Errors::from_found(found))
        }
    }

    /// A configuration that is in no file; it includes nothing.
    #[must_use]
    pub fn from_text(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        let main = SourceFile {
            path: path.into(),
            text: text.into(),
        };
        Self {
            files: vec![main],
            include_dirs: Vec::new(),
        }
    }

    /// Whether the same files with the same text were read.
    #[must_use]
    pub fn same_content(&self, other: &Self) -> bool {
        self.files == other.files
    }
}

/// What could be read, and what went wrong.
pub(crate) fn read(path: &Path) -> (Sources, Vec<Found>) {
    let mut sources = Sources::default();
    let mut found = Vec::new();
    let main = match read_stable(path, 0) {
        Ok(main) => main,
        Err(error) => return (sources, vec![error]),
    };
    let mut includes = Includes::default();
    for (span, pattern) in patterns(&main.text) {
        if let Err(complaint) = includes.expand(path, &pattern) {
            found.push(Found::at(0, path, &main.text, &span, complaint));
        }
    }
    sources.files.push(main);
    sources.include_dirs.extend(includes.dirs);
    for path in includes.files {
        match read_stable(&path, sources.files.len()) {
            Ok(file) => sources.files.push(file),
            Err(error) => found.push(error),
        }
    }
    (sources, found)
}

/// The patterns of `include`; that they are text is checked with everything else.
fn patterns(text: &str) -> Vec<(std::ops::Range<usize>, String)> {
    let checked = syntax::check(text);
    let table = checked.table();
    let list = table
        .get("include")
        .and_then(|value| value.get_ref().as_array());
    list.into_iter()
        .flat_map(|list| list.iter())
        .filter_map(|item| match item.get_ref() {
            DeValue::String(pattern) => Some((item.span(), pattern.to_string())),
            _ => None,
        })
        .collect()
}

#[derive(Default)]
struct Includes {
    files: BTreeSet<PathBuf>,
    dirs: BTreeSet<PathBuf>,
}

impl Includes {
    /// Adds what `pattern` finds, relative to the directory of `main`.
    fn expand(&mut self, main: &Path, pattern: &str) -> Result<(), Complaint> {
        let base = main.parent().unwrap_or_else(|| Path::new(""));
        let whole = base.join(pattern);
        let is_glob = pattern.contains(['*', '?', '[']);
        self.dirs.insert(literal_directory(base, pattern));
        if !is_glob {
            if !whole.exists() {
                return Err(Complaint::new(
                    format!("there is no file `{}`", whole.display()),
                    "correct the name, or write a pattern such as \"conf.d/*.toml\"",
                ));
            }
            self.add(main, whole);
            return Ok(());
        }
        for path in search(base, pattern)? {
            let path = path.map_err(|error| {
                let place = error.path().display().to_string();
                let message = format!("cannot look into `{place}`: {}", error.error());
                Complaint::new(message, "wsgate must be able to read this directory")
            })?;
            self.add(main, path);
        }
        Ok(())
    }

    fn add(&mut self, main: &Path, path: PathBuf) {
        // A pattern such as "*.toml" finds the main file as well.
        let same = path == main || path.canonicalize().ok() == main.canonicalize().ok();
        if same {
            return;
        }
        if let Some(dir) = path.parent() {
            self.dirs.insert(or_here(dir));
        }
        self.files.insert(path);
    }
}

fn search(base: &Path, pattern: &str) -> Result<glob::Paths, Complaint> {
    let absolute = Path::new(pattern).is_absolute() || base.as_os_str().is_empty();
    let whole = if absolute {
        pattern.to_owned()
    } else {
        // What the operator did not write is no pattern.
        format!("{}/{pattern}", Pattern::escape(&base.to_string_lossy()))
    };
    let options = MatchOptions {
        case_sensitive: true,
        require_literal_separator: true,
        // Emacs locks `a.toml` by `.#a.toml`.
        require_literal_leading_dot: true,
    };
    glob::glob_with(&whole, options).map_err(|error| {
        let message = format!("`{pattern}` is not a pattern: {}", error.msg);
        Complaint::new(message, "write for example \"conf.d/*.toml\"")
    })
}

/// The directory in which the search for `pattern` begins.
fn literal_directory(base: &Path, pattern: &str) -> PathBuf {
    let mut parts: Vec<Component<'_>> = Path::new(pattern).components().collect();
    let is_glob =
        |part: &Component<'_>| part.as_os_str().to_string_lossy().contains(['*', '?', '[']);
    let literal = parts.iter().position(is_glob);
    parts.truncate(literal.unwrap_or_else(|| parts.len().saturating_sub(1)));
    or_here(&base.join(parts.iter().collect::<PathBuf>()))
}

fn or_here(dir: &Path) -> PathBuf {
    if dir.as_os_str().is_empty() {
        PathBuf::from(".")
    } else {
        dir.to_owned()
    }
}

fn read_stable(path: &Path, number: usize) -> Result<SourceFile, Found> {
    if let Some(content) = settle(|| look(path)) {
        return accept(path, number, content);
    }
    let message = format!("`{}` keeps changing while it is read", path.display());
    Err(Found::unplaced(number, path, message).with_help("try again when it is written"))
}

/// Looks until two looks agree, be it on an error: an editor may be between
/// moving the old file away and the new one in. `None` if they never do.
fn settle(mut look: impl FnMut() -> Look) -> Option<Content> {
    let mut last = look();
    for _ in 1..MOST_LOOKS {
        if last.may_change {
            pause();
        }
        let next = look();
        if next.content == last.content {
            return Some(next.content);
        }
        last = next;
    }
    None
}

/// All of a file, or why there is nothing.
type Content = Result<Vec<u8>, (io::ErrorKind, String)>;

/// What one look at a file shows.
struct Look {
    content: Content,
    may_change: bool,
}

fn look(path: &Path) -> Look {
    match contents(path) {
        Ok((bytes, modified)) => Look {
            // A clock that was set back makes files of the future: those are fresh.
            may_change: modified.elapsed().map_or(true, |age| age < FRESH),
            content: Ok(bytes),
        },
        Err(error) => Look {
            may_change: error.kind() == io::ErrorKind::NotFound,
            content: Err((error.kind(), describe(&error))),
        },
    }
}

fn contents(path: &Path) -> io::Result<(Vec<u8>, SystemTime)> {
    // A pipe could not be read twice, and might block for ever.
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let file = File::open(path)?;
    let modified = file.metadata()?.modified()?;
    let mut bytes = Vec::new();
    file.take(LARGEST_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(io::Error::other("larger than 1 MiB"));
    }
    Ok((bytes, modified))
}

fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

fn accept(path: &Path, number: usize, content: Content) -> Result<SourceFile, Found> {
    let bytes = content.map_err(|(kind, reason)| {
        let message = format!("cannot read `{}`: {reason}", path.display());
        let found = Found::unplaced(number, path, message);
        match kind {
            io::ErrorKind::NotFound => found.with_help("name another file with --config"),
            _ => found,
        }
    })?;
    let text = String::from_utf8(bytes).map_err(|error| not_utf8(path, number, &error))?;
    let path = path.to_owned();
    Ok(SourceFile { path, text })
}

fn not_utf8(path: &Path, number: usize, error: &std::string::FromUtf8Error) -> Found {
    let at = error.utf8_error().valid_up_to();
    let text = String::from_utf8_lossy(error.as_bytes());
    let complaint = Complaint::new(
        "this is not UTF-8",
        "save the file as UTF-8: TOML has no other encoding",
    );
    // Up to `at` the lossy text is the same byte for byte.
    let span = at..at + char::REPLACEMENT_CHARACTER.len_utf8();
    Found::at(number, path, &text, &span, complaint)
}

#[expect(
    clippy::disallowed_methods,
    reason = "synchronises nothing: two looks must lie apart for a writer to show"
)]
fn pause() {
    std::thread::sleep(BETWEEN_LOOKS);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_begins_where_the_pattern_does() {
        let dir = |pattern| literal_directory(Path::new("/etc/wsgate"), pattern);
        assert_eq!(dir("conf.d/*.toml"), Path::new("/etc/wsgate/conf.d"));
        assert_eq!(dir("sites/*/a.toml"), Path::new("/etc/wsgate/sites"));
        assert_eq!(dir("more.toml"), Path::new("/etc/wsgate"));
        assert_eq!(dir("/srv/*.toml"), Path::new("/srv"));
        assert_eq!(literal_directory(Path::new(""), "*.toml"), Path::new("."));
    }

    /// What is read if these are the looks, one after the other.
    fn settled(looks: &[Option<&str>]) -> Option<Content> {
        let mut looks = looks.iter();
        settle(|| Look {
            may_change: false,
            content: match looks.next().unwrap() {
                Some(text) => Ok(text.as_bytes().to_vec()),
                None => Err((io::ErrorKind::NotFound, String::new())),
            },
        })
    }

    #[test]
    fn a_file_counts_as_read_when_two_looks_agree() {
        let whole = Some(Ok(b"a = 1".to_vec()));
        assert_eq!(settled(&[Some("a = 1"), Some("a = 1")]), whole);
        assert_eq!(
            settled(&[Some("a"), Some("a ="), Some("a = 1"), Some("a = 1")]),
            whole
        );
        assert_eq!(settled(&[None, Some("a = 1"), Some("a = 1")]), whole);
        assert!(settled(&[Some("a"), None, None]).unwrap().is_err());
    }

    #[test]
    fn a_file_that_never_settles_is_given_up() {
        let texts: Vec<String> = (0..MOST_LOOKS).map(|look| look.to_string()).collect();
        let looks: Vec<_> = texts.iter().map(|text| Some(text.as_str())).collect();
        assert_eq!(settled(&looks), None);
    }
}
