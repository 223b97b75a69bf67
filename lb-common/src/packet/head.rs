//! IP headers as the packet path has them: a few words in registers, as they stand in memory.
//!
//! A header that is copied as a structure ends up on the program's stack, byte by byte. These are read by whole words,
//! and only the words that change are written back.

use bytemuck::{Pod, Zeroable};

use super::Packet;
use super::checksum::{Sum, updated_raw};
use crate::abi::Side;
use crate::abi::net::{Be16, Family, mapped};
use crate::hash::{self, EndpointHash, FlowHash, Key};

/// An address in registers.
pub trait Address: Copy + PartialEq {
    /// From a map's 16 bytes.
    fn from_mapped(bytes: &[u8; 16]) -> Self;
    fn to_mapped(self) -> [u8; 16];
    /// What it adds to a sum.
    fn sum(self) -> Sum;
    /// What it takes from a sum.
    fn negative_sum(self) -> Sum;
    /// A number of 32 bits that differs between addresses that are in use at once, for an index.
    fn spread(self) -> u32;
}

/// An IPv4 address as it stands in memory.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Addr4(pub u32);

/// An IPv6 address as two words as they stand in memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Addr6(pub u64, pub u64);

/// A number that spreads what differs in few bits over the upper ones (Knuth's multiplicative hashing).
const GOLDEN: u32 = 0x9e37_79b1;

impl Address for Addr4 {
    #[inline(always)]
    fn from_mapped(bytes: &[u8; 16]) -> Self {
        Self(u32::from_ne_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]))
    }

    #[inline(always)]
    fn to_mapped(self) -> [u8; 16] {
        mapped(self.0.to_ne_bytes())
    }

    #[inline(always)]
    fn sum(self) -> Sum {
        Sum::ZERO.add(self.0)
    }

    #[inline(always)]
    fn negative_sum(self) -> Sum {
        Sum::ZERO.sub(self.0)
    }

    #[inline(always)]
    fn spread(self) -> u32 {
        u32::from_be(self.0).wrapping_mul(GOLDEN)
    }
}

#[inline(always)]
const fn halves(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

impl Address for Addr6 {
    #[inline(always)]
    fn from_mapped(b: &[u8; 16]) -> Self {
        Self(
            u64::from_ne_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]),
            u64::from_ne_bytes([b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]),
        )
    }

    #[inline(always)]
    fn to_mapped(self) -> [u8; 16] {
        let (a, b) = (self.0.to_ne_bytes(), self.1.to_ne_bytes());
        [a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]
    }

    #[inline(always)]
    fn sum(self) -> Sum {
        let ((a, b), (c, d)) = (halves(self.0), halves(self.1));
        Sum::ZERO.add(a).add(b).add(c).add(d)
    }

    #[inline(always)]
    fn negative_sum(self) -> Sum {
        let ((a, b), (c, d)) = (halves(self.0), halves(self.1));
        Sum::ZERO.sub(a).sub(b).sub(c).sub(d)
    }

    #[inline(always)]
    fn spread(self) -> u32 {
        let ((a, b), (c, d)) = (halves(u64::from_be(self.0)), halves(u64::from_be(self.1)));
        (a ^ b.rotate_left(8) ^ c.rotate_left(16) ^ d).wrapping_mul(GOLDEN)
    }
}

/// What the packet path needs of an IP header, whichever version. By value, as it came.
pub trait Head: Copy {
    type Addr: Address;
    const FAMILY: Family;
    /// Bytes without options or extension headers.
    const LEN: usize;
    const ETHER_TYPE: Be16;
    /// The protocol number of its control messages.
    const ICMP: u8;

    fn read<P: Packet>(packet: &P, at: usize) -> Option<Self>;
    fn source(&self) -> Self::Addr;
    fn destination(&self) -> Self::Addr;
    /// Bytes of the IP packet, header included.
    fn packet_len(&self) -> u32;
    /// TTL or hop limit.
    fn hops(&self) -> u8;
    /// Type of service or traffic class.
    fn class(&self) -> u8;
    /// Flow label and class of an IPv6 packet, in network byte order.
    fn flow_info(&self) -> [u8; 4];
    /// IANA's number of what follows; of an IPv6 header, of the header right after it.
    fn protocol(&self) -> u8;
    /// Bytes of the header with options; 0 when it is none of this version.
    fn checked_len(&self) -> usize;
    /// Whether it has no transport header because it is a later fragment.
    fn is_later(&self) -> bool;
    /// Whether routers may cut it into fragments.
    fn may_fragment(&self) -> bool;

    /// Writes the header at `at` with other addresses and so many hops less, and the header's own checksum to match.
    fn rewrite<P: Packet>(
        &self,
        packet: &mut P,
        at: usize,
        source: Self::Addr,
        destination: Self::Addr,
        hops: u8,
    ) -> Option<()>;

    /// Writes the header of a packet of the gateway's own, with `payload` bytes after it. Control messages have the
    /// class of internetwork control (RFC 1812 section 4.3.2.5).
    fn write_new<P: Packet>(
        packet: &mut P,
        at: usize,
        source: Self::Addr,
        destination: Self::Addr,
        protocol: u8,
        payload: u16,
    ) -> Option<()>;

    fn endpoint_hash<K: Key>(key: &K, side: Side, addr: Self::Addr, port: Be16, protocol: u8)
    -> EndpointHash;
    fn flow_hash<K: Key>(
        key: &K,
        client: Self::Addr,
        vip: Self::Addr,
        client_port: Be16,
        vip_port: Be16,
        protocol: u8,
    ) -> FlowHash;
}

/// An IPv4 header without options (RFC 791 section 3.1).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Head4 {
    /// Version, header length, type of service, total length.
    first: u32,
    /// Identification, flags, fragment offset.
    second: u32,
    /// TTL, protocol, checksum.
    third: u32,
    source: Addr4,
    destination: Addr4,
}

impl Head4 {
    #[inline(always)]
    pub const fn version_ihl(&self) -> u8 {
        self.first.to_ne_bytes()[0]
    }

    #[inline(always)]
    pub const fn total_len(&self) -> u32 {
        let [_, _, a, b] = self.first.to_ne_bytes();
        u16::from_be_bytes([a, b]) as u32
    }

    /// Flags and fragment offset.
    #[inline(always)]
    pub const fn flags_fragment(&self) -> u16 {
        let [_, _, a, b] = self.second.to_ne_bytes();
        u16::from_be_bytes([a, b])
    }

    /// Identification, as on the wire.
    #[inline(always)]
    pub const fn id(&self) -> [u8; 2] {
        let [a, b, _, _] = self.second.to_ne_bytes();
        [a, b]
    }

    /// The checksum field, as it stands in memory.
    #[inline(always)]
    pub const fn checksum(&self) -> u16 {
        let [_, _, a, b] = self.third.to_ne_bytes();
        u16::from_ne_bytes([a, b])
    }

    /// Bytes of the header with options.
    #[inline(always)]
    pub const fn header_len(&self) -> usize {
        (self.version_ihl() & 0xf) as usize * 4
    }
}

/// Class of internetwork control.
const CONTROL: u8 = 0xc0;
/// TTL and hop limit of packets of the gateway's own.
const HOPS: u8 = 64;

/// Writes a new IPv4 header, which routers may not cut.
#[inline(always)]
pub fn write4<P: Packet>(
    packet: &mut P,
    at: usize,
    source: Addr4,
    destination: Addr4,
    protocol: u8,
    payload: u16,
    class: u8,
) -> Option<()> {
    let [a, b] = (Head4::LEN as u16).wrapping_add(payload).to_be_bytes();
    let first = u32::from_ne_bytes([0x45, class, a, b]);
    let [c, d] = DONT_FRAGMENT.to_be_bytes();
    let second = u32::from_ne_bytes([0, 0, c, d]);
    let sum = source
        .sum()
        .plus(destination.sum())
        .add(first)
        .add(second)
        .add(u32::from(u16::from_ne_bytes([HOPS, protocol])));
    let [e, f] = sum.checksum();
    let third = u32::from_ne_bytes([HOPS, protocol, e, f]);
    packet.write(at, &[first, second, third, source.0, destination.0])
}

/// Writes a new IPv6 header. `label` has 20 bits.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the fields of a header")]
pub fn write6<P: Packet>(
    packet: &mut P,
    at: usize,
    source: Addr6,
    destination: Addr6,
    protocol: u8,
    payload: u16,
    class: u8,
    label: u32,
) -> Option<()> {
    let [a, b, c, d] = (6 << 28 | u32::from(class) << 20 | label & 0xf_ffff).to_be_bytes();
    let [e, f] = payload.to_be_bytes();
    let first = u64::from_ne_bytes([a, b, c, d, e, f, protocol, HOPS]);
    packet.write(at, &[first, source.0, source.1, destination.0, destination.1])
}

/// More fragments follow, or this is not the first.
pub const FRAGMENT_MASK: u16 = 0x3fff;
/// Offset of a fragment, in units of eight bytes.
pub const OFFSET_MASK: u16 = 0x1fff;
const DONT_FRAGMENT: u16 = 0x4000;

impl Head for Head4 {
    type Addr = Addr4;
    const FAMILY: Family = Family::V4;
    const LEN: usize = 20;
    const ETHER_TYPE: Be16 = Be16::new(0x0800);
    const ICMP: u8 = 1;

    #[inline(always)]
    fn read<P: Packet>(packet: &P, at: usize) -> Option<Self> {
        packet.read(at)
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
    fn packet_len(&self) -> u32 {
        self.total_len()
    }

    #[inline(always)]
    fn hops(&self) -> u8 {
        self.third.to_ne_bytes()[0]
    }

    #[inline(always)]
    fn class(&self) -> u8 {
        self.first.to_ne_bytes()[1]
    }

    #[inline(always)]
    fn flow_info(&self) -> [u8; 4] {
        [0; 4]
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.third.to_ne_bytes()[1]
    }

    #[inline(always)]
    fn checked_len(&self) -> usize {
        let len = self.header_len();
        if self.version_ihl() >> 4 == 4 && len >= Self::LEN { len } else { 0 }
    }

    #[inline(always)]
    fn is_later(&self) -> bool {
        self.flags_fragment() & OFFSET_MASK != 0
    }

    #[inline(always)]
    fn may_fragment(&self) -> bool {
        self.flags_fragment() & DONT_FRAGMENT == 0
    }

    #[inline(always)]
    fn rewrite<P: Packet>(
        &self,
        packet: &mut P,
        at: usize,
        source: Addr4,
        destination: Addr4,
        hops: u8,
    ) -> Option<()> {
        let [ttl, protocol, _, _] = self.third.to_ne_bytes();
        let left = ttl.wrapping_sub(hops);
        let change = self
            .source
            .negative_sum()
            .plus(self.destination.negative_sum())
            .plus(source.sum())
            .plus(destination.sum())
            .sub_half(u16::from_ne_bytes([ttl, protocol]))
            .add(u32::from(u16::from_ne_bytes([left, protocol])));
        let [a, b] = updated_raw(self.checksum(), change).to_ne_bytes();
        packet.write(at + 8, &[u32::from_ne_bytes([left, protocol, a, b]), source.0, destination.0])
    }

    #[inline(always)]
    fn write_new<P: Packet>(
        packet: &mut P,
        at: usize,
        source: Addr4,
        destination: Addr4,
        protocol: u8,
        payload: u16,
    ) -> Option<()> {
        let class = if protocol == Self::ICMP { CONTROL } else { 0 };
        write4(packet, at, source, destination, protocol, payload, class)
    }

    #[inline(always)]
    fn endpoint_hash<K: Key>(key: &K, side: Side, addr: Addr4, port: Be16, protocol: u8) -> EndpointHash {
        hash::endpoint4_word(key, side, u32::from_be(addr.0), port, protocol)
    }

    #[inline(always)]
    fn flow_hash<K: Key>(
        key: &K,
        client: Addr4,
        vip: Addr4,
        client_port: Be16,
        vip_port: Be16,
        protocol: u8,
    ) -> FlowHash {
        let ports = hash::ports(client_port.get(), vip_port.get());
        hash::flow4_words(key, u32::from_be(client.0), u32::from_be(vip.0), ports, protocol)
    }
}

/// An IPv6 header (RFC 8200 section 3).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Head6 {
    /// Version, traffic class, flow label, payload length, next header, hop limit.
    first: u64,
    source: Addr6,
    destination: Addr6,
}

impl Head6 {
    #[inline(always)]
    pub const fn version(&self) -> u8 {
        self.first.to_ne_bytes()[0] >> 4
    }

    #[inline(always)]
    pub const fn payload_len(&self) -> u32 {
        let [_, _, _, _, a, b, _, _] = self.first.to_ne_bytes();
        u16::from_be_bytes([a, b]) as u32
    }

    #[inline(always)]
    pub const fn next_header(&self) -> u8 {
        self.first.to_ne_bytes()[6]
    }
}

impl Head for Head6 {
    type Addr = Addr6;
    const FAMILY: Family = Family::V6;
    const LEN: usize = 40;
    const ETHER_TYPE: Be16 = Be16::new(0x86dd);
    const ICMP: u8 = 58;

    #[inline(always)]
    fn read<P: Packet>(packet: &P, at: usize) -> Option<Self> {
        packet.read(at)
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
    fn packet_len(&self) -> u32 {
        Self::LEN as u32 + self.payload_len()
    }

    #[inline(always)]
    fn hops(&self) -> u8 {
        self.first.to_ne_bytes()[7]
    }

    #[inline(always)]
    fn class(&self) -> u8 {
        let [a, b, ..] = self.first.to_ne_bytes();
        a << 4 | b >> 4
    }

    #[inline(always)]
    fn flow_info(&self) -> [u8; 4] {
        let [a, b, c, d, ..] = self.first.to_ne_bytes();
        [a & 0x0f, b, c, d]
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.next_header()
    }

    #[inline(always)]
    fn checked_len(&self) -> usize {
        if self.version() == 6 { Self::LEN } else { 0 }
    }

    #[inline(always)]
    fn is_later(&self) -> bool {
        false
    }

    #[inline(always)]
    fn may_fragment(&self) -> bool {
        false
    }

    #[inline(always)]
    fn rewrite<P: Packet>(
        &self,
        packet: &mut P,
        at: usize,
        source: Addr6,
        destination: Addr6,
        hops: u8,
    ) -> Option<()> {
        let [a, b, c, d, e, f, g, h] = self.first.to_ne_bytes();
        let first = u64::from_ne_bytes([a, b, c, d, e, f, g, h.wrapping_sub(hops)]);
        packet.write(at, &[first, source.0, source.1, destination.0, destination.1])
    }

    #[inline(always)]
    fn write_new<P: Packet>(
        packet: &mut P,
        at: usize,
        source: Addr6,
        destination: Addr6,
        protocol: u8,
        payload: u16,
    ) -> Option<()> {
        let class = if protocol == Self::ICMP { CONTROL } else { 0 };
        write6(packet, at, source, destination, protocol, payload, class, 0)
    }

    #[inline(always)]
    fn endpoint_hash<K: Key>(key: &K, side: Side, addr: Addr6, port: Be16, protocol: u8) -> EndpointHash {
        hash::endpoint6_words(key, side, [u64::from_be(addr.0), u64::from_be(addr.1)], port, protocol)
    }

    #[inline(always)]
    fn flow_hash<K: Key>(
        key: &K,
        client: Addr6,
        vip: Addr6,
        client_port: Be16,
        vip_port: Be16,
        protocol: u8,
    ) -> FlowHash {
        let words = |addr: Addr6| [u64::from_be(addr.0), u64::from_be(addr.1)];
        let ports = hash::ports(client_port.get(), vip_port.get());
        hash::flow6_words(key, words(client), words(vip), ports, protocol)
    }
}
