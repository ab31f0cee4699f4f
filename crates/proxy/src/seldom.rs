//! What lacks now may lack for long: the log says so now and then, not every time.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often the log says so.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Something that is told every ten seconds at most.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<Option<Instant>>);

impl Seldom {
    /// Whether it is time to tell. Then it is taken for told.
    pub(crate) fn is_due(&self) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = told.is_none_or(|told| told.elapsed() >= TELL_EVERY);
        if due {
            *told = Some(Instant::now());
        }
        due
    }
}
