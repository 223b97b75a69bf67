//! Value of `BACKENDS`: a server as one listener sees it.

use bytemuck::{Pod, Zeroable};

use super::net::Be16;
use crate::packet::checksum::Sum;

/// What the packet path must know of a backend besides its address.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct BackendFlags(pub u8);

impl BackendFlags {
    /// The record is in use.
    pub const VALID: Self = Self(1);
    /// The checks say it is down: flows without a connection (UDP) move on.
    pub const DOWN: Self = Self(2);
    /// With [`Self::DOWN`]: its TCP connections are answered with a RST.
    pub const RESET: Self = Self(4);
    /// A reply does not tell the client and the VIP by itself: each flow has a second entry in the flow table for its
    /// way back. With `snat`; where the server's address and port belong to several listeners; and where a range of
    /// ports is mapped to one port.
    pub const REVERSE: Self = Self(8);
    /// It takes new flows.
    pub const IN_TABLE: Self = Self(16);
    /// The address is IPv6; the VIP need not be with `ipip` and `gue`.
    pub const V6: Self = Self(32);
    /// Flows may take the short way: it is not down, of one port and of its VIP's family, and gets packets by `nat` without
    /// [`Self::REVERSE`], by `dsr` or by `ipip`. Then [`Backend::vip`] and what follows it is there.
    pub const SHORT: Self = Self(64);
    /// It gets no new flow while it has as many as [`super::Live::limit`] says.
    pub const LIMITED: Self = Self(128);

    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// How a packet travels to its backend, as it stands in the map.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Mode(pub u8);

impl Mode {
    /// Destination rewritten, and the source of the reply.
    pub const NAT: Self = Self(0);
    /// As `NAT`, and the source replaced by an address and port of the gateway.
    pub const SNAT: Self = Self(1);
    /// Only the MAC address changes.
    pub const DSR: Self = Self(2);
    /// IP in IP.
    pub const IPIP: Self = Self(3);
    /// IP in UDP (Generic UDP Encapsulation, variant 1).
    pub const GUE: Self = Self(4);

    /// The name that configuration, command line and API use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NAT => "nat",
            Self::SNAT => "snat",
            Self::DSR => "dsr",
            Self::IPIP => "ipip",
            Self::GUE => "gue",
            _ => "unknown",
        }
    }
}

/// A server behind one listener. The same server behind two listeners has two records.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Backend {
    /// IPv4 as mapped address.
    pub addr: [u8; 16],
    /// 0: the packet's own port is kept.
    pub port: Be16,
    pub flags: BackendFlags,
    /// What the daemon last knew, for the next daemon: 0 unknown, 1 up, 2 down. Not read by the program.
    pub health: u8,
    /// The number of the listener it belongs to.
    pub listener: u32,
    /// What is wanted of it: 0 enabled; 1 draining, 2 disabled, 4 enabled by hand; 3 disabled by the file. Not read by
    /// the program.
    pub admin: u8,
    pub mode: Mode,
    /// Share of new flows. Read by the program for least connections only; otherwise the table says it.
    pub weight: u16,
    /// The next backend whose origin is found under [`super::endpoint::ANY_PORT`] at this address and protocol; 0 after
    /// the last.
    pub next: u32,
    /// Number of the server within its service, the same behind each of the service's listeners.
    pub server: u32,
    /// For `gue`: the UDP port that the backend listens on.
    #[cfg(not(feature = "next-layout"))]
    pub outer_port: Be16,
    /// One more than the weight that was set by hand; 0 without one. Not read by the program.
    pub weight_by_hand: u16,
    #[cfg(feature = "next-layout")]
    pub outer_port: Be16,
    /// The listener's VIP, with [`BackendFlags::SHORT`]; IPv4 as mapped address.
    pub vip: [u8; 16],
    /// The listener's port.
    pub vip_port: Be16,
    /// What replacing the VIP by this backend's address adds to a checksum, as it stands in memory.
    pub address_change: u16,
    /// What replacing address and port adds.
    pub transport_change: u16,
    /// The listener's protocol, as in [`super::Protocol`].
    pub protocol: u8,
    pub reserved: u8,
}

impl Backend {
    /// With what the short way needs of the listener. Whether it may be taken is for the flags to say.
    #[must_use]
    pub const fn behind(mut self, vip: [u8; 16], vip_port: Be16, protocol: u8) -> Self {
        let address = Sum::ZERO.sub128(&vip).add128(&self.addr);
        let transport = address.sub_half(vip_port.raw()).add(self.port.raw() as u32);
        self.vip = vip;
        self.vip_port = vip_port;
        self.protocol = protocol;
        self.address_change = u16::from_ne_bytes(address.fold());
        self.transport_change = u16::from_ne_bytes(transport.fold());
        self
    }
}

const _: () = assert!(size_of::<Backend>() == 64);
