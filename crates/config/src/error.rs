//! Mistakes and how they are shown.
//!
//! An [`Error`] owns all that it shows, so that it can outlive the file and
//! travel to whoever asked for the reload. It must never need the file again.

use std::ops::Range;
use std::path::{Path, PathBuf};

use annotate_snippets::{AnnotationKind, Element, Level, Origin, Renderer, Snippet};

/// One mistake. Shown by `Display` (or [`Error::render`]) as several lines.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.render())]
pub struct Error {
    /// The file that it is in.
    pub path: PathBuf,
    /// Where in the file; `None` if it is about the file as a whole.
    pub place: Option<Place>,
    /// What is wrong, one line.
    pub message: String,
    /// What to do or to write instead.
    pub help: Option<String>,
}

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The whole line, without its end.
    pub text: String,
    /// The bytes of `text` that are meant.
    pub span: Range<usize>,
}

impl Error {
    /// The line, from 1, if the mistake has a place.
    #[must_use]
    pub fn line(&self) -> Option<usize> {
        self.place.as_ref().map(|place| place.line)
    }

    /// The column, from 1, in characters, if the mistake has a place.
    #[must_use]
    pub fn column(&self) -> Option<usize> {
        self.place.as_ref().map(|place| place.column)
    }

    /// For a terminal, without colours and without a line end at the end:
    /// message, place, the line itself with what is meant underlined, help.
    #[must_use]
    pub fn render(&self) -> String {
        let path = self.path.to_string_lossy();
        let mut elements: Vec<Element<'_>> = Vec::new();
        match &self.place {
            None => elements.push(Origin::path(path).into()),
            Some(place) => elements.push(
                Snippet::source(&place.text)
                    .line_start(place.line)
                    .path(path)
                    .annotation(AnnotationKind::Primary.span(place.span.clone()))
                    .into(),
            ),
        }
        if let Some(help) = &self.help {
            elements.push(Level::HELP.message(help).into());
        }
        let group = Level::ERROR.primary_title(&self.message).elements(elements);
        Renderer::plain().render(&[group])
    }
}

impl Place {
    /// The place of `span` in `text`; what lies outside of it is cut off. A span
    /// of several lines is reduced to its part in the first one.
    pub(crate) fn find(text: &str, span: &Range<usize>) -> Self {
        let start = floor(text, span.start);
        let before = &text[..start];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        // A byte order mark is no character of the line.
        let line_start = match text[line_start..].strip_prefix('\u{feff}') {
            Some(rest) if line_start == 0 => text.len() - rest.len(),
            _ => line_start,
        };
        let line = text[line_start..].split('\n').next().unwrap_or_default();
        let line = line.strip_suffix('\r').unwrap_or(line);
        let from = start.saturating_sub(line_start).min(line.len());
        let to = floor(line, span.end.saturating_sub(line_start)).max(from);
        Self {
            line: before.matches('\n').count() + 1,
            column: line[..from].chars().count() + 1,
            text: line.to_owned(),
            span: from..to,
        }
    }
}

/// The nearest character border at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// All mistakes of a configuration; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.render())]
pub struct Errors(Vec<Error>);

impl Errors {
    /// Each of them, in the order of the files and of the lines in them.
    pub fn iter(&self) -> std::slice::Iter<'_, Error> {
        self.0.iter()
    }

    /// How many; at least 1.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Each of them as [`Error::render`] shows it.
    #[must_use]
    pub fn rendered(&self) -> Vec<String> {
        self.0.iter().map(Error::render).collect()
    }

    fn render(&self) -> String {
        self.rendered().join("\n\n")
    }

    pub(crate) fn from_found(mut found: Vec<Found>) -> Self {
        if found.is_empty() {
            found.push(Found::unplaced(0, Path::new(""), "no configuration given"));
        }
        found.sort_by_key(|found| (found.file, found.offset));
        Self(found.into_iter().map(|found| *found.error).collect())
    }
}

impl<'a> IntoIterator for &'a Errors {
    type Item = &'a Error;
    type IntoIter = std::slice::Iter<'a, Error>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl IntoIterator for Errors {
    type Item = Error;
    type IntoIter = std::vec::IntoIter<Error>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// An error and what it is sorted by.
#[derive(Debug)]
pub(crate) struct Found {
    /// Number of the file in the order of reading.
    pub(crate) file: usize,
    /// Byte in the file.
    pub(crate) offset: usize,
    /// Boxed, for it is large and comes as the `Err` of much.
    pub(crate) error: Box<Error>,
}

impl Found {
    pub(crate) fn unplaced(file: usize, path: &Path, message: impl Into<String>) -> Self {
        Self {
            file,
            offset: 0,
            error: Box::new(Error {
                path: path.to_owned(),
                place: None,
                message: message.into(),
                help: None,
            }),
        }
    }

    pub(crate) fn at(
        file: usize,
        path: &Path,
        text: &str,
        span: &Range<usize>,
        complaint: Complaint,
    ) -> Self {
        Self {
            file,
            offset: span.start,
            error: Box::new(Error {
                path: path.to_owned(),
                place: Some(Place::find(text, span)),
                message: complaint.message,
                help: complaint.help,
            }),
        }
    }

    pub(crate) fn with_help(mut self, help: impl Into<String>) -> Self {
        self.error.help = Some(help.into());
        self
    }
}

/// What is wrong with a value, by someone who does not know where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Complaint {
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

impl Complaint {
    pub(crate) fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: Some(help.into()),
        }
    }

    /// config.md names it, this version does not have it.
    pub(crate) fn not_supported(what: &str, help: impl Into<String>) -> Self {
        Self::new(format!("{what} is not supported yet"), help)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_counted_in_characters() {
        let text = "a = 1\n\tüöä = \"x\"\r\nb = 2\n";
        let at = text.find('"').unwrap();
        let place = Place::find(text, &(at..at + 3));
        assert_eq!((place.line, place.column), (2, 8));
        assert_eq!(&place.text[place.span.clone()], "\"x\"");
        assert!(!place.text.ends_with('\r'));
    }

    #[test]
    fn a_span_of_several_lines_is_cut_to_the_first() {
        let place = Place::find("a = [1,\n2]\n", &(4..10));
        assert_eq!(&place.text[place.span], "[1,");
    }

    #[test]
    fn a_byte_order_mark_is_not_counted() {
        let place = Place::find("\u{feff}a = 1", &(3..4));
        assert_eq!((place.line, place.column), (1, 1));
        assert_eq!(place.text, "a = 1");
    }

    #[test]
    fn an_error_shows_message_place_line_and_help() {
        let text = "\n[drain]\ngrace = 10\n";
        let complaint = Complaint::new("`grace` must be a duration", "write \"10s\"");
        let found = Found::at(0, Path::new("/etc/x.toml"), text, &(17..19), complaint);
        let expected = "\
error: `grace` must be a duration
 --> /etc/x.toml:3:9
  |
3 | grace = 10
  |         ^^
  |
  = help: write \"10s\"";
        assert_eq!(found.error.render(), expected);
    }

    #[test]
    fn an_error_without_a_place_names_the_file() {
        let found = Found::unplaced(0, Path::new("/etc/x.toml"), "cannot read it");
        let expected = "error: cannot read it\n--> /etc/x.toml";
        assert_eq!(found.error.render(), expected);
    }
}
