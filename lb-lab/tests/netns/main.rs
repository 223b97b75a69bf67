//! Matapa in real networks: namespaces, real servers and clients, and faults.
//!
//! They run one after the other (`--test-threads=1`): figures of two at once would disturb each other.

#![expect(clippy::unwrap_used, reason = "helpers of tests; clippy knows test functions only")]

mod cleanup;
mod errors;
mod failure;
mod lifecycle;
mod operator;
mod reload;
mod routing;
mod speed;
mod story;
mod support;
mod traffic;
