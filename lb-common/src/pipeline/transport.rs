//! What TCP and UDP have in common, and the little in which they differ.

use bytemuck::{Pod, Zeroable};

use crate::abi::Protocol;
use crate::abi::net::Be16;
use crate::packet::Packet;
use crate::packet::checksum::{Sum, updated};
use crate::packet::tcp::{self, Tcp, TcpFlags};
use crate::packet::udp::{self, Udp};
use crate::verdict::{Reason, Verdict};

/// The first four bytes of either header.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct Ports {
    pub source: Be16,
    pub destination: Be16,
}

impl Ports {
    #[inline(always)]
    pub fn read<P: Packet>(packet: &P, l4: usize) -> Option<Self> {
        packet.read(l4)
    }

    /// What replacing `self` by `new` adds to a checksum.
    #[inline(always)]
    pub const fn change(self, new: Self) -> Sum {
        Sum::ZERO.sub16(self.source.0).sub16(self.destination.0).add16(new.source.0).add16(new.destination.0)
    }
}

/// What the packet path needs of a transport header.
#[derive(Clone, Copy)]
pub(crate) struct Transport {
    /// `None` for UDP.
    pub flags: Option<TcpFlags>,
    pub checksum: [u8; 2],
}

impl Transport {
    /// Reads and checks the header of a packet that is for a service.
    #[inline(always)]
    pub fn read<P: Packet>(
        packet: &P,
        protocol: Protocol,
        l4: usize,
        l4_len: usize,
        zero_checksum_allowed: bool,
    ) -> Result<Self, Verdict> {
        match protocol {
            Protocol::Tcp => {
                let header: Tcp = packet.read(l4).ok_or(Reason::MalformedTcp.drop())?;
                if header.header_len() < tcp::LEN || header.header_len() > l4_len {
                    return Err(Reason::MalformedTcp.drop());
                }
                Ok(Self { flags: Some(header.flags), checksum: header.checksum })
            }
            Protocol::Udp => {
                let header: Udp = packet.read(l4).ok_or(Reason::MalformedUdp.drop())?;
                let len = header.len.get() as usize;
                if len < udp::LEN || len > l4_len {
                    return Err(Reason::MalformedUdp.drop());
                }
                if header.checksum == [0; 2] && !zero_checksum_allowed {
                    return Err(Reason::UdpWithoutChecksum.drop());
                }
                Ok(Self { flags: None, checksum: header.checksum })
            }
        }
    }

    /// The checksum field after `change`. `None`: leave it alone, as UDP over IPv4 without a checksum stays without one.
    #[inline(always)]
    pub fn updated(&self, change: Sum) -> Option<[u8; 2]> {
        let udp = self.flags.is_none();
        if udp && self.checksum == [0; 2] {
            return None;
        }
        match updated(self.checksum, change) {
            // Zero means "none" in UDP; the other zero of one's complement says the same sum (RFC 768).
            [0, 0] if udp => Some([0xff; 2]),
            new => Some(new),
        }
    }
}

/// Offset of the checksum in the transport header.
pub(crate) const fn checksum_offset(protocol: Protocol) -> usize {
    match protocol {
        Protocol::Tcp => 16,
        Protocol::Udp => 6,
    }
}
