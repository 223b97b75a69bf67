//! What the packet code asks of its surroundings: the maps, the clock, the routing table, the counters.

use crate::abi::net::{Be16, Protocol};
use crate::abi::{Backend, FlowTuple, FlowWord, Listener, Side};
use crate::hash::Key;
use crate::packet::eth::Mac;
use crate::packet::ip4::Ipv4;
use crate::packet::ip6::Ipv6;
use crate::verdict::Reason;

/// One line of the flow table, shared with other CPUs.
pub trait Line: Copy {
    fn load(&self, way: usize) -> FlowWord;

    /// Replaces the word at `way` if it is still `old`; says whether it did.
    fn replace(&self, way: usize, old: FlowWord, new: FlowWord) -> bool;
}

/// Where a packet leaves, by the kernel's routing table and neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    Via {
        ifindex: u32,
        source: Mac,
        destination: Mac,
    },
    /// The kernel knows the way but not yet the neighbour's MAC address.
    NeighbourUnknown,
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

impl Route {
    /// A digit for each kind, for traces.
    pub const fn number(self) -> u32 {
        match self {
            Self::Via { .. } => 0,
            Self::NeighbourUnknown => 1,
            Self::TooBig => 2,
            Self::NotForwarded => 3,
            Self::Refused => 4,
            Self::ForwardingDisabled => 5,
            Self::Unsupported => 6,
        }
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
    /// The kernel knows the way or not: [`Route::number`].
    Routed,
    /// The end: the [`Reason`] and what the driver is told.
    Done,
}

/// The surroundings. Implemented over BPF maps and helpers, and over plain memory.
pub trait Env {
    type Line: Line;
    type Key: Key;

    fn endpoint4(&self, side: Side, addr: [u8; 4], port: Be16, protocol: Protocol) -> Option<u32>;
    fn endpoint6(&self, side: Side, addr: [u8; 16], port: Be16, protocol: Protocol) -> Option<u32>;

    /// `None` only for a number outside the map.
    fn listener(&self, id: u32) -> Option<&Listener>;
    fn backend(&self, id: u32) -> Option<&Backend>;
    /// The backend in a slot of `TABLES`.
    fn table_slot(&self, index: u32) -> Option<u32>;

    fn hash_key(&self) -> &Self::Key;
    /// Number of lines in the flow table.
    fn flow_lines(&self) -> u32;
    fn flow_line(&self, line: u32) -> Option<Self::Line>;
    fn record_tuple(&self, index: u32, tuple: &FlowTuple);

    /// Coarse time in ticks of about a second.
    fn now(&self) -> u16;
    /// Index of the interface the packet came in on.
    fn ingress(&self) -> u32;
    /// Where a packet with this header goes.
    fn route4(&self, ip: &Ipv4, protocol: Protocol) -> Route;
    fn route6(&self, ip: &Ipv6, protocol: Protocol) -> Route;

    fn count(&self, reason: Reason);
    fn count_to_backend(&self, id: u32, bytes: u32);
    fn count_from_backend(&self, id: u32, bytes: u32);

    fn trace(&self, step: Step, first: u32, second: u32);
}
