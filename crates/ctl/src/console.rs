//! Where a command writes: results to one stream, warnings and progress to the other.
//!
//! Commands get this instead of the process's own streams, so that tests see what
//! a user would see.

use std::fmt::Display;
use std::io::Write;

use crate::error::CtlError;

/// The two streams, and what the terminal behind the first can do.
pub(crate) struct Console<'a> {
    /// Results.
    pub(crate) out: &'a mut dyn Write,
    /// Errors, warnings, progress.
    pub(crate) err: &'a mut dyn Write,
    /// Columns of the terminal; `None` for a pipe or a file, where nothing is shortened.
    pub(crate) width: Option<u16>,
    /// Whether results may be coloured.
    pub(crate) colour: bool,
    /// Whether progress may be a bar, drawn on the process's standard error.
    pub(crate) bar: bool,
}

impl Console<'_> {
    /// A line of the result.
    pub(crate) fn line(&mut self, text: impl Display) -> Result<(), CtlError> {
        Ok(writeln!(self.out, "{text}")?)
    }

    /// JSON as the API gave it, with a newline at its end.
    pub(crate) fn json(&mut self, json: &[u8]) -> Result<(), CtlError> {
        self.out.write_all(json)?;
        if !json.ends_with(b"\n") {
            self.out.write_all(b"\n")?;
        }
        Ok(())
    }

    /// A line beside the result: what cannot be written there is lost, for nothing depends on it.
    pub(crate) fn note(&mut self, text: impl Display) {
        let _ = writeln!(self.err, "{text}");
    }

    /// What the operator should know although the command went well.
    pub(crate) fn warn(&mut self, text: impl Display) {
        self.note(format_args!("warning: {text}"));
    }

    pub(crate) fn flush(&mut self) -> Result<(), CtlError> {
        Ok(self.out.flush()?)
    }
}

/// `COLUMNS`, else what the terminal says.
pub(crate) fn terminal_width() -> Option<u16> {
    let columns = std::env::var("COLUMNS").ok();
    columns
        .and_then(|columns| columns.trim().parse().ok())
        .filter(|&columns| columns > 0)
        .or_else(|| comfy_table::Table::new().width())
}

/// On a terminal, unless `NO_COLOR` is set and not empty (no-color.org) or the terminal is dumb.
pub(crate) fn wants_colour() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    !refused && !dumb
}
