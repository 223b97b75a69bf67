//! IPv6 (RFC 8200).

use bytemuck::{Pod, Zeroable};

use crate::abi::net::Be16;

pub const LEN: usize = size_of::<Ipv6>();

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Ipv6 {
    /// Version, traffic class, flow label.
    pub first_word: [u8; 4],
    pub payload_len: Be16,
    pub next_header: u8,
    pub hop_limit: u8,
    pub source: [u8; 16],
    pub destination: [u8; 16],
}

/// Next headers that are not a transport protocol (IANA protocol numbers).
pub mod next_header {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const DESTINATION: u8 = 60;
}

impl Ipv6 {
    pub const fn version(&self) -> u8 {
        self.first_word[0] >> 4
    }

    /// Traffic class, flow label and version as one word in network byte order.
    pub const fn flow_info(&self) -> [u8; 4] {
        let [a, b, c, d] = self.first_word;
        [a & 0x0f, b, c, d]
    }
}
