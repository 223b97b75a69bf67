//! The Ethernet segments and their addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    EXT_V4, EXT_V6, FAR_CLIENTS_V4, FAR_CLIENTS_V6, FAR_SERVERS_V4, FAR_SERVERS_V6, INT_V4, INT_V6, SYNC_V4,
    SYNC_V6,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    /// The gateway's and the clients', or the clients' router's.
    Ext,
    /// The gateway's and the servers', or the servers' router's. In a one-armed network there is no other.
    Int,
    /// Clients behind a router.
    FarClients,
    /// Servers behind a router.
    FarServers,
    /// Two gateways' own.
    Sync,
}

impl Segment {
    pub const ALL: [Self; 5] = [Self::Ext, Self::Int, Self::FarClients, Self::FarServers, Self::Sync];

    /// Of the bridge, and of a gateway's interface.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext => "ext",
            Self::Int => "int",
            Self::FarClients => "far-clients",
            Self::FarServers => "far-servers",
            Self::Sync => "sync",
        }
    }

    /// In the MAC addresses of its machines.
    pub fn byte(self) -> u8 {
        match self {
            Self::Ext => 1,
            Self::Int => 2,
            Self::FarClients => 3,
            Self::FarServers => 4,
            Self::Sync => 5,
        }
    }

    /// The addresses of the machine that ends in 1.
    fn first(self) -> (Ipv4Addr, Ipv6Addr) {
        match self {
            Self::Ext => (EXT_V4, EXT_V6),
            Self::Int => (INT_V4, INT_V6),
            Self::FarClients => (FAR_CLIENTS_V4, FAR_CLIENTS_V6),
            Self::FarServers => (FAR_SERVERS_V4, FAR_SERVERS_V6),
            Self::Sync => (SYNC_V4, SYNC_V6),
        }
    }

    pub fn v4(self, host: u8) -> Ipv4Addr {
        let [a, b, c, _] = self.first().0.octets();
        Ipv4Addr::new(a, b, c, host)
    }

    /// The last group is spelled like the last number of the IPv4 address.
    pub fn v6(self, host: u8) -> Ipv6Addr {
        let mut groups = self.first().1.segments();
        groups[7] = u16::from_str_radix(&host.to_string(), 16).unwrap_or(u16::from(host));
        Ipv6Addr::from(groups)
    }

    pub fn address(self, host: u8, v6: bool) -> IpAddr {
        if v6 { self.v6(host).into() } else { self.v4(host).into() }
    }

    /// As `ip route` takes it.
    pub fn subnet(self, v6: bool) -> String {
        if v6 {
            let mut groups = self.first().1.segments();
            groups[7] = 0;
            format!("{}/64", Ipv6Addr::from(groups))
        } else {
            format!("{}/24", self.v4(0))
        }
    }
}
