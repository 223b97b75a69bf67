//! HTTP/JSON over a Unix socket: what the command line, and `curl --unix-socket`, talk to.
//!
//! - [`socket`] owns the path of the Unix socket, so that two daemons never share one;
//! - [`server`] answers on it, `document` describes it for programs, [`client`] asks;
//! - [`metrics`] is the same state for Prometheus, on a TCP port of its own;
//! - [`types`] is what travels; [`carp`] what of it is about shared addresses, [`explain`] and [`trace`] about single packets.

pub mod carp;
pub mod client;
mod document;
pub mod error;
pub mod explain;
pub mod metrics;
pub mod pools;
pub mod server;
pub mod socket;
pub mod sync;
pub mod trace;
pub mod types;
