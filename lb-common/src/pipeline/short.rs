//! The short way: known flows by `nat` and `dsr` in the middle of their lives, with `nat` in both directions, and packets that
//! are none of our business. Most packets are one or the other.
//!
//! Nothing happens here that the long way would do differently: what is rare, or unusual in any respect, is left to it
//! untouched. So the short way is only shorter, which the tests make sure of by going both.

use super::parse::{TCP, UDP};
use super::transport::TELLING;
use super::work::Work;
use crate::abi::flow::{FlowState, FlowWord, WAYS};
use crate::abi::hop::CLIENT_HOPS;
use crate::abi::{Backend, BackendFlags, Be16, Family, Features, Mode, NextHop, Side};
use crate::env::{Env, Line};
use crate::flow;
use crate::hash::FlowHash;
use crate::packet::checksum::Sum;
use crate::packet::eth;
use crate::packet::front::{Front, Transport};
use crate::packet::head::{Address, Head};
use crate::packet::tcp::{self, TcpFlags};
use crate::packet::{Packet, udp};
use crate::verdict::{Reason, Verdict};

/// What a packet is.
#[derive(Clone, Copy)]
struct Is<A> {
    source: A,
    destination: A,
    source_port: Be16,
    destination_port: Be16,
    protocol: u8,
    /// Bytes of the IP packet.
    len: u32,
}

/// `None`, and nothing changed: the long way.
#[inline(always)]
pub(super) fn go<F: Front, P: Packet, E: Env>(packet: &mut P, env: &E, work: &Work) -> Option<Verdict> {
    let verdict = try_go::<F, P, E>(packet, env, work)?;
    env.took_short_way();
    Some(verdict)
}

#[inline(always)]
fn try_go<F: Front, P: Packet, E: Env>(packet: &mut P, env: &E, work: &Work) -> Option<Verdict> {
    if !env.has_short_way() || work.pending != 0 {
        return None;
    }
    let linear = packet.linear_len();
    let front = packet.front::<F>()?;
    let len = front.plain_len()?;
    let protocol = front.protocol();
    if len < F::Head::LEN as u32 || eth::LEN + len as usize > linear || (protocol != TCP && protocol != UDP) {
        return None;
    }
    let Transport { source_port, destination_port, .. } = *front.transport();
    let is = Is {
        source: front.source(),
        destination: front.destination(),
        source_port,
        destination_port,
        protocol,
        len,
    };
    let key = env.hash_key();
    let vip = F::Head::endpoint_hash(key, Side::Vip, is.destination, is.destination_port, protocol);
    let listener = env.find_endpoint(vip);
    if listener != 0 {
        return to_backend(front, env, is, listener);
    }
    let server = F::Head::endpoint_hash(key, Side::Backend, is.source, is.source_port, protocol);
    let backend = env.find_endpoint(server);
    if backend != 0 {
        return to_client(front, env, is, backend);
    }
    // Ranges are found otherwise.
    (!env.features().has(Features::RANGES)).then_some(Reason::NoService.pass())
}

#[inline(always)]
fn to_backend<F: Front, E: Env>(front: &mut F, env: &E, is: Is<F::Addr>, listener: u32) -> Option<Verdict> {
    let steady = steady(front, &is)?;
    let hash = F::Head::flow_hash(
        env.hash_key(),
        is.source,
        is.destination,
        is.source_port,
        is.destination_port,
        is.protocol,
    );
    let (line, way, word) = find_flow(env, hash)?;
    let id = word.backend();
    let backend = env.backend(id)?;
    if word.state() as u8 != steady as u8
        || backend.listener != listener
        || !is_short(backend, is.destination, is.destination_port, is.protocol)
    {
        return None;
    }
    let now = env.now();
    let hop = env.backend_hop(id)?.get();
    if !is_fresh(env, &hop, now, is.len) {
        return None;
    }
    touch(line, way, word, now);
    env.count_to_backend(id, is.len);

    if backend.mode == Mode::DSR {
        front.forward(&hop.macs, Sum::ZERO);
        return Some(Reason::ToBackend.send(hop.device, env.ingress()));
    }
    let change = |change: u16| Sum::ZERO.add(u32::from(change));
    front.set_destination(F::Addr::from_mapped(&backend.addr));
    front.forward(&hop.macs, change(backend.address_change));
    let transport = front.transport();
    transport.destination_port = backend.port;
    change_checksum(transport, is.protocol, change(backend.transport_change));
    Some(Reason::ToBackend.send(hop.device, env.ingress()))
}

#[inline(always)]
fn to_client<F: Front, E: Env>(front: &mut F, env: &E, is: Is<F::Addr>, id: u32) -> Option<Verdict> {
    let backend = env.backend(id)?;
    let vip = F::Addr::from_mapped(&backend.vip);
    if backend.mode != Mode::NAT
        || F::Addr::from_mapped(&backend.addr) != is.source
        || backend.port != is.source_port
        || !is_short(backend, vip, backend.vip_port, is.protocol)
    {
        return None;
    }
    let steady = steady(front, &is)?;
    let hash = F::Head::flow_hash(
        env.hash_key(),
        is.destination,
        vip,
        is.destination_port,
        backend.vip_port,
        is.protocol,
    );
    let (line, way, word) = find_flow(env, hash)?;
    if word.state() as u8 != steady as u8 || word.backend() != id {
        return None;
    }
    let now = env.now();
    const SHIFT: u32 = 32 - CLIENT_HOPS.trailing_zeros();
    let hop = env.client_hop(is.destination.spread() >> SHIFT)?.get();
    if hop.addr != is.destination.to_mapped() || !is_fresh(env, &hop.hop, now, is.len) {
        return None;
    }
    touch(line, way, word, now);
    env.count_from_backend(id, is.len);

    let change = |change: u16| Sum::ZERO.sub_half(change);
    front.set_source(vip);
    front.forward(&hop.hop.macs, change(backend.address_change));
    let transport = front.transport();
    transport.source_port = backend.vip_port;
    change_checksum(transport, is.protocol, change(backend.transport_change));
    Some(Reason::ToClient.send(hop.hop.device, env.ingress()))
}

/// The flow of this hash: its line, its way there, and its word.
#[inline(always)]
fn find_flow<E: Env>(env: &E, hash: FlowHash) -> Option<(E::Line, usize, FlowWord)> {
    let line = env.flow_line(hash.line(env.flow_lines()))?;
    let way = flow::find_known(line, hash.fingerprint());
    (way < WAYS).then(|| (line, way, line.load(way)))
}

/// The state of the flow of a packet in the middle of one. `None` when it is not such a packet, or its header is wrong.
#[inline(always)]
fn steady<F: Front>(front: &mut F, is: &Is<F::Addr>) -> Option<FlowState> {
    if front.hops() <= 1 {
        return None;
    }
    let l4_len = is.len - F::Head::LEN as u32;
    if is.protocol == TCP {
        let (header, flags) = front.transport().tcp();
        let plain = u32::from(flags) & TELLING == u32::from(TcpFlags::ACK.0);
        return (plain && header >= tcp::LEN as u32 && header <= l4_len).then_some(FlowState::Established);
    }
    let (len, checksum) = front.transport().udp();
    let v6 = matches!(F::Head::FAMILY, Family::V6);
    let whole = len >= udp::LEN as u32 && len <= l4_len && !(v6 && checksum == 0);
    whole.then_some(FlowState::Datagram)
}

/// Whether the flows of this VIP, port and protocol take the short way to and from this backend.
#[inline(always)]
fn is_short<A: Address>(backend: &Backend, vip: A, vip_port: Be16, protocol: u8) -> bool {
    backend.flags.has(BackendFlags::VALID.with(BackendFlags::SHORT))
        && A::from_mapped(&backend.vip) == vip
        && backend.vip_port == vip_port
        && backend.protocol == protocol
}

/// Whether a next hop is still one, for a packet of `len` bytes, and needs no tag.
#[inline(always)]
fn is_fresh<E: Env>(env: &E, hop: &NextHop, now: u16, len: u32) -> bool {
    let epoch = env.route_epoch();
    epoch != 0
        && hop.epoch == epoch
        && hop.tick == now
        && hop.ingress == env.ingress()
        && hop.device == hop.ifindex
        && len <= u32::from(hop.mtu)
}

/// Notes that the flow had a packet. Losing the race to the other direction's loses a second of idle time at most.
#[inline(always)]
fn touch<L: Line>(line: L, way: usize, word: FlowWord, now: u16) {
    if word.time() != now {
        line.replace(way, word, word.at(word.state(), now));
    }
}

#[inline(always)]
fn change_checksum(transport: &mut Transport, protocol: u8, change: Sum) {
    if protocol == TCP {
        transport.change_tcp(change);
    } else {
        transport.change_udp(change);
    }
}
