//! What travels over the API of weights, and of services that are enabled and disabled.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The largest weight of a backend.
pub const MOST_WEIGHT: u16 = 1000;

/// What a pool is to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PoolRole {
    Primary,
    /// Used while nothing of the other one can be.
    Backup,
}

/// A pool as a service uses it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PoolStatus {
    pub name: String,
    pub role: PoolRole,
    /// New flows go there, of some listener at least.
    pub active: bool,
    /// How many of its backends are up and enabled and have a weight.
    pub well: u64,
    /// Their weights.
    pub well_weight: u64,
    /// How much of it must be there, behind each listener, for the pool to be used.
    pub quorum: u32,
    pub hysteresis: u32,
}

/// `POST /v1/backends/{name}/weight?value=N&service=S` answers with what it changed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct WeightChange {
    pub backends: Vec<ChangedWeight>,
}

/// The weight that one backend has now.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ChangedWeight {
    /// `service/backend`
    pub backend: String,
    pub weight: u16,
    /// What the file says, where an operator has set another one.
    pub configured_weight: Option<u16>,
    /// False when it had this weight already.
    pub changed: bool,
}

/// `POST /v1/services/{name}/{enable|disable}` answers with what it changed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ServiceChange {
    pub service: String,
    pub enabled: bool,
    /// False when it was so already.
    pub changed: bool,
}

/// A weight as an operator gives it: a number, or `file` for what the file says (`None`).
///
/// # Errors
/// A sentence that says what to give instead.
pub fn weight(text: &str) -> Result<Option<u16>, String> {
    if text == "file" {
        return Ok(None);
    }
    let weight = text.parse().ok().filter(|weight| *weight <= MOST_WEIGHT);
    weight.map(Some).ok_or_else(|| {
        format!("the weight is {text:?}; give a whole number from 0 to {MOST_WEIGHT}, or file for the file's")
    })
}

#[cfg(test)]
mod tests {
    use super::weight;

    #[test]
    fn weights_are_numbers_or_the_files() {
        assert_eq!((weight("0"), weight("1000"), weight("file")), (Ok(Some(0)), Ok(Some(1000)), Ok(None)));
        for wrong in ["1001", "-1", "", "one", "1.5"] {
            assert!(weight(wrong).is_err_and(|error| error.contains(&format!("{wrong:?}"))), "{wrong}");
        }
    }
}
