//! The content of the maps as plain data.

use std::collections::BTreeMap;
use std::net::IpAddr;

use lb_common::abi::net::{Be16, Protocol, mapped};
use lb_common::abi::{Backend, BackendFlags, Listener, ListenerFlags, SchedulerCode, TableRef};
use lb_common::maglev::{self, Candidate};

use crate::api::types::AdminState;
use crate::config::{Listen, Scheduler};
use crate::health::Health;

/// Number of a listener in `LISTENERS`, of a backend in `BACKENDS`. Never 0.
pub type Id = u32;

/// Everything the daemon has put into the maps. The flows are not part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    pub listeners: BTreeMap<Id, ListenerEntry>,
    pub backends: BTreeMap<Id, BackendEntry>,
}

/// One VIP, port and protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerEntry {
    /// Name of its service.
    pub service: String,
    /// What identifies it: two images mean the same listener by the same `listen`.
    pub listen: Listen,
    /// Seconds.
    pub session_timeout: u32,
    /// Opening connections whose backend does not answer are offered to another one.
    pub second_chance: bool,
    pub scheduler: Scheduler,
    pub table: Table,
}

/// A table of slots, by what it is built from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// What is in the slots.
    pub kind: TableKind,
    /// Slots of a Maglev table, one of [`lb_common::maglev::SIZES`]; of a rotation, the most it may have.
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
}

impl TableKind {
    /// What a scheduler picks from.
    pub const fn of(scheduler: Scheduler) -> Self {
        match scheduler {
            Scheduler::Maglev | Scheduler::SourceHash | Scheduler::Random => Self::Maglev,
            Scheduler::RoundRobin => Self::Rotation,
        }
    }
}

/// A server behind one listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendEntry {
    pub name: String,
    /// With the listener's identity, what identifies it.
    pub server: Server,
    pub weight: u16,
    pub health: Health,
    pub admin: AdminState,
    /// Its established connections are reset while it is down.
    pub reset_when_down: bool,
    /// The packet path found it silent: no new flows for now.
    pub suspect: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Server {
    pub listener: Id,
    pub address: IpAddr,
    pub port: u16,
}

impl Image {
    /// The number of the listener at this VIP.
    pub fn listener_at(&self, listen: &Listen) -> Option<Id> {
        self.listeners.iter().find(|(_, l)| l.listen == *listen).map(|(id, _)| *id)
    }

    /// The backends of a listener.
    pub fn backends_of(&self, listener: Id) -> impl Iterator<Item = (Id, &BackendEntry)> {
        self.backends.iter().filter(move |(_, b)| b.server.listener == listener).map(|(id, b)| (*id, b))
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
        };
        slots.unwrap_or_default().into_iter().map(|index| ids[index as usize]).collect()
    }
}

impl ListenerEntry {
    /// As it stands in the map.
    pub fn record(&self, table: TableRef) -> Listener {
        Listener {
            table,
            vip: address_bytes(self.listen.address),
            port: Be16::new(self.listen.port),
            protocol: self.listen.protocol.wire().number(),
            family: if self.listen.address.is_ipv4() { 4 } else { 6 },
            session_timeout: self.session_timeout,
            flags: if self.second_chance { ListenerFlags::SECOND_CHANCE } else { ListenerFlags::default() },
            scheduler: match self.scheduler {
                Scheduler::Maglev => SchedulerCode::MAGLEV,
                Scheduler::SourceHash => SchedulerCode::SOURCE_HASH,
                Scheduler::RoundRobin => SchedulerCode::ROUND_ROBIN,
                Scheduler::Random => SchedulerCode::RANDOM,
            },
            ..Listener::default()
        }
    }
}

impl BackendEntry {
    /// Whether new flows may go to it.
    pub fn takes_new_flows(&self) -> bool {
        self.health == Health::Up && self.admin == AdminState::Enabled && self.weight > 0 && !self.suspect
    }

    pub fn flags(&self) -> BackendFlags {
        let mut flags = BackendFlags::VALID;
        if self.health == Health::Down {
            flags = flags.with(BackendFlags::DOWN);
            if self.reset_when_down {
                flags = flags.with(BackendFlags::RESET);
            }
        }
        flags
    }

    /// As it stands in the map.
    pub fn record(&self) -> Backend {
        Backend {
            addr: address_bytes(self.server.address),
            port: Be16::new(self.server.port),
            flags: self.flags(),
            health: match self.health {
                Health::Unknown => 0,
                Health::Up => 1,
                Health::Down => 2,
            },
            listener: self.server.listener,
            admin: match self.admin {
                AdminState::Enabled => 0,
                AdminState::Draining => 1,
                AdminState::Disabled => 2,
            },
            weight: self.weight,
            ..Backend::default()
        }
    }

    fn candidate(&self, weight: u16) -> Candidate {
        let mut identity = [0; 18];
        identity[..16].copy_from_slice(&address_bytes(self.server.address));
        identity[16..].copy_from_slice(&self.server.port.to_be_bytes());
        Candidate { identity, weight }
    }
}

impl crate::config::Protocol {
    /// As the packet code calls it.
    pub const fn wire(self) -> Protocol {
        match self {
            Self::Tcp => Protocol::Tcp,
            Self::Udp => Protocol::Udp,
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
