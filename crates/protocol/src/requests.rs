//! What calls that change something send, and what they are answered. Part of [`crate::admin`].

use serde::{Deserialize, Serialize};

use crate::admin::ServerState;

/// Body of `DELETE /v1/tunnels/{id}`; an empty body is all defaults. The answer, given as
/// soon as the tunnel's worker has been told, is its [`Tunnel`](crate::admin::Tunnel).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloseRequest {
    /// Status code of the Close frames, see [`is_close_code`]; [`CLOSE_CODE`] if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u16>,
    /// Their reason, at most [`LONGEST_REASON`] bytes; [`CLOSE_REASON`] if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What a tunnel is closed with unless the operator says more: Going Away. Client libraries
/// that tell codes apart connect anew after it, so a close made in error heals by itself.
pub const CLOSE_CODE: u16 = 1001;

/// The reason that goes with it.
pub const CLOSE_REASON: &str = "closed by operator";

/// Bytes of a Close frame's reason: a control frame carries 125, two of which are the code
/// (RFC 6455 section 5.5).
pub const LONGEST_REASON: usize = 123;

/// Whether an endpoint may send this status code (RFC 6455 section 7.4): the same as
/// `drain.close_code` takes.
#[must_use]
pub const fn is_close_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// Body of `POST /v1/reload`; an empty body is all defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReloadRequest {
    /// Only say what would become of the tunnels.
    #[serde(default)]
    pub dry_run: bool,
    /// Reload although `reload.max_drained` holds it back.
    #[serde(default)]
    pub force: bool,
}

/// Body of `POST /v1/stop`; an empty body is all defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// Stop at once: tunnels get their polite close now, whatever the grace.
    #[serde(default)]
    pub now: bool,
}

/// Answer of `POST /v1/stop`, given as soon as the stop has begun.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stopping {
    /// The supervisor's process, which ends last.
    pub pid: u32,
    /// Tunnels that are left.
    pub tunnels: u64,
    /// When what is left is ended.
    pub deadline_in_seconds: f64,
}

/// Body of `PUT /v1/upstreams/{u}/servers/{addr}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerStateRequest {
    /// The new state.
    pub state: ServerState,
    /// With `drain`: how long its tunnels may stay; `drain.grace` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_seconds: Option<f64>,
    /// With `drain`: tunnels closed per second at most; `drain.close_rate` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub close_rate: Option<u32>,
}

/// Answer of that `PUT`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerStateChanged {
    /// The upstream's name.
    pub upstream: String,
    /// The server's address.
    pub server: String,
    /// Its state before.
    pub was: ServerState,
    /// Its state now.
    pub state: ServerState,
    /// Tunnels to it.
    pub tunnels: u64,
    /// With `drain`: when the last of them is closed.
    pub deadline_at: Option<String>,
    /// With `drain`: until then.
    pub deadline_in_seconds: Option<f64>,
    /// What the operator should know besides.
    pub warnings: Vec<String>,
}
