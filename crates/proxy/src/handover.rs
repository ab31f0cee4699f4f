//! Live tunnels that move to another process, and those that come from one.
//!
//! A tunnel leaves between two polls of its task, before the next read: nothing of it is half done then, and all that
//! its task knows is in its `Course`. What becomes a [`Passport`], two sockets and the bytes that are on their
//! way goes to the other process, which makes the same of it. Nothing here decides who owns a tunnel: a
//! [`Leaver`] that is neither moved nor resumed would be lost, so whoever holds one has to do one of the two.

mod adopt;
mod clock;
mod leave;
mod passport;
#[cfg(test)]
mod tests;
mod ways;

pub use adopt::{Adopted, Places, Unfit};
pub(crate) use clock::Clock;
pub use leave::Leaver;
pub(crate) use leave::{LeaveOrder, Leaving, spawn};
pub use passport::Passport;
pub(crate) use ways::Ways;

/// The layout of a [`Passport`].
pub const VERSION: u32 = 1;
