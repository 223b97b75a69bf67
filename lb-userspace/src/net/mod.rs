//! What the kernel says of routes, neighbours and interfaces (rtnetlink(7)), and what the packet path must know of it.
//!
//! [`watch`] follows the kernel; [`routes`] and [`ports`] decide from parsed messages. [`way`] asks for one route, and
//! [`packet`] makes packets to ask the program about.

mod ask;
pub mod held;
pub mod neighbours;
pub mod packet;
pub mod ports;
pub mod routes;
pub mod settings;
mod socket;
pub mod watch;
pub mod way;

pub(crate) use ask::Kernel;
pub(crate) use socket::dump;
