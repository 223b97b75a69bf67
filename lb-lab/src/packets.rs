//! Packets written byte by byte, for what no program sends: fragments in the wrong order, protocols nobody
//! speaks, tagged frames. Its checksums are its own (RFC 1071): a mistake of the program under test must not
//! be repeated here.

use std::net::{IpAddr, SocketAddr};

/// IP protocol numbers.
pub const UDP: u8 = 17;
/// For experiments (RFC 3692).
pub const EXPERIMENT: u8 = 253;
const FRAGMENT_HEADER: u8 = 44;

/// The Internet checksum of `parts`, each but the last of an even length.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A UDP header with its checksum (RFC 768), and what it carries.
pub fn udp(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX);
    let mut datagram = Vec::with_capacity(8 + payload.len());
    datagram.extend(source.port().to_be_bytes());
    datagram.extend(destination.port().to_be_bytes());
    datagram.extend(length.to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend_from_slice(payload);
    let [high, low] = length.to_be_bytes();
    let addresses = [octets(source.ip()), octets(destination.ip())].concat();
    let sum = match checksum(&[&addresses, &[0, UDP, high, low], &datagram]) {
        0 => 0xffff,
        sum => sum,
    };
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    datagram
}

/// Which part of a packet it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The same for all parts of one packet.
    pub id: u16,
    /// Bytes, a multiple of 8.
    pub offset: u16,
    pub more: bool,
}

/// A packet of `protocol`, whole or a part of one; TTL 64, and for IPv4 with its header's checksum.
pub fn ip(source: IpAddr, destination: IpAddr, protocol: u8, part: Option<Part>, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(48 + payload.len());
    if source.is_ipv4() {
        let length = u16::try_from(20 + payload.len()).unwrap_or(u16::MAX);
        let (id, place) =
            part.map_or((0, 0), |part| (part.id, (part.offset / 8) | (u16::from(part.more) << 13)));
        packet.extend([0x45, 0]);
        packet.extend(length.to_be_bytes());
        packet.extend(id.to_be_bytes());
        packet.extend(place.to_be_bytes());
        packet.extend([64, protocol, 0, 0]);
        packet.extend(octets(source));
        packet.extend(octets(destination));
        let sum = checksum(&[&packet]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        let extra = if part.is_some() { 8 } else { 0 };
        let length = u16::try_from(extra + payload.len()).unwrap_or(u16::MAX);
        packet.extend([0x60, 0, 0, 0]);
        packet.extend(length.to_be_bytes());
        packet.extend([if part.is_some() { FRAGMENT_HEADER } else { protocol }, 64]);
        packet.extend(octets(source));
        packet.extend(octets(destination));
        if let Some(part) = part {
            packet.extend([protocol, 0]);
            // The offset counts units of 8 bytes in the upper 13 bits (RFC 8200 section 4.5).
            packet.extend((part.offset | u16::from(part.more)).to_be_bytes());
            packet.extend(u32::from(part.id).to_be_bytes());
        }
    }
    packet.extend_from_slice(payload);
    packet
}

/// `payload` cut into packets that carry at most `size` bytes (a multiple of 8) of it each.
pub fn fragments(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    id: u16,
    payload: &[u8],
    size: u16,
) -> Vec<Vec<u8>> {
    let size = usize::from(size);
    let count = payload.len().div_ceil(size);
    payload
        .chunks(size)
        .enumerate()
        .map(|(number, chunk)| {
            let offset = u16::try_from(number * size).unwrap_or(u16::MAX);
            let part = Part { id, offset, more: number + 1 < count };
            ip(source, destination, protocol, Some(part), chunk)
        })
        .collect()
}

/// An Ethernet frame. `tags` are (type, VLAN number) from the outside in.
pub fn frame(destination: [u8; 6], source: [u8; 6], tags: &[(u16, u16)], packet: &[u8]) -> Vec<u8> {
    let mut frame = [destination, source].concat();
    for (kind, vlan) in tags {
        frame.extend(kind.to_be_bytes());
        frame.extend(vlan.to_be_bytes());
    }
    let kind: u16 = if packet.first().is_some_and(|byte| byte >> 4 == 6) { 0x86dd } else { 0x0800 };
    frame.extend(kind.to_be_bytes());
    frame.extend_from_slice(packet);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_of_the_rfc() {
        assert_eq!(checksum(&[&[0x00, 0x01, 0xf2, 0x03], &[0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
        assert_eq!(checksum(&[&[0x12]]), !0x1200);
    }

    #[test]
    fn a_packet_in_parts_is_the_packet() {
        let (source, destination) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let payload: Vec<u8> = (0..100).collect();
        let parts = fragments(source, destination, UDP, 7, &payload, 48);
        assert_eq!(parts.len(), 3);
        assert_eq!(
            parts.iter().map(|part| part[6..8].to_vec()).collect::<Vec<_>>(),
            [[0x20, 0], [0x20, 6], [0, 12]]
        );
        assert_eq!(parts.iter().flat_map(|part| part[20..].to_vec()).collect::<Vec<_>>(), payload);
        assert!(parts.iter().all(|part| checksum(&[&part[..20]]) == 0));
    }
}
