//! A packet's way: parse, find its service or backend, choose, rewrite, send.
//!
//! Everything is read and decided before the first byte is written, so a packet is either rewritten completely or untouched.

mod parse;
mod select;
mod to_backend;
mod to_client;
mod transport;

use crate::abi::Side;
use crate::env::{Env, Step};
use crate::packet::Packet;
use crate::packet::eth::{self, EtherType, Ethernet, Macs};
use crate::packet::ip::IpHeader;
use crate::packet::ip4::Ipv4;
use crate::packet::ip6::Ipv6;
use crate::verdict::{Reason, Verdict};

/// What parsing found: a TCP or UDP packet with its headers by value.
pub(crate) struct Parsed<I> {
    pub ip: I,
    pub protocol: crate::abi::Protocol,
    /// Offset of the transport header in the frame.
    pub l4: usize,
    /// Bytes of the transport header and what follows, by the IP header.
    pub l4_len: usize,
}

/// Decides a packet's fate, rewrites it, and counts why.
#[inline(always)]
pub fn handle<P: Packet, E: Env>(packet: &mut P, env: &E) -> Verdict {
    let verdict = frame(packet, env);
    env.trace(Step::Done, verdict.reason as u32, verdict.action as u32);
    env.count(verdict.reason);
    verdict
}

#[inline(always)]
fn frame<P: Packet, E: Env>(packet: &mut P, env: &E) -> Verdict {
    let Some(eth) = packet.read::<Ethernet>(0) else {
        return Reason::TruncatedFrame.pass();
    };
    match eth.ether_type {
        EtherType::IPV4 => match parse::ipv4(packet) {
            Ok(mut parsed) => transport::<Ipv4, P, E>(packet, env, &mut parsed),
            Err(reason) => reason.pass(),
        },
        EtherType::IPV6 => match parse::ipv6(packet) {
            Ok(mut parsed) => transport::<Ipv6, P, E>(packet, env, &mut parsed),
            Err(reason) => reason.pass(),
        },
        _ => Reason::NotIp.pass(),
    }
}

/// Towards a backend, towards a client, or none of our business.
#[inline(always)]
fn transport<I: IpHeader, P: Packet, E: Env>(packet: &mut P, env: &E, parsed: &mut Parsed<I>) -> Verdict {
    let Some(ports) = transport::Ports::read(packet, parsed.l4) else {
        return Reason::TruncatedTransport.pass();
    };
    let ip = &parsed.ip;
    let protocol = parsed.protocol;
    if let Some(listener) = I::endpoint(env, Side::Vip, ip.destination(), ports.destination, protocol) {
        env.trace(Step::Listener, listener, 0);
        return to_backend::forward(packet, env, parsed, ports, listener);
    }
    if let Some(backend) = I::endpoint(env, Side::Backend, ip.source(), ports.source, protocol) {
        env.trace(Step::FromBackend, backend, 0);
        return to_client::forward(packet, env, parsed, ports, backend);
    }
    Reason::NoService.pass()
}

/// Writes the headers back, in an order that does not matter: nobody sees the packet before the program ends.
#[inline(always)]
fn write<I: IpHeader, P: Packet>(
    packet: &mut P,
    parsed: &Parsed<I>,
    macs: Option<&Macs>,
    ports: transport::Ports,
    checksum: Option<[u8; 2]>,
) -> Result<(), Verdict> {
    let mut done = packet.write(eth::LEN, &parsed.ip);
    done = done.and(packet.write(parsed.l4, &ports));
    if let Some(checksum) = checksum {
        done = done.and(packet.write(parsed.l4 + transport::checksum_offset(parsed.protocol), &checksum));
    }
    if let Some(macs) = macs {
        done = done.and(packet.write(0, macs));
    }
    done.ok_or(Reason::WriteFailed.drop())
}
