//! Flow synchronisation: two gateways tell each other of their flows, so that either can go on with all of them.
//!
//! - [`wire`]: datagrams, authenticated, and the records in them; pure;
//! - [`key`]: the shared secret and the seed of the flows' hash, read from files;
//! - [`session`]: who the other gateway is, and an ordered stream of batches to it over a network that loses them; pure;
//! - [`directory`]: services and servers by what they are called on the wire;
//! - [`scan`]: what differs between the flow table and what the other gateway knows of it;
//! - [`enter`]: a flow of the other gateway becomes one of ours;
//! - [`transfer`]: the last three between two tables of one machine;
//! - [`node`]: all of that together over a flow table, without any socket;
//! - [`task`]: the thread that gives it a socket and a clock.

pub mod directory;
pub mod enter;
pub mod key;
pub mod node;
pub mod scan;
pub mod session;
pub mod task;
pub mod transfer;
pub mod wire;
