//! Health checks: who is up.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use crate::config::Check;

/// What the checks say of a server. Whether an operator wants it used is another matter (`AdminState`).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Never checked: out of rotation until its first success.
    #[default]
    Unknown,
    Up,
    Down,
}

/// One thing to check. Services that share a server and a check share the target.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    pub address: SocketAddr,
    pub check: Check,
}

/// The outcome of one check, sent to [`crate::control`].
#[derive(Clone, Debug)]
pub struct Report {
    pub target: Target,
    /// Wall clock, for people.
    pub at: SystemTime,
    /// How long the check took, and why it failed if it did.
    pub latency: Duration,
    pub result: Result<(), CheckError>,
    /// After this result.
    pub health: Health,
    /// Before this result.
    pub previous: Health,
}

/// Why a check failed. (Each check kind adds its own reasons.)
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    #[error("timed out")]
    Timeout,
}
