//! The content of the maps as plain data.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use lb_common::abi::endpoint::ANY_PORT;
use lb_common::abi::net::{Be16, Protocol as Wire, mapped, unmapped};
use lb_common::abi::{
    Backend, BackendFlags, Features, Listener, ListenerFlags, Mode, SchedulerCode, Settings, SiblingKey,
    Side, TableRef,
};
use lb_common::maglev::{self, Candidate};

use super::endpoints::Endpoint;
use crate::api::types::AdminState;
use crate::config::{self, Forward, Listen, Protocol, Scheduler, Service, WhenEmpty};
use crate::health::Health;

/// Number of a listener in `LISTENERS`, of a backend in `BACKENDS`. Never 0.
pub type Id = u32;

/// Everything the daemon has put into the maps. The flows are not part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// How the program counts new flows. Not in a map.
    pub pace: Pace,
    pub features: Features,
    pub tunnel: TunnelSources,
    /// By index in `SNAT_ADDRESSES`. One that no listener uses any more stays for the flows that do.
    pub snat_addresses: BTreeMap<u8, IpAddr>,
    pub listeners: BTreeMap<Id, ListenerEntry>,
    pub backends: BTreeMap<Id, BackendEntry>,
    /// Of each sticky service, its servers behind each of its listeners.
    pub siblings: BTreeMap<SiblingKey, Id>,
    /// Where packets are led to: a listener by a destination, a backend by a source. Of several at a chained endpoint,
    /// the first.
    pub endpoints: BTreeMap<Endpoint, Id>,
}

/// How the program counts new flows: each CPU by itself, anew in each tick of the flow table's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    pub cpus: u32,
    pub tick: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { cpus: 1, tick: Duration::from_secs(1) }
    }
}

impl Pace {
    /// The share of one CPU in one tick, rounded up, of what is allowed in a second.
    pub fn share(&self, per_second: u32) -> u32 {
        let share = u128::from(per_second) * self.tick.as_micros();
        let share = share.div_ceil(1_000_000 * u128::from(self.cpus.max(1)));
        u32::try_from(share).unwrap_or(u32::MAX)
    }

    /// Whole ticks, rounded up: 1 at least, and no more than the clock can tell apart.
    pub fn ticks(&self, time: Duration) -> u16 {
        let ticks = time.as_micros().div_ceil(self.tick.as_micros().max(1));
        u16::try_from(ticks).unwrap_or(u16::MAX).clamp(1, u16::MAX / 2)
    }
}

/// Outer sources of tunnels, as they stand in `SETTINGS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelSources {
    pub v4: [u8; 4],
    /// The bits that vary with the flow.
    pub v4_vary: [u8; 4],
    pub v6: [u8; 16],
    pub v6_vary: [u8; 16],
}

impl TunnelSources {
    pub fn of(tunnel: &config::Tunnel) -> Self {
        let source4 = address_bytes(tunnel.source4.address);
        let vary4 = u32::MAX.checked_shr(u32::from(tunnel.source4.len)).unwrap_or(0);
        let vary6 = u128::MAX.checked_shr(u32::from(tunnel.source6.len)).unwrap_or(0);
        Self {
            v4: *unmapped(&source4),
            v4_vary: vary4.to_be_bytes(),
            v6: address_bytes(tunnel.source6.address),
            v6_vary: vary6.to_be_bytes(),
        }
    }

    pub const fn from_settings(settings: &Settings) -> Self {
        Self {
            v4: settings.tunnel4,
            v4_vary: settings.tunnel4_vary,
            v6: settings.tunnel6,
            v6_vary: settings.tunnel6_vary,
        }
    }

    pub const fn write_to(&self, settings: &mut Settings) {
        settings.tunnel4 = self.v4;
        settings.tunnel4_vary = self.v4_vary;
        settings.tunnel6 = self.v6;
        settings.tunnel6_vary = self.v6_vary;
    }
}

/// One VIP, port or range of ports, and protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerEntry {
    /// Name of its service.
    pub service: String,
    /// The service's number, which sticky clients are remembered by.
    pub service_number: u32,
    /// With `forward`, what identifies it, by [`Identity`].
    pub listen: Listen,
    pub forward: Forward,
    /// Seconds.
    pub session_timeout: u32,
    /// Opening connections whose backend does not answer are offered to another one.
    pub second_chance: bool,
    /// New flows that each CPU records in a tick.
    pub new_flow_limit: u32,
    /// Ticks after which a client without new flows may go elsewhere; 0: at once.
    pub sticky_ticks: u16,
    /// With [`Forward::Snat`].
    pub snat: Option<SnatRange>,
    pub scheduler: Scheduler,
    /// Whether its service was enabled, or disabled, by hand: for the next daemon.
    pub by_hand: Option<bool>,
    /// What becomes of new flows while the table is empty.
    pub when_empty: WhenEmpty,
    pub table: Table,
    /// The next listener at the same chained endpoint; 0 after the last.
    pub next: Id,
}

/// What identifies a listener. A range of ports may become longer or shorter and keeps its flows; what is sent in another
/// way is another listener, as the way of a flow cannot change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    address: IpAddr,
    protocol: Protocol,
    first_port: u16,
    is_range: bool,
    /// As in [`lb_common::abi::Mode`].
    mode: u8,
}

impl Identity {
    pub const fn of(listen: &Listen, forward: Forward) -> Self {
        let Listen { address, protocol, port: first_port, .. } = *listen;
        Self { address, protocol, first_port, is_range: listen.is_range(), mode: forward.mode().0 }
    }
}

/// What clients' addresses and ports are replaced with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnatRange {
    /// Indexes in `SNAT_ADDRESSES`.
    pub first: u8,
    pub count: u8,
    pub first_port: u16,
    pub last_port: u16,
}

/// A table of slots, by what it is built from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// What is in the slots.
    pub kind: TableKind,
    /// Slots of a Maglev table, one of [`lb_common::maglev::SIZES`]; of other kinds, the most it may have.
    pub size: u32,
    /// The backends in it with their weights, by number; none with weight 0. Empty: no new flows.
    pub members: BTreeMap<Id, u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// By consistent hashing.
    Maglev,
    /// By turns.
    Rotation,
    /// Each member once.
    Each,
}

impl TableKind {
    /// What a scheduler picks from.
    pub const fn of(scheduler: Scheduler) -> Self {
        match scheduler {
            Scheduler::Maglev | Scheduler::SourceHash | Scheduler::Random => Self::Maglev,
            Scheduler::RoundRobin => Self::Rotation,
            Scheduler::LeastConnections => Self::Each,
        }
    }
}

/// A server behind one listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendEntry {
    pub name: String,
    /// With the listener's identity, what identifies it.
    pub server: Server,
    /// The server's number within its service, the same behind each of the service's listeners.
    pub number: u32,
    /// The listener's.
    pub forward: Forward,
    /// Where [`Forward::Gue`] sends to; 0 with others.
    pub gue_port: u16,
    pub weight: u16,
    /// It gets no new flow while it has as many.
    pub max_flows: Option<u32>,
    pub health: Health,
    pub admin: AdminState,
    pub by_hand: ByHand,
    /// Its established connections are reset while it is down.
    pub reset_when_down: bool,
    /// The packet path found it silent: no new flows for now.
    pub suspect: bool,
    /// Its listener uses others, or nobody: no new flows for now.
    pub standby: bool,
    /// Its flows have a second record for their way back.
    pub reverse: bool,
    /// Where its listener listens, if known flows may take the short way: from one port to one port, without another
    /// source or a tunnel.
    pub vip: Option<Listen>,
    /// The next backend at the same chained endpoint; 0 after the last.
    pub next: Id,
}

/// What an operator has decided against the file: for the next daemon, which reads another file perhaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByHand {
    /// The admin state is the operator's.
    pub admin: bool,
    /// The weight that the operator has given.
    pub weight: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Server {
    pub listener: Id,
    pub address: IpAddr,
    /// 0: the port that the client used.
    pub port: u16,
}

/// Whether a service's listener hands packets to this backend: only tunnels may change the family on the way.
pub const fn serves(service: &Service, listen: &Listen, backend: &config::Backend) -> bool {
    matches!(service.forward, Forward::Ipip | Forward::Gue)
        || backend.address.is_ipv4() == listen.address.is_ipv4()
}

/// The port of [`Server`] that a backend has behind a listener.
pub const fn server_port(listen: &Listen, backend: &config::Backend) -> u16 {
    match (backend.port, listen.protocol) {
        (_, Protocol::Any) => ANY_PORT,
        (Some(port), _) => port,
        (None, _) if listen.is_range() => ANY_PORT,
        (None, _) => listen.port,
    }
}

impl Listen {
    /// Whether it has more than one port.
    pub const fn is_range(&self) -> bool {
        self.port != self.last_port
    }

    /// Where clients' packets find it. Several listeners with ranges of one VIP share one.
    pub const fn endpoint(&self) -> Endpoint {
        let port = if self.is_range() { ANY_PORT } else { self.port };
        Endpoint::new(Side::Vip, self.address, port, self.protocol)
    }
}

impl Forward {
    /// As it stands in a map.
    pub const fn mode(self) -> Mode {
        match self {
            Self::Nat => Mode::NAT,
            Self::Snat => Mode::SNAT,
            Self::Dsr => Mode::DSR,
            Self::Ipip => Mode::IPIP,
            Self::Gue => Mode::GUE,
        }
    }

    /// The way back from [`Self::mode`].
    pub const fn from_mode(mode: Mode) -> Option<Self> {
        match mode {
            Mode::NAT => Some(Self::Nat),
            Mode::SNAT => Some(Self::Snat),
            Mode::DSR => Some(Self::Dsr),
            Mode::IPIP => Some(Self::Ipip),
            Mode::GUE => Some(Self::Gue),
            _ => None,
        }
    }

    /// Whether replies come back through the gateway.
    pub const fn is_answered_here(self) -> bool {
        matches!(self, Self::Nat | Self::Snat)
    }
}

impl Image {
    /// The number of the listener at this VIP.
    pub fn listener_at(&self, listen: &Listen) -> Option<Id> {
        let endpoint = listen.endpoint();
        let is_it = |id: &Id| self.listeners.get(id).is_some_and(|listener| listener.listen == *listen);
        if endpoint.is_chained() {
            return self.chain(&endpoint).into_iter().find(is_it);
        }
        self.endpoints.get(&endpoint).copied().filter(is_it)
    }

    /// The number of each backend, by its server. To look for many.
    pub fn servers(&self) -> HashMap<Server, Id> {
        self.backends.iter().map(|(id, backend)| (backend.server, *id)).collect()
    }

    /// The backends of a listener.
    pub fn backends_of(&self, listener: Id) -> impl Iterator<Item = (Id, &BackendEntry)> {
        self.backends.iter().filter(move |(_, b)| b.server.listener == listener).map(|(id, b)| (*id, b))
    }

    /// Where the packets of a backend find it, if they come this way at all.
    pub fn origin(&self, backend: &BackendEntry) -> Option<Endpoint> {
        let listener = self.listeners.get(&backend.server.listener)?;
        let Server { address, port, .. } = backend.server;
        listener
            .forward
            .is_answered_here()
            .then(|| Endpoint::new(Side::Backend, address, port, listener.listen.protocol))
    }

    /// Everybody at an endpoint, from the first along the chain.
    pub fn chain(&self, endpoint: &Endpoint) -> Vec<Id> {
        let mut chain = Vec::new();
        let mut at = self.endpoints.get(endpoint).copied();
        while let Some(id) = at
            && !chain.contains(&id)
        {
            let next = match endpoint.side {
                Side::Vip => self.listeners.get(&id).map(|l| l.next),
                Side::Backend => self.backends.get(&id).map(|b| b.next),
            };
            let Some(next) = next else { break };
            chain.push(id);
            at = (next != 0).then_some(next);
        }
        chain
    }

    /// The slots of a table, filled with the numbers of its members.
    pub fn fill(&self, table: &Table, seed: u64) -> Vec<Id> {
        let (ids, candidates): (Vec<Id>, Vec<Candidate>) = table
            .members
            .iter()
            .filter_map(|(id, weight)| Some((*id, self.backends.get(id)?.candidate(*weight))))
            .unzip();
        let slots = match table.kind {
            TableKind::Maglev => maglev::build(&candidates, table.size, seed),
            TableKind::Rotation => maglev::rotation(&candidates, table.size),
            TableKind::Each => Some(each(&candidates, table.size)),
        };
        slots.unwrap_or_default().into_iter().map(|index| ids[index as usize]).collect()
    }
}

/// The indexes of the candidates in the order of their identities, at most `limit` of them.
fn each(candidates: &[Candidate], limit: u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..).zip(candidates).map(|(index, _)| index).collect();
    order.sort_by_key(|&index| candidates[index as usize].identity);
    order.truncate(limit as usize);
    order
}

impl ListenerEntry {
    /// Whether two entries mean the same listener.
    pub fn is_same(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }

    pub const fn identity(&self) -> Identity {
        Identity::of(&self.listen, self.forward)
    }

    /// As it stands in the map.
    pub fn record(&self, table: TableRef) -> Listener {
        let mut flags = ListenerFlags::default();
        if self.second_chance {
            flags = flags.with(ListenerFlags::SECOND_CHANCE);
        }
        if self.sticky_ticks != 0 {
            flags = flags.with(ListenerFlags::STICKY);
        }
        match self.when_empty {
            WhenEmpty::Drop => {}
            WhenEmpty::Reset => flags = flags.with(ListenerFlags::REFUSE_WHEN_EMPTY),
            WhenEmpty::Pass => flags = flags.with(ListenerFlags::PASS_WHEN_EMPTY),
        }
        match self.by_hand {
            Some(true) => flags = flags.with(ListenerFlags::ENABLED_BY_HAND),
            Some(false) => flags = flags.with(ListenerFlags::DISABLED_BY_HAND),
            None => {}
        }
        let snat = self.snat.unwrap_or(SnatRange { first: 0, count: 0, first_port: 0, last_port: 0 });
        Listener {
            table,
            vip: address_bytes(self.listen.address),
            port: Be16::new(self.listen.port),
            last_port: Be16::new(self.listen.last_port),
            protocol: self.listen.protocol.wire().number(),
            family: if self.listen.address.is_ipv4() { 4 } else { 6 },
            scheduler: code(self.scheduler),
            session_timeout: self.session_timeout,
            flags,
            new_flow_limit: self.new_flow_limit,
            next: self.next,
            sticky_ticks: self.sticky_ticks,
            snat_count: snat.count,
            snat_first: snat.first,
            service: self.service_number,
            snat_port: snat.first_port,
            snat_last_port: snat.last_port,
            ..Listener::default()
        }
    }
}

const fn code(scheduler: Scheduler) -> SchedulerCode {
    match scheduler {
        Scheduler::Maglev => SchedulerCode::MAGLEV,
        Scheduler::SourceHash => SchedulerCode::SOURCE_HASH,
        Scheduler::RoundRobin => SchedulerCode::ROUND_ROBIN,
        Scheduler::Random => SchedulerCode::RANDOM,
        Scheduler::LeastConnections => SchedulerCode::LEAST_CONNECTIONS,
    }
}

impl BackendEntry {
    /// What [`Self::vip`] is behind this listener.
    pub fn short_vip(listen: &Listen, forward: Forward, server: &Server) -> Option<Listen> {
        let one_port = listen.port == listen.last_port && server.port != 0;
        let transport = matches!(listen.protocol, Protocol::Tcp | Protocol::Udp);
        let same_family = server.address.is_ipv6() == listen.address.is_ipv6();
        let is_short = matches!(forward, Forward::Nat | Forward::Dsr | Forward::Ipip) && same_family;
        (is_short && one_port && transport).then_some(*listen)
    }

    /// Whether new flows may go to it.
    pub fn takes_new_flows(&self) -> bool {
        self.health == Health::Up
            && self.admin == AdminState::Enabled
            && self.weight > 0
            && !self.suspect
            && !self.standby
    }

    pub fn flags(&self) -> BackendFlags {
        let given = [
            (self.health == Health::Down, BackendFlags::DOWN),
            (self.health == Health::Down && self.reset_when_down, BackendFlags::RESET),
            (self.reverse, BackendFlags::REVERSE),
            (self.takes_new_flows(), BackendFlags::IN_TABLE),
            (self.max_flows.is_some(), BackendFlags::LIMITED),
            (self.server.address.is_ipv6(), BackendFlags::V6),
            (self.vip.is_some() && self.health != Health::Down && !self.reverse, BackendFlags::SHORT),
        ];
        let given = given.into_iter().filter(|(holds, _)| *holds);
        given.fold(BackendFlags::VALID, |flags, (_, flag)| flags.with(flag))
    }

    /// As it stands in the map.
    pub fn record(&self) -> Backend {
        let record = Backend {
            addr: address_bytes(self.server.address),
            port: Be16::new(self.server.port),
            flags: self.flags(),
            health: match self.health {
                Health::Unknown => 0,
                Health::Up => 1,
                Health::Down => 2,
            },
            listener: self.server.listener,
            admin: match (self.admin, self.by_hand.admin) {
                (AdminState::Enabled, false) => 0,
                (AdminState::Draining, _) => 1,
                (AdminState::Disabled, true) => 2,
                (AdminState::Disabled, false) => 3,
                (AdminState::Enabled, true) => 4,
            },
            weight_by_hand: self.by_hand.weight.map_or(0, |weight| weight.saturating_add(1)),
            mode: self.forward.mode(),
            weight: self.weight,
            next: self.next,
            server: self.number,
            outer_port: Be16::new(self.gue_port),
            ..Backend::default()
        };
        match self.vip {
            Some(vip) => {
                record.behind(address_bytes(vip.address), Be16::new(vip.port), vip.protocol.wire().number())
            }
            None => record,
        }
    }

    fn candidate(&self, weight: u16) -> Candidate {
        let mut identity = [0; 18];
        identity[..16].copy_from_slice(&address_bytes(self.server.address));
        identity[16..].copy_from_slice(&self.server.port.to_be_bytes());
        Candidate { identity, weight }
    }
}

impl Protocol {
    /// As the packet code calls it.
    pub const fn wire(self) -> Wire {
        match self {
            Self::Tcp => Wire::Tcp,
            Self::Udp => Wire::Udp,
            Self::Any => Wire::Any,
        }
    }

    /// The way back from [`Self::wire`].
    pub const fn from_wire(wire: Wire) -> Self {
        match wire {
            Wire::Tcp => Self::Tcp,
            Wire::Udp => Self::Udp,
            Wire::Any => Self::Any,
        }
    }
}

/// The 16 bytes of an address in the maps.
pub fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The way back from [`address_bytes`].
pub fn address_from(bytes: [u8; 16]) -> IpAddr {
    IpAddr::from(bytes).to_canonical()
}
