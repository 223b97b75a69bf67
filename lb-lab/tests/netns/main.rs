//! Matapa in real networks: namespaces, real servers and clients, and faults.
//!
//! They run one after the other (`--test-threads=1`): figures of two at once would disturb each other.

#![expect(clippy::unwrap_used, reason = "helpers of tests; clippy knows test functions only")]

mod balance;
mod carp;
mod carp_support;
mod checks;
mod churn;
mod cleanup;
mod doctor;
mod errors;
mod explain_trace;
mod failure;
mod hosts;
mod lifecycle;
mod limits;
mod live_counts;
mod modes;
mod moving;
mod operator;
mod pair;
mod partition;
mod plain;
mod pools;
mod reload;
mod resets;
mod routing;
mod scale;
mod second_chance;
mod speed;
mod story;
mod support;
mod sync;
mod takeover;
mod traffic;
mod transfers;
mod unit;
