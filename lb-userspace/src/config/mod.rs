//! The configuration: one TOML file, checked whole before anything of it is applied.
//!
//! [`parse`] reads a document in three steps: the TOML itself, each value by itself, and what the values mean
//! together. Every step goes on after an error as far as the rest still makes sense, so that an operator
//! corrects a file once.

mod checks;
mod cross;
mod diagnostics;
mod document;
mod explain;
mod general;
mod known_keys;
mod listen;
mod load;
mod pools;
mod services;
mod syntax;
mod values;
mod words;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub use diagnostics::{Diagnostic, Diagnostics};
pub use explain::explain;
pub use load::{ConfigError, load, parse};

/// A checked configuration. Every name in it is unique and every reference resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Interfaces the XDP program is attached to, in the order of the file.
    pub interfaces: Vec<String>,
    pub xdp_mode: XdpMode,
    pub control: Control,
    /// In the order of the file.
    pub pools: Vec<Pool>,
    /// In the order of the file.
    pub services: Vec<Service>,
}

/// How the program is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver; where that is impossible, generic, with a warning.
    #[default]
    Auto,
    Native,
    Generic,
}

/// How the daemon is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// HTTP/JSON over this Unix socket. Default `/run/matapa/control.sock`.
    pub socket: PathBuf,
    /// Prometheus metrics over HTTP; off when absent.
    pub metrics: Option<SocketAddr>,
}

/// A named set of backends with a check. A service that lists its backends itself gets a pool of its own name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    pub name: String,
    /// `None`: backends are taken as up.
    pub check: Option<Check>,
    pub on_down: OnDown,
    pub backends: Vec<Backend>,
}

/// What happens to established TCP connections of a backend that fails its check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDown {
    /// The client gets a RST, so that it reconnects now instead of at its timeout.
    #[default]
    Reset,
    /// Nothing; they live on if the backend returns in time.
    Keep,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Unique within the pool; unless named, the address as written, with the port if there is one.
    pub name: String,
    pub address: IpAddr,
    /// `None`: the port the client connected to.
    pub port: Option<u16>,
    /// Share of new flows relative to the others; 0 takes none.
    pub weight: u16,
}

/// What to check on a backend, and how often. Equal checks of one address are run once.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Check {
    pub kind: CheckKind,
    /// Between the starts of two checks. Default 10 s.
    pub interval: Duration,
    /// For the whole check. Default 2 s, shorter than `interval`.
    pub timeout: Duration,
    /// Successes in a row that bring a backend up. Default 1.
    pub rise: u32,
    /// Failures in a row that take a backend down. Default 2.
    pub fall: u32,
    /// `None`: the port that traffic goes to.
    pub port: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CheckKind {
    /// The connection opens; it is then closed.
    Tcp,
    /// Greeting of one or many lines, EHLO, QUIT.
    Smtp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: String,
    pub listen: Vec<Listen>,
    /// Index into [`Config::pools`].
    pub pool: usize,
    pub forward: Forward,
    pub scheduler: Scheduler,
    /// Idle time after which an established TCP flow is forgotten. Default 10 min.
    pub session_timeout: Duration,
    /// A repeated attempt to connect goes to another backend, as the first one's was silent or refused. Default true.
    pub second_chance: bool,
}

/// A virtual IP, port and protocol. No two services share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Listen {
    pub address: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// How a packet travels to its backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Forward {
    /// Destination rewritten; replies come back through the gateway.
    #[default]
    Nat,
}

/// How a new flow picks its backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheduler {
    /// Consistent hashing of the 5-tuple (Eisenbud et al., NSDI 2016).
    #[default]
    Maglev,
    /// Consistent hashing of the client's address: a client stays with its backend.
    SourceHash,
    /// In turns.
    RoundRobin,
    Random,
}
