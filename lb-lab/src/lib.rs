//! Test networks for Matapa: namespaces joined by real segments, real servers and clients, fault
//! injection, and the daemon as an operator would run it. The root tests and `cargo xtask run` share it.

pub mod decap;
pub mod interrupt;
pub mod kernel_errors;
pub mod lab;
pub mod matapa;
pub mod netns;
pub mod packets;
pub mod process;
pub mod story;
pub mod topology;
pub mod traffic;
mod xdp_pass;

pub use lab::{Lab, clean};
pub use netns::Netns;
pub use process::{Finished, Process, wait_until};
pub use topology::{Gateway, Host, Plan, Router, Shape, Topology};
