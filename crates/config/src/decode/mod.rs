//! Tables to fields, so that a section reads as a list of its keys.
//!
//! Nothing here stops at a mistake: it is noted in [`Problems`], a default takes
//! the value's place and reading goes on. A result is used only if no mistake
//! was noted at all.

mod problems;
mod section;
mod value;

pub(crate) use problems::{Problems, Spot};
pub(crate) use section::Section;
pub(crate) use value::Value;
