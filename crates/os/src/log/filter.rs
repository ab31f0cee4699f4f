//! Which events are logged.

use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

use super::ACCESS;

/// Every crate of the project begins with it.
const OWN: &str = "wsgate";

/// The operator's choice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filter {
    pub(super) level: Level,
    pub(super) access: bool,
}

impl Filter {
    /// The longest target that matches decides, so access lines have a rule of their own.
    pub(super) fn targets(self) -> Targets {
        let access = if self.access {
            LevelFilter::INFO
        } else {
            LevelFilter::OFF
        };
        Targets::new()
            // A library's debug lines are a flood, and name no tunnel.
            .with_default(self.level.min(Level::INFO))
            .with_target(OWN, self.level)
            .with_target(ACCESS, access)
    }
}
