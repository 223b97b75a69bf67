//! Real servers and clients, and measuring ones of our own.

pub mod dns;
pub mod echo;
pub mod flows;
pub mod http;
pub mod iperf;
mod line;
pub mod path;
pub mod postfix;
pub mod prober;
pub mod raw;
pub mod smtp;
pub mod tls;
pub mod udp;

pub use echo::EchoServer;
pub use flows::{Dialect, Flows};
pub use prober::Prober;
