//! IPv4 (RFC 791).

use bytemuck::{Pod, Zeroable};

use super::checksum::{Sum, updated};
use crate::abi::net::Be16;

pub const LEN: usize = size_of::<Ipv4>();

/// The header without options.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Ipv4 {
    pub version_ihl: u8,
    pub tos: u8,
    pub total_len: Be16,
    pub id: Be16,
    pub flags_fragment: Be16,
    pub ttl: u8,
    pub protocol: u8,
    pub checksum: [u8; 2],
    pub source: [u8; 4],
    pub destination: [u8; 4],
}

impl Ipv4 {
    pub const fn version(&self) -> u8 {
        self.version_ihl >> 4
    }

    /// Bytes of the header with options: 0 to 60.
    pub const fn header_len(&self) -> usize {
        ((self.version_ihl & 0xf) as usize) * 4
    }

    /// Whether this is a part of a datagram: more fragments follow, or it does not start at offset 0.
    pub const fn is_fragment(&self) -> bool {
        self.flags_fragment.get() & 0x3fff != 0
    }

    /// One hop less, with the checksum to match.
    pub const fn decrement_ttl(&mut self) {
        let before = [self.ttl, self.protocol];
        self.ttl -= 1;
        self.checksum = updated(self.checksum, Sum::ZERO.sub16(before).add16([self.ttl, self.protocol]));
    }
}
