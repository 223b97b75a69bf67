//! The way back of flows whose replies do not tell the client or the VIP by themselves: a second entry in the flow table,
//! found by the server's address and port and by what it answers to.

use super::parse::{UDP, is_fragment};
use super::to_client::{self, Ends};
use super::transport::{ANY, FIRST, Is, Ports};
use super::work::Work;
use super::{hop, select};
use crate::abi::flow::{FlowState, FlowTuple, FlowWord, WAYS};
use crate::abi::net::unmapped;
use crate::abi::{Backend, BackendFlags, Be16, Mode, Protocol};
use crate::env::{Env, Line, Reach, Step};
use crate::flow;
use crate::hash::{self, FlowHash};
use crate::packet::Packet;
use crate::packet::eth;
use crate::packet::head::{Address, Head};
use crate::verdict::{Reason, Verdict};

/// What [`record`] says: it is there.
pub const RECORDED: u32 = 0;
/// No port is free.
pub const EXHAUSTED: u32 = 1;
/// There is no room in the flow table.
pub const UNRECORDED: u32 = 2;
/// The maps contradict each other.
pub const NOWHERE: u32 = 3;

/// Ports that are tried.
const TRIES: u32 = 32;

/// The hash of the way back.
#[inline(always)]
fn hash_of<E: Env>(
    env: &E,
    v6: bool,
    local: &[u8; 16],
    server: &[u8; 16],
    ports: u32,
    protocol: u8,
) -> FlowHash {
    if v6 {
        hash::flow6(env.hash_key(), local, server, ports, protocol)
    } else {
        hash::flow4(env.hash_key(), unmapped(local), unmapped(server), ports, protocol)
    }
}

/// Frees the entry for the way back of the flow that had this place, if that is what its tuple says. Notes its port and
/// address if it was the flow in hand.
#[inline(always)]
pub(super) fn release<E: Env>(env: &E, work: &mut Work, place: u32) {
    let Some(tuple) = env.tuple(place) else { return };
    let (port, index) = (tuple.snat_port, tuple.snat_index);
    let same = tuple.client_port == work.client_port
        && tuple.vip_port == work.vip_port
        && tuple.listener == work.listener
        && tuple.client == work.client;
    if free_partner(env, tuple.partner, place) && same && port.raw() != 0 {
        work.snat_port = port;
        work.snat_index = u32::from(index);
        work.snat_known = 1;
    }
}

/// The same for whoever has no use for port and address.
#[inline(always)]
pub fn forget<E: Env>(env: &E, place: u32) {
    if let Some(tuple) = env.tuple(place) {
        free_partner(env, tuple.partner, place);
    }
}

/// Frees the entry at `partner`, less one, if it is for the way back of the flow in this place. Says whether it did.
#[inline(always)]
fn free_partner<E: Env>(env: &E, partner: u32, place: u32) -> bool {
    if partner == 0 {
        return false;
    }
    let other = partner.wrapping_sub(1);
    if env.tuple(other).is_none_or(|back| back.partner != place.wrapping_add(1)) {
        return false;
    }
    let Some(line) = env.flow_line(other / WAYS as u32) else { return false };
    let way = (other % WAYS as u32) as usize;
    let word = line.load(way);
    word.state() as u8 == FlowState::Reverse as u8 && env.change(line, way, word, FlowWord::FREE)
}

/// Records the way back of the flow in hand, which has its place. With `snat`, finds a port for it.
#[inline(always)]
pub fn record<E: Env>(env: &E, work: &mut Work) -> u32 {
    let place = work.place;
    let (Some(backend), Some(listener)) = (env.backend(work.backend), env.listener(work.listener)) else {
        return UNRECORDED;
    };
    if work.begins == 0 {
        // It has moved to another backend.
        work.snat_known = 0;
        release(env, work, place);
    }
    if backend.mode != Mode::SNAT {
        let port = u32::from(work.client_port.get());
        return env.attempt_reverse(work, port, 0, true);
    }
    let known = work.snat_known != 0;
    let mut index = u32::from(listener.snat_first)
        + (work.hash as u32 >> 24).checked_rem(u32::from(listener.snat_count)).unwrap_or(0);
    let lowest = u32::from(listener.snat_port);
    let count = u32::from(listener.snat_last_port).wrapping_sub(lowest) + 1;
    let mut start = (((work.hash >> 32) * u64::from(count)) >> 32) as u32;
    if known {
        index = work.snat_index;
        start = u32::from(work.snat_port.get()).wrapping_sub(lowest);
    }
    // Ports in a row are taken in a row.
    let stride = if count > TRIES { (work.hash as u32 & 0xff) | 1 } else { 1 };
    let mut full = false;
    for turn in 0..TRIES {
        if turn >= count {
            break;
        }
        let step = start.wrapping_add(turn.wrapping_mul(stride)).checked_rem(count).unwrap_or(0);
        match env.attempt_reverse(work, lowest.wrapping_add(step), index, turn == 0) {
            EXHAUSTED => {}
            UNRECORDED => full = true,
            outcome => return outcome,
        }
    }
    if let Some(line) = env.flow_line(work.line) {
        // Without it the flow is worth nothing.
        let way = (place % WAYS as u32) as usize;
        env.change(line, way, work.new, FlowWord::FREE);
    }
    if full { UNRECORDED } else { EXHAUSTED }
}

/// Records the way back of the flow in hand to this port, with `snat` of the address with this index, if no other flow has
/// it: [`RECORDED`], [`EXHAUSTED`] when one has, [`UNRECORDED`] when its line has no room, [`NOWHERE`] when the maps
/// contradict each other. `first`: nothing else was tried before.
#[inline(always)]
pub fn attempt<E: Env>(env: &E, work: &mut Work, port: u32, index: u32, first: bool) -> u32 {
    let Some(backend) = env.backend(work.backend) else { return NOWHERE };
    let snat = backend.mode == Mode::SNAT;
    let server_port = if backend.port.raw() == 0 { work.vip_port } else { backend.port };
    let local_port = Be16::new(port as u16);
    let mut local = work.client;
    if snat {
        match env.snat_address(index) {
            Some(addr) => local = *addr,
            None => return NOWHERE,
        }
    }
    let v6 = backend.flags.has(BackendFlags::V6);
    let ports = hash::ports(local_port.get(), server_port.get());
    let hash = hash_of(env, v6, &local, &backend.addr, ports, work.protocol as u8);
    let line_index = hash.line(env.flow_lines());
    let Some(line) = env.flow_line(line_index) else { return NOWHERE };
    let new = FlowWord::new(hash.fingerprint(), work.backend, FlowState::Reverse, env.now());
    let mut way = flow::find(line, hash.fingerprint());
    if way < WAYS {
        let old = line.load(way);
        // Of two flows that are one to the server, the later one has the way back.
        let replaces = !snat || E::DRY && first && was_released(env, work, line_index, way, old);
        let same = replaces && old.state() as u8 == FlowState::Reverse as u8;
        if !same || !env.change(line, way, old, new) {
            return EXHAUSTED;
        }
    } else {
        let recorded = flow::record(env, line, new);
        if recorded.way >= WAYS {
            return UNRECORDED;
        }
        if recorded.evicted {
            env.count(Reason::FlowEvicted);
        }
        way = recorded.way;
    }
    let place = work.place;
    let other = line_index.wrapping_mul(WAYS as u32).wrapping_add(way as u32);
    let mut tuple = select::tuple(work);
    if snat {
        tuple.snat_port = local_port;
        tuple.snat_index = index as u16;
        work.snat_port = local_port;
        work.snat_index = index;
    }
    tuple.partner = place.wrapping_add(1);
    env.record_tuple(other, &tuple);
    tuple.partner = other.wrapping_add(1);
    env.record_tuple(place, &tuple);
    RECORDED
}

/// Whether a word that is still there was released for the flow in hand, which takes its port again.
#[inline(always)]
fn was_released<E: Env>(env: &E, work: &Work, line: u32, way: usize, word: FlowWord) -> bool {
    let other = line.wrapping_mul(WAYS as u32).wrapping_add(way as u32);
    work.snat_known != 0
        && word.backend() == work.backend
        && env.tuple(other).is_some_and(|tuple| tuple.partner == work.place.wrapping_add(1))
}

/// Reads address and port that stand for the client, and keeps the way back as young as the flow. False when the tuple
/// is another flow's.
#[inline(always)]
pub(super) fn refresh<E: Env>(env: &E, work: &mut Work, snat: bool) -> bool {
    let place = work.place;
    let Some(tuple) = env.tuple(place) else { return false };
    let (partner, port, index) = (tuple.partner, tuple.snat_port, tuple.snat_index);
    if tuple.client != work.client || tuple.client_port != work.client_port || (snat && port.raw() == 0) {
        return false;
    }
    work.snat_port = port;
    work.snat_index = u32::from(index);
    if partner != 0 && work.new.time() != work.old.time() {
        let other = partner.wrapping_sub(1);
        if let Some(line) = env.flow_line(other / WAYS as u32) {
            let way = (other % WAYS as u32) as usize;
            let word = line.load(way);
            if word.state() as u8 == FlowState::Reverse as u8 && word.backend() == work.new.backend() {
                line.replace(way, word, word.at(FlowState::Reverse, work.new.time()));
            }
        }
    }
    true
}

/// The flow that a way back belongs to.
#[derive(Clone, Copy)]
pub(super) struct Back<A> {
    pub backend: u32,
    pub ends: Ends<A>,
}

/// Looks the way back up: from the server at `server` to what it answers to.
#[inline(always)]
pub(super) fn find<I: Head, E: Env>(
    env: &E,
    server: I::Addr,
    local: I::Addr,
    server_port: Be16,
    local_port: Be16,
    protocol: u8,
) -> Option<Back<I::Addr>> {
    let hash = I::flow_hash(env.hash_key(), local, server, local_port, server_port, protocol);
    let line_index = hash.line(env.flow_lines());
    let line = env.flow_line(line_index)?;
    let way = flow::find(line, hash.fingerprint());
    if way >= WAYS {
        return None;
    }
    let word = line.load(way);
    let id = word.backend();
    if word.state() as u8 != FlowState::Reverse as u8 {
        return None;
    }
    let place = line_index.wrapping_mul(WAYS as u32).wrapping_add(way as u32);
    let tuple: FlowTuple = env.tuple(place)?;
    let backend: &Backend = env.backend(id)?;
    let listener = env.listener(backend.listener)?;
    let client = I::Addr::from_mapped(&tuple.client);
    let right = if backend.mode == Mode::SNAT {
        tuple.snat_port == local_port
            && env
                .snat_address(u32::from(tuple.snat_index))
                .is_some_and(|addr| I::Addr::from_mapped(addr) == local)
    } else {
        tuple.client_port == local_port && client == local
    };
    if !right
        || !backend.flags.has(BackendFlags::VALID)
        || tuple.listener != backend.listener
        || I::Addr::from_mapped(&backend.addr) != server
    {
        return None;
    }
    let now = env.now();
    if word.time() != now {
        line.replace(way, word, word.at(FlowState::Reverse, now));
    }
    env.trace(Step::Reverse, id, tuple.partner);
    Some(Back {
        backend: id,
        ends: Ends {
            client,
            client_port: tuple.client_port,
            vip: I::Addr::from_mapped(&listener.vip),
            vip_port: tuple.vip_port,
        },
    })
}

/// A reply of a backend whose way back is in the flow table.
#[inline(always)]
pub(super) fn back<I: Head, P: Packet, E: Env>(packet: &mut P, env: &E, work: &mut Work) -> Verdict {
    let Some(ip) = I::read(packet, eth::LEN) else { return Reason::WriteFailed.drop() };
    let l4 = work.l4();
    let protocol = work.protocol as u8;
    let any = protocol == Protocol::Any.number();
    let ports = if any {
        Ports::NONE
    } else {
        match Ports::read(packet, l4) {
            Some(ports) => ports,
            None => return Reason::TruncatedTransport.pass(),
        }
    };
    if protocol == UDP && !is_fragment(work) {
        match packet.read::<u16>(l4 + 4) {
            Some(len) if u32::from(u16::from_be(len)) <= work.l4_len => {}
            _ => return Reason::MalformedUdp.drop(),
        }
    }
    let is = Is { l4, l4_len: work.l4_len, protocol, ports };
    let found = find::<I, E>(env, ip.source(), ip.destination(), ports.source, ports.destination, protocol);
    let (id, ends) = match found {
        Some(Back { backend, ends }) => (backend, ends),
        None => {
            let Some(backend) = env.backend(work.backend) else { return Reason::StaleRecord.drop() };
            let Some(listener) = env.listener(backend.listener) else { return Reason::StaleRecord.drop() };
            if backend.mode != Mode::NAT {
                // To the gateway itself, or to a host that spoke to the backend's own address.
                hop::query(&mut work.query, &ip, ip.source(), ip.destination(), protocol);
                work.query.ingress = hop::ingress(env, work);
                return match env.route(&work.query).reach {
                    Reach::NotForwarded => Reason::ReplyToGateway.pass(),
                    _ => Reason::ReplyNotOurs.pass(),
                };
            }
            // The flow is older than the need for the entry, or has lost it.
            let ends = Ends {
                client: ip.destination(),
                client_port: ports.destination,
                vip: I::Addr::from_mapped(&listener.vip),
                vip_port: if backend.port.raw() == 0 { ports.source } else { listener.port },
            };
            (work.backend, ends)
        }
    };
    if any {
        return to_client::reply::<I, P, E, ANY>(packet, env, work, ip, is, id, ends);
    }
    to_client::reply::<I, P, E, FIRST>(packet, env, work, ip, is, id, ends)
}
