//! Echo requests (RFC 792, RFC 4443 section 4.1).
//!
//! Each check has a raw socket that is connected to its server: the kernel hands it nothing of others, and tells it what
//! routers say of its packets (raw(7)). Raw sockets work where `net.ipv4.ping_group_range` keeps ping sockets from
//! everybody, which is the default.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use super::{Path, step};
use crate::health::{CheckError, Stage};

/// Type, code, checksum, identifier, sequence number.
const HEADER: usize = 8;
/// As much as ping sends.
const PAYLOAD: usize = 56;
/// A request that got lost is sent once more after this part of the time.
const AGAIN_AFTER: u32 = 2;

/// Sends a request, and another one if there is no answer at half-time.
pub(super) async fn examine(path: Path) -> Result<(), CheckError> {
    let local = |error: io::Error| CheckError::from_io(&error, Stage::Connect);
    let socket = open(path).map_err(local)?;
    let v6 = path.address.is_ipv6();
    let id: u16 = rand::random();
    let secret: [u8; PAYLOAD] = rand::random();
    let mut buffer = [0; 1500];
    for sequence in 1..=2 {
        let request = request(v6, id, sequence, &secret);
        step(Stage::Answer, path.deadline, socket.send(&request)).await?;
        let left = path.deadline.saturating_duration_since(Instant::now());
        let until = if sequence == 1 { Instant::now() + left / AGAIN_AFTER } else { path.deadline };
        while let Ok(received) = timeout_at(until, socket.recv(&mut buffer)).await {
            let length = received.map_err(|error| CheckError::from_io(&error, Stage::Answer))?;
            if is_reply(v6, &buffer[..length], id, &secret) {
                return Ok(());
            }
            // Others ping the same server, and packets flood in: they must not take all of the time for themselves.
            tokio::task::consume_budget().await;
        }
    }
    Err(CheckError::Timeout(Stage::Answer))
}

/// `tokio` has no raw sockets, but sends and receives on any kind as if it were for UDP.
fn open(path: Path) -> io::Result<UdpSocket> {
    let (domain, protocol) = match path.address {
        SocketAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        SocketAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if let Some(source) = path.source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    socket.connect(&SocketAddr::new(path.address.ip(), 0).into())?;
    UdpSocket::from_std(socket.into())
}

/// An echo request. The checksum of ICMPv6 is the kernel's business (RFC 3542 section 3.1).
fn request(v6: bool, id: u16, sequence: u16, secret: &[u8; PAYLOAD]) -> [u8; HEADER + PAYLOAD] {
    let mut packet = [0; HEADER + PAYLOAD];
    packet[0] = if v6 { 128 } else { 8 };
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    packet[HEADER..].copy_from_slice(secret);
    if !v6 {
        let checksum = checksum(&packet);
        packet[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
    packet
}

/// RFC 1071, of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let (words, _) = bytes.as_chunks::<2>();
    let mut sum: u32 = words.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

/// Whether the packet answers a request of this check. Raw IPv4 sockets also get the IP header (raw(7)).
fn is_reply(v6: bool, packet: &[u8], id: u16, secret: &[u8; PAYLOAD]) -> bool {
    let header = if v6 { 0 } else { packet.first().map_or(0, |first| usize::from(first & 0xf) * 4) };
    let Some(icmp) = packet.get(header..).filter(|icmp| icmp.len() == HEADER + PAYLOAD) else { return false };
    let wanted = if v6 { 129 } else { 0 };
    icmp[..2] == [wanted, 0] && icmp[4..6] == id.to_be_bytes() && icmp[HEADER..] == secret[..]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: [u8; PAYLOAD] = [0xa5; PAYLOAD];

    fn reply(v6: bool, id: u16, secret: &[u8; PAYLOAD]) -> Vec<u8> {
        let mut icmp = request(v6, id, 1, secret).to_vec();
        icmp[0] = if v6 { 129 } else { 0 };
        if v6 { icmp } else { [vec![0x46; 24], icmp].concat() }
    }

    #[test]
    fn checksums_are_right() {
        // The sum over a packet with its checksum is all ones.
        assert_eq!(checksum(&request(false, 0x1234, 7, &SECRET)), 0);
        assert_eq!(checksum(&[0xff, 0xff, 0x00, 0x01]), 0xfffe);
        assert_eq!(request(true, 0x1234, 7, &SECRET)[..8], [128, 0, 0, 0, 0x12, 0x34, 0, 7]);
    }

    #[test]
    fn only_answers_to_this_check_count() {
        for v6 in [false, true] {
            let good = reply(v6, 7, &SECRET);
            assert!(is_reply(v6, &good, 7, &SECRET));
            assert!(!is_reply(v6, &good, 8, &SECRET), "somebody else's");
            assert!(!is_reply(v6, &good, 7, &[0; PAYLOAD]), "guessed");
            assert!(!is_reply(v6, &request(v6, 7, 1, &SECRET), 7, &SECRET), "the request itself");
            for length in 0..good.len() {
                assert!(!is_reply(v6, &good[..length], 7, &SECRET), "{length}");
            }
            assert!(!is_reply(v6, &[good, vec![0]].concat(), 7, &SECRET), "longer");
        }
    }
}
