//! Reading one file, and what to do if that fails.
//!
//! A file counts as read when two looks at it agree. Nothing here knows what
//! the text means, nor where in a configuration the file was named.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Larger is not a configuration but a slip.
const LARGEST_FILE: u64 = 1 << 20;
/// A file that was written so lately may be being written still.
const FRESH: Duration = Duration::from_secs(2);
/// Between two looks at a fresh file.
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);
/// How often a file may differ from the look before.
const MOST_LOOKS: usize = 50;

/// Why a file could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("there is no such file")]
    Missing,
    #[error("permission denied")]
    Forbidden,
    #[error("not a regular file")]
    NotAFile,
    #[error("larger than 1 MiB")]
    TooLarge,
    #[error("it keeps changing while it is read")]
    Changing,
    #[error("{0}")]
    Other(String),
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing,
            io::ErrorKind::PermissionDenied => Self::Forbidden,
            _ => Self::Other(error.to_string()),
        }
    }
}

impl Unreadable {
    /// What to do if it is the main file. Must hold for a command that is about
    /// to start and for a running wsgate that reloads.
    pub(super) fn help_for_main(&self) -> &'static str {
        match self {
            Self::Forbidden => ALLOW,
            Self::TooLarge => "move parts of it to files that it includes",
            Self::Changing => WAIT,
            Self::Missing | Self::NotAFile | Self::Other(_) => {
                "put the file there, or start wsgate with another --config"
            }
        }
    }

    /// What to do if `entry` of `include` led to it.
    pub(super) fn help_for_included(&self, path: &Path, entry: &str) -> String {
        let help = match self {
            Self::Missing if path.is_symlink() => "it is a link to nothing: mend or remove it",
            Self::Missing => {
                "put the file there, correct the name, or write a pattern such as \"conf.d/*.toml\""
            }
            Self::NotAFile if path.is_dir() && !super::is_pattern(entry) => {
                let dir = entry.trim_end_matches('/');
                return format!("for the files of a directory write \"{dir}/*.toml\"");
            }
            Self::Forbidden => ALLOW,
            Self::TooLarge => "divide it into several files",
            Self::Changing => WAIT,
            Self::NotAFile | Self::Other(_) => {
                "put a file in its place, or change `include` so that it does not lead there"
            }
        };
        help.to_owned()
    }
}

const ALLOW: &str =
    "let the user that runs wsgate read it, and enter the directories that it is in";
const WAIT: &str = "try again when it is written";

/// All of the file. Blocks as [`super::Sources::read`] says.
pub(super) fn read(path: &Path) -> Content {
    settle(|| look(path))
}

/// Looks until two looks agree, be it on an error: an editor may be between
/// moving the old file away and the new one in.
fn settle(mut look: impl FnMut() -> Look) -> Content {
    let mut last = look();
    for _ in 1..MOST_LOOKS {
        if last.may_change {
            pause();
        }
        let next = look();
        if next.content == last.content {
            return next.content;
        }
        last = next;
    }
    Err(Unreadable::Changing)
}

/// All of a file, or why there is nothing.
pub(super) type Content = Result<Vec<u8>, Unreadable>;

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
            may_change: error == Unreadable::Missing,
            content: Err(error),
        },
    }
}

fn contents(path: &Path) -> Result<(Vec<u8>, SystemTime), Unreadable> {
    // A pipe could not be read twice, and might block for ever.
    if !path.metadata()?.is_file() {
        return Err(Unreadable::NotAFile);
    }
    let file = File::open(path)?;
    let modified = file.metadata()?.modified()?;
    let mut bytes = Vec::new();
    file.take(LARGEST_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(Unreadable::TooLarge);
    }
    Ok((bytes, modified))
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

    /// What is read if these are the looks, one after the other.
    fn settled(looks: &[Option<&str>]) -> Content {
        let mut looks = looks.iter();
        settle(|| Look {
            may_change: false,
            content: match looks.next().unwrap() {
                Some(text) => Ok(text.as_bytes().to_vec()),
                None => Err(Unreadable::Missing),
            },
        })
    }

    #[test]
    fn a_file_counts_as_read_when_two_looks_agree() {
        let whole = Ok(b"a = 1".to_vec());
        assert_eq!(settled(&[Some("a = 1"), Some("a = 1")]), whole);
        assert_eq!(
            settled(&[Some("a"), Some("a ="), Some("a = 1"), Some("a = 1")]),
            whole
        );
        assert_eq!(settled(&[None, Some("a = 1"), Some("a = 1")]), whole);
        assert_eq!(settled(&[Some("a"), None, None]), Err(Unreadable::Missing));
    }

    #[test]
    fn a_file_that_never_settles_is_given_up() {
        let texts: Vec<String> = (0..MOST_LOOKS).map(|look| look.to_string()).collect();
        let looks: Vec<_> = texts.iter().map(|text| Some(text.as_str())).collect();
        assert_eq!(settled(&looks), Err(Unreadable::Changing));
    }
}
