//! Health checks: who is up.
//!
//! What is decided is pure and takes the time as a value: [`fsm`] says when a server goes up or down,
//! [`schedule`] when it is checked. What touches the network is thin: [`probe`] asks one server once,
//! [`runner`] joins the three in one task and sends a [`Report`] for every finished check. The daemon has all that done
//! in another process, which can do little besides: [`checker`].
//!
//! ```no_run
//! # async fn example(config: lb_userspace::config::Check) {
//! use lb_userspace::health::{self, Health, Target};
//!
//! let (reports, mut inbox) = tokio::sync::mpsc::channel(1024);
//! let runner = health::spawn(reports);
//! let target = Target::new("198.51.100.11".parse().unwrap(), 25, &config);
//! runner.set_targets(vec![(target, Health::Unknown)]);
//! while let Some(report) = inbox.recv().await {
//!     println!("{} is {:?}", report.target.address, report.health);
//! }
//! # }
//! ```

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::config::{Check, CheckKind};

pub mod checker;
mod error;
pub mod fsm;
pub mod probe;
pub mod runner;
pub mod schedule;

pub use error::{CheckError, Stage};
pub use runner::{Runner, raise_descriptor_limit, spawn};

/// What the checks say of a server. Whether an operator wants it used is another matter (`AdminState`).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Never checked: out of rotation until its first success.
    #[default]
    Unknown,
    Up,
    Down,
}

/// One thing to check. Services that share a server and a check share the target.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Target {
    /// Where the check connects to.
    pub address: SocketAddr,
    pub check: Check,
    /// The VIP that must answer on the server, too.
    pub via: Option<Via>,
}

/// A VIP on a server, and how packets get there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Via {
    pub vip: SocketAddr,
    pub carriage: Carriage,
}

/// How a packet for the VIP is brought to one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Carriage {
    /// By the server's MAC address.
    Direct,
    /// In IP.
    Ipip,
    /// In UDP, to this port.
    Gue(u16),
}

impl Target {
    /// The target of `check` on a server whose traffic goes to `traffic_port`.
    ///
    /// The port to check is settled here, in [`Target::address`], and taken out of the check: so services on
    /// different ports of one server whose checks name the same port get equal targets, and share them.
    #[must_use]
    pub fn new(server: IpAddr, traffic_port: u16, check: &Check) -> Self {
        let port = match check.kind() {
            // There are none; so every service of the server shares the check.
            CheckKind::Icmp => 0,
            _ => check.port.unwrap_or(traffic_port),
        };
        Self {
            address: SocketAddr::new(server, port),
            check: Check { port: None, ..check.clone() },
            via: None,
        }
    }

    /// Where the check connects to, also if the target was put together without [`Target::new`].
    pub(crate) fn probe_address(&self) -> SocketAddr {
        let mut address = self.address;
        if let Some(port) = self.check.port {
            address.set_port(port);
        }
        address
    }
}

/// The outcome of one check, sent to [`crate::control`].
#[derive(Clone, Debug)]
pub struct Report {
    pub target: Target,
    /// When the verdict fell. Wall clock, for people.
    pub at: SystemTime,
    /// From the start of the check to its verdict.
    pub latency: Duration,
    /// Why the check failed, if it did.
    pub result: Result<(), CheckError>,
    /// After this result.
    pub health: Health,
    /// Before this result.
    pub previous: Health,
    /// When the first of the certificates ends that the server sent, where the check spoke TLS.
    pub certificate_expires: Option<SystemTime>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Probe;

    fn check(port: Option<u16>) -> Check {
        Check { port, ..Check::of(Probe::Tcp) }
    }

    #[test]
    fn services_on_several_ports_share_a_check_of_one_port() {
        let server = IpAddr::from([198, 51, 100, 11]);
        let mail = Target::new(server, 25, &check(None));
        let submission = Target::new(server, 587, &check(Some(25)));
        assert_eq!(mail, submission);
        assert_eq!(mail.probe_address(), "198.51.100.11:25".parse().unwrap());
        assert_ne!(mail, Target::new(server, 587, &check(None)));
    }

    #[test]
    fn services_share_echo_requests_whatever_their_ports() {
        let server = IpAddr::from([198, 51, 100, 11]);
        let [one, other] = [25, 587].map(|port| Target::new(server, port, &Check::of(Probe::Icmp)));
        assert_eq!(one, other);
    }

    #[test]
    fn the_port_of_the_check_wins() {
        let target =
            Target { address: "[2001:db8::1]:25".parse().unwrap(), check: check(Some(2525)), via: None };
        assert_eq!(target.probe_address(), "[2001:db8::1]:2525".parse().unwrap());
    }
}
