//! What a call says that is refused. Part of [`crate::admin`].

use serde::{Deserialize, Serialize};

use crate::admin::Held;

/// Body of every answer whose status is not 2xx.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ApiError,
}

/// An error, for programs and for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApiError {
    /// A word that does not change, as `config_invalid`.
    pub code: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: String,
    /// With `config_invalid`: each mistake, rendered for a terminal. With `reload_held`: why tunnels would
    /// be drained, a line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
    /// With `reload_held`: the report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Box<Held>>,
}
