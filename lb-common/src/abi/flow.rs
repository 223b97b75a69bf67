//! Values of `FLOWS` and `FLOW_TUPLES`: the flow table.
//!
//! A line of `FLOWS` is one cache line of eight words. A packet looks at one line only, chosen by the keyed hash of its
//! 5-tuple; the word that carries the hash's fingerprint is its flow. The full tuple stands at the same place in
//! `FLOW_TUPLES`, for the daemon: the packet path writes it once and never reads it.

use bytemuck::{Pod, Zeroable};

use super::net::Be16;

/// Words in a line: one 64-byte cache line.
pub const WAYS: usize = 8;

/// A line of `FLOWS`.
pub type FlowLine = [u64; WAYS];

/// A flow's fingerprint, backend, state and the time of its last packet, in one word that is replaced by
/// compare-and-swap:
///
/// | bits | |
/// |---|---|
/// | 63..40 | fingerprint: low 24 bits of the flow's hash |
/// | 39..37 | how often an opening flow was moved to another backend; stays at 7 |
/// | 36..20 | backend's number |
/// | 19..16 | [`FlowState`] |
/// | 15..0 | coarse time of the last packet, in ticks of about a second, wrapping |
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowWord(pub u64);

impl FlowWord {
    pub const FREE: Self = Self(0);

    #[inline(always)]
    pub const fn new(fingerprint: u32, backend: u32, state: FlowState, time: u16) -> Self {
        Self(
            ((fingerprint as u64) & 0xff_ffff) << 40
                | ((backend as u64) & 0x1_ffff) << 20
                | (state as u64) << 16
                | time as u64,
        )
    }

    /// The same flow, opening at another backend.
    #[must_use]
    #[inline(always)]
    pub const fn moved(self, backend: u32, time: u16) -> Self {
        let times = if self.moves() < 7 { self.moves() + 1 } else { 7 };
        Self(Self::new(self.fingerprint(), backend, FlowState::Opening, time).0 | (times as u64) << 37)
    }

    /// How often the flow was moved while it was opening; 7 for more.
    #[inline(always)]
    pub const fn moves(self) -> u32 {
        (self.0 >> 37) as u32 & 7
    }

    #[inline(always)]
    pub const fn fingerprint(self) -> u32 {
        (self.0 >> 40) as u32
    }

    #[inline(always)]
    pub const fn backend(self) -> u32 {
        (self.0 >> 20) as u32 & 0x1_ffff
    }

    #[inline(always)]
    pub const fn state(self) -> FlowState {
        FlowState::from_bits((self.0 >> 16) as u8 & 0xf)
    }

    #[inline(always)]
    pub const fn time(self) -> u16 {
        self.0 as u16
    }

    #[inline(always)]
    pub const fn is_free(self) -> bool {
        self.0 & 0xf_0000 == 0
    }

    #[must_use]
    #[inline(always)]
    pub const fn at(self, state: FlowState, time: u16) -> Self {
        Self(self.0 & !0xf_ffff | (state as u64) << 16 | time as u64)
    }
}

/// How far a connection has come, as seen from between its ends.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FlowState {
    Free = 0,
    /// SYN forwarded, nothing heard from the backend.
    Opening = 1,
    /// The backend's SYN-ACK was forwarded.
    Answered = 2,
    /// The client has acknowledged.
    Established = 3,
    /// The client has sent its FIN.
    ClientClosed = 4,
    /// The backend has sent its FIN.
    BackendClosed = 5,
    /// Both have, or one has sent a RST.
    Closed = 6,
    /// UDP.
    Datagram = 7,
    /// A connection that a client made to the backend's own address: passed, never rewritten.
    Direct = 8,
    /// Not a flow but the way back of one, found by the backend's address and what it answers to.
    Reverse = 9,
}

impl FlowState {
    #[inline(always)]
    pub const fn from_bits(bits: u8) -> Self {
        match bits {
            1 => Self::Opening,
            2 => Self::Answered,
            3 => Self::Established,
            4 => Self::ClientClosed,
            5 => Self::BackendClosed,
            6 => Self::Closed,
            7 => Self::Datagram,
            8 => Self::Direct,
            9 => Self::Reverse,
            _ => Self::Free,
        }
    }

    /// Whether it counts among its backend's live flows.
    #[inline(always)]
    pub const fn is_live(self) -> bool {
        !matches!(self, Self::Free | Self::Closed | Self::Direct | Self::Reverse)
    }

    /// The name that the command line and the API use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Opening => "opening",
            Self::Answered => "answered",
            Self::Established => "established",
            Self::ClientClosed | Self::BackendClosed => "closing",
            Self::Closed => "closed",
            Self::Datagram => "datagram",
            Self::Direct => "direct",
            Self::Reverse => "reverse",
        }
    }
}

/// Value of `FLOW_TUPLES`, at index `line * WAYS + way`. Protocol and VIP are the listener's. A flow and its entry
/// for the way back have the same but for `partner`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FlowTuple {
    /// IPv4 as mapped address.
    pub client: [u8; 16],
    pub client_port: Be16,
    pub vip_port: Be16,
    #[cfg(not(feature = "next-layout"))]
    pub listener: u32,
    /// The place of the entry for the other direction, and one; 0 for none.
    pub partner: u32,
    #[cfg(feature = "next-layout")]
    pub listener: u32,
    /// With `snat`, what stands for the client's port, and the index in `SNAT_ADDRESSES` of what stands for its address.
    pub snat_port: Be16,
    pub snat_index: u16,
}

const _: () = assert!(size_of::<FlowLine>() == 64);
const _: () = assert!(size_of::<FlowTuple>() == 32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_word_do_not_touch() {
        let word = FlowWord::new(0xff_ffff, 0x1_ffff, FlowState::Direct, 0xffff);
        assert_eq!(
            (word.fingerprint(), word.moves(), word.backend(), word.state(), word.time()),
            (0xff_ffff, 0, 0x1_ffff, FlowState::Direct, 0xffff)
        );
        let mut word = FlowWord::new(1, 2, FlowState::Opening, 3);
        for times in 1..10 {
            word = word.moved(0x1_ffff - times, 4);
            assert_eq!(word.moves(), times.min(7));
            assert_eq!((word.fingerprint(), word.backend(), word.time()), (1, 0x1_ffff - times, 4));
        }
        assert_eq!(word.at(FlowState::Established, 9).moves(), 7);
    }
}
