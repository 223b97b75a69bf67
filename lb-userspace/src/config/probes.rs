//! What a check asks, and what it wants to hear.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What to check on a backend, and how often. Equal checks of one address are run once.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Check {
    pub probe: Probe,
    /// Between the starts of two checks. Default 10 s.
    pub interval: Duration,
    /// Likewise, while the latest results contradict the backend's health. `None`: `interval`.
    pub fast_interval: Option<Duration>,
    /// Likewise, while the backend is down. `None`: `interval`.
    pub down_interval: Option<Duration>,
    /// For the whole check. Default 2 s, shorter than any of the intervals.
    pub timeout: Duration,
    /// Successes in a row that bring a backend up. Default 1.
    pub rise: u32,
    /// Failures in a row that take a backend down. Default 2.
    pub fall: u32,
    /// By how much of the interval, in percent, a check may be earlier or later. Default 5.
    pub jitter: u8,
    /// `None`: the port that traffic goes to.
    pub port: Option<u16>,
    /// Where checks of an IPv4 address come from. `None`: the kernel picks.
    pub source4: Option<Ipv4Addr>,
    /// Likewise of an IPv6 address.
    pub source6: Option<Ipv6Addr>,
    /// The VIP must answer on the server, too, by the way that clients' packets go. Where the service forwards by `dsr`,
    /// `ipip` or `gue`, for its TCP listeners. Default false.
    pub via_vip: bool,
}

impl Check {
    /// A check of this kind with everything else at its default.
    pub const fn of(probe: Probe) -> Self {
        Self {
            probe,
            interval: Duration::from_secs(10),
            fast_interval: None,
            down_interval: None,
            timeout: Duration::from_secs(2),
            rise: 1,
            fall: 2,
            jitter: 5,
            port: None,
            source4: None,
            source6: None,
            via_vip: false,
        }
    }

    pub fn kind(&self) -> CheckKind {
        self.probe.kind()
    }

    /// Where checks of `server` come from; `None`: the kernel picks.
    pub fn source(&self, server: IpAddr) -> Option<IpAddr> {
        match server {
            IpAddr::V4(_) => self.source4.map(IpAddr::V4),
            IpAddr::V6(_) => self.source6.map(IpAddr::V6),
        }
    }
}

/// The word that `type` has for a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CheckKind {
    Tcp,
    Tls,
    Http,
    Https,
    Smtp,
    SendExpect,
    Icmp,
    Dns,
    Exec,
}

impl CheckKind {
    /// Whether it opens TCP connections.
    pub const fn uses_tcp(self) -> bool {
        matches!(self, Self::Tcp | Self::Tls | Self::Http | Self::Https | Self::Smtp | Self::SendExpect)
    }
}

/// What is asked. Shared, as there is one for each backend of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Probe {
    /// The connection opens; it is then closed.
    Tcp,
    /// The handshake succeeds.
    Tls(Arc<Tls>),
    Http(Arc<Http>),
    /// Greeting of one or many lines, EHLO, QUIT.
    Smtp(Smtp),
    SendExpect(Arc<SendExpect>),
    /// An echo request is answered.
    Icmp,
    Dns(Arc<Dns>),
    Exec(Arc<Exec>),
}

impl Probe {
    pub fn kind(&self) -> CheckKind {
        match self {
            Self::Tcp => CheckKind::Tcp,
            Self::Tls(_) => CheckKind::Tls,
            Self::Http(http) if http.tls.is_some() => CheckKind::Https,
            Self::Http(_) => CheckKind::Http,
            Self::Smtp(_) => CheckKind::Smtp,
            Self::SendExpect(_) => CheckKind::SendExpect,
            Self::Icmp => CheckKind::Icmp,
            Self::Dns(_) => CheckKind::Dns,
            Self::Exec(_) => CheckKind::Exec,
        }
    }

    /// The TLS that the probe speaks.
    pub fn tls(&self) -> Option<&Tls> {
        match self {
            Self::Tls(tls) | Self::Smtp(Smtp::StartTls(tls) | Smtp::Tls(tls)) => Some(tls),
            Self::Http(http) => http.tls.as_ref(),
            Self::SendExpect(dialogue) => dialogue.tls.as_ref(),
            Self::Tcp | Self::Smtp(Smtp::Plain) | Self::Icmp | Self::Dns(_) | Self::Exec(_) => None,
        }
    }
}

/// How the server's certificate is looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tls {
    /// The name that is asked for (SNI, RFC 6066 section 3) and that the certificate must have. `None`: the `host` of
    /// an HTTP check, or else the server's address, without SNI.
    pub server_name: Option<String>,
    /// Whether the certificate must be valid, for the name, and from an authority that is trusted. Default true.
    pub verify: bool,
    /// The authorities that are trusted, in PEM. `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// So many days before its end the certificate is warned of; 0: never. Default 14.
    pub expiry_warning_days: u32,
}

impl Default for Tls {
    fn default() -> Self {
        Self { server_name: None, verify: true, ca_file: None, expiry_warning_days: 14 }
    }
}

/// One request over HTTP/1.1 (RFC 9112).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Http {
    pub method: Method,
    /// As in the request line, with its query. Default `/`.
    pub path: String,
    /// The Host field. `None`: the server's address, and its port unless that is the usual one.
    pub host: Option<String>,
    /// The status codes that mean yes, first and last of each range. Default 200 to 299.
    pub status: Vec<(u16, u16)>,
    /// Must be somewhere in the body.
    pub body: Option<String>,
    /// `None`: plain HTTP.
    pub tls: Option<Tls>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Method {
    #[default]
    Get,
    Head,
}

/// How an SMTP session is secured.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Smtp {
    Plain,
    /// After EHLO (RFC 3207).
    StartTls(Arc<Tls>),
    /// From the start (RFC 8314 section 3.3).
    Tls(Arc<Tls>),
}

/// A dialogue of texts or bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SendExpect {
    /// At least one, in this order.
    pub steps: Vec<Step>,
    /// `None`: in plain text.
    pub tls: Option<Tls>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Step {
    /// Sent first; may be empty.
    pub send: Vec<u8>,
    /// Then waited for.
    pub expect: Option<Pattern>,
}

/// What an answer must be like.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Pattern {
    /// As the configuration has it, for people.
    pub written: String,
    /// All of what has come must match, from first to last; a [`Piece::Many`] at either end makes a part of it enough.
    pub pieces: Vec<Piece>,
}

/// A part of a [`Pattern`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Piece {
    Byte(u8),
    /// Any one byte.
    One,
    /// Any number of any bytes.
    Many,
}

/// One DNS query (RFC 1035).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Dns {
    /// Fully qualified. Default `.`, the root.
    pub query: String,
    /// The type's name. Default `SOA`.
    pub record: String,
    /// Response codes that mean yes. Default 0, NOERROR.
    pub rcodes: Vec<u16>,
    /// Must be the data of a record of the answer, as zone files have it.
    pub answer: Option<String>,
    /// Over TCP at once, instead of after a truncated answer.
    pub tcp: bool,
}

/// Names of the DNS response codes, by their numbers (RFC 1035 section 4.1.1, RFC 2136 section 2.2).
pub const RCODES: [&str; 11] = [
    "NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET", "NXRRSET",
    "NOTAUTH", "NOTZONE",
];

/// A program that says by its exit code whether a server is well.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Exec {
    /// Absolute path and arguments; `{address}` and `{port}` in an argument are replaced.
    pub command: Vec<String>,
    /// Whose rights it has. `None`: the daemon's, which no configuration says.
    pub user: Option<String>,
}
