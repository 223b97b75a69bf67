//! The running state and the one task that owns it.
//!
//! [`state`] is what is known: configuration, health, the operator's wishes; pure. [`task`] joins it with the packet
//! path, the checks and the API: requests, check results and a tick come in one after the other, so nothing needs a
//! lock. `apply` is its way to maps and interfaces, `preview` tells what it would do, `answers` what it tells the API,
//! [`explain`] and [`tracing`] what it tells of single packets, [`wishes`] what an operator wants, [`choices`] which of
//! several pools and backends are used, [`held`] its loop for fragments, [`late`] the stages that come after the start,
//! [`hosts`] host names and what they stand for, [`passive`] what it notices itself.

mod answers;
mod apply;
pub mod carp;
pub mod choices;
pub mod explain;
pub mod held;
pub mod hosts;
pub mod late;
pub mod passive;
mod preview;
pub mod request;
pub mod resets;
pub mod state;
pub mod status;
pub mod sync;
pub mod task;
pub mod tracing;
pub mod wishes;
mod wishing;
