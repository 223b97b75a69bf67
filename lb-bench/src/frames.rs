//! The frames that are measured with, and where flows differ in them.
//!
//! Checksums are not those of real packets: the packet path brings them up to date without looking whether they were
//! right.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::layout::{FRAME, Setup};

const IP: usize = 14;
const TTL: u8 = 64;

/// TCP's flags.
pub mod flags {
    pub const SYN: u8 = 2;
    pub const ACK: u8 = 16;
}

/// What follows the IP header.
#[derive(Clone, Copy, Debug)]
pub enum Payload {
    /// With these flags.
    Tcp(u8),
    Udp,
    /// Another protocol, by IANA's number.
    Other(u8),
}

/// Which end of a packet is the client's, and thus differs from flow to flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    Source,
    Destination,
    /// No address differs.
    None,
}

/// A frame whose client has one address and port for each flow, of `flows` (a power of two).
pub fn packet(source: SocketAddr, destination: SocketAddr, payload: Payload, client: Client) -> Setup {
    let mut setup = blank();
    let frame = bytes(&mut setup);
    let (protocol, payload_len): (u8, u16) = match payload {
        Payload::Tcp(_) => (6, 20),
        Payload::Udp => (17, 18),
        Payload::Other(number) => (number, 20),
    };
    let (l4, source_at, destination_at) = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            frame[12..14].copy_from_slice(&[0x08, 0x00]);
            let header = &mut frame[IP..IP + 20];
            header[0] = 0x45;
            header[2..4].copy_from_slice(&(20 + payload_len).to_be_bytes());
            header[8] = TTL;
            header[9] = protocol;
            header[12..16].copy_from_slice(&from.octets());
            header[16..20].copy_from_slice(&to.octets());
            (IP + 20, IP + 12, IP + 16)
        }
        (from, to) => {
            let octets = |address| match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            frame[12..14].copy_from_slice(&[0x86, 0xdd]);
            let header = &mut frame[IP..IP + 40];
            header[0] = 0x60;
            header[4..6].copy_from_slice(&payload_len.to_be_bytes());
            header[6] = protocol;
            header[7] = TTL;
            header[8..24].copy_from_slice(&octets(from));
            header[24..40].copy_from_slice(&octets(to));
            // The last four bytes of the address differ.
            (IP + 40, IP + 8 + 12, IP + 24 + 12)
        }
    };
    frame[l4..l4 + 2].copy_from_slice(&source.port().to_be_bytes());
    frame[l4 + 2..l4 + 4].copy_from_slice(&destination.port().to_be_bytes());
    match payload {
        Payload::Tcp(flags) => {
            frame[l4 + 4..l4 + 12].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
            frame[l4 + 12] = 5 << 4;
            frame[l4 + 13] = flags;
            frame[l4 + 16..l4 + 18].copy_from_slice(&[0x12, 0x34]);
        }
        Payload::Udp => {
            frame[l4 + 4..l4 + 6].copy_from_slice(&payload_len.to_be_bytes());
            frame[l4 + 6..l4 + 8].copy_from_slice(&[0x12, 0x34]);
        }
        Payload::Other(_) => {}
    }
    let (address_at, port_at, other_at) = match client {
        Client::Source => (source_at, l4, l4 + 2),
        Client::Destination => (destination_at, l4 + 2, l4),
        Client::None => return setup,
    };
    let word = |at: usize| u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
    let half = |at: usize| u32::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
    let (address, port, other) = (word(address_at), half(port_at), half(other_at));
    setup.address_at = address_at as u32;
    setup.address = address;
    setup.port_at = port_at as u32;
    setup.port = port;
    setup.service_at = other_at as u32;
    setup.service = other;
    setup
}

/// An ARP request.
pub fn arp() -> Setup {
    let mut setup = blank();
    bytes(&mut setup)[12..22].copy_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, 1]);
    setup
}

/// The first part of an IPv4 datagram that was cut in two.
pub fn first_fragment(source: SocketAddr, destination: SocketAddr) -> Setup {
    let mut setup = packet(source, destination, Payload::Udp, Client::Source);
    // A length that is a multiple of eight, as all parts but the last have.
    bytes(&mut setup)[IP + 2..IP + 4].copy_from_slice(&(20u16 + 16).to_be_bytes());
    bytes(&mut setup)[IP + 6] = 0x20;
    setup
}

/// The second part.
pub fn last_fragment(source: SocketAddr, destination: SocketAddr) -> Setup {
    let mut setup = packet(source, destination, Payload::Udp, Client::None);
    bytes(&mut setup)[IP + 6..IP + 8].copy_from_slice(&2u16.to_be_bytes());
    setup
}

/// The same frame with a VLAN tag.
pub fn tagged(mut setup: Setup, id: u16) -> Setup {
    const TAG: usize = 4;
    let frame = bytes(&mut setup);
    frame.copy_within(12..FRAME - TAG, 12 + TAG);
    frame[12..14].copy_from_slice(&[0x81, 0x00]);
    frame[14..16].copy_from_slice(&id.to_be_bytes());
    for at in [&mut setup.address_at, &mut setup.port_at, &mut setup.service_at] {
        if *at < Setup::UNUSED {
            *at += TAG as u32;
        }
    }
    setup.taken = TAG as u32;
    setup
}

/// An IPv4 ping.
pub fn echo(source: Ipv4Addr, destination: Ipv4Addr) -> Setup {
    let ends = |address: Ipv4Addr, port| (address, port).into();
    // Type 8, code 0, then the checksum: where ports would be.
    packet(ends(source, 0x0800), ends(destination, 0x1234), Payload::Other(1), Client::None)
}

/// An IPv4 host's word that the port is closed to which this UDP packet went.
pub fn unreachable(from: Ipv4Addr, to: Ipv4Addr, quoted: &Setup) -> Setup {
    let mut setup = echo(from, to);
    let frame = bytes(&mut setup);
    let quoted: &[u8] = bytemuck::cast_slice(&quoted.frame);
    frame[IP + 2..IP + 4].copy_from_slice(&56u16.to_be_bytes());
    frame[IP + 20..IP + 28].copy_from_slice(&[3, 3, 0x12, 0x34, 0, 0, 0, 0]);
    frame[IP + 28..IP + 56].copy_from_slice(&quoted[IP..IP + 28]);
    setup
}

fn bytes(setup: &mut Setup) -> &mut [u8] {
    bytemuck::cast_slice_mut(&mut setup.frame)
}

fn blank() -> Setup {
    let mut setup = Setup {
        frame: [0; FRAME / 8],
        mask: 0,
        stride: STRIDE,
        address_at: Setup::UNUSED,
        address: 0,
        port_at: Setup::UNUSED + 4,
        port: 0,
        service_at: Setup::UNUSED + 6,
        service: 0,
        service_mask: 0,
        taken: 0,
        pad: 0,
        lines: 0,
    };
    bytes(&mut setup)[..12].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
    setup
}

/// Odd, so that each flow comes once before one comes again; the golden ratio, so that neighbours are far apart.
const STRIDE: u32 = 0x9e37_79b1;
