//! What the packet code asks of its surroundings: the maps, the clock, the routing table, the counters.

use core::cell::Cell;

use crate::abi::{
    Backend, BackendFlags, ClientHop, Fragment, FragmentKey, Listener, Live, NextHop, Port, SiblingKey,
    Sticky, StickyKey, TableRef, VlanKey,
};
use crate::abi::{FlowTuple, FlowWord, Protocol};
use crate::flow;
use crate::hash::{EndpointHash, Key};
use crate::maglev;
use crate::packet::eth::Macs;
use crate::pipeline::{Work, reverse, select};
use crate::verdict::Reason;

/// One line of the flow table, shared with other CPUs.
pub trait Line: Copy {
    fn load(&self, way: usize) -> FlowWord;

    /// Replaces the word at `way` if it is still `old`; says whether it did.
    fn replace(&self, way: usize, old: FlowWord, new: FlowWord) -> bool;

    /// As [`flow::victim`]. The program calls it as a function that the verifier checks on its own: explored inside
    /// each of its callers, the ways would multiply their paths.
    #[inline(always)]
    fn victim(&self, fingerprint: u32, now: u16) -> usize {
        flow::victim(*self, fingerprint, now)
    }
}

/// What the kernel's routing table and neighbours say of a destination.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    #[default]
    NotForwarded,
    /// The routing table forbids it: blackhole, unreachable, prohibit.
    Refused,
    /// The interface the packet came in on does not forward.
    ForwardingDisabled,
    /// The route encapsulates.
    Unsupported,
    /// No daemon has been alive for longer than packets are forwarded without one.
    Abandoned,
}

impl Reach {
    /// The one with this discriminant.
    pub fn from_number(number: u32) -> Option<Self> {
        const ALL: [Reach; 9] = [
            Reach::Known,
            Reach::NeighbourUnknown,
            Reach::Elsewhere,
            Reach::TooBig,
            Reach::NotForwarded,
            Reach::Refused,
            Reach::ForwardingDisabled,
            Reach::Unsupported,
            Reach::Abandoned,
        ];
        ALL.get(number as usize).copied()
    }
}

/// Where a packet leaves. Not an enum with fields, as the verifier refuses a program that copies undefined ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Route {
    pub reach: Reach,
    /// Bytes of the largest IP packet, with [`Reach::Known`] and [`Reach::TooBig`].
    pub mtu: u16,
    /// These mean something with [`Reach::Known`] only.
    pub ifindex: u32,
    pub macs: Macs,
}

impl Route {
    /// No way out, for this reason.
    pub const fn none(reach: Reach) -> Self {
        Self { reach, mtu: 0, ifindex: 0, macs: Macs { destination: [0; 6], source: [0; 6] } }
    }
}

/// A question to the routing table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// IPv4 as mapped address.
    pub source: [u8; 16],
    pub destination: [u8; 16],
    /// The interface the packet came in on: a VLAN's own where that is known.
    pub ingress: u32,
    /// Bytes of the IP packet.
    pub len: u16,
    pub protocol: u8,
    /// Type of service or traffic class.
    pub class: u8,
    /// Flow label and class of an IPv6 packet, in network byte order.
    pub flow_info: [u8; 4],
    pub v6: bool,
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
    /// The client had a backend already: its number.
    Stuck,
    /// How the packet travels: [`crate::abi::Mode`], and the backend.
    Mode,
    /// The client's port is replaced: by which, and the index of the address.
    Snat,
    /// The way back was found in the flow table: the backend, and the place of the flow.
    Reverse,
    /// An ICMP error: type and code.
    IcmpError,
    /// A later fragment of a known datagram: its backend, and 1 if it comes from there.
    Fragment,
    /// VLAN tags taken off: how many, and the interface they stand for.
    Tags,
    /// A backend has as many flows as it may: it, and the one that gets the new flow; 0 when all that were looked at are
    /// full.
    Full,
}

impl Step {
    /// All, in the order of their numbers.
    pub const ALL: &'static [Self] = &[
        Self::Listener,
        Self::FromBackend,
        Self::Flow,
        Self::NoFlow,
        Self::Picked,
        Self::Moved,
        Self::Routed,
        Self::Done,
        Self::Stuck,
        Self::Mode,
        Self::Snat,
        Self::Reverse,
        Self::IcmpError,
        Self::Fragment,
        Self::Tags,
        Self::Full,
    ];

    /// As it stands in a map; 0 is none.
    pub const fn number(self) -> u32 {
        self as u32 + 1
    }

    /// The way back from [`Self::number`].
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(number.checked_sub(1)? as usize).copied()
    }
}

/// The surroundings. Implemented over BPF maps and helpers, and over plain memory.
pub trait Env {
    type Line: Line;
    type Key: Key;

    /// Nothing is ever written, so that what was freed is still there when it is looked for. Only for those parts that
    /// would see the difference.
    const DRY: bool = false;

    /// Where an endpoint may lead: a number that the record it names must confirm; 0 for nowhere.
    fn find_endpoint(&self, hash: EndpointHash) -> u32;
    /// As [`crate::abi::Settings::features`].
    fn features(&self) -> crate::abi::Features;
    /// As [`crate::abi::Settings::route_epoch`].
    fn route_epoch(&self) -> u32;
    fn settings(&self) -> Option<&crate::abi::Settings>;

    /// `None` only for a number outside the map.
    fn listener(&self, id: u32) -> Option<&Listener>;
    fn backend(&self, id: u32) -> Option<&Backend>;
    /// The backend in a slot of `TABLES`.
    fn table_slot(&self, index: u32) -> Option<u32>;

    /// As [`maglev::next`] on a listener's table, with the remark of [`Line::victim`].
    #[inline(always)]
    fn next_candidate(&self, table: TableRef, slot: u32, current: u32) -> u32 {
        maglev::next(|i| self.table_slot(table.offset().wrapping_add(i)), table.size(), slot, current)
    }

    /// As [`select::least_loaded`], with the same remark.
    #[inline(always)]
    fn least_loaded(&self, table: TableRef, start: u32) -> u32 {
        select::least_loaded(self, table, start)
    }

    /// As [`select::with_room`], with the same remark.
    #[inline(always)]
    fn with_room(&self, table: TableRef, start: u32) -> u32 {
        select::with_room(self, table, start)
    }

    /// As [`select::less_loaded`], with the same remark.
    #[inline(always)]
    fn less_loaded(&self, table: TableRef, start: u32, best: u32, from: u32) -> u32 {
        select::less_loaded(self, table, start, best, from)
    }

    /// As [`select::room_among`], with the same remark.
    #[inline(always)]
    fn room_among(&self, table: TableRef, start: u32, from: u32) -> u32 {
        select::room_among(self, table, start, from)
    }

    /// As [`select::choose`], with the same remark.
    #[inline(always)]
    fn choose(&self, work: &mut Work) -> u32
    where
        Self: Sized,
    {
        select::choose(self, work)
    }

    /// As [`select::commit`], with the same remark.
    #[inline(always)]
    fn commit(&self, work: &mut Work) -> u32
    where
        Self: Sized,
    {
        select::commit(self, work)
    }

    /// As [`reverse::record`], with the same remark.
    #[inline(always)]
    fn record_reverse(&self, work: &mut Work) -> u32
    where
        Self: Sized,
    {
        reverse::record(self, work)
    }

    /// As [`reverse::attempt`], with the same remark.
    #[inline(always)]
    fn attempt_reverse(&self, work: &mut Work, port: u32, index: u32, first: bool) -> u32
    where
        Self: Sized,
    {
        reverse::attempt(self, work, port, index, first)
    }

    /// As [`reverse::forget`], with the same remark.
    #[inline(always)]
    fn forget_reverse(&self, place: u32)
    where
        Self: Sized,
    {
        reverse::forget(self, place);
    }

    fn hash_key(&self) -> &Self::Key;
    /// Number of lines in the flow table.
    fn flow_lines(&self) -> u32;
    fn flow_line(&self, line: u32) -> Option<Self::Line>;
    fn record_tuple(&self, index: u32, tuple: &FlowTuple);
    fn tuple(&self, index: u32) -> Option<FlowTuple>;
    /// Adds to a backend's live flows.
    fn add_live(&self, backend: u32, by: i64);
    fn live(&self, backend: u32) -> Live;
    /// Whether this CPU may record another flow of the listener in this tick, of which it may record `limit`.
    fn admit(&self, listener: u32, limit: u32) -> bool;

    fn sticky(&self, key: &StickyKey) -> Option<Sticky>;
    fn stick(&self, key: &StickyKey, value: &Sticky);
    fn sibling(&self, key: &SiblingKey) -> Option<u32>;
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment>;
    fn remember_fragment(&self, key: &FragmentKey, value: &Fragment);
    fn snat_address(&self, index: u32) -> Option<&[u8; 16]>;

    /// Coarse time in ticks of about a second.
    fn now(&self) -> u16;
    /// Index of the interface the packet came in on.
    fn ingress(&self) -> u32;
    /// The interface of this index, if it carries the program or is a VLAN on one that does.
    fn port(&self, ifindex: u32) -> Option<&Port>;
    /// The interface of a VLAN; 0 when it is not this machine's.
    fn vlan(&self, key: &VlanKey) -> u32;
    /// Where packets to a backend went a moment ago. This CPU's own.
    fn backend_hop(&self, id: u32) -> Option<&Cell<NextHop>>;
    /// Likewise for clients, `index` below [`crate::abi::hop::CLIENT_HOPS`].
    fn client_hop(&self, index: u32) -> Option<&Cell<ClientHop>>;
    /// Whether packets are to be forwarded no more, as no daemon has been alive for so long.
    fn is_abandoned(&self) -> bool;
    /// Asks the routing table.
    fn route(&self, query: &Query) -> Route;
    /// Hands the frame to the daemon, which runs it again later. False when there is no room.
    fn hold(&self) -> bool;

    /// A number that grows by one at each call for the same listener on the same CPU.
    fn turn(&self, listener: u32) -> u32;
    fn random(&self) -> u32;

    fn count(&self, reason: Reason);
    fn count_to_backend(&self, id: u32, bytes: u32);
    fn count_from_backend(&self, id: u32, bytes: u32);
    fn count_moved_away(&self, id: u32);

    /// Whether packets may take the short way, of which nothing is traced.
    fn has_short_way(&self) -> bool;
    /// A packet took it: so that tests know that they have tried it.
    #[inline(always)]
    fn took_short_way(&self) {}
    fn trace(&self, step: Step, first: u32, second: u32);

    /// Replaces a word of the flow table and keeps the counts of live flows. True if it did.
    #[inline(always)]
    fn change(&self, line: Self::Line, way: usize, old: FlowWord, new: FlowWord) -> bool {
        if !line.replace(way, old, new) {
            return false;
        }
        let (was, is) = (old.state().is_live(), new.state().is_live());
        let moved = old.backend() != new.backend();
        if was && (!is || moved) {
            self.add_live(old.backend(), -1);
        }
        if is && (!was || moved) {
            self.add_live(new.backend(), 1);
        }
        true
    }

    /// A backend's record if it is in use and belongs to this listener.
    #[inline(always)]
    fn backend_of(&self, listener: u32, id: u32) -> Option<&Backend> {
        let backend = self.backend(id)?;
        (id != 0 && backend.flags.has(BackendFlags::VALID) && backend.listener == listener).then_some(backend)
    }
}

/// The protocol's number in hashes and endpoints.
#[inline(always)]
pub const fn number(protocol: Protocol) -> u8 {
    protocol.number()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lead_back_to_what_they_stand_for() {
        for step in Step::ALL {
            assert_eq!(Step::from_number(step.number()), Some(*step));
        }
        assert_eq!(Step::from_number(0), None);
        assert_eq!(Step::from_number(Step::ALL.len() as u32 + 1), None);
        for number in 0..8 {
            assert_eq!(Reach::from_number(number).map(|reach| reach as u32), Some(number));
        }
        assert_eq!(Reach::from_number(9), None);
    }
}
