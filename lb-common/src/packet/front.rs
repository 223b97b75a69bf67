//! The headers of the packets that take the short way, as they stand at the beginning of a frame: Ethernet, IPv4 without
//! options or IPv6 without extension headers, and TCP or UDP.
//!
//! The frame's end is compared once, and all reads and writes have fixed places.

use bytemuck::{Pod, Zeroable};

use super::checksum::{Sum, updated_raw};
use super::eth::{self, Macs};
use super::head::{Addr4, Addr6, Address, FRAGMENT_MASK, Head, Head4, Head6};
use crate::abi::net::Be16;

/// Headers at the beginning of a frame, with their fields in memory.
pub trait Front: Pod {
    type Head: Head<Addr = Self::Addr>;
    type Addr: Address;

    /// Bytes of the IP packet; `None` when it needs more than the short way has: options, extension headers, fragments, or
    /// an answer to what is wrong with it.
    fn plain_len(&self) -> Option<u32>;
    /// IANA's number of the transport protocol.
    fn protocol(&self) -> u8;
    /// TTL or hop limit.
    fn hops(&self) -> u8;
    fn source(&self) -> Self::Addr;
    fn destination(&self) -> Self::Addr;
    fn transport(&mut self) -> &mut Transport;
    fn set_source(&mut self, address: Self::Addr);
    fn set_destination(&mut self, address: Self::Addr);
    /// Writes the Ethernet addresses and takes a hop off. `change` is what has changed otherwise in the sum of the IP
    /// header.
    fn forward(&mut self, macs: &Macs, change: Sum);
}

/// What the two transport headers begin with. The first fields are UDP's where they are not TCP's too.
#[repr(C, packed)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Transport {
    pub source_port: Be16,
    pub destination_port: Be16,
    udp_length: Be16,
    udp_checksum: u16,
    acknowledgment: [u16; 2],
    /// Bytes as they stand in memory.
    offset_and_flags: u16,
    window: u16,
    tcp_checksum: u16,
    urgent: u16,
}

impl Transport {
    /// Bytes of TCP's header, and its flags.
    #[inline(always)]
    pub const fn tcp(&self) -> (u32, u8) {
        let [offset, flags] = self.offset_and_flags.to_ne_bytes();
        ((offset >> 4) as u32 * 4, flags)
    }

    /// Bytes that UDP says it has, and its checksum as it stands in memory.
    #[inline(always)]
    pub const fn udp(&self) -> (u32, u16) {
        (self.udp_length.get() as u32, self.udp_checksum)
    }

    #[inline(always)]
    pub const fn change_tcp(&mut self, change: Sum) {
        self.tcp_checksum = updated_raw(self.tcp_checksum, change);
    }

    /// UDP over IPv4 without a checksum stays without one.
    #[inline(always)]
    pub const fn change_udp(&mut self, change: Sum) {
        if self.udp_checksum != 0 {
            // Zero means "none"; the other zero of one's complement says the same sum (RFC 768).
            self.udp_checksum = match updated_raw(self.udp_checksum, change) {
                0 => 0xffff,
                new => new,
            };
        }
    }
}

/// A hop less, in the word whose first byte counts them.
const ONE_HOP: u16 = u16::from_ne_bytes([1, 0]);

#[repr(C, packed)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Front4 {
    macs: [u32; 3],
    ether_type: Be16,
    version_ihl: u8,
    class: u8,
    total_len: Be16,
    id: Be16,
    flags_fragment: Be16,
    /// TTL and protocol, as they stand in memory.
    hops_protocol: u16,
    checksum: u16,
    source: Addr4,
    destination: Addr4,
    transport: Transport,
}

impl Front for Front4 {
    type Head = Head4;
    type Addr = Addr4;

    #[inline(always)]
    fn plain_len(&self) -> Option<u32> {
        // Version 4, five words.
        const PLAIN: u8 = 0x45;
        let plain = self.version_ihl == PLAIN && self.flags_fragment.get() & FRAGMENT_MASK == 0;
        plain.then_some(u32::from(self.total_len.get()))
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.hops_protocol.to_ne_bytes()[1]
    }

    #[inline(always)]
    fn hops(&self) -> u8 {
        self.hops_protocol.to_ne_bytes()[0]
    }

    #[inline(always)]
    fn source(&self) -> Addr4 {
        self.source
    }

    #[inline(always)]
    fn destination(&self) -> Addr4 {
        self.destination
    }

    #[inline(always)]
    fn transport(&mut self) -> &mut Transport {
        &mut self.transport
    }

    #[inline(always)]
    fn set_source(&mut self, address: Addr4) {
        self.source = address;
    }

    #[inline(always)]
    fn set_destination(&mut self, address: Addr4) {
        self.destination = address;
    }

    #[inline(always)]
    fn forward(&mut self, macs: &Macs, change: Sum) {
        self.macs = bytemuck::must_cast(*macs);
        self.checksum = updated_raw(self.checksum, change.sub_half(ONE_HOP));
        self.hops_protocol = self.hops_protocol.wrapping_sub(ONE_HOP);
    }
}

#[repr(C, packed)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Front6 {
    macs: [u32; 3],
    ether_type: Be16,
    version: u8,
    class_label: [u8; 3],
    payload_len: Be16,
    next_header: u8,
    hops: u8,
    source: Addr6,
    destination: Addr6,
    transport: Transport,
}

impl Front for Front6 {
    type Head = Head6;
    type Addr = Addr6;

    #[inline(always)]
    fn plain_len(&self) -> Option<u32> {
        (self.version >> 4 == 6).then_some(Head6::LEN as u32 + u32::from(self.payload_len.get()))
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.next_header
    }

    #[inline(always)]
    fn hops(&self) -> u8 {
        self.hops
    }

    #[inline(always)]
    fn source(&self) -> Addr6 {
        self.source
    }

    #[inline(always)]
    fn destination(&self) -> Addr6 {
        self.destination
    }

    #[inline(always)]
    fn transport(&mut self) -> &mut Transport {
        &mut self.transport
    }

    #[inline(always)]
    fn set_source(&mut self, address: Addr6) {
        self.source = address;
    }

    #[inline(always)]
    fn set_destination(&mut self, address: Addr6) {
        self.destination = address;
    }

    #[inline(always)]
    fn forward(&mut self, macs: &Macs, _change: Sum) {
        self.macs = bytemuck::must_cast(*macs);
        self.hops = self.hops.wrapping_sub(1);
    }
}

const _: () = assert!(size_of::<Front4>() == eth::LEN + Head4::LEN + size_of::<Transport>());
const _: () = assert!(size_of::<Front6>() == eth::LEN + Head6::LEN + size_of::<Transport>());
const _: () = assert!(align_of::<Front4>() == 1 && align_of::<Front6>() == 1);
