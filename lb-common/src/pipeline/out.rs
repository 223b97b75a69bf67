//! To a backend: new flows, all modes but `nat`, and `nat` with an entry in the flow table for the way back.

use super::parse::{TCP, UDP, is_fragment};
use super::transport::{self, Ports, Transport, WHOLE};
use super::work::{NO_FLAGS, Work};
use super::{Stage, hop, refuse, reverse, select, to_backend};
use crate::abi::{BackendFlags, Be16, Family, Mode, Protocol};
use crate::env::{Env, Reach, Step};
use crate::hash::FlowHash;
use crate::packet::Packet;
use crate::packet::eth::{self, Macs};
use crate::packet::head::{self, Addr4, Addr6, Address, Head, Head4, Head6};
use crate::packet::udp;
use crate::verdict::{Reason, Verdict};

use super::to_backend::KNOWN;
pub(super) use super::to_backend::out_stage as fragment_stage;

/// `work` says which backend, and the flow. With [`Work::leave_flow`], it says no flow: the packet is a later fragment or
/// an ICMP error.
#[inline(always)]
pub(super) fn forward<I: Outer, P: Packet, E: Env>(packet: &mut P, env: &E, work: &mut Work) -> Verdict {
    let Some(ip) = I::read(packet, eth::LEN) else { return Reason::WriteFailed.drop() };
    if work.leave_flow == KNOWN {
        let (old, way) = (work.old, work.way as usize);
        env.trace(Step::Flow, old.backend(), old.state() as u32);
        select::keep(work, way, old, old.at(old.state(), env.now()));
        work.backend = old.backend();
        work.from_backend = 0;
        work.leave_flow = 0;
    } else if work.leave_flow == 0 {
        let id = env.choose(work);
        if id == select::NO_BACKEND {
            return refuse::nobody::<I, E>(env, work);
        }
        if id == 0 {
            return Reason::StaleRecord.drop();
        }
        work.backend = id;
        work.from_backend = 0;
        if work.reset != 0 {
            env.commit(work);
            return refuse::reset::<I>(work);
        }
    }
    let id = work.backend;
    let Some(backend) = env.backend(id) else { return Reason::StaleRecord.drop() };
    let mode = backend.mode;
    env.trace(Step::Mode, u32::from(mode.0), id);
    if ip.hops() <= 1 {
        return refuse::hops::<I>(work, work.l4());
    }
    let tunnel = mode == Mode::IPIP || mode == Mode::GUE;
    let v6 = if tunnel { backend.flags.has(BackendFlags::V6) } else { matches!(I::FAMILY, Family::V6) };
    let head = match mode {
        Mode::IPIP => outer_len(v6),
        Mode::GUE => outer_len(v6) + udp::LEN as u32,
        _ => 0,
    };
    let mut source = ip.source().to_mapped();
    let mut protocol = work.protocol as u8;
    if tunnel {
        let hash = FlowHash(work.hash);
        let outer = if v6 {
            Head6::tunnel_source(env, hash).map(Addr6::to_mapped)
        } else {
            Head4::tunnel_source(env, hash).map(Addr4::to_mapped)
        };
        match outer {
            Some(outer) => source = outer,
            None => return Reason::StaleRecord.drop(),
        }
        protocol = if mode == Mode::GUE { UDP } else { I::INNER };
    }
    let len = ip.packet_len() + head;
    let found = hop::to_backend(env, work, id, len, |q| {
        q.source = source;
        q.destination = backend.addr;
        q.len = if len > 0xffff { 0xffff } else { len as u16 };
        q.protocol = protocol;
        q.class = ip.class();
        q.flow_info = if tunnel { [0; 4] } else { ip.flow_info() };
        q.v6 = v6;
    });
    work.hop = found.hop;
    work.known_hop = 1;
    match found.reach {
        Reach::Known => {}
        // The kernel cannot forward it: to the kernel the VIP is an address like any other.
        Reach::NeighbourUnknown | Reach::Elsewhere if mode == Mode::DSR => return Reason::NoRoute.drop(),
        // The kernel forwards what it gets, takes the hop off, and asks for the MAC address meanwhile.
        Reach::NeighbourUnknown | Reach::Elsewhere => work.known_hop = 0,
        // No error about an error (RFC 1122 section 3.2.2).
        Reach::TooBig if work.leave_flow == ERROR => return Reason::TooBig.pass(),
        // And it cuts into fragments what may be cut.
        Reach::TooBig if ip.may_fragment() && !tunnel && mode != Mode::DSR => work.known_hop = 0,
        Reach::TooBig => {
            let mtu = work.mtu.saturating_sub(head);
            return refuse::too_big::<I>(work, work.l4(), mtu);
        }
        reach => return to_backend::no_way(reach),
    }
    match (tunnel, I::FAMILY) {
        (false, Family::V4) => Stage::Send4.next(),
        (false, Family::V6) => Stage::Send6.next(),
        (true, Family::V4) => Stage::Tunnel4.next(),
        (true, Family::V6) => Stage::Tunnel6.next(),
    }
}

/// [`Work::leave_flow`]: a later fragment, whose flow is not known.
pub(super) const FRAGMENT: u32 = 1;
/// An ICMP error about a backend's packet.
pub(super) const ERROR: u32 = 2;

/// The flow has its place, and this and what [`reverse::record`] said is how its way back fared.
const RECORDED: u32 = 16;

/// Records the way back of a new flow, and goes on where that was found to be necessary.
#[inline(always)]
pub(super) fn record<E: Env>(env: &E, work: &mut Work) -> Verdict {
    let outcome = env.record_reverse(work);
    work.leave_flow = RECORDED + outcome;
    // With `nat` and `snat`, the packet is of its backend's family.
    match env.backend(work.backend) {
        Some(backend) if backend.flags.has(BackendFlags::V6) => Stage::Send6.next(),
        Some(_) => Stage::Send4.next(),
        None => Reason::StaleRecord.drop(),
    }
}

/// Bytes of an outer IP header.
const fn outer_len(v6: bool) -> u32 {
    if v6 { Head6::LEN as u32 } else { Head4::LEN as u32 }
}

/// Rewrites the packet for its backend and sends it.
#[inline(always)]
pub(super) fn send<I: Head, P: Packet, E: Env>(packet: &mut P, env: &E, work: &mut Work) -> Verdict {
    let Some(backend) = env.backend(work.backend) else { return Reason::StaleRecord.drop() };
    if backend.mode == Mode::DSR {
        return direct::<I, P, E>(packet, env, work);
    }
    translate::<I, P, E>(packet, env, work)
}

/// Puts another packet around it and sends that.
#[inline(always)]
pub(super) fn encapsulate<I: Outer, P: Packet, E: Env>(packet: &mut P, env: &E, work: &mut Work) -> Verdict {
    let Some(backend) = env.backend(work.backend) else { return Reason::StaleRecord.drop() };
    if backend.flags.has(BackendFlags::V6) {
        tunnel::<I, Head6, P, E>(packet, env, work)
    } else {
        tunnel::<I, Head4, P, E>(packet, env, work)
    }
}

/// How the packet leaves: by the next hop that was found, or through the kernel.
#[inline(always)]
fn leave<E: Env>(env: &E, work: &mut Work) -> Verdict {
    let error = work.leave_flow == ERROR;
    if work.known_hop == 0 {
        return if error { Reason::ErrorToBackend.pass() } else { Reason::ToBackendByKernel.pass() };
    }
    let hop = work.hop;
    hop::send(env, work, if error { Reason::ErrorToBackend } else { Reason::ToBackend }, &hop)
}

#[inline(always)]
fn account<E: Env>(env: &E, work: &mut Work, len: u32) {
    if work.leave_flow == 0 {
        env.commit(work);
    }
    if work.leave_flow != ERROR {
        env.count_to_backend(work.backend, len);
    }
}

/// `dsr`: another MAC address, and one hop less.
#[inline(always)]
fn direct<I: Head, P: Packet, E: Env>(packet: &mut P, env: &E, work: &mut Work) -> Verdict {
    let Some(ip) = I::read(packet, eth::LEN) else { return Reason::WriteFailed.drop() };
    let verdict = leave(env, work);
    account(env, work, ip.packet_len());
    let written =
        ip.rewrite(packet, eth::LEN, ip.source(), ip.destination(), 1).and(packet.write(0, &work.hop.macs));
    if written.is_none() {
        return Reason::WriteFailed.drop();
    }
    verdict
}

/// What goes around the packet.
pub(super) trait Outer: Head {
    /// Protocol number of this version inside another.
    const INNER: u8;
    fn tunnel_source<E: Env>(env: &E, hash: FlowHash) -> Option<Self::Addr>;
    fn write_outer<P: Packet>(
        packet: &mut P,
        source: Self::Addr,
        destination: Self::Addr,
        protocol: u8,
        payload: u16,
        class: u8,
        hash: FlowHash,
    ) -> Option<()>;
}

impl Outer for Head4 {
    const INNER: u8 = 4;

    #[inline(always)]
    fn tunnel_source<E: Env>(env: &E, hash: FlowHash) -> Option<Addr4> {
        let settings = env.settings()?;
        let [base, vary] = [settings.tunnel4, settings.tunnel4_vary].map(u32::from_ne_bytes);
        let bits = u32::from_ne_bytes(((hash.0 >> 32) as u32).to_be_bytes());
        Some(Addr4(base | bits & vary))
    }

    #[inline(always)]
    fn write_outer<P: Packet>(
        packet: &mut P,
        source: Addr4,
        destination: Addr4,
        protocol: u8,
        payload: u16,
        class: u8,
        _hash: FlowHash,
    ) -> Option<()> {
        head::write4(packet, eth::LEN, source, destination, protocol, payload, class)
    }
}

impl Outer for Head6 {
    const INNER: u8 = 41;

    #[inline(always)]
    fn tunnel_source<E: Env>(env: &E, hash: FlowHash) -> Option<Addr6> {
        let settings = env.settings()?;
        let base = Addr6::from_mapped(&settings.tunnel6);
        let vary = Addr6::from_mapped(&settings.tunnel6_vary);
        let bits = u64::from_ne_bytes(hash.0.to_be_bytes());
        Some(Addr6(base.0, base.1 | bits & vary.1))
    }

    #[inline(always)]
    fn write_outer<P: Packet>(
        packet: &mut P,
        source: Addr6,
        destination: Addr6,
        protocol: u8,
        payload: u16,
        class: u8,
        hash: FlowHash,
    ) -> Option<()> {
        head::write6(
            packet,
            eth::LEN,
            source,
            destination,
            protocol,
            payload,
            class,
            hash.0 as u32 & 0xf_ffff,
        )
    }
}

/// `ipip` (RFC 2003, RFC 2473, RFC 4213) and `gue` (draft-ietf-intarea-gue, variant 1).
#[inline(always)]
fn tunnel<I: Outer, O: Outer, P: Packet, E: Env>(packet: &mut P, env: &E, work: &mut Work) -> Verdict {
    let Some(ip) = I::read(packet, eth::LEN) else { return Reason::WriteFailed.drop() };
    let id = work.backend;
    let Some(backend) = env.backend(id) else { return Reason::StaleRecord.drop() };
    let gue = backend.mode == Mode::GUE;
    let port = backend.outer_port;
    let server = O::Addr::from_mapped(&backend.addr);
    let hash = FlowHash(work.hash);
    let Some(source) = O::tunnel_source(env, hash) else { return Reason::StaleRecord.drop() };
    let head = if gue { O::LEN + udp::LEN } else { O::LEN };
    let len = ip.packet_len();
    let protocol = if gue { UDP } else { I::INNER };
    let known = work.known_hop != 0;
    let verdict = leave(env, work);
    account(env, work, len);
    let checksum =
        if gue { outer_checksum::<I, O, P>(packet, work, &ip, source, server, port, hash) } else { 0 };
    let Some(macs) = packet.read::<Macs>(0) else { return Reason::WriteFailed.drop() };
    // One hop less inside, before the header moves.
    if ip.rewrite(packet, eth::LEN, ip.source(), ip.destination(), 1).and(packet.grow(head)).is_none() {
        return Reason::EncapsulationFailed.drop();
    }
    let payload = (len + (head - O::LEN) as u32) as u16;
    let macs = if known { work.hop.macs } else { macs };
    let mut done = packet
        .write(0, &macs)
        .and(packet.write(eth::TYPE_AT, &O::ETHER_TYPE))
        .and(O::write_outer(packet, source, server, protocol, payload, ip.class(), hash));
    if gue {
        let [a, b] = gue_source(hash).bytes();
        let [c, d] = port.bytes();
        let [e, f] = payload.to_be_bytes();
        let [g, h] = checksum.to_ne_bytes();
        done =
            done.and(packet.write(
                eth::LEN + O::LEN,
                &[u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])],
            ));
    }
    if done.is_none() {
        return Reason::WriteFailed.drop();
    }
    verdict
}

/// Words of all extension headers that a packet may have.
const EXTENSION_WORDS: usize = 47;

/// The outer source port, another for each flow.
#[inline(always)]
const fn gue_source(hash: FlowHash) -> Be16 {
    Be16::new(0xc000 | hash.0 as u16 & 0x3fff)
}

/// The outer UDP checksum, from the checksums inside: an IPv4 header sums to nothing, and a transport header with its
/// payload to what its pseudo-header takes away. 0, that is none, where the packet has none to go by.
#[inline(always)]
fn outer_checksum<I: Head, O: Head, P: Packet>(
    packet: &P,
    work: &Work,
    ip: &I,
    source: O::Addr,
    destination: O::Addr,
    port: Be16,
    hash: FlowHash,
) -> u16 {
    let protocol = work.protocol as u8;
    let l4 = work.l4();
    if is_fragment(work) || work.leave_flow != 0 || (protocol != TCP && protocol != UDP) {
        return 0;
    }
    let Some(checksum) = packet.read::<u16>(l4 + transport::checksum_offset(protocol)) else { return 0 };
    if protocol == UDP && checksum == 0 {
        return 0;
    }
    // UDP says its own length, which its pseudo-header has.
    let mut inner_len = work.l4_len;
    if protocol == UDP
        && let Some(len) = packet.read::<u16>(l4 + 4)
    {
        if u32::from(u16::from_be(len)) != work.l4_len {
            return 0;
        }
        inner_len = u32::from(u16::from_be(len));
    }
    let len = Be16::new((ip.packet_len() + udp::LEN as u32) as u16);
    let [_, _, c, d] = inner_len.to_be_bytes();
    let mut sum = source
        .sum()
        .plus(destination.sum())
        .add(u32::from(u16::from_ne_bytes([0, UDP])))
        // The length is in the pseudo-header and in the header.
        .add(u32::from(len.raw()))
        .add(u32::from(len.raw()))
        .add(u32::from(gue_source(hash).raw()))
        .add(u32::from(port.raw()))
        // The inner transport sums to the complement of its pseudo-header.
        .plus(ip.source().negative_sum())
        .plus(ip.destination().negative_sum())
        .sub_half(u16::from_ne_bytes([0, protocol]))
        .sub_half(u16::from_ne_bytes([c, d]));
    if matches!(I::FAMILY, Family::V6) {
        // The inner header itself, with one hop less.
        let Some([first, second]) = packet.read::<[u32; 2]>(eth::LEN) else { return 0 };
        let [e, f, next, hops] = second.to_ne_bytes();
        sum = sum
            .add(first)
            .add(u32::from_ne_bytes([e, f, next, hops.wrapping_sub(1)]))
            .plus(ip.source().sum())
            .plus(ip.destination().sum());
        // And the extension headers between.
        for word in 0..EXTENSION_WORDS {
            let at = eth::LEN + I::LEN + word * 4;
            if at >= l4 {
                break;
            }
            let Some(value) = packet.read::<u32>(at) else { return 0 };
            sum = sum.add(value);
        }
    }
    let [e, f] = sum.checksum();
    match u16::from_ne_bytes([e, f]) {
        0 => 0xffff,
        sum => sum,
    }
}

/// `snat`, and `nat` with an entry for the way back.
#[inline(always)]
fn translate<I: Head, P: Packet, E: Env>(packet: &mut P, env: &E, work: &mut Work) -> Verdict {
    let Some(ip) = I::read(packet, eth::LEN) else { return Reason::WriteFailed.drop() };
    let l4 = work.l4();
    let protocol = work.protocol as u8;
    let any = protocol == Protocol::Any.number();
    let id = work.backend;
    let Some(backend) = env.backend(id) else { return Reason::StaleRecord.drop() };
    let snat = backend.mode == Mode::SNAT;
    let reverse = backend.flags.has(BackendFlags::REVERSE);
    let server = I::Addr::from_mapped(&backend.addr);
    let port = if backend.port.raw() == 0 { work.vip_port } else { backend.port };
    let ports = Ports { source: work.client_port, destination: work.vip_port };
    let transport = if any {
        Transport { flags: NO_FLAGS, checksum: 0 }
    } else {
        match packet.read::<u16>(l4 + transport::checksum_offset(protocol)) {
            Some(checksum) => Transport { flags: work.flags, checksum },
            None => return Reason::MalformedTcp.drop(),
        }
    };
    let client = ip.source();
    let hops = work.known_hop as u8;
    let verdict = leave(env, work);
    let begins = work.begins != 0;
    let moved = !begins && work.old.backend() != work.new.backend();
    let recorded = work.leave_flow >= RECORDED;
    if !recorded {
        env.commit(work);
    }
    if recorded {
        match work.leave_flow - RECORDED {
            reverse::RECORDED => {}
            _ if !snat => {}
            reverse::EXHAUSTED => return Reason::SnatExhausted.drop(),
            _ => return Reason::SnatUnrecorded.drop(),
        }
    } else if !reverse {
        // The backend's address and port tell the rest.
    } else if work.place == select::NO_PLACE {
        if snat {
            return Reason::SnatUnrecorded.drop();
        }
    } else if begins || moved {
        return Stage::Record.next();
    } else if !reverse::refresh(env, work, snat) && snat {
        return Reason::StaleRecord.drop();
    }
    let (mut from, mut from_port) = (client, work.client_port);
    if snat {
        from_port = work.snat_port;
        from = match env.snat_address(work.snat_index) {
            Some(addr) => I::Addr::from_mapped(addr),
            None => return Reason::StaleRecord.drop(),
        };
        env.trace(Step::Snat, u32::from(from_port.get()), work.snat_index);
    }
    env.count_to_backend(id, ip.packet_len());
    let new_ports = Ports { source: from_port, destination: port };
    let change = client
        .negative_sum()
        .plus(ip.destination().negative_sum())
        .plus(from.sum())
        .plus(server.sum())
        .plus(ports.change(new_ports));
    let mut written = ip.rewrite(packet, eth::LEN, from, server, hops);
    if !any {
        written = written.and(transport::rewrite::<WHOLE, P>(
            packet,
            protocol,
            l4,
            new_ports,
            transport.updated(change),
        ));
    }
    if hops != 0 && packet.write(0, &work.hop.macs).is_none() || written.is_none() {
        return Reason::WriteFailed.drop();
    }
    verdict
}
