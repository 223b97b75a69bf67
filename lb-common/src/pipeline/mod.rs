//! A packet's way: parse, find its service or backend, choose, rewrite, send.
//!
//! Everything is read and decided before the first byte is written, so a packet is either rewritten completely or
//! untouched.

mod parse;
mod select;
mod to_backend;
mod to_client;
mod transport;

use core::mem::MaybeUninit;

use crate::abi::{FlowTuple, Protocol, Side};
use crate::env::{Env, Reach, Route, Step};
use crate::packet::Packet;
use crate::packet::eth::{self, EtherType, Ethernet};
use crate::packet::ip::IpHeader;
use crate::packet::ip4::Ipv4;
use crate::packet::ip6::Ipv6;
use crate::packet::tcp::Tcp;
use crate::verdict::{Reason, Verdict};

/// A TCP or UDP packet being worked on: its headers by value, and where it goes.
pub(crate) struct Parsed<I> {
    pub ip: I,
    /// Half the offset of the transport header in the frame. A byte, as the verifier must see a bound when it is read
    /// back.
    half_l4: u8,
    /// Bytes of the transport header and what follows, by the IP header.
    pub l4_len: usize,
    pub route: Route,
    /// The TCP header, where it is needed whole.
    pub tcp: MaybeUninit<Tcp>,
    /// What a new flow is recorded with.
    pub tuple: MaybeUninit<FlowTuple>,
    pub protocol: Protocol,
}

impl<I> Parsed<I> {
    fn new(ip: I, protocol: Protocol, l4: usize, l4_len: usize) -> Self {
        Self {
            ip,
            half_l4: (l4 / 2) as u8,
            l4_len,
            route: Route::none(Reach::NotForwarded),
            tcp: MaybeUninit::uninit(),
            tuple: MaybeUninit::uninit(),
            protocol,
        }
    }

    /// Offset of the transport header in the frame.
    #[inline(always)]
    pub const fn l4(&self) -> usize {
        self.half_l4 as usize * 2
    }
}

impl<I: IpHeader> Parsed<I> {
    /// Asks where the packet goes with the header it has now.
    #[inline(always)]
    fn find_route<E: Env>(&mut self, env: &E) {
        self.route = self.ip.route(env, self.protocol);
        let Route { reach, ifindex, .. } = self.route;
        if reach == Reach::Known && ifindex != env.ingress() && !env.is_port(ifindex) {
            self.route.reach = Reach::Elsewhere;
        }
        env.trace(Step::Routed, self.route.reach as u32, ifindex);
    }
}

/// Room for the packet being worked on, which the program's stack of 512 bytes has not.
#[expect(missing_debug_implementations, reason = "has nothing in it before and after a packet")]
pub struct Work {
    v4: MaybeUninit<Parsed<Ipv4>>,
    v6: MaybeUninit<Parsed<Ipv6>>,
}

impl Work {
    pub const fn new() -> Self {
        Self { v4: MaybeUninit::uninit(), v6: MaybeUninit::uninit() }
    }
}

impl Default for Work {
    fn default() -> Self {
        Self::new()
    }
}

/// Decides a packet's fate, rewrites it, and counts why.
#[inline(always)]
pub fn handle<P: Packet, E: Env>(packet: &mut P, env: &E, work: &mut Work) -> Verdict {
    let verdict = frame(packet, env, work);
    env.trace(Step::Done, verdict.reason as u32, verdict.action as u32);
    env.count(verdict.reason);
    verdict
}

#[inline(always)]
fn frame<P: Packet, E: Env>(packet: &mut P, env: &E, work: &mut Work) -> Verdict {
    let Some(eth) = packet.read::<Ethernet>(0) else {
        return Reason::TruncatedFrame.pass();
    };
    match eth.ether_type {
        EtherType::IPV4 => match parse::ipv4(packet, &mut work.v4) {
            Ok(parsed) => transport::<Ipv4, P, E>(packet, env, parsed),
            Err(reason) => reason.pass(),
        },
        EtherType::IPV6 => match parse::ipv6(packet, &mut work.v6) {
            Ok(parsed) => transport::<Ipv6, P, E>(packet, env, parsed),
            Err(reason) => reason.pass(),
        },
        _ => Reason::NotIp.pass(),
    }
}

/// Towards a backend, towards a client, or none of our business.
#[inline(always)]
fn transport<I: IpHeader, P: Packet, E: Env>(packet: &mut P, env: &E, parsed: &mut Parsed<I>) -> Verdict {
    let Some(ports) = transport::Ports::read(packet, parsed.l4()) else {
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
    ports: transport::Ports,
    checksum: [u8; 2],
) -> Result<(), Verdict> {
    let mut done = packet
        .write(eth::LEN, &parsed.ip)
        .and(packet.write(parsed.l4(), &ports))
        .and(packet.write(parsed.l4() + transport::checksum_offset(parsed.protocol), &checksum));
    if parsed.route.reach == Reach::Known {
        done = done.and(packet.write(0, &parsed.route.macs));
    }
    done.ok_or(Reason::WriteFailed.drop())
}
