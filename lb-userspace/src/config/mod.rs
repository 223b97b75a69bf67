//! The configuration: one TOML file, checked whole before anything of it is applied.
//!
//! [`parse`] reads a document in three steps: the TOML itself, each value by itself, and what the values mean
//! together. Every step goes on after an error as far as the rest still makes sense, so that an operator
//! corrects a file once.

mod backups;
mod carp;
mod checks;
mod cluster;
mod cross;
mod diagnostics;
mod differences;
mod document;
mod explain;
mod forwarding;
mod general;
mod hosts;
mod known_keys;
mod listen;
mod listeners;
mod load;
mod modes;
mod pools;
mod probes;
mod resolver;
mod services;
mod syntax;
mod values;
mod words;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub use carp::{Carp, CarpDialect, CarpMac, Password, VirtualAddress, check_password};
pub use cluster::{Cluster, Sync};
pub use diagnostics::{Diagnostic, Diagnostics};
pub(crate) use diagnostics::{Errors, Span};
pub use differences::{Aspect, Difference, Kind, differences};
pub use explain::explain;
pub use hosts::{Families, Host};
pub(crate) use hosts::{is_name, no_server};
pub use load::{ConfigError, load, parse};
pub use probes::{
    Check, CheckKind, Dns, Exec, Http, Method, Pattern, Piece, Probe, RCODES, SendExpect, Smtp, Step, Tls,
};
pub use resolver::Resolver;

/// A checked configuration. Every name in it is unique and every reference resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Interfaces the XDP program is attached to, in the order of the file.
    pub interfaces: Vec<String>,
    pub xdp_mode: XdpMode,
    /// How long packets are forwarded while no daemon is alive; `None`: for ever.
    pub forward_without_daemon: Option<Duration>,
    pub control: Control,
    pub flows: Flows,
    pub tunnel: Tunnel,
    pub resolver: Resolver,
    /// In the order of the file.
    pub pools: Vec<Pool>,
    /// In the order of the file.
    pub services: Vec<Service>,
    /// In the order of the file.
    pub carp: Vec<Carp>,
    pub cluster: Cluster,
}

impl Config {
    /// The backends of a service: those of its pool, then those of its backup. No two have the same name.
    pub fn members<'c>(&'c self, service: &Service) -> impl Iterator<Item = Member<'c>> + Clone {
        let pools = [(Role::Primary, Some(service.pool)), (Role::Backup, service.backup)];
        let (forward, gue_port) = (service.forward, service.gue_port);
        pools.into_iter().filter_map(|(role, index)| Some((role, self.pools.get(index?)?))).flat_map(
            move |(role, pool)| {
                pool.backends.iter().map(move |backend| Member { role, pool, backend, forward, gue_port })
            },
        )
    }

    /// The backend of a service that has this name.
    pub fn backend(&self, service: &Service, name: &str) -> Option<&Backend> {
        self.members(service).map(|member| member.backend).find(|backend| backend.name == name)
    }
}

/// What a pool is to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Primary,
    Backup,
}

/// A backend of a service, with the pool that it is in.
#[derive(Clone, Copy, Debug)]
pub struct Member<'c> {
    pub role: Role,
    pub pool: &'c Pool,
    pub backend: &'c Backend,
    /// The service's.
    pub forward: Forward,
    /// Likewise.
    pub gue_port: u16,
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
    /// Whose members may use `socket` besides its owner, by name or number. `None`: the daemon's own group.
    pub group: Option<String>,
    /// A second socket, which answers questions and changes nothing; off when absent.
    pub read_only_socket: Option<PathBuf>,
    /// As `group`, of `read_only_socket`.
    pub read_only_group: Option<String>,
    /// Prometheus metrics over HTTP; off when absent.
    pub metrics: Option<SocketAddr>,
}

/// The flow table: how many flows it has room for, and when an idle one is forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flows {
    /// Rounded up to a power of two when the table is made. Default 1,048,576.
    pub capacity: u32,
    /// A connection that was never answered. Default 30 s.
    pub opening: Duration,
    /// A connection that one end has closed. Default 2 min.
    pub closing: Duration,
    /// A connection that is over, so that late segments find their way. Default 10 s.
    pub closed: Duration,
    /// UDP, and what is neither TCP nor UDP. Default 1 min.
    pub datagram: Duration,
}

impl Default for Flows {
    fn default() -> Self {
        Self {
            capacity: 1 << 20,
            opening: Duration::from_secs(30),
            closing: Duration::from_secs(120),
            closed: Duration::from_secs(10),
            datagram: Duration::from_secs(60),
        }
    }
}

/// What tunnels to backends look like from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Outer sources are taken from here, another for each flow, so that a backend's receive queues share the work.
    /// Default 172.16.0.0/16.
    pub source4: Prefix,
    /// Likewise over IPv6. Default 100::/64 (RFC 6666).
    pub source6: Prefix,
}

impl Default for Tunnel {
    fn default() -> Self {
        Self {
            source4: Prefix { address: IpAddr::V4(Ipv4Addr::new(172, 16, 0, 0)), len: 16 },
            source6: Prefix { address: IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0)), len: 64 },
        }
    }
}

/// A network: no bit of `address` after the first `len` is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    pub address: IpAddr,
    pub len: u8,
}

/// A named set of backends with a check. A service that lists its backends itself gets a pool of its own name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    pub name: String,
    /// `None`: backends are taken as up.
    pub check: Option<Check>,
    pub on_down: OnDown,
    pub quorum: Quorum,
    /// How long a backend that comes up takes to get its whole share of new flows. Default 0: at once.
    pub slow_start: Duration,
    /// Those with an address in the file, in its order; then those that hosts have been resolved to
    /// ([`crate::hosts::expand`]), of which a file as it is read has none.
    pub backends: Vec<Backend>,
    /// Names of servers, whose addresses are asked for while the daemon runs.
    pub hosts: Vec<Host>,
}

/// How much of a pool must be there for it to be used: weights of backends that are up and enabled, behind each listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quorum {
    /// Default 1.
    pub weight: u32,
    /// So much more than `weight` brings a pool back that has lost its quorum, and so much less is still enough for one that
    /// has it. Less than `weight`. Default 0.
    pub hysteresis: u32,
}

impl Default for Quorum {
    fn default() -> Self {
        Self { weight: 1, hysteresis: 0 }
    }
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
    /// Of those that are up, only the ones with the least number get new flows. Default 0.
    pub priority: u8,
    /// It gets no new flow of a listener while it has as many of it. `None`: as many as there come.
    pub max_connections: Option<u32>,
    /// False: as if an operator had disabled it. Default true.
    pub enabled: bool,
    /// The host name that had this address for an answer; `None` where the address stands in the file.
    pub host: Option<String>,
    /// Of a host that has this address no longer: no new flows, and it goes when its old ones are over.
    pub leaving: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: String,
    pub listen: Vec<Listen>,
    /// Index into [`Config::pools`].
    pub pool: usize,
    /// Likewise: used for new flows while nothing of `pool` can be, or its quorum is not met.
    pub backup: Option<usize>,
    /// How long `pool` must be there again before new flows return to it. Default 0: at once.
    pub backup_hold: Duration,
    pub forward: Forward,
    pub scheduler: Scheduler,
    /// Idle time after which an established TCP flow is forgotten. Default 10 min.
    pub session_timeout: Duration,
    /// A repeated attempt to connect goes to another backend, as the first one's was silent or refused. Default true.
    pub second_chance: bool,
    /// A client's new flows go where its earlier ones went, until it has had none for so long. Off when absent.
    pub sticky: Option<Duration>,
    /// New flows a second that are recorded; beyond that, the scheduler's table alone decides. Default 100,000.
    pub new_flow_limit: u32,
    /// There exactly when `forward` is [`Forward::Snat`].
    pub snat: Option<Snat>,
    /// UDP port on the backend that [`Forward::Gue`] sends to. Default 6080 (IANA's for GUE).
    pub gue_port: u16,
    /// What becomes of new flows while no backend can take any. Default [`WhenEmpty::Drop`].
    pub when_empty: WhenEmpty,
    /// False: it takes no new flows. Default true.
    pub enabled: bool,
}

/// What becomes of new flows that no backend can take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenEmpty {
    /// They are dropped: clients try until their timeouts, and succeed if a backend is there by then.
    #[default]
    Drop,
    /// TCP is answered with a RST, UDP with an ICMP error; the rest is dropped.
    Reset,
    /// They are left to the kernel.
    Pass,
}

/// What the clients' addresses and ports are replaced with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snat {
    /// Addresses of the gateway; each listener uses those of its backends' family.
    pub addresses: Vec<IpAddr>,
    /// Default 1024, below the ports of the gateway's own connections.
    pub first_port: u16,
    /// The last one. Default 32767.
    pub last_port: u16,
}

/// A virtual IP, port and protocol. No two services share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Listen {
    pub address: IpAddr,
    /// The first port; 0 with [`Protocol::Any`].
    pub port: u16,
    /// The last port of a range, `port` itself otherwise. A range keeps the port that the client used unless the
    /// backend names one.
    pub last_port: u16,
    pub protocol: Protocol,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    /// Whatever is neither TCP nor UDP: `203.0.113.10/any`.
    Any,
}

/// How a packet travels to its backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Forward {
    /// Destination rewritten; replies come back through the gateway.
    #[default]
    Nat,
    /// As `Nat`, and the source is replaced by an address and port of the gateway.
    Snat,
    /// Only the MAC address changes; the backend has the VIP itself and answers the client directly.
    Dsr,
    /// Encapsulated in IP (RFC 2003, RFC 2473); the backend answers the client directly.
    Ipip,
    /// Encapsulated in UDP (Generic UDP Encapsulation, variant 1); the backend answers the client directly.
    Gue,
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
    /// The backend with the fewest live flows for its weight.
    LeastConnections,
}
