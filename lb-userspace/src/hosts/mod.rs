//! Host names in place of servers' addresses: when they are asked for, what their answers are, and which backends come of
//! that.
//!
//! [`answers`] decides and is pure, [`expand`] puts the addresses into a configuration, [`lookup`] asks.

pub mod answers;
pub mod expand;
pub mod lookup;

use std::net::IpAddr;
use std::time::Duration;

use crate::config::Families;

/// How many addresses of a name are used. A name with more is hardly one of servers.
pub const MOST_ADDRESSES: usize = 64;

/// Something to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub host: String,
    pub families: Families,
}

/// What was answered, for each family that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    pub v4: Option<Outcome>,
    pub v6: Option<Outcome>,
}

/// What became of one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// At least one address, and for how long that holds.
    Addresses(Vec<IpAddr>, Duration),
    /// The name does not exist or has no address of the family.
    Nothing(String),
    /// There was no answer, or one that says nothing.
    Failed(String),
}
