//! What the packet path needs of an IP header, whichever version.

use bytemuck::Pod;

use super::checksum::Sum;
use super::ip4::{self, Ipv4};
use super::ip6::{self, Ipv6};
use crate::abi::Side;
use crate::abi::net::{Be16, Family, Protocol, mapped, unmapped};
use crate::env::{Env, Route};
use crate::hash::{self, FlowHash, Key};

/// An IP header by value. Changing an address here does not change a checksum: [`IpHeader::set_source`] and its sibling
/// return what the change adds to the sums that cover the address.
pub trait IpHeader: Pod {
    type Addr: Copy + PartialEq;
    const FAMILY: Family;
    /// Bytes without options.
    const LEN: usize;

    fn source(&self) -> &Self::Addr;
    fn destination(&self) -> &Self::Addr;
    /// Bytes of the IP packet, header included.
    fn packet_len(&self) -> usize;
    /// TTL or hop limit.
    fn hops(&self) -> u8;
    fn decrement_hops(&mut self);
    /// Replaces the source, keeps the header's own checksum right, returns the change for the transport's.
    fn set_source(&mut self, new: &Self::Addr) -> Sum;
    /// Replaces the destination likewise.
    fn set_destination(&mut self, new: &Self::Addr) -> Sum;
    /// Becomes the header of an answer with `payload` bytes to the packet that had this one.
    fn answer(&mut self, protocol: Protocol, payload: u16);
    /// The sum of the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1).
    fn pseudo_sum(&self, protocol: Protocol, payload: u16) -> Sum;

    /// The address in a map's 16 bytes.
    fn from_mapped(addr: &[u8; 16]) -> &Self::Addr;
    fn to_mapped(addr: &Self::Addr) -> [u8; 16];

    fn endpoint<E: Env>(
        env: &E,
        side: Side,
        addr: &Self::Addr,
        port: Be16,
        protocol: Protocol,
    ) -> Option<u32>;
    fn route<E: Env>(&self, env: &E, protocol: Protocol) -> Route;
    fn flow_hash<K: Key>(
        key: &K,
        client: &Self::Addr,
        vip: &Self::Addr,
        client_port: Be16,
        vip_port: Be16,
        protocol: Protocol,
    ) -> FlowHash;
}

impl IpHeader for Ipv4 {
    type Addr = [u8; 4];
    const FAMILY: Family = Family::V4;
    const LEN: usize = ip4::LEN;

    #[inline(always)]
    fn source(&self) -> &[u8; 4] {
        &self.source
    }

    #[inline(always)]
    fn destination(&self) -> &[u8; 4] {
        &self.destination
    }

    #[inline(always)]
    fn packet_len(&self) -> usize {
        self.total_len.get() as usize
    }

    #[inline(always)]
    fn hops(&self) -> u8 {
        self.ttl
    }

    #[inline(always)]
    fn decrement_hops(&mut self) {
        self.decrement_ttl();
    }

    #[inline(always)]
    fn set_source(&mut self, new: &[u8; 4]) -> Sum {
        let change = Sum::ZERO.sub32(self.source).add32(*new);
        self.checksum = super::checksum::updated(self.checksum, change);
        self.source = *new;
        change
    }

    #[inline(always)]
    fn set_destination(&mut self, new: &[u8; 4]) -> Sum {
        let change = Sum::ZERO.sub32(self.destination).add32(*new);
        self.checksum = super::checksum::updated(self.checksum, change);
        self.destination = *new;
        change
    }

    #[inline(always)]
    fn answer(&mut self, protocol: Protocol, payload: u16) {
        *self = Self {
            version_ihl: 0x45,
            tos: 0,
            total_len: Be16::new(ip4::LEN as u16 + payload),
            id: Be16::new(0),
            flags_fragment: Be16::new(0x4000),
            ttl: 64,
            protocol: protocol.number(),
            checksum: [0; 2],
            source: self.destination,
            destination: self.source,
        };
        self.checksum = Sum::ZERO
            .add16([self.version_ihl, self.tos])
            .add16(self.total_len.0)
            .add16(self.flags_fragment.0)
            .add16([self.ttl, self.protocol])
            .add32(self.source)
            .add32(self.destination)
            .checksum();
    }

    #[inline(always)]
    fn pseudo_sum(&self, protocol: Protocol, payload: u16) -> Sum {
        Sum::ZERO
            .add32(self.source)
            .add32(self.destination)
            .add16([0, protocol.number()])
            .add16(payload.to_be_bytes())
    }

    #[inline(always)]
    fn from_mapped(addr: &[u8; 16]) -> &[u8; 4] {
        unmapped(addr)
    }

    #[inline(always)]
    fn to_mapped(addr: &[u8; 4]) -> [u8; 16] {
        mapped(*addr)
    }

    #[inline(always)]
    fn endpoint<E: Env>(env: &E, side: Side, addr: &[u8; 4], port: Be16, protocol: Protocol) -> Option<u32> {
        env.endpoint4(side, addr, port, protocol)
    }

    #[inline(always)]
    fn route<E: Env>(&self, env: &E, protocol: Protocol) -> Route {
        env.route4(self, protocol)
    }

    #[inline(always)]
    fn flow_hash<K: Key>(
        key: &K,
        client: &[u8; 4],
        vip: &[u8; 4],
        client_port: Be16,
        vip_port: Be16,
        protocol: Protocol,
    ) -> FlowHash {
        hash::flow4(key, client, vip, hash::ports(client_port.get(), vip_port.get()), protocol.number())
    }
}

impl IpHeader for Ipv6 {
    type Addr = [u8; 16];
    const FAMILY: Family = Family::V6;
    const LEN: usize = ip6::LEN;

    #[inline(always)]
    fn source(&self) -> &[u8; 16] {
        &self.source
    }

    #[inline(always)]
    fn destination(&self) -> &[u8; 16] {
        &self.destination
    }

    #[inline(always)]
    fn packet_len(&self) -> usize {
        ip6::LEN + self.payload_len.get() as usize
    }

    #[inline(always)]
    fn hops(&self) -> u8 {
        self.hop_limit
    }

    #[inline(always)]
    fn decrement_hops(&mut self) {
        self.hop_limit -= 1;
    }

    #[inline(always)]
    fn set_source(&mut self, new: &[u8; 16]) -> Sum {
        let change = replaced(&self.source, new);
        self.source = *new;
        change
    }

    #[inline(always)]
    fn set_destination(&mut self, new: &[u8; 16]) -> Sum {
        let change = replaced(&self.destination, new);
        self.destination = *new;
        change
    }

    #[inline(always)]
    fn answer(&mut self, protocol: Protocol, payload: u16) {
        *self = Self {
            first_word: [0x60, 0, 0, 0],
            payload_len: Be16::new(payload),
            next_header: protocol.number(),
            hop_limit: 64,
            source: self.destination,
            destination: self.source,
        };
    }

    #[inline(always)]
    fn pseudo_sum(&self, protocol: Protocol, payload: u16) -> Sum {
        Sum::ZERO
            .add128(&self.source)
            .add128(&self.destination)
            .add16([0, protocol.number()])
            .add16(payload.to_be_bytes())
    }

    #[inline(always)]
    fn from_mapped(addr: &[u8; 16]) -> &[u8; 16] {
        addr
    }

    #[inline(always)]
    fn to_mapped(addr: &[u8; 16]) -> [u8; 16] {
        *addr
    }

    #[inline(always)]
    fn endpoint<E: Env>(env: &E, side: Side, addr: &[u8; 16], port: Be16, protocol: Protocol) -> Option<u32> {
        env.endpoint6(side, addr, port, protocol)
    }

    #[inline(always)]
    fn route<E: Env>(&self, env: &E, protocol: Protocol) -> Route {
        env.route6(self, protocol)
    }

    #[inline(always)]
    fn flow_hash<K: Key>(
        key: &K,
        client: &[u8; 16],
        vip: &[u8; 16],
        client_port: Be16,
        vip_port: Be16,
        protocol: Protocol,
    ) -> FlowHash {
        hash::flow6(key, client, vip, hash::ports(client_port.get(), vip_port.get()), protocol.number())
    }
}

/// What one IPv6 address in the place of another adds to a sum. Not inlined: its many words would take the caller's
/// stack.
#[inline(never)]
fn replaced(old: &[u8; 16], new: &[u8; 16]) -> Sum {
    Sum::ZERO.sub128(old).add128(new)
}
