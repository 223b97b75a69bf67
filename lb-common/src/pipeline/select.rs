//! Which backend gets a client's packet: the one its flow has, else the scheduler's choice; and what that leaves in the
//! flow table.
//!
//! Known flows in the middle of their lives do not come here.

use super::reverse;
use super::transport::tcp_flags;
use super::work::Work;
use crate::abi::flow::{FlowState, FlowWord, WAYS};
use crate::abi::net::unmapped;
use crate::abi::{
    BackendFlags, FlowTuple, Listener, ListenerFlags, SchedulerCode, SiblingKey, Sticky, StickyKey, TableRef,
};
use crate::env::{Env, Step};
use crate::flow;
use crate::hash::{self, FlowHash};
use crate::packet::tcp::TcpFlags;
use crate::verdict::Reason;

/// What [`choose`] says when no backend can take a new flow. 0 says that the maps contradict each other.
pub const NO_BACKEND: u32 = u32::MAX;
/// What [`commit`] says when the flow has no place in the table, or keeps what stands beside it.
pub const NO_PLACE: u32 = u32::MAX;

/// [`Work::way`]: wherever there is room.
const ANY_WAY: u32 = WAYS as u32;
/// The flow is not recorded, or its record stays as it is.
const NO_WAY: u32 = WAYS as u32 + 1;

/// Slots that are looked at for the fewest connections, or for room.
const COMPARED: u32 = 64;
/// So many of them at a time: the verifier follows each turn of a loop, but a function of its own once.
const PART: u32 = 8;

/// Chooses the backend for the packet in hand, and what is to be recorded of it.
#[inline(always)]
pub fn choose<E: Env>(env: &E, work: &mut Work) -> u32 {
    let now = env.now();
    work.begins = 0;
    work.reset = 0;
    let Some(listener) = env.listener(work.listener) else { return 0 };
    let flags = tcp_flags(work.flags);
    let mut way = ANY_WAY;
    let old = work.old;
    if (work.way as usize) < WAYS {
        let id = old.backend();
        env.trace(Step::Flow, id, old.state() as u32);
        let Some(backend) = env.backend(id) else { return 0 };
        let valid = backend.flags.has(BackendFlags::VALID);
        if valid && (backend.listener != work.listener || old.state() as u8 == FlowState::Reverse as u8) {
            // Another flow with our fingerprint: two in 2^24 that meet in one line. Ours goes unrecorded.
            env.count(Reason::FlowCollision);
            way = NO_WAY;
        } else {
            // Otherwise its backend was removed, or it begins anew with the same ports: a new flow in the old one's
            // place.
            way = work.way;
            let state = continued(old.state(), flags, backend.flags);
            if valid && state as u8 == FlowState::Opening as u8 && may_move(listener, flags) {
                // A repeated SYN: the backend is silent, or its refusal was held back.
                let table = listener.current_table();
                let slot = scheduled(env, work, listener).slot(table.size());
                let mut next = env.next_candidate(table, slot, id);
                if next != id && is_full(env, next) {
                    let other = env.with_room(table, slot);
                    next = if other == 0 { id } else { other };
                }
                env.trace(Step::Moved, id, next);
                if env.backend_of(work.listener, next).is_none() {
                    return 0;
                }
                work.new = if next == id { old.at(state, now) } else { old.moved(next, now) };
                work.way = way;
                return next;
            }
            if valid && state as u8 != FlowState::Free as u8 {
                let reset =
                    flags.is_some() && backend.flags.has(BackendFlags::DOWN.with(BackendFlags::RESET));
                work.reset = u32::from(reset);
                let new = old.at(if reset { FlowState::Closed } else { state }, now);
                keep(work, way as usize, old, new);
                return id;
            }
        }
    } else {
        env.trace(Step::NoFlow, 0, 0);
    }
    begin(env, work, listener, way, now)
}

/// Notes what becomes of the record of a flow that goes on.
#[inline(always)]
pub(super) fn keep(work: &mut Work, way: usize, old: FlowWord, new: FlowWord) {
    work.way = if new == old { NO_WAY } else { way as u32 };
    work.place = work.line.wrapping_mul(WAYS as u32).wrapping_add(way as u32);
    work.old = old;
    work.new = new;
    work.begins = 0;
    work.reset = u32::from(work.reset != 0 && new.state() as u8 == FlowState::Closed as u8);
}

/// A new flow.
#[inline(always)]
fn begin<E: Env>(env: &E, work: &mut Work, listener: &Listener, mut way: u32, now: u16) -> u32 {
    let hash = FlowHash(work.hash);
    let table = listener.current_table();
    let size = table.size();
    if size == 0 {
        return NO_BACKEND;
    }
    let state = first(tcp_flags(work.flags));
    if state as u8 == FlowState::Free as u8 {
        way = NO_WAY;
    } else if way != NO_WAY && !env.admit(work.listener, listener.new_flow_limit) {
        // With `snat`, what cannot be recorded is dropped, and counted as that.
        if listener.snat_count == 0 {
            env.count(Reason::FlowSuppressed);
        }
        way = NO_WAY;
    }
    // Where the next packet would get another slot, only for a flow that will be remembered.
    let line = work.line;
    let remembered = || {
        way != NO_WAY
            && (state as u8 == FlowState::Opening as u8 || state as u8 == FlowState::Datagram as u8)
            && (way != ANY_WAY
                || env.flow_line(line).is_some_and(|line| flow::takes(line, hash.fingerprint(), state, now)))
    };
    let mut id = 0;
    if listener.flags.has(ListenerFlags::STICKY) {
        id = stuck(env, work, listener, now);
    }
    // What goes on, though its record was lost, stays where the table says.
    let begins = state as u8 == FlowState::Opening as u8 || state as u8 == FlowState::Datagram as u8;
    if id != 0 && begins && is_full(env, id) {
        env.trace(Step::Full, id, 0);
        id = 0;
    }
    if id == 0 {
        let mut slot = scheduled(env, work, listener).slot(size);
        let scheduler = listener.scheduler;
        if !scheduler.is_stateless() && remembered() {
            if scheduler == SchedulerCode::LEAST_CONNECTIONS {
                slot = env.least_loaded(table, slot);
            } else if scheduler == SchedulerCode::RANDOM {
                slot = ((u64::from(env.random()) * u64::from(size)) >> 32) as u32;
            } else {
                slot = env.turn(work.listener).checked_rem(size).unwrap_or(0);
            }
        }
        match env.table_slot(table.offset().wrapping_add(slot)) {
            Some(picked) => id = picked,
            None => return 0,
        }
        env.trace(Step::Picked, slot, id);
        if begins && is_full(env, id) {
            let other = env.with_room(table, slot);
            env.trace(Step::Full, id, other);
            if other == 0 {
                return NO_BACKEND;
            }
            id = other;
        }
    }
    if env.backend_of(work.listener, id).is_none() {
        return 0;
    }
    work.way = way;
    work.new = FlowWord::new(hash.fingerprint(), id, state, now);
    work.begins = 1;
    id
}

/// The backend that a sticky client has; 0 when it has none that takes new flows.
#[inline(always)]
fn stuck<E: Env>(env: &E, work: &mut Work, listener: &Listener, now: u16) -> u32 {
    work.sticky = StickyKey { client: work.client, service: listener.service };
    let Some(Sticky { server, time, .. }) = env.sticky(&work.sticky) else { return 0 };
    if now.wrapping_sub(time) > listener.sticky_ticks {
        return 0;
    }
    let Some(id) = env.sibling(&SiblingKey { listener: work.listener, server }) else { return 0 };
    match env.backend_of(work.listener, id) {
        Some(backend) if backend.flags.has(BackendFlags::IN_TABLE) => {
            env.trace(Step::Stuck, id, server);
            id
        }
        _ => 0,
    }
}

/// What the scheduler goes by: the flow, or the client's address alone.
#[inline(always)]
fn scheduled<E: Env>(env: &E, work: &Work, listener: &Listener) -> FlowHash {
    if listener.scheduler != SchedulerCode::SOURCE_HASH {
        return FlowHash(work.hash);
    }
    const TCP: u8 = 6;
    if listener.family == 4 {
        let client = unmapped(&work.client);
        hash::flow4(env.hash_key(), client, client, 0, TCP)
    } else {
        hash::flow6(env.hash_key(), &work.client, &work.client, 0, TCP)
    }
}

/// The slot, from `start` on, whose backend has the fewest live flows for its weight. At most 64 are looked
/// at.
#[inline(always)]
pub fn least_loaded<E: Env + ?Sized>(env: &E, table: TableRef, start: u32) -> u32 {
    let mut best = start;
    for part in 0..COMPARED / PART {
        best = env.less_loaded(table, start, best, part * PART);
    }
    best
}

/// Of `best` and eight slots from `start + from` on, the one whose backend has the fewest live flows for its weight; of
/// equals the first.
#[inline(always)]
pub fn less_loaded<E: Env + ?Sized>(env: &E, table: TableRef, start: u32, best: u32, from: u32) -> u32 {
    let size = table.size();
    let mut best = best;
    let Some((mut live, mut weight)) = load_of(env, table, best) else { return best };
    for step in 0..PART {
        if from.wrapping_add(step) >= size {
            break;
        }
        let Some(slot) = start.wrapping_add(from).wrapping_add(step).checked_rem(size) else { break };
        let Some((count, share)) = load_of(env, table, slot) else { break };
        // As fractions, so that nothing is divided.
        if count * weight < live * share {
            best = slot;
            live = count;
            weight = share;
        }
    }
    best
}

/// How many live flows the backend in a slot would have, and its weight.
#[inline(always)]
fn load_of<E: Env + ?Sized>(env: &E, table: TableRef, slot: u32) -> Option<(u64, u64)> {
    let id = env.table_slot(table.offset().wrapping_add(slot))?;
    let weight = env.backend(id)?.weight;
    Some((env.live(id).flows() + 1, if weight == 0 { 1 } else { u64::from(weight) }))
}

/// Whether a backend has as many flows as it may.
#[inline(always)]
fn is_full<E: Env + ?Sized>(env: &E, id: u32) -> bool {
    match env.backend(id) {
        Some(backend) => backend.flags.has(BackendFlags::LIMITED) && env.live(id).is_full(),
        None => false,
    }
}

/// The first backend, from the slot `start` on, that may have another flow; 0 when none of 64 slots has one.
#[inline(always)]
pub fn with_room<E: Env + ?Sized>(env: &E, table: TableRef, start: u32) -> u32 {
    for part in 0..COMPARED / PART {
        let id = env.room_among(table, start, part * PART);
        if id != 0 {
            return id;
        }
    }
    0
}

/// The first backend in eight slots from `start + from` on that may have another flow; 0 when none has.
#[inline(always)]
pub fn room_among<E: Env + ?Sized>(env: &E, table: TableRef, start: u32, from: u32) -> u32 {
    let size = table.size();
    for step in 0..PART {
        if from.wrapping_add(step) >= size {
            break;
        }
        let Some(slot) = start.wrapping_add(from).wrapping_add(step).checked_rem(size) else { break };
        let Some(id) = env.table_slot(table.offset().wrapping_add(slot)) else { break };
        if !is_full(env, id) {
            return id;
        }
    }
    0
}

/// The state of a known flow after this packet; `Free` when the packet starts a new flow with the same ports.
#[inline(always)]
fn continued(state: FlowState, flags: Option<TcpFlags>, backend: BackendFlags) -> FlowState {
    match flags {
        // A datagram needs no connection: it goes on to a backend that is up.
        None if matches!(state, FlowState::Datagram) && !backend.has(BackendFlags::DOWN) => state,
        None => FlowState::Free,
        // A SYN for a living connection is stray or forged, or its client has forgotten it. The backend knows: it
        // asks the client where it stands (RFC 5961 section 4), and a client that has forgotten answers with a RST.
        Some(flags) if flags.opens() => match state {
            FlowState::Opening | FlowState::Answered | FlowState::Established
                if !backend.has(BackendFlags::DOWN) =>
            {
                state
            }
            _ => FlowState::Free,
        },
        Some(_) if matches!(state, FlowState::Direct) => FlowState::Free,
        Some(flags) => flow::after_client(state, flags),
    }
}

/// The state in which a new flow is recorded; `Free` when it is not worth a record.
#[inline(always)]
fn first(flags: Option<TcpFlags>) -> FlowState {
    match flags {
        None => FlowState::Datagram,
        Some(flags) if flags.has(TcpFlags::RST) => FlowState::Free,
        Some(flags) if flags.has(TcpFlags::SYN) => FlowState::Opening,
        Some(flags) if flags.has(TcpFlags::FIN) => FlowState::ClientClosed,
        // Its record was lost; the table's answer is the same unless the backends have changed meanwhile.
        Some(_) => FlowState::Established,
    }
}

/// Whether an opening flow with this segment is to be offered to another backend.
#[inline(always)]
fn may_move(listener: &Listener, flags: Option<TcpFlags>) -> bool {
    let opens = match flags {
        Some(flags) => flags.opens(),
        None => false,
    };
    // With nobody left in the table the flow stays with the backend it has, which may be draining.
    opens && listener.flags.has(ListenerFlags::SECOND_CHANCE) && listener.current_table().size() != 0
}

/// Records what [`choose`] has decided, once it is sure that the packet is sent. Says the place of the flow whose
/// tuple is new, or [`NO_PLACE`].
#[inline(always)]
pub fn commit<E: Env>(env: &E, work: &mut Work) -> u32 {
    if work.way == NO_WAY {
        if work.begins != 0 {
            work.place = NO_PLACE;
        }
        return NO_PLACE;
    }
    let Some(line) = env.flow_line(work.line) else { return NO_PLACE };
    let new = work.new;
    let mut way = work.way as usize;
    if work.way == ANY_WAY {
        let recorded = flow::record(env, line, new);
        if recorded.way >= WAYS {
            env.count(Reason::FlowNotRecorded);
            work.place = NO_PLACE;
            return NO_PLACE;
        }
        if recorded.evicted {
            env.count(Reason::FlowEvicted);
        }
        way = recorded.way;
    } else {
        work.place = work.line.wrapping_mul(WAYS as u32).wrapping_add(way as u32);
        // Losing the race to the other direction's packet loses a second of idle time at most.
        if !env.change(line, way, work.old, new) {
            if work.begins != 0 {
                work.place = NO_PLACE;
            }
            return NO_PLACE;
        }
        if work.begins == 0 {
            if work.old.backend() != new.backend() {
                env.count(Reason::SecondChance);
                env.count_moved_away(work.old.backend());
            }
            return NO_PLACE;
        }
    }
    let place = work.line.wrapping_mul(WAYS as u32).wrapping_add(way as u32);
    work.place = place;
    work.snat_known = 0;
    reverse::release(env, work, place);
    env.record_tuple(place, &tuple(work));
    stick(env, work, new);
    place
}

/// The tuple of the flow in hand, without an entry for the way back.
#[inline(always)]
pub(super) fn tuple(work: &Work) -> FlowTuple {
    FlowTuple {
        client: work.client,
        client_port: work.client_port,
        vip_port: work.vip_port,
        listener: work.listener,
        partner: 0,
        snat_port: crate::abi::Be16::new(0),
        snat_index: 0,
    }
}

/// Remembers where a sticky client went.
#[inline(always)]
fn stick<E: Env>(env: &E, work: &mut Work, new: FlowWord) {
    let Some(listener) = env.listener(work.listener) else { return };
    if !listener.flags.has(ListenerFlags::STICKY) {
        return;
    }
    if let Some(backend) = env.backend(new.backend()) {
        work.sticky = StickyKey { client: work.client, service: listener.service };
        env.stick(&work.sticky, &Sticky { server: backend.server, time: new.time(), pad: 0 });
    }
}
