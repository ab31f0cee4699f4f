//! Reading the configuration and what it includes.
//!
//! An editor or a copy may be half-way, and a truncated TOML file can be valid:
//! a file counts as read when two looks at it show the same. Whatever is read
//! here is kept as it was, for the digest and for showing mistakes.

mod look;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use glob::{MatchOptions, Pattern};
use serde::{Deserialize, Serialize};
use toml::de::DeValue;

use crate::error::{Complaint, Errors, Found};
use crate::syntax;
use look::{Content, Unreadable};

/// Everything that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sources {
    /// The main file first, then the included ones, sorted by path.
    pub files: Vec<SourceFile>,
    /// Directories that the patterns of `include` look into, sorted. One that
    /// does not exist yet is among them.
    pub include_dirs: Vec<PathBuf>,
}

/// One file as it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    read_with(path, look::read)
}

/// `content`: all of a file.
fn read_with(path: &Path, content: impl Fn(&Path) -> Content) -> (Sources, Vec<Found>) {
    let mut sources = Sources::default();
    let mut found = Vec::new();
    let main = match content(path) {
        Ok(bytes) => accept(path, 0, bytes),
        Err(reason) => Err(main_unreadable(path, &reason)),
    };
    let main = match main {
        Ok(main) => main,
        Err(error) => return (sources, vec![error]),
    };
    let mut includes = Includes::default();
    for entry in entries(&main.text) {
        if let Err(complaint) = includes.expand(path, &entry) {
            found.push(Found::at(0, path, &main.text, &entry.span, complaint));
        }
    }
    sources.include_dirs.extend(includes.dirs);
    sources.files.push(main);
    for (included, entry) in includes.files {
        let file = match content(&included) {
            Ok(bytes) => accept(&included, sources.files.len(), bytes),
            Err(reason) => {
                let complaint = included_unreadable(&included, &entry, &reason);
                let text = &sources.files[0].text;
                Err(Found::at(0, path, text, &entry.span, complaint))
            }
        };
        match file {
            Ok(file) => sources.files.push(file),
            Err(error) => found.push(error),
        }
    }
    (sources, found)
}

fn main_unreadable(path: &Path, reason: &Unreadable) -> Found {
    let message = format!("cannot read `{}`: {reason}", path.display());
    Found::unplaced(0, path, message).with_help(reason.help_for_main())
}

fn included_unreadable(path: &Path, entry: &Entry, reason: &Unreadable) -> Complaint {
    let message = format!("cannot read the included `{}`: {reason}", path.display());
    Complaint::new(message, reason.help_for_included(path, &entry.pattern))
}

/// One of the patterns of `include`.
#[derive(Clone)]
struct Entry {
    /// Where it stands in the main file.
    span: Range<usize>,
    pattern: String,
}

/// The patterns of `include`; that they are text is checked with everything else.
fn entries(text: &str) -> Vec<Entry> {
    let checked = syntax::check(text);
    let table = checked.table();
    let list = table
        .get("include")
        .and_then(|value| value.get_ref().as_array());
    list.into_iter()
        .flat_map(|list| list.iter())
        .filter_map(|item| match item.get_ref() {
            DeValue::String(pattern) => Some(Entry {
                span: item.span(),
                pattern: pattern.to_string(),
            }),
            _ => None,
        })
        .collect()
}

#[derive(Default)]
struct Includes {
    /// Each with the first entry that leads to it.
    files: BTreeMap<PathBuf, Entry>,
    dirs: BTreeSet<PathBuf>,
}

impl Includes {
    /// Adds what `entry` finds, relative to the directory of `main`.
    fn expand(&mut self, main: &Path, entry: &Entry) -> Result<(), Complaint> {
        let base = main.parent().unwrap_or_else(|| Path::new(""));
        let pattern = entry.pattern.as_str();
        self.dirs.insert(literal_directory(base, pattern));
        if !is_pattern(pattern) {
            // Whether it is there shows when it is read, which waits for an editor.
            self.add(main, base.join(pattern), entry);
            return Ok(());
        }
        for path in search(base, pattern)? {
            let path = path.map_err(|error| {
                let place = error.path().display().to_string();
                let message = format!("cannot look into `{place}`: {}", error.error());
                Complaint::new(message, "wsgate must be able to read this directory")
            })?;
            self.add(main, path, entry);
        }
        Ok(())
    }

    fn add(&mut self, main: &Path, path: PathBuf, entry: &Entry) {
        // A pattern such as "*.toml" finds the main file as well.
        if path == main || is_same_file(&path, main) {
            return;
        }
        if let Some(dir) = path.parent() {
            self.dirs.insert(or_here(dir));
        }
        self.files.entry(path).or_insert_with(|| entry.clone());
    }
}

/// Two files that are not there are not the same.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let whole = one.canonicalize().ok().zip(other.canonicalize().ok());
    whole.is_some_and(|(one, other)| one == other)
}

/// Whether it may lead to several files, or to none.
fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
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
    let is_glob = |part: &Component<'_>| is_pattern(&part.as_os_str().to_string_lossy());
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

fn accept(path: &Path, number: usize, bytes: Vec<u8>) -> Result<SourceFile, Found> {
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

#[cfg(test)]
mod tests {
    use std::io;

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

    const MAIN: &str = "workers = 1\ninclude = ['more.toml']\n";

    /// What is said if the files are as `file` tells.
    fn said(file: impl Fn(&str) -> Content) -> Vec<crate::Error> {
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        let (_, found) = read_with(Path::new("/nowhere/wsgate.toml"), |path| file(&name(path)));
        found.into_iter().map(|found| *found.error).collect()
    }

    #[test]
    fn an_included_file_that_may_not_be_read_is_shown_where_it_is_included() {
        let errors = said(|name| match name {
            "wsgate.toml" => Ok(MAIN.into()),
            _ => Err(io::Error::from(io::ErrorKind::PermissionDenied).into()),
        });
        assert_eq!(errors.len(), 1);
        let expected = "\
error: cannot read the included `/nowhere/more.toml`: permission denied
 --> /nowhere/wsgate.toml:2:12
  |
2 | include = ['more.toml']
  |            ^^^^^^^^^^^
  |
  = help: let the user that runs wsgate read it, and enter the directories that it is in";
        assert_eq!(errors[0].render(), expected);
    }

    #[test]
    fn whatever_keeps_a_file_from_being_read_has_a_help() {
        let reasons = [
            (Unreadable::Missing, "another --config", "correct the name"),
            (
                Unreadable::Forbidden,
                "let the user that runs wsgate read it",
                "let the user that runs wsgate read it",
            ),
            (Unreadable::NotAFile, "another --config", "change `include`"),
            (Unreadable::TooLarge, "that it includes", "several files"),
            (Unreadable::Changing, "try again", "try again"),
            (
                io::Error::from(io::ErrorKind::NotADirectory).into(),
                "another --config",
                "change `include`",
            ),
        ];
        for (reason, of_main, of_included) in reasons {
            let main = said(|_| Err(reason.clone()));
            let included = said(|name| match name {
                "wsgate.toml" => Ok(MAIN.into()),
                _ => Err(reason.clone()),
            });
            for (errors, line, expected) in
                [(main, None, of_main), (included, Some(2), of_included)]
            {
                assert_eq!(errors.len(), 1, "{reason}");
                assert_eq!(errors[0].line(), line, "{reason}");
                assert!(errors[0].message.contains(&reason.to_string()), "{reason}");
                let help = errors[0].help.as_deref().unwrap();
                assert!(help.contains(expected), "{reason}: {help}");
            }
        }
    }
}
