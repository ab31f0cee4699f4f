//! Mistakes, as they are noted while the files are decoded.
//!
//! Also knows what is not known, because a mistake of syntax damaged it: of that
//! nothing is said to be missing.

use std::cell::RefCell;
use std::ops::Range;
use std::path::Path;

use crate::error::{Complaint, Found, Place};
use crate::source::SourceFile;
use crate::syntax::Checked;

/// A place in one of the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spot {
    /// Number of the file in the order of reading.
    pub(crate) file: usize,
    /// Bytes in it.
    pub(crate) span: Range<usize>,
}

/// All mistakes noted so far.
pub(crate) struct Problems<'s> {
    files: &'s [SourceFile],
    damage: Vec<&'s [Range<usize>]>,
    found: RefCell<Vec<Found>>,
    /// Files are missing: what is not there may be in one of them.
    incomplete: bool,
}

impl<'s> Problems<'s> {
    /// Begins with what reading found and with the mistakes of syntax.
    pub(crate) fn new(files: &'s [SourceFile], texts: &'s [Checked], found: Vec<Found>) -> Self {
        let problems = Self {
            files,
            damage: texts.iter().map(|text| text.damage.as_slice()).collect(),
            incomplete: !found.is_empty(),
            found: RefCell::new(found),
        };
        for (file, text) in texts.iter().enumerate() {
            for (span, complaint) in &text.mistakes {
                let span = span.clone();
                problems.add(&Spot { file, span }, complaint.clone());
            }
        }
        problems
    }

    pub(crate) fn add(&self, spot: &Spot, complaint: Complaint) {
        let Some(file) = self.files.get(spot.file) else {
            return;
        };
        let found = Found::at(spot.file, &file.path, &file.text, &spot.span, complaint);
        self.found.borrow_mut().push(found);
    }

    /// Something is not in the section whose header is at `spot`. Not noted if a
    /// damaged statement of that section may have been it.
    pub(crate) fn add_missing(&self, spot: &Spot, complaint: Complaint) {
        let text = self.files.get(spot.file).map_or("", |file| &file.text);
        let from = spot.span.start;
        let rest = text.get(spot.span.end..).unwrap_or_default();
        let to = rest.find("\n[").map_or(text.len(), |at| spot.span.end + at);
        let damaged = self.damage.get(spot.file).is_some_and(|damage| {
            damage
                .iter()
                .any(|range| range.start <= to && from <= range.end)
        });
        if !damaged {
            self.add(spot, complaint);
        }
    }

    /// The files lack something as a whole.
    pub(crate) fn add_lacking(&self, message: &str, help: &str) {
        if let Some(main) = self.files.first().filter(|_| self.knows_all_sections()) {
            let found = Found::unplaced(0, &main.path, message).with_help(help);
            self.found.borrow_mut().push(found);
        }
    }

    /// Whether a section that was not seen does not exist.
    pub(crate) fn knows_all_sections(&self) -> bool {
        let lost_header = |(file, damage): (&SourceFile, &&[Range<usize>])| {
            damage.iter().any(|range| {
                let lost = file.text.get(range.clone()).unwrap_or_default();
                lost.lines().any(|line| line.trim_start().starts_with('['))
            })
        };
        !self.incomplete && !self.files.iter().zip(&self.damage).any(lost_header)
    }

    /// `FILE:LINE:COLUMN`
    pub(crate) fn name_of(&self, spot: &Spot) -> String {
        let Some(file) = self.files.get(spot.file) else {
            return String::new();
        };
        let place = Place::find(&file.text, &spot.span);
        format!("{}:{}:{}", file.path.display(), place.line, place.column)
    }

    /// The main file.
    pub(crate) fn main_path(&self) -> &Path {
        self.files
            .first()
            .map_or_else(|| Path::new(""), |file| &file.path)
    }

    pub(crate) fn into_found(self) -> Vec<Found> {
        self.found.into_inner()
    }
}
