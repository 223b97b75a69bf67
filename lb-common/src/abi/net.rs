//! Numbers as they are on the wire.

use bytemuck::{Pod, Zeroable};

/// A 16-bit number in network byte order, as it stands in memory: ports, lengths, EtherTypes.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct Be16(u16);

impl Be16 {
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }

    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// As they are on the wire.
    #[inline(always)]
    pub const fn bytes(self) -> [u8; 2] {
        self.0.to_ne_bytes()
    }

    /// As they stand in memory, for checksums.
    #[inline(always)]
    pub const fn raw(self) -> u16 {
        self.0
    }

    #[inline(always)]
    pub const fn from_raw(raw: u16) -> Self {
        Self(raw)
    }
}

/// Version of the Internet Protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// The digit that stands for it in a map value.
    pub const fn number(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 6,
        }
    }
}

/// A transport protocol that services can have. The number is IANA's.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Tcp = 6,
    Udp = 17,
    /// What is neither. The number is one that IANA keeps free.
    Any = 255,
}

impl Protocol {
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// As it stands in a map.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            255 => Some(Self::Any),
            _ => None,
        }
    }
}

/// An IPv4 address as the 16 bytes of its IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2).
pub const fn mapped(v4: [u8; 4]) -> [u8; 16] {
    let [a, b, c, d] = v4;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// The last four bytes of a 16-byte address: the IPv4 address in a mapped one.
pub const fn unmapped(addr: &[u8; 16]) -> &[u8; 4] {
    match addr.last_chunk() {
        Some(v4) => v4,
        // 16 is more than 4.
        None => &[0; 4],
    }
}
