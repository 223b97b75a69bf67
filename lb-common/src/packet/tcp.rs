//! TCP (RFC 9293 section 3.1).

use bytemuck::{Pod, Zeroable};

use crate::abi::net::Be16;

pub const LEN: usize = size_of::<Tcp>();

/// The header without options.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Tcp {
    pub source: Be16,
    pub destination: Be16,
    pub sequence: [u8; 4],
    pub acknowledgment: [u8; 4],
    /// Upper half: header length in 32-bit words.
    pub data_offset: u8,
    pub flags: TcpFlags,
    pub window: Be16,
    pub checksum: [u8; 2],
    pub urgent: Be16,
}

#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    pub const FIN: Self = Self(0x01);
    pub const SYN: Self = Self(0x02);
    pub const RST: Self = Self(0x04);
    pub const ACK: Self = Self(0x10);

    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The first segment of a connection.
    pub const fn opens(self) -> bool {
        self.has(Self::SYN) && !self.has(Self::ACK)
    }

    /// The answer to it.
    pub const fn answers(self) -> bool {
        self.has(Self(Self::SYN.0 | Self::ACK.0))
    }
}

impl Tcp {
    /// Bytes of the header with options: 0 to 60.
    pub const fn header_len(&self) -> usize {
        ((self.data_offset >> 4) as usize) * 4
    }
}
