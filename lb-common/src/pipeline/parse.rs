//! From a frame to its transport header.

use super::work::{self, Work};
use super::{Stage, fragment, short, transport};
use crate::abi::{Be16, Features, Protocol};
use crate::env::Env;
use crate::packet::Packet;
use crate::packet::eth::{self, EtherType};
use crate::packet::front::{Front4, Front6};
use crate::packet::head::{FRAGMENT_MASK, Head, Head4, Head6};
use crate::packet::ip6::next_header;
use crate::verdict::{Reason, Verdict};

/// IANA's numbers.
pub(super) const TCP: u8 = Protocol::Tcp.number();
pub(super) const UDP: u8 = Protocol::Udp.number();
pub(super) const ICMP: u8 = 1;
pub(super) const ICMP6: u8 = 58;

/// Extension headers that are followed.
const MAX_HEADERS: usize = 6;

/// From the Ethernet header on.
#[inline(always)]
pub(super) fn frame<P: Packet, E: Env>(packet: &mut P, env: &E, work: &mut Work) -> Verdict {
    let Some(ether_type) = packet.read::<Be16>(eth::TYPE_AT) else {
        return Reason::TruncatedFrame.pass();
    };
    match EtherType(ether_type) {
        EtherType::IPV4 => match short::go::<Front4, P, E>(packet, env, work) {
            Some(verdict) => verdict,
            None => v4(packet, env, work),
        },
        EtherType::IPV6 => match short::go::<Front6, P, E>(packet, env, work) {
            Some(verdict) => verdict,
            None => Stage::V6.next(),
        },
        EtherType::VLAN | EtherType::SERVICE_VLAN => Stage::Tagged.next(),
        _ => Reason::NotIp.pass(),
    }
}

/// The IPv4 header, if the packet holds all that it promises.
#[inline(always)]
pub(super) fn head4<P: Packet>(packet: &P) -> Result<Head4, Verdict> {
    let Some(ip) = Head4::read(packet, eth::LEN) else { return Err(Reason::TruncatedIp.pass()) };
    let len = ip.total_len() as usize;
    if ip.version_ihl() >> 4 != 4
        || ip.header_len() < Head4::LEN
        || len < ip.header_len()
        || !packet.holds(eth::LEN + len)
    {
        return Err(Reason::MalformedIp.pass());
    }
    Ok(ip)
}

/// The IPv6 header likewise.
#[inline(always)]
pub(super) fn head6<P: Packet>(packet: &P) -> Result<Head6, Verdict> {
    let Some(ip) = Head6::read(packet, eth::LEN) else { return Err(Reason::TruncatedIp.pass()) };
    if ip.version() != 6 || !packet.holds(eth::LEN + ip.packet_len() as usize) {
        return Err(Reason::MalformedIp.pass());
    }
    Ok(ip)
}

#[inline(always)]
fn v4<P: Packet, E: Env>(packet: &mut P, env: &E, work: &mut Work) -> Verdict {
    let ip = match head4(packet) {
        Ok(ip) => ip,
        Err(verdict) => return verdict,
    };
    if ip.flags_fragment() & FRAGMENT_MASK != 0 {
        return Stage::Fragment4.next();
    }
    let header = ip.header_len();
    let (l4, l4_len) = (eth::LEN + header, ip.total_len() - header as u32);
    match ip.protocol() {
        protocol @ (TCP | UDP) => {
            transport::whole::<Head4, P, E>(packet, env, work, ip, l4, l4_len, protocol)
        }
        ICMP => Stage::Icmp4.next(),
        // The other version's control messages mean nothing here.
        ICMP6 => Reason::OtherProtocol.pass(),
        _ if env.features().has(Features::ANY_PROTOCOL) => Stage::Any4.next(),
        _ => Reason::OtherProtocol.pass(),
    }
}

/// From the IPv6 header on.
#[inline(always)]
pub(super) fn v6<P: Packet, E: Env>(packet: &mut P, env: &E, work: &mut Work) -> Verdict {
    let ip = match head6(packet) {
        Ok(ip) => ip,
        Err(verdict) => return verdict,
    };
    let (l4, l4_len) = (eth::LEN + Head6::LEN, ip.payload_len());
    match ip.next_header() {
        protocol @ (TCP | UDP) => {
            transport::whole::<Head6, P, E>(packet, env, work, ip, l4, l4_len, protocol)
        }
        ICMP6 => {
            work.l4 = l4 as u32;
            Stage::Icmp6.next()
        }
        next_header::HOP_BY_HOP | next_header::ROUTING | next_header::FRAGMENT | next_header::DESTINATION => {
            Stage::Headers6.next()
        }
        ICMP => Reason::OtherProtocol.pass(),
        protocol if env.features().has(Features::ANY_PROTOCOL) => {
            work.protocol = u32::from(protocol);
            work.l4 = l4 as u32;
            Stage::Any6.next()
        }
        _ => Reason::OtherProtocol.pass(),
    }
}

/// IPv6 with extension headers (RFC 8200 section 4).
#[inline(always)]
pub(super) fn headers6<P: Packet, E: Env>(packet: &mut P, env: &E, work: &mut Work) -> Verdict {
    let ip = match head6(packet) {
        Ok(ip) => ip,
        Err(verdict) => return verdict,
    };
    let end = eth::LEN + ip.packet_len() as usize;
    let mut next = ip.next_header();
    // Offset in units of two bytes, so that it fits a byte: the verifier needs a bound.
    let mut at = eth::LEN + Head6::LEN;
    let mut offset = 0;
    let mut more = false;
    for _ in 0..MAX_HEADERS {
        let extension = match next {
            next_header::HOP_BY_HOP | next_header::ROUTING | next_header::DESTINATION => {
                let Some([following, len]) = packet.read::<[u8; 2]>(at) else {
                    return Reason::ExtensionHeader.pass();
                };
                next = following;
                // Longer than any that is in use; and the transport header must be within reach.
                (len as usize + 1) * 8
            }
            next_header::FRAGMENT => {
                let Some([first, id]) = packet.read::<[u32; 2]>(at) else {
                    return Reason::ExtensionHeader.pass();
                };
                let [following, _, a, b] = first.to_ne_bytes();
                let field = u16::from_be_bytes([a, b]);
                next = following;
                offset = field & !7;
                more = field & 1 != 0;
                work.fragment.id = id.to_ne_bytes();
                work.fragment.protocol = 0;
                8
            }
            _ => break,
        };
        if at + extension > MAX_L4 || at + extension > end {
            return Reason::ExtensionHeader.pass();
        }
        at += extension;
        if offset != 0 {
            // What follows the header of a later fragment is not a header.
            break;
        }
    }
    // What follows is a stage of its own: the verifier would look at it once for each row of headers.
    work.l4 = at as u32;
    work.l4_len = (end - at) as u32;
    work.protocol = u32::from(next);
    if offset != 0 {
        return Stage::Fragment6.next();
    }
    if more {
        fragment::begin(work, ip);
        return Stage::Fragment6.next();
    }
    match next {
        TCP | UDP => Stage::Beyond6.next(),
        ICMP6 => Stage::Icmp6.next(),
        _ => other6(env, next),
    }
}

/// TCP and UDP behind extension headers.
#[inline(always)]
pub(super) fn beyond6<P: Packet, E: Env>(packet: &mut P, env: &E, work: &mut Work) -> Verdict {
    let ip = match head6(packet) {
        Ok(ip) => ip,
        Err(verdict) => return verdict,
    };
    let (l4, l4_len, protocol) = (work.l4(), work.l4_len, work.protocol as u8);
    transport::whole::<Head6, P, E>(packet, env, work, ip, l4, l4_len, protocol)
}

/// Where a packet with extension headers goes that has neither TCP, UDP nor ICMPv6 behind them.
#[inline(always)]
pub(super) fn other6<E: Env>(env: &E, protocol: u8) -> Verdict {
    match protocol {
        ICMP => Reason::OtherProtocol.pass(),
        next_header::HOP_BY_HOP | next_header::ROUTING | next_header::FRAGMENT | next_header::DESTINATION => {
            Reason::ExtensionHeader.pass()
        }
        _ if env.features().has(Features::ANY_PROTOCOL) => Stage::Any6.next(),
        _ => Reason::OtherProtocol.pass(),
    }
}

/// The transport header begins before this.
const MAX_L4: usize = 240;

/// Whether this packet is a fragment of a datagram that is not whole.
#[inline(always)]
pub(super) const fn is_fragment(work: &Work) -> bool {
    work.pending & work::FRAGMENT != 0
}
