//! CARP: several gateways share addresses, and one of them has them.
//!
//! - [`wire`] and [`auth`]: the header and its digest, the same as in OpenBSD, FreeBSD and ucarp; pure;
//! - [`fsm`]: who is master, as a function of what is heard and when; pure;
//! - [`demotion`]: why this gateway should rather not be master; pure;
//! - [`plan`]: a vhid as configured, with its password;
//! - [`io`]: sockets, addresses, announcements and commands;
//! - [`task`]: the thread that joins them.

pub mod auth;
pub mod demotion;
pub mod fsm;
pub mod io;
pub mod plan;
pub mod task;
pub mod wire;
