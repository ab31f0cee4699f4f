//! Text to validated [`Config`].
//!
//! All mistakes of all files are found in one go, each with its place and with
//! what to write instead. This crate reads files and nothing else: it binds no
//! address, looks up no name and starts nothing.
//!
//! The way of a configuration: [`Sources::read`] (the file and what it
//! includes), then [`parse`]; [`load`] is both.

mod address;
mod decode;
mod error;
mod model;
mod pattern;
mod sections;
mod source;
mod suggest;
mod syntax;
mod units;
mod validate;

use std::path::Path;

pub use error::{Error, Errors, Place};
pub use model::*;
pub use source::{SourceFile, Sources};

use decode::Problems;
use error::Found;

/// Where the admin socket is unless `admin.socket` says otherwise.
pub const DEFAULT_ADMIN_SOCKET: &str = "/run/wsgate/admin.sock";

/// A valid configuration and the text that it was read from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What is to run.
    pub config: Config,
    /// What was read.
    pub sources: Sources,
    /// What is allowed but hardly meant, one line each, with its place.
    pub warnings: Vec<String>,
}

/// Reads the file and its includes from disk, parses and validates.
///
/// Blocks: on the disk, and for a few tens of milliseconds for each file that
/// was written within the last two seconds (see [`Sources::read`]).
///
/// # Errors
///
/// All mistakes, in the order of the files and of the lines in them.
pub fn load(path: &Path) -> Result<Loaded, Errors> {
    let (sources, found) = source::read(path);
    decode_all(sources, found)
}

/// Where the admin socket of a configuration is that may have mistakes: whoever cannot use it has to
/// know which directory it means all the same. The default, if it does not say.
///
/// Blocks, as [`load`].
#[must_use]
pub fn admin_socket(path: &Path) -> std::path::PathBuf {
    let (sources, found) = source::read(path);
    let texts = checked(&sources);
    let problems = Problems::new(&sources.files, &texts, found);
    sections::read(&texts, &problems).globals.admin.socket
}

/// Parses and validates what was read.
///
/// # Errors
///
/// All mistakes, in the order of the files and of the lines in them.
pub fn parse(sources: Sources) -> Result<Loaded, Errors> {
    decode_all(sources, Vec::new())
}

fn checked(sources: &Sources) -> Vec<syntax::Checked> {
    let texts = sources.files.iter().map(|file| file.text.as_str());
    texts.map(syntax::check).collect()
}

/// `found`: what went wrong while reading; the rest is checked nevertheless.
fn decode_all(sources: Sources, found: Vec<Found>) -> Result<Loaded, Errors> {
    if sources.files.is_empty() {
        return Err(Errors::from_found(found));
    }
    let texts = checked(&sources);
    let problems = Problems::new(&sources.files, &texts, found);
    let draft = sections::read(&texts, &problems);
    let warnings = validate::check(&draft, &problems);
    let found = problems.into_found();
    if !found.is_empty() {
        return Err(Errors::from_found(found));
    }
    let config = draft.into_config();
    Ok(Loaded {
        config,
        sources,
        warnings,
    })
}
