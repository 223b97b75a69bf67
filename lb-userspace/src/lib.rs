//! The Matapa daemon and its command line, as a library so that tests reach every part.
//!
//! The parts, from text to packets:
//! - [`config`] turns a file into a checked [`config::Config`], or into a list of errors with positions;
//! - [`health`] runs the checks and says which servers are up;
//! - [`hosts`] decides what host names of servers stand for, and asks;
//! - [`control`] owns the running state: it joins configuration, health and the operator's commands into the
//!   desired content of the maps;
//! - [`dataplane`] makes the kernel's maps equal to it without a packet seeing a hole;
//! - [`net`] follows the kernel's routes and interfaces for the packet path;
//! - [`carp`] shares addresses with other gateways, and [`sync`] tells them of the flows;
//! - [`doctor`] finds out why nothing arrives, and [`import`] reads the configurations of other programs;
//! - [`api`] serves all of it over a Unix socket, and [`cli`] is that socket's client.

pub mod api;
pub mod carp;
#[cfg(test)]
mod cases;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod dataplane;
pub mod doctor;
pub mod health;
pub mod hosts;
pub mod import;
pub mod net;
pub mod sync;
