//! The flow table's rules: finding a flow, making room for one, following its state.

use crate::abi::flow::{FlowState, FlowWord, WAYS};
use crate::env::Line;
use crate::packet::tcp::TcpFlags;

/// The way in a line that holds a flow of this fingerprint; [`WAYS`] when none does.
#[inline(always)]
pub fn find<L: Line>(line: L, fingerprint: u32) -> usize {
    for way in 0..WAYS {
        let word = line.load(way);
        if word.fingerprint() == fingerprint && !word.is_free() {
            return way;
        }
    }
    WAYS
}

/// The way in a line that is free, or whose flow's loss hurts least: closed, the oldest opening one, ...
#[inline(always)]
pub fn victim<L: Line>(line: L, now: u16) -> usize {
    let mut victim = 0;
    let mut least = u32::MAX;
    for way in 0..WAYS {
        let word = line.load(way);
        let age = now.wrapping_sub(word.time());
        let cost = rank(word.state()) << 16 | u32::from(u16::MAX - age);
        if cost < least {
            least = cost;
            victim = way;
        }
    }
    victim
}

/// What became of a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Where it stands; [`WAYS`]: nowhere, as every flow in the line is worth more.
    pub way: usize,
    /// In the place of another flow.
    pub evicted: bool,
}

/// How much losing a flow hurts; 0 is free room.
const fn rank(state: FlowState) -> u32 {
    match state {
        FlowState::Free => 0,
        FlowState::Closed => 1,
        FlowState::Opening | FlowState::Answered => 2,
        FlowState::ClientClosed | FlowState::BackendClosed => 3,
        FlowState::Datagram | FlowState::Direct => 4,
        FlowState::Established => 5,
    }
}

/// The highest rank that a new flow in this state may evict. A SYN, which costs its sender nothing, never evicts what
/// has proved to be alive; a flow that is alive already but unknown may evict any, the most idle one.
const fn may_evict(state: FlowState) -> u32 {
    match state {
        FlowState::Opening => 3,
        FlowState::Datagram => 4,
        FlowState::Established => 5,
        FlowState::Direct => 1,
        FlowState::Free
        | FlowState::Answered
        | FlowState::ClientClosed
        | FlowState::BackendClosed
        | FlowState::Closed => 0,
    }
}

/// Whether [`record`] would find a place for a new flow in this state.
#[inline(always)]
pub fn takes<L: Line>(line: L, state: FlowState, now: u16) -> bool {
    rank(line.load(line.victim(now)).state()) <= may_evict(state)
}

/// Puts a new flow into its line, in the place of the one that hurts least.
#[inline(always)]
pub fn record<L: Line>(line: L, new: FlowWord) -> Recorded {
    let way = line.victim(new.time());
    let old = line.load(way);
    if rank(old.state()) > may_evict(new.state()) || !line.replace(way, old, new) {
        return Recorded { way: WAYS, evicted: false };
    }
    Recorded { way, evicted: !old.is_free() }
}

/// The state after a segment from the client.
#[inline(always)]
pub const fn after_client(state: FlowState, flags: TcpFlags) -> FlowState {
    if flags.has(TcpFlags::RST) {
        return FlowState::Closed;
    }
    match state {
        FlowState::BackendClosed if flags.has(TcpFlags::FIN) => FlowState::Closed,
        FlowState::Closed => FlowState::Closed,
        _ if flags.has(TcpFlags::FIN) => FlowState::ClientClosed,
        FlowState::Opening | FlowState::Answered if !flags.has(TcpFlags::SYN) && flags.has(TcpFlags::ACK) => {
            FlowState::Established
        }
        other => other,
    }
}

/// The state after a segment from the backend.
#[inline(always)]
pub const fn after_backend(state: FlowState, flags: TcpFlags) -> FlowState {
    if flags.has(TcpFlags::RST) {
        return FlowState::Closed;
    }
    match state {
        FlowState::ClientClosed if flags.has(TcpFlags::FIN) => FlowState::Closed,
        FlowState::Closed => FlowState::Closed,
        _ if flags.has(TcpFlags::FIN) => FlowState::BackendClosed,
        FlowState::Opening if flags.answers() => FlowState::Answered,
        other => other,
    }
}

/// Whether a line has a free way.
#[inline(always)]
pub fn has_room<L: Line>(line: L) -> bool {
    line.load(line.victim(0)).is_free()
}
