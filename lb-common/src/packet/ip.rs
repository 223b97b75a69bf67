//! Whole IP headers, for packets of the daemon's own.

use super::checksum::Sum;
use super::ip4::{self, Ipv4};
use super::ip6::Ipv6;
use crate::abi::net::{Be16, Protocol};

/// An IP header by value.
pub trait IpHeader {
    /// Becomes the header of an answer with `payload` bytes to the packet that had this one.
    fn answer(&mut self, protocol: Protocol, payload: u16);
    /// The sum of the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1).
    fn pseudo_sum(&self, protocol: Protocol, payload: u16) -> Sum;
}

impl IpHeader for Ipv4 {
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
            .add(u32::from(self.total_len.raw()))
            .add(u32::from(self.flags_fragment.raw()))
            .add16([self.ttl, self.protocol])
            .add32(self.source)
            .add32(self.destination)
            .checksum();
    }

    fn pseudo_sum(&self, protocol: Protocol, payload: u16) -> Sum {
        Sum::ZERO
            .add32(self.source)
            .add32(self.destination)
            .add16([0, protocol.number()])
            .add16(payload.to_be_bytes())
    }
}

impl IpHeader for Ipv6 {
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

    fn pseudo_sum(&self, protocol: Protocol, payload: u16) -> Sum {
        Sum::ZERO
            .add128(&self.source)
            .add128(&self.destination)
            .add16([0, protocol.number()])
            .add16(payload.to_be_bytes())
    }
}
