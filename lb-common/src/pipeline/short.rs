//! The short way: flows by `nat`, `dsr` and `ipip` from their first packet to their last, with `nat` in both directions, and
//! packets that are none of our business. Most packets are one or the other.
//!
//! Nothing happens here that the long way would do differently: what is rare, or unusual in any respect, is left to it
//! untouched. So the short way is only shorter, which the tests make sure of by going both.

use super::out::Outer;
use super::parse::{TCP, UDP};
use super::transport::TELLING;
use super::work::{NO_FLAGS, Work};
use crate::abi::flow::{FlowState, FlowWord, WAYS};
use crate::abi::hop::CLIENT_HOPS;
use crate::abi::{
    Backend, BackendFlags, Be16, Family, Features, FlowTuple, ListenerFlags, Mode, NextHop, SchedulerCode,
    Side,
};
use crate::env::{Env, Line};
use crate::flow;
use crate::hash::FlowHash;
use crate::packet::checksum::Sum;
use crate::packet::eth::{self, Macs};
use crate::packet::front::{Front, Transport};
use crate::packet::head::{Address, Head};
use crate::packet::tcp::{self, TcpFlags};
use crate::packet::{Packet, udp};
use crate::verdict::{Reason, Verdict};

/// TCP flags as [`telling`] gives them.
const SYN: u32 = TcpFlags::SYN.0 as u32;
const ACK: u32 = TcpFlags::ACK.0 as u32;
const RST: u32 = TcpFlags::RST.0 as u32;

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

/// A packet that has been decided about, and rewritten but for what goes around it.
struct Decided {
    verdict: Verdict,
    /// The backend that it goes to inside another packet; 0 when it does not.
    tunnel: u32,
    hash: FlowHash,
}

/// `None`, and nothing changed: the long way.
#[inline(always)]
pub(super) fn go<F: Front<Head: Outer>, P: Packet, E: Env>(
    packet: &mut P,
    env: &E,
    work: &Work,
) -> Option<Verdict> {
    let Decided { verdict, tunnel, hash } = try_go::<F, P, E>(packet, env, work)?;
    env.took_short_way();
    if tunnel != 0 {
        return Some(encapsulate::<F::Head, P, E>(packet, env, verdict, tunnel, hash));
    }
    Some(verdict)
}

#[inline(always)]
fn try_go<F: Front, P: Packet, E: Env>(packet: &mut P, env: &E, work: &Work) -> Option<Decided> {
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
        return to_client(front, env, is, backend).map(whole);
    }
    // Ranges are found otherwise.
    (!env.features().has(Features::RANGES)).then_some(whole(Reason::NoService.pass()))
}

/// Nothing goes around it.
#[inline(always)]
const fn whole(verdict: Verdict) -> Decided {
    Decided { verdict, tunnel: 0, hash: FlowHash(0) }
}

#[inline(always)]
fn to_backend<F: Front, E: Env>(front: &mut F, env: &E, is: Is<F::Addr>, listener: u32) -> Option<Decided> {
    let flags = telling(front, &is)?;
    let hash = F::Head::flow_hash(
        env.hash_key(),
        is.source,
        is.destination,
        is.source_port,
        is.destination_port,
        is.protocol,
    );
    let index = hash.line(env.flow_lines());
    let line = env.flow_line(index)?;
    let way = flow::find_known(line, hash.fingerprint());
    if way >= WAYS {
        return begin(front, env, is, flags, &New { listener, hash, index, line });
    }
    let word = line.load(way);
    // A SYN may mean a second chance, or a new flow in the old one's place.
    let state = next(word.state(), flags, SYN, flow::after_client)?;
    let id = word.backend();
    let backend = env.backend(id)?;
    if backend.listener != listener
        || !is_short::<F>(backend, is.destination, is.destination_port, is.protocol)
    {
        return None;
    }
    let now = env.now();
    let hop = env.backend_hop(id)?.get();
    if !is_fresh(env, &hop, now, is.len + outer_len::<F>(backend)) {
        return None;
    }
    follow(env, line, way, word, word.at(state, now));
    Some(send_to_backend(front, env, is, id, backend, &hop, hash))
}

/// A flow that has no record yet, and where it may get one.
struct New<L> {
    listener: u32,
    hash: FlowHash,
    /// The number of its line.
    index: u32,
    line: L,
}

/// A new flow whose backend follows from its hash, and has a next hop that is known.
#[inline(always)]
fn begin<F: Front, E: Env>(
    front: &mut F,
    env: &E,
    is: Is<F::Addr>,
    flags: u32,
    new: &New<E::Line>,
) -> Option<Decided> {
    let state = match flags {
        NO_FLAGS => FlowState::Datagram,
        SYN => FlowState::Opening,
        _ => return None,
    };
    let listener = env.listener(new.listener)?;
    let table = listener.current_table();
    if listener.scheduler != SchedulerCode::MAGLEV
        || listener.flags.has(ListenerFlags::STICKY)
        || table.size() == 0
    {
        return None;
    }
    let id = env.table_slot(table.offset().wrapping_add(new.hash.slot(table.size())))?;
    let backend = env.backend(id)?;
    if backend.listener != new.listener
        // It may be full.
        || backend.flags.has(BackendFlags::LIMITED)
        || !is_short::<F>(backend, is.destination, is.destination_port, is.protocol)
    {
        return None;
    }
    let now = env.now();
    let hop = env.backend_hop(id)?.get();
    if !is_fresh(env, &hop, now, is.len + outer_len::<F>(backend)) {
        return None;
    }
    if env.admit(new.listener, listener.new_flow_limit) {
        let word = FlowWord::new(new.hash.fingerprint(), id, state, now);
        let way = new.line.victim(word.fingerprint(), now);
        let place = new.index * WAYS as u32 + way as u32;
        // Asked for before the word is replaced: no processor fetches over that, and the two misses would add up.
        let partner = env.tuple(place)?.partner;
        let recorded = flow::claim(env, new.line, way, new.line.load(way), word);
        if recorded.evicted {
            env.count(Reason::FlowEvicted);
        }
        if recorded.way < WAYS {
            if partner != 0 {
                // The flow that had this place has left an entry for its way back.
                env.forget_reverse(place);
            }
            let tuple = FlowTuple {
                client: is.source.to_mapped(),
                client_port: is.source_port,
                vip_port: is.destination_port,
                listener: new.listener,
                ..FlowTuple::default()
            };
            env.record_tuple(place, &tuple);
        } else {
            env.count(Reason::FlowNotRecorded);
        }
    } else {
        env.count(Reason::FlowSuppressed);
    }
    Some(send_to_backend(front, env, is, id, backend, &hop, new.hash))
}

/// By `nat`, `dsr` or `ipip`.
#[inline(always)]
fn send_to_backend<F: Front, E: Env>(
    front: &mut F,
    env: &E,
    is: Is<F::Addr>,
    id: u32,
    backend: &Backend,
    hop: &NextHop,
    hash: FlowHash,
) -> Decided {
    env.count_to_backend(id, is.len);
    let verdict = Reason::ToBackend.send(hop.device, env.ingress());
    if backend.mode != Mode::NAT {
        front.forward(&hop.macs, Sum::ZERO);
        let tunnel = if backend.mode == Mode::IPIP { id } else { 0 };
        return Decided { verdict, tunnel, hash };
    }
    let change = |change: u16| Sum::ZERO.add(u32::from(change));
    front.set_destination(F::Addr::from_mapped(&backend.addr));
    front.forward(&hop.macs, change(backend.address_change));
    let transport = front.transport();
    transport.destination_port = backend.port;
    change_checksum(transport, is.protocol, change(backend.transport_change));
    whole(verdict)
}

/// Bytes that go around a packet to this backend, which is of the packet's family.
#[inline(always)]
fn outer_len<F: Front>(backend: &Backend) -> u32 {
    if backend.mode == Mode::IPIP { F::Head::LEN as u32 } else { 0 }
}

/// Puts the packet, whose Ethernet addresses and hops are those it leaves with, into another of its family.
#[inline(always)]
fn encapsulate<I: Outer, P: Packet, E: Env>(
    packet: &mut P,
    env: &E,
    verdict: Verdict,
    id: u32,
    hash: FlowHash,
) -> Verdict {
    let Some(backend) = env.backend(id) else { return Reason::StaleRecord.drop() };
    let Some(source) = I::tunnel_source(env, hash) else { return Reason::StaleRecord.drop() };
    let Some(macs) = packet.read::<Macs>(0) else { return Reason::WriteFailed.drop() };
    let Some(ip) = I::read(packet, eth::LEN) else { return Reason::WriteFailed.drop() };
    if packet.grow(I::LEN).is_none() {
        return Reason::EncapsulationFailed.drop();
    }
    let server = I::Addr::from_mapped(&backend.addr);
    let written = packet.write(0, &macs).and(packet.write(eth::TYPE_AT, &I::ETHER_TYPE)).and(I::write_outer(
        packet,
        source,
        server,
        I::INNER,
        ip.packet_len() as u16,
        ip.class(),
        hash,
    ));
    match written {
        Some(()) => verdict,
        None => Reason::WriteFailed.drop(),
    }
}

#[inline(always)]
fn to_client<F: Front, E: Env>(front: &mut F, env: &E, is: Is<F::Addr>, id: u32) -> Option<Verdict> {
    let backend = env.backend(id)?;
    let vip = F::Addr::from_mapped(&backend.vip);
    if backend.mode != Mode::NAT
        || F::Addr::from_mapped(&backend.addr) != is.source
        || backend.port != is.source_port
        || !is_short::<F>(backend, vip, backend.vip_port, is.protocol)
    {
        return None;
    }
    let flags = telling(front, &is)?;
    let hash = F::Head::flow_hash(
        env.hash_key(),
        is.destination,
        vip,
        is.destination_port,
        backend.vip_port,
        is.protocol,
    );
    let line = env.flow_line(hash.line(env.flow_lines()))?;
    let way = flow::find_known(line, hash.fingerprint());
    if way >= WAYS {
        return None;
    }
    let word = line.load(way);
    // A refusal may be kept from the client.
    let state = next(word.state(), flags, RST, flow::after_backend)?;
    if word.backend() != id {
        return None;
    }
    let now = env.now();
    const SHIFT: u32 = 32 - CLIENT_HOPS.trailing_zeros();
    let hop = env.client_hop(is.destination.spread() >> SHIFT)?.get();
    if hop.addr != is.destination.to_mapped() || !is_fresh(env, &hop.hop, now, is.len) {
        return None;
    }
    follow(env, line, way, word, word.at(state, now));
    env.count_from_backend(id, is.len);

    let change = |change: u16| Sum::ZERO.sub_half(change);
    front.set_source(vip);
    front.forward(&hop.hop.macs, change(backend.address_change));
    let transport = front.transport();
    transport.source_port = backend.vip_port;
    change_checksum(transport, is.protocol, change(backend.transport_change));
    Some(Reason::ToClient.send(hop.hop.device, env.ingress()))
}

/// The TCP flags that tell where a connection stands, or [`NO_FLAGS`]. `None` when the header is wrong, or the packet has no
/// hop left.
#[inline(always)]
fn telling<F: Front>(front: &mut F, is: &Is<F::Addr>) -> Option<u32> {
    if front.hops() <= 1 {
        return None;
    }
    let l4_len = is.len - F::Head::LEN as u32;
    if is.protocol == TCP {
        let (header, flags) = front.transport().tcp();
        return (header >= tcp::LEN as u32 && header <= l4_len).then_some(u32::from(flags) & TELLING);
    }
    let (len, checksum) = front.transport().udp();
    let v6 = matches!(F::Head::FAMILY, Family::V6);
    let whole = len >= udp::LEN as u32 && len <= l4_len && !(v6 && checksum == 0);
    whole.then_some(NO_FLAGS)
}

/// The state of a flow after a packet with these flags. `None` when the record is none of such a flow, or one of the flags
/// has another meaning.
#[inline(always)]
fn next(
    state: FlowState,
    flags: u32,
    other: u32,
    after: impl FnOnce(FlowState, TcpFlags) -> FlowState,
) -> Option<FlowState> {
    if flags == NO_FLAGS {
        return (state as u8 == FlowState::Datagram as u8).then_some(state);
    }
    if flags == ACK && state as u8 == FlowState::Established as u8 {
        return Some(state);
    }
    let known = state as u8 >= FlowState::Opening as u8 && state as u8 <= FlowState::Closed as u8;
    (known && flags & other == 0).then(|| after(state, TcpFlags(flags as u8)))
}

/// Whether the flows of this VIP, port and protocol take the short way to and from this backend.
#[inline(always)]
fn is_short<F: Front>(backend: &Backend, vip: F::Addr, vip_port: Be16, protocol: u8) -> bool {
    let needed = BackendFlags::VALID.with(BackendFlags::SHORT);
    let needed = if matches!(F::Head::FAMILY, Family::V6) { needed.with(BackendFlags::V6) } else { needed };
    backend.flags.0 & (needed.0 | BackendFlags::V6.0) == needed.0
        && F::Addr::from_mapped(&backend.vip) == vip
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

/// Notes that the flow had a packet. Losing the race to the other direction's loses a second of idle time, or a state that
/// the next packet brings again.
#[inline(always)]
fn follow<E: Env>(env: &E, line: E::Line, way: usize, word: FlowWord, new: FlowWord) {
    if new != word {
        env.change(line, way, word, new);
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
