//! The flow table's rules: finding a flow, making room for one, following its state.

use crate::abi::flow::{FlowState, FlowWord, WAYS};
use crate::env::{Env, Line};
use crate::packet::tcp::TcpFlags;

/// The first way in a line that holds a flow of this fingerprint; [`WAYS`] when none does.
///
/// Without a branch: the verifier would follow eight ways out, each through all that comes after.
#[inline(always)]
pub fn find<L: Line>(line: L, fingerprint: u32) -> usize {
    first(|way| u64::from(line.load(way).fingerprint() ^ fingerprint))
}

/// The way that a flow takes when it is free, so that it is looked for there first.
#[inline(always)]
pub const fn preferred(fingerprint: u32) -> usize {
    fingerprint as usize & (WAYS - 1)
}

/// As [`find`], for a flow that most likely is there.
#[inline(always)]
pub fn find_known<L: Line>(line: L, fingerprint: u32) -> usize {
    let way = preferred(fingerprint);
    if line.load(way).fingerprint() == fingerprint { way } else { find(line, fingerprint) }
}

/// The number of the first word that is zero; eight when none is. `word` has at most 63 bits.
#[inline(always)]
pub fn first(word: impl Fn(usize) -> u64) -> usize {
    const _: () = assert!(WAYS == 8);
    let mut zeros = 0;
    for way in 0..WAYS {
        // Less one, only zero has the upper bit.
        zeros |= (word(way).wrapping_sub(1) >> 63) << way;
    }
    lowest(zeros)
}

/// The number of the lowest bit of eight that is set; eight when none is.
#[inline(always)]
const fn lowest(bits: u64) -> usize {
    // A de Bruijn sequence: the three bits from bit 5 on differ for each power of two (Leiserson, Prokop, Randall, "Using
    // de Bruijn Sequences to Index a 1 in a Computer Word", 1998). The second number has what each stands for, in
    // half bytes.
    let bit = bits & bits.wrapping_neg();
    let which = (bit.wrapping_mul(0x17) >> 5) & 7;
    let found = (0x5637_4210u64 >> (which * 4)) & 7;
    // Bit 8 of `bits - 1` is set only for zero, as `bits` has eight.
    let none = (bits.wrapping_sub(1) >> 8) & 1;
    (found | none << 3) as usize
}

/// The way in a line for a flow of this fingerprint: the one that it is looked for in first if that is free, another one that
/// is, or the one whose flow's loss hurts least: closed, the oldest opening one, ...
#[inline(always)]
pub fn victim<L: Line>(line: L, fingerprint: u32, now: u16) -> usize {
    let mut victim = preferred(fingerprint);
    if line.load(victim).is_free() {
        return victim;
    }
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
        // A reply that finds none cannot be delivered.
        FlowState::Reverse => 6,
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
        FlowState::Reverse => 4,
        FlowState::Free
        | FlowState::Answered
        | FlowState::ClientClosed
        | FlowState::BackendClosed
        | FlowState::Closed => 0,
    }
}

/// Whether [`record`] would find a place for a new flow of this fingerprint in this state.
#[inline(always)]
pub fn takes<L: Line>(line: L, fingerprint: u32, state: FlowState, now: u16) -> bool {
    rank(line.load(line.victim(fingerprint, now)).state()) <= may_evict(state)
}

/// Puts a new flow into its line, where [`victim`] says.
#[inline(always)]
pub fn record<E: Env + ?Sized>(env: &E, line: E::Line, new: FlowWord) -> Recorded {
    let way = line.victim(new.fingerprint(), new.time());
    claim(env, line, way, line.load(way), new)
}

/// Puts a new flow at this way of its line, which is [`victim`]'s, if it may have it. `old` is what stands there.
#[inline(always)]
pub fn claim<E: Env + ?Sized>(env: &E, line: E::Line, way: usize, old: FlowWord, new: FlowWord) -> Recorded {
    if rank(old.state()) > may_evict(new.state()) || !env.change(line, way, old, new) {
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
    line.load(line.victim(0, 0)).is_free()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_bit_is_found() {
        assert_eq!(lowest(0), 8);
        for bits in 1..256u64 {
            assert_eq!(lowest(bits), bits.trailing_zeros() as usize, "{bits:08b}");
        }
    }

    #[derive(Clone, Copy)]
    struct Words([FlowWord; WAYS]);

    impl Line for Words {
        fn load(&self, way: usize) -> FlowWord {
            self.0[way]
        }

        fn replace(&self, _way: usize, _old: FlowWord, _new: FlowWord) -> bool {
            false
        }
    }

    #[test]
    fn a_flow_gets_its_own_way_then_a_free_one_then_that_of_the_oldest_of_the_cheapest() {
        const NOW: u16 = 3;
        let word = |state, age: u16| FlowWord::new(1, 1, state, NOW.wrapping_sub(age));
        let mut line = Words([word(FlowState::Established, 9); WAYS]);
        (line.0[2], line.0[6]) = (FlowWord::FREE, FlowWord::FREE);
        assert_eq!(victim(line, 6, NOW), 6, "its own");
        assert_eq!(victim(line, 5, NOW), 2, "a free one");
        line.0[2] = word(FlowState::Opening, 4);
        // The clock has wrapped since.
        line.0[6] = word(FlowState::Opening, 5);
        assert_eq!(victim(line, 2, NOW), 6, "the oldest opening one");
        line.0[1] = word(FlowState::Closed, 0);
        assert_eq!(victim(line, 2, NOW), 1, "a closed one");
        assert_eq!((find_known(line, 1), find(line, 1), find_known(line, 9)), (1, 0, WAYS));
    }

    #[test]
    fn the_first_zero_is_found() {
        let words = [5, u64::MAX >> 1, 0, 1, 0, 9, 9, 9];
        assert_eq!(first(|way| words[way]), 2);
        assert_eq!(first(|_| 1), WAYS);
    }
}
