//! Which checksums of a frame are right: of the outer and the inner packet of a tunnel, and of one that is quoted by an
//! ICMP error. Nothing here is shared with the product.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::frame::{ones_sum, pseudo_header};

/// The port that GUE goes to in every world.
pub const GUE_PORT: u16 = 6080;

/// A checksum and the sum of all that it covers, itself included: ffff when it is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    /// The headers that lead to it.
    pub place: String,
    pub sum: u16,
}

/// Every checksum in a frame whose bytes are all there, from the outside in. What is fragmented, cut off in a quote, or
/// sent without a checksum has none.
pub fn sums(frame: &[u8]) -> Vec<Sum> {
    let mut sums = Vec::new();
    let mut at = 12;
    while let Some(0x8100 | 0x88a8) = be16(frame, at) {
        at += 4;
    }
    if let Some(0x0800 | 0x86dd) = be16(frame, at) {
        ip(&frame[at + 2..], "", &mut sums);
    }
    sums
}

/// The places of those that are wrong.
pub fn wrong(frame: &[u8]) -> Vec<String> {
    sums(frame).into_iter().filter(|s| s.sum != 0xffff).map(|s| s.place).collect()
}

/// Whether an ICMP message of this kind quotes a packet (RFC 792, RFC 4443).
pub const fn quotes(protocol: u8, kind: u8) -> bool {
    match protocol {
        1 => matches!(kind, 3 | 4 | 5 | 11 | 12),
        _ => matches!(kind, 1..=4),
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn ip(packet: &[u8], outside: &str, sums: &mut Vec<Sum>) -> Option<()> {
    match packet.first()? >> 4 {
        4 => ip4(packet, &format!("{outside}ip4"), sums),
        6 => ip6(packet, &format!("{outside}ip6"), sums),
        _ => None,
    }
}

fn ip4(packet: &[u8], place: &str, sums: &mut Vec<Sum>) -> Option<()> {
    let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
    let header_len = usize::from(packet.first()? & 0xf) * 4;
    let header = packet.get(..header_len).filter(|h| h.len() >= 20)?;
    sums.push(Sum { place: place.to_owned(), sum: ones_sum(header) });
    let total = usize::from(be16(packet, 2)?);
    let fragment = be16(packet, 6)? & 0x3fff != 0;
    if fragment || total < header_len {
        return None;
    }
    let segment = packet.get(header_len..total.min(packet.len()))?;
    let ends = (IpAddr::from(address(12)?), IpAddr::from(address(16)?));
    transport(ends, packet[9], segment, total <= packet.len(), place, sums)
}

fn ip6(packet: &[u8], place: &str, sums: &mut Vec<Sum>) -> Option<()> {
    let address = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
    let ends = (IpAddr::from(address(8)?), IpAddr::from(address(24)?));
    let total = 40 + usize::from(be16(packet, 4)?);
    let mut segment = packet.get(40..total.min(packet.len()))?;
    let mut next = packet[6];
    while let 0 | 43 | 44 | 60 = next {
        let header = segment.first_chunk::<8>()?;
        if next == 44 && (header[2] != 0 || header[3] & 0xf9 != 0) {
            return None;
        }
        let len = if next == 44 { 8 } else { 8 + usize::from(header[1]) * 8 };
        next = header[0];
        segment = segment.get(len..)?;
    }
    transport(ends, next, segment, total <= packet.len(), place, sums)
}

/// `whole`: nothing of it was cut off.
fn transport(
    ends: (IpAddr, IpAddr),
    protocol: u8,
    segment: &[u8],
    whole: bool,
    outside: &str,
    sums: &mut Vec<Sum>,
) -> Option<()> {
    let with_pseudo =
        |bytes: &[u8]| ones_sum(&[&pseudo_header(ends.0, ends.1, protocol, bytes.len()), bytes].concat());
    let mut add = |name: &str, sum: u16| {
        if whole {
            sums.push(Sum { place: format!("{outside}/{name}"), sum });
        }
    };
    match protocol {
        6 if segment.len() >= 20 => add("tcp", with_pseudo(segment)),
        17 => {
            let len = usize::from(be16(segment, 4)?);
            let datagram = segment.get(8..len).and(segment.get(..len))?;
            if be16(segment, 6)? != 0 {
                add("udp", with_pseudo(datagram));
            }
            if be16(segment, 2)? == GUE_PORT {
                ip(&datagram[8..], &format!("{outside}/udp/"), sums);
            }
        }
        1 | 58 => {
            let kind = *segment.first()?;
            let quote = segment.get(8..)?;
            let (name, sum) =
                if protocol == 1 { ("icmp", ones_sum(segment)) } else { ("icmp6", with_pseudo(segment)) };
            add(name, sum);
            if quotes(protocol, kind) {
                ip(quote, &format!("{outside}/{name}/"), sums);
            }
        }
        4 | 41 => {
            ip(segment, &format!("{outside}/"), sums);
        }
        _ => {}
    }
    Some(())
}
