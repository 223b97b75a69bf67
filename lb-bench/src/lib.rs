//! What a packet costs: nanoseconds of the XDP program on frames of every kind, beside programs that do one thing each.
//!
//! The kernel runs the programs (`BPF_PROG_TEST_RUN`) and takes the time. [`network`] is what they route into,
//! [`instance`] the product with its maps filled from a configuration, [`floors`] the programs beside it, [`cases`]
//! the list of what is measured, [`measure`] the loop around them, and [`report`] what comes out. Each measurement is
//! proved by counters: a row in which one packet of a million went another way is an error, not a figure.
//!
//! Beside it: [`control`] measures the daemon, [`checks`] health checks, and [`peers`] all of it end to end beside other gateways.
//! [`plot`] draws.

pub mod cases;
pub mod checks;
pub mod control;
pub mod floors;
pub mod frames;
pub mod instance;
pub mod layout;
pub mod measure;
pub mod network;
pub mod peers;
pub mod plot;
pub mod report;

pub use measure::{Options, run};
pub use report::{Report, Row};
