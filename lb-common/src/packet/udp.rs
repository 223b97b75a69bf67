//! UDP (RFC 768).

use bytemuck::{Pod, Zeroable};

use crate::abi::net::Be16;

pub const LEN: usize = size_of::<Udp>();

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Udp {
    pub source: Be16,
    pub destination: Be16,
    pub len: Be16,
    /// Zero over IPv4: none was computed.
    pub checksum: [u8; 2],
}
