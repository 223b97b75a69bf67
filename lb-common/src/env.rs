//! What the packet code asks of its surroundings: the maps, the clock, the routing table, the counters.

use crate::abi::net::{Be16, Protocol};
use crate::abi::{Backend, FlowTuple, FlowWord, Listener, Side, TableRef};
use crate::flow;
use crate::hash::Key;
use crate::maglev;
use crate::packet::eth::Macs;
use crate::packet::ip4::Ipv4;
use crate::packet::ip6::Ipv6;
use crate::verdict::Reason;

/// One line of the flow table, shared with other CPUs.
pub trait Line: Copy {
    fn load(&self, way: usize) -> FlowWord;

    /// Replaces the word at `way` if it is still `old`; says whether it did.
    fn replace(&self, way: usize, old: FlowWord, new: FlowWord) -> bool;

    /// As [`flow::find`]. The program calls it as a function that the verifier checks on its own: explored inside
    /// each of its callers, the ways would multiply their paths.
    #[inline(always)]
    fn find(&self, fingerprint: u32) -> usize {
        flow::find(*self, fingerprint)
    }

    /// As [`flow::victim`], with the same remark.
    #[inline(always)]
    fn victim(&self, now: u16) -> usize {
        flow::victim(*self, now)
    }
}

/// What the kernel's routing table and neighbours say of a destination.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// By the interface and MAC addresses in the [`Route`].
    Known,
    /// The kernel knows the way but not yet the neighbour's MAC address.
    NeighbourUnknown,
    /// The kernel knows the way, by an interface that does not carry the program: its driver may be unable to send what
    /// XDP redirects, and would lose it silently.
    Elsewhere,
    /// Larger than the MTU on the way.
    TooBig,
    /// The destination is the gateway itself, or there is no route.
    NotForwarded,
    /// The routing table forbids it: blackhole, unreachable, prohibit.
    Refused,
    /// The interface the packet came in on does not forward.
    ForwardingDisabled,
    /// The route encapsulates.
    Unsupported,
}

/// Where a packet leaves. Not an enum with fields, as the verifier refuses a program that copies undefined ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    pub reach: Reach,
    /// These mean something with [`Reach::Known`] only.
    pub ifindex: u32,
    pub macs: Macs,
}

impl Route {
    /// No way out, for this reason.
    pub const fn none(reach: Reach) -> Self {
        Self { reach, ifindex: 0, macs: Macs { destination: [0; 6], source: [0; 6] } }
    }
}

/// The steps of a packet's way, when tracing is on. Each has up to two numbers beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// For a listener: its number.
    Listener,
    /// From a backend: its number.
    FromBackend,
    /// The flow is known: its backend and state.
    Flow,
    NoFlow,
    /// The scheduler chose: the slot, and the backend in it.
    Picked,
    /// The flow's backend did not answer: it, and the one tried next.
    Moved,
    /// The kernel knows the way or not: [`Reach`].
    Routed,
    /// The end: the [`Reason`] and what the driver is told.
    Done,
}

/// The surroundings. Implemented over BPF maps and helpers, and over plain memory.
pub trait Env {
    type Line: Line;
    type Key: Key;

    fn endpoint4(&self, side: Side, addr: &[u8; 4], port: Be16, protocol: Protocol) -> Option<u32>;
    fn endpoint6(&self, side: Side, addr: &[u8; 16], port: Be16, protocol: Protocol) -> Option<u32>;

    /// `None` only for a number outside the map.
    fn listener(&self, id: u32) -> Option<&Listener>;
    fn backend(&self, id: u32) -> Option<&Backend>;
    /// The backend in a slot of `TABLES`.
    fn table_slot(&self, index: u32) -> Option<u32>;

    /// As [`maglev::next`] on a listener's table, with the remark of [`Line::find`].
    #[inline(always)]
    fn next_candidate(&self, table: TableRef, slot: u32, current: u32) -> u32 {
        maglev::next(|i| self.table_slot(table.offset().wrapping_add(i)), table.size(), slot, current)
    }

    fn hash_key(&self) -> &Self::Key;
    /// Number of lines in the flow table.
    fn flow_lines(&self) -> u32;
    fn flow_line(&self, line: u32) -> Option<Self::Line>;
    fn record_tuple(&self, index: u32, tuple: &FlowTuple);

    /// Coarse time in ticks of about a second.
    fn now(&self) -> u16;
    /// Index of the interface the packet came in on.
    fn ingress(&self) -> u32;
    /// Whether the interface with this index carries the program.
    fn is_port(&self, ifindex: u32) -> bool;
    /// Where a packet with this header goes.
    fn route4(&self, ip: &Ipv4, protocol: Protocol) -> Route;
    fn route6(&self, ip: &Ipv6, protocol: Protocol) -> Route;

    /// A number that grows by one at each call for the same listener on the same CPU.
    fn turn(&self, listener: u32) -> u32;
    fn random(&self) -> u32;

    fn count(&self, reason: Reason);
    fn count_to_backend(&self, id: u32, bytes: u32);
    fn count_from_backend(&self, id: u32, bytes: u32);
    fn count_moved_away(&self, id: u32);

    fn trace(&self, step: Step, first: u32, second: u32);
}
