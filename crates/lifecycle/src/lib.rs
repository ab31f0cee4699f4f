//! What happens to generations, workers and drains, as pure state machines.
//!
//! [`Lifecycle`] takes an [`Event`] and the time, and says which [`Action`]s
//! follow; [`Closes`] spreads the closes of drains over time. Nothing here does I/O,
//! reads a clock or knows a process: the supervisor carries the actions out. So
//! every order of events can be tried, and random ones are.

mod closes;
mod event;
mod machine;
mod retired;
mod settings;
mod slot;
mod watchdog;
mod worker;

pub use closes::{Closes, Plan, Span};
pub use event::{Action, Event, Failure};
pub use machine::{Lifecycle, Phase};
pub use retired::Retired;
pub use settings::Settings;
pub use slot::Slot;
pub use watchdog::Signs;
pub use worker::{Found, State, Worker};

use std::time::Duration;

/// A moment, as the time since the supervisor started.
pub type Moment = Duration;

/// Number of a generation; higher is newer.
pub type Generation = u64;

/// A worker, unique among all workers of a supervisor.
pub type WorkerId = u64;
