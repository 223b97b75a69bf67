//! What the XDP program and the daemon share.
//!
//! Everything here is pure: no I/O, no clock, no allocation outside the `std` feature. The same code decides
//! what happens to a packet in the kernel and in the tests; only the two traits [`packet::Packet`] and
//! [`env::Env`] are implemented twice.
//!
//! Invariants the modules rely on:
//! - bytes that come from or go to the wire are byte arrays or [`abi::net::Be16`]; plain integers are in host order;
//! - every type that lives in a map is `repr(C)` without padding, and any bit pattern of it is valid;
//! - id 0 of a listener or backend is never valid, so that an empty table slot is a counted drop and not a wrong
//!   server.

#![cfg_attr(not(any(test, feature = "std")), no_std)]

pub mod abi;
pub mod env;
pub mod flow;
pub mod hash;
pub mod maglev;
pub mod packet;
pub mod pipeline;
pub mod verdict;
