//! What was found on the machine.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use crate::api::carp::CarpStatus;
use crate::api::types::{Counters, Status};
use crate::net::settings::Settings;

pub type Mac = [u8; 6];

/// All of it. What could not be looked at is absent, and says why where that matters.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Every interface of the machine, by name.
    pub interfaces: BTreeMap<String, Interface>,
    /// Settings of the interfaces that the configuration names.
    pub settings: BTreeMap<String, Settings>,
    /// How this machine sends to VIPs and servers.
    pub ways: BTreeMap<IpAddr, Way>,
    /// What is known of next hops, by interface and address.
    pub neighbours: BTreeMap<(u32, IpAddr), Neighbour>,
    /// Who answered when the network was asked for the VIPs (RFC 5227).
    pub answers: Vec<ArpAnswer>,
    /// Frames that came in while it was watched, by interface; only where checksums may be unfinished.
    pub frames: BTreeMap<String, Frames>,
    pub daemon: Daemon,
    pub pins: Pins,
    pub firewall: Firewall,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    pub index: u32,
    pub mac: Mac,
    /// An operator wants it up.
    pub up: bool,
    /// It has a carrier.
    pub running: bool,
    /// Bytes.
    pub mtu: u32,
    /// `veth`, `vlan`, `bridge` and so on; empty for a card.
    pub kind: String,
    /// Index of the interface that it stands on, or of its other end, in this namespace.
    pub lower: Option<u32>,
    /// That other end is in another namespace.
    pub elsewhere: bool,
    /// Of the driver; empty where it does not say.
    pub driver: String,
    /// It joins packets that it receives.
    pub lro: bool,
    /// It leaves checksums of what it sends to the other end.
    pub tx_checksum: bool,
    pub xdp: Option<Xdp>,
    pub addresses: Vec<IpAddr>,
}

/// An XDP program on an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Xdp {
    pub id: u32,
    /// In the kernel's stack and not in the driver.
    pub generic: bool,
    /// As the program's author called it, up to 15 characters; empty where this user may not know.
    pub name: String,
}

/// How this machine sends to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// It is an address of this machine.
    Local,
    Out {
        /// Index of the interface.
        device: u32,
        /// The address itself, or a router.
        next_hop: IpAddr,
        /// Bytes, where the route has one of its own.
        mtu: Option<u32>,
    },
    /// It does not; the kernel's words.
    None(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// With a MAC address, fresh or not.
    Known(Mac),
    /// It was asked for and has not answered.
    Silent,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArpAnswer {
    pub vip: Ipv4Addr,
    pub interface: String,
    pub mac: Mac,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frames {
    pub seen: u64,
    /// Their senders have left the checksum to a card that does not exist.
    pub unfinished: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Daemon {
    /// Why it does not answer.
    pub unreachable: Option<String>,
    pub status: Option<Status>,
    pub counters: Option<Counters>,
    pub carp: Option<CarpStatus>,
}

/// The directory where a program outlives its daemon.
#[derive(Clone, Debug, Default)]
pub struct Pins {
    pub directory: String,
    pub links: Vec<PinnedLink>,
    /// Why it cannot be read.
    pub unreadable: Option<String>,
}

/// A link as it was pinned; where the program is by now is another question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedLink {
    pub interface: String,
    pub index: u32,
}

/// What nftables says, as `nft --json list ruleset` prints it. Only read where CARP needs it.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Firewall {
    #[default]
    NotAsked,
    /// There is no nft(8).
    NoTool,
    Unreadable(String),
    Rules(Vec<serde_json::Value>),
}

impl Facts {
    pub fn by_index(&self, index: u32) -> Option<(&str, &Interface)> {
        let found = self.interfaces.iter().find(|(_, interface)| interface.index == index);
        found.map(|(name, interface)| (name.as_str(), interface))
    }

    /// The name of an interface for a message.
    pub fn name_of(&self, index: u32) -> String {
        self.by_index(index).map_or_else(|| format!("interface {index}"), |(name, _)| name.to_owned())
    }
}
