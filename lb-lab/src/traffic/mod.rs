//! Real servers and clients, and measuring ones of our own.

pub mod bulk;
pub mod dns;
pub mod echo;
pub mod flows;
pub mod http;
pub mod iperf;
pub mod large_mail;
mod line;
pub mod names;
mod paced;
pub mod path;
pub mod postfix;
pub mod prober;
pub mod raw;
pub mod smtp;
mod tcp_server;
pub mod tls;
pub mod transfers;
pub mod udp;

pub use bulk::{BulkServer, Transfer};
pub use echo::EchoServer;
pub use flows::{Dialect, Flows};
pub use large_mail::LargeMail;
pub use names::NameServer;
pub use paced::Progress;
pub use prober::Prober;
pub use transfers::{TransferServer, Transfers};
