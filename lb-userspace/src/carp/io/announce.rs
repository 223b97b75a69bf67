//! Telling the neighbours where an address is now: gratuitous ARP (RFC 5227 section 3) and unsolicited neighbour
//! advertisements (RFC 4861 section 7.2.6). Also advertisements of CARP itself with a virtual MAC address as their source,
//! which only a packet socket can send.

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::carp::wire::{GROUP4, GROUP6, LENGTH, PROTOCOL, TTL};

/// An Ethernet address.
pub type Mac = [u8; 6];

const BROADCAST: Mac = [0xff; 6];
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ICMPV6: u8 = 58;

/// Sends frames on any interface.
#[derive(Debug)]
pub struct Announcer {
    socket: OwnedFd,
}

impl Announcer {
    /// # Errors
    /// Without `CAP_NET_RAW`.
    pub fn open() -> io::Result<Self> {
        // Protocol 0: it receives nothing.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        Ok(Self { socket: socket(AddressFamily::Packet, SockType::Raw, flags, None)? })
    }

    /// Announces that `address` is at `mac`, on the interface `index`.
    ///
    /// # Errors
    /// When the frame cannot be sent.
    pub fn announce(&self, index: u32, mac: Mac, address: IpAddr) -> io::Result<()> {
        match address {
            IpAddr::V4(address) => self.send(index, &gratuitous_arp(mac, address)),
            IpAddr::V6(address) => self.send(index, &unsolicited_advertisement(mac, address)),
        }
    }

    /// Asks who has `address`, on the interface `index`, in nobody's name, so that nobody learns anything wrong by it
    /// (RFC 5227 section 2.1.1).
    ///
    /// # Errors
    /// When the frame cannot be sent.
    pub fn probe(&self, index: u32, mac: Mac, address: Ipv4Addr) -> io::Result<()> {
        self.send(index, &arp_request(mac, Ipv4Addr::UNSPECIFIED, address))
    }

    /// Sends an advertisement from `mac` to the group of its source's family, on the interface `index`: switches learn
    /// from it where `mac` is.
    ///
    /// # Errors
    /// When the frame cannot be sent.
    pub fn advertise(&self, index: u32, mac: Mac, source: IpAddr, bytes: &[u8; LENGTH]) -> io::Result<()> {
        match source {
            IpAddr::V4(source) => self.send(index, &advertisement_v4(mac, source, bytes)),
            IpAddr::V6(source) => self.send(index, &advertisement_v6(mac, source, bytes)),
        }
    }

    fn send(&self, index: u32, frame: &[u8]) -> io::Result<()> {
        // SAFETY: sockaddr_ll is a plain C struct of integers, for which zeros are valid.
        let mut to: libc::sockaddr_ll = unsafe { mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_protocol = u16::from_be_bytes([frame[12], frame[13]]).to_be();
        to.sll_ifindex = i32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?;
        let length = libc::socklen_t::try_from(size_of_val(&to)).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the frame and the address are valid for reads of the lengths given with them.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                length,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// An ARP request for one's own address, which all who know it take as news.
fn gratuitous_arp(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    arp_request(mac, address, address)
}

/// An Ethernet frame without padding (RFC 826).
fn arp_request(mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, mac, ETHERTYPE_ARP);
    // Ethernet, IPv4, their address lengths, request.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(sender.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

/// To all nodes, with the override flag, and as a router, which a gateway is.
fn unsolicited_advertisement(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    const ROUTER_OVERRIDE: u8 = 0xa0;
    let mut body = vec![136, 0, 0, 0, ROUTER_OVERRIDE, 0, 0, 0];
    body.extend(address.octets());
    // Option: target link-layer address, in units of 8 bytes.
    body.extend([2, 1]);
    body.extend(mac);
    let checksum = icmpv6_checksum(address, ALL_NODES, &body);
    body[2..4].copy_from_slice(&checksum.to_be_bytes());

    let mut frame = ethernet(ALL_NODES_MAC, mac, ETHERTYPE_IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(u16::try_from(body.len()).unwrap_or(0).to_be_bytes());
    frame.extend([ICMPV6, 255]);
    frame.extend(address.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(body);
    frame
}

/// RFC 791. With the TOS and flag that all implementations set.
fn advertisement_v4(mac: Mac, source: Ipv4Addr, bytes: &[u8; LENGTH]) -> Vec<u8> {
    const HEADER: usize = 20;
    let mut header = vec![0x45, 0x10];
    header.extend(u16::try_from(HEADER + LENGTH).unwrap_or(0).to_be_bytes());
    // Identification 0, don't fragment, and the checksum to come.
    header.extend([0, 0, 0x40, 0, TTL, PROTOCOL, 0, 0]);
    header.extend(source.octets());
    header.extend(GROUP4.octets());
    let sum: u32 = header.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap_or(0);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    // The group's own MAC address (RFC 1112 section 6.4).
    let mut frame = ethernet([1, 0, 0x5e, 0, 0, 0x12], mac, ETHERTYPE_IPV4);
    frame.extend(header);
    frame.extend(bytes);
    frame
}

fn advertisement_v6(mac: Mac, source: Ipv6Addr, bytes: &[u8; LENGTH]) -> Vec<u8> {
    let mut frame = ethernet([0x33, 0x33, 0, 0, 0, 0x12], mac, ETHERTYPE_IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(u16::try_from(LENGTH).unwrap_or(0).to_be_bytes());
    frame.extend([PROTOCOL, TTL]);
    frame.extend(source.octets());
    frame.extend(GROUP6.octets());
    frame.extend(bytes);
    frame
}

fn ethernet(to: Mac, from: Mac, kind: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(86);
    frame.extend(to);
    frame.extend(from);
    frame.extend(kind.to_be_bytes());
    frame
}

/// RFC 4443 section 2.3. The body's length is even.
fn icmpv6_checksum(source: Ipv6Addr, destination: Ipv6Addr, body: &[u8]) -> u16 {
    let pairs = |bytes: &[u8]| -> u64 {
        bytes.chunks_exact(2).map(|pair| u64::from(u16::from_be_bytes([pair[0], pair[1]]))).sum()
    };
    let mut sum = pairs(&source.octets()) + pairs(&destination.octets()) + pairs(body);
    sum += body.len() as u64 + u64::from(ICMPV6);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 1];

    #[test]
    fn arp_as_on_the_wire() {
        let frame = gratuitous_arp(MAC, Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!(frame.len(), 42);
        assert_eq!(frame[..14], [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 6]);
        assert_eq!(frame[14..22], [0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(frame[22..32], [2, 0, 0, 0, 0, 1, 192, 0, 2, 1]);
        assert_eq!(frame[32..], [0, 0, 0, 0, 0, 0, 192, 0, 2, 1]);
    }

    #[test]
    fn advertisements_as_on_the_wire() {
        let frame = advertisement_v4(MAC, Ipv4Addr::new(192, 0, 2, 1), &[7; LENGTH]);
        assert_eq!(frame.len(), 14 + 56);
        assert_eq!(frame[..6], [1, 0, 0x5e, 0, 0, 0x12]);
        assert_eq!(frame[14..24], [0x45, 0x10, 0, 56, 0, 0, 0x40, 0, 255, 112]);
        let sum: u32 =
            frame[14..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
        let frame = advertisement_v6(MAC, Ipv6Addr::LOCALHOST, &[7; LENGTH]);
        assert_eq!(frame.len(), 14 + 40 + 36);
        assert_eq!(frame[14..22], [0x60, 0, 0, 0, 0, 36, 112, 255]);
        assert_eq!(frame[..6], [0x33, 0x33, 0, 0, 0, 0x12]);
    }

    #[test]
    fn neighbour_advertisements_as_on_the_wire() {
        let address: Ipv6Addr = "2001:db8::1".parse().unwrap();
        let frame = unsolicited_advertisement(MAC, address);
        assert_eq!(frame.len(), 14 + 40 + 32);
        assert_eq!(frame[14 + 4..14 + 8], [0, 32, 58, 255]);
        assert_eq!(frame[54], 136);
        assert_eq!(frame[58], 0xa0);
        assert_eq!(frame[62..78], address.octets());
        assert_eq!(frame[78..], [2, 1, 2, 0, 0, 0, 0, 1]);
        // With its checksum in place the sum over everything is all ones.
        assert_eq!(icmpv6_checksum(address, ALL_NODES, &frame[54..]), 0);
    }
}
