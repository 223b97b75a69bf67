//! Where things are in a frame that the packet path has found sound. Nothing here is shared with the product.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The headers of a frame up to that of the transport.
#[derive(Clone, Copy, Debug)]
pub struct Headers<'f> {
    pub frame: &'f [u8],
    /// Where the IP header begins, after all tags.
    pub ip: usize,
    pub v6: bool,
    pub protocol: u8,
    /// Where the transport header is, or what a later fragment has.
    pub transport: usize,
    /// Not the first fragment of a datagram.
    pub later: bool,
    /// The end of the IP packet.
    pub end: usize,
}

impl<'f> Headers<'f> {
    /// Of a frame whose lengths fit together. `None`: they do not, or it is not IP.
    pub fn of(frame: &'f [u8]) -> Option<Self> {
        let mut at = 12;
        while matches!(be16(frame, at)?, 0x8100 | 0x88a8) {
            at += 4;
        }
        match be16(frame, at)? {
            0x0800 => Self::of_ip(frame, at + 2, false),
            0x86dd => Self::of_ip(frame, at + 2, true),
            _ => None,
        }
    }

    /// Of the IP packet that begins at `ip`.
    pub fn of_ip(frame: &'f [u8], ip: usize, v6: bool) -> Option<Self> {
        if v6 { Self::v6(frame, ip) } else { Self::v4(frame, ip) }
    }

    fn v4(frame: &'f [u8], ip: usize) -> Option<Self> {
        let fragment = be16(frame, ip + 6)?;
        let transport = ip + usize::from(frame.get(ip)? & 0xf) * 4;
        let end = ip + usize::from(be16(frame, ip + 2)?);
        let later = fragment & 0x1fff != 0;
        let protocol = *frame.get(ip + 9)?;
        (transport <= end && end <= frame.len()).then_some(Self {
            frame,
            ip,
            v6: false,
            protocol,
            transport,
            later,
            end,
        })
    }

    fn v6(frame: &'f [u8], ip: usize) -> Option<Self> {
        let end = ip + 40 + usize::from(be16(frame, ip + 4)?);
        let (mut protocol, mut transport) = (*frame.get(ip + 6)?, ip + 40);
        let mut later = false;
        while !later && matches!(protocol, 0 | 43 | 44 | 60) {
            let header: &[u8; 8] = frame.get(transport..)?.first_chunk()?;
            if protocol == 44 {
                later = u16::from_be_bytes([header[2], header[3]]) >> 3 != 0;
            }
            transport += if protocol == 44 { 8 } else { 8 + usize::from(header[1]) * 8 };
            protocol = header[0];
        }
        (transport <= end && end <= frame.len()).then_some(Self {
            frame,
            ip,
            v6: true,
            protocol,
            transport,
            later,
            end,
        })
    }

    /// The IP packet.
    pub fn packet(&self) -> &'f [u8] {
        &self.frame[self.ip..self.end]
    }

    /// Offsets of the source address, the destination address, and how long they are.
    pub const fn places(&self) -> (usize, usize, usize) {
        if self.v6 { (self.ip + 8, self.ip + 24, 16) } else { (self.ip + 12, self.ip + 16, 4) }
    }

    pub fn address(&self, at: usize) -> IpAddr {
        if self.v6 {
            let bytes: [u8; 16] = std::array::from_fn(|i| self.frame[at + i]);
            Ipv6Addr::from(bytes).into()
        } else {
            let bytes: [u8; 4] = std::array::from_fn(|i| self.frame[at + i]);
            Ipv4Addr::from(bytes).into()
        }
    }

    pub fn source(&self) -> IpAddr {
        self.address(self.places().0)
    }

    pub fn destination(&self) -> IpAddr {
        self.address(self.places().1)
    }

    pub const fn hops_at(&self) -> usize {
        if self.v6 { self.ip + 7 } else { self.ip + 8 }
    }

    pub fn hops(&self) -> u8 {
        self.frame[self.hops_at()]
    }

    /// Whether it has ports.
    pub const fn has_ports(&self) -> bool {
        !self.later && matches!(self.protocol, 6 | 17)
    }

    /// The source port at 0, the destination port at 2; 0 where there are none.
    pub fn port(&self, at: usize) -> u16 {
        if self.has_ports() { be16(self.frame, self.transport + at).unwrap_or(0) } else { 0 }
    }

    /// Where the checksum of TCP or UDP is.
    pub const fn checksum_at(&self) -> usize {
        self.transport + if self.protocol == 6 { 16 } else { 6 }
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
