//! A flow of the other gateway becomes one of ours, or goes.
//!
//! Where both gateways have a flow and only one of them has changed it since they last agreed, that one is right. Where
//! both have, the one whose last packet is clearly younger is right; of about equal age, the states of one server's flow
//! are joined, and of two servers the one here stays. When both have told each other at once, the senior gateway decides
//! so and says what it has decided; the other one waits for that.

use std::net::IpAddr;

use lb_common::abi::flow::{FlowLine, FlowState, FlowTuple, FlowWord, WAYS};
use lb_common::env::Line;
use lb_common::flow;
use lb_common::hash::{FlowHash, flow4, flow6, ports};

use super::directory::{Directory, Resolved, Unknown};
use super::scan::Shadow;
use super::wire::Flow;
use crate::dataplane::flows::{Clock, FlowTable, hash_behind};
use crate::dataplane::image::address_bytes;

/// Ages that differ by less may be the same: clocks tick at different moments, and batches take their time. Seconds.
const SLACK: f64 = 4.0;

/// What became of a flow that the other gateway told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entered {
    New,
    Changed,
    /// Ours is younger, and will be told.
    Kept,
    UnknownService,
    UnknownBackend,
    UnknownSnatAddress,
    /// Another flow with the same fingerprint stands in its line.
    Collision,
    /// Every flow in its line is worth more.
    NoRoom,
    /// Another flow has the address and port that stand for its client.
    PortTaken,
    /// Packets changed the place at this very moment.
    Busy,
}

impl Entered {
    /// Those that leave a flow out, with names and what to do.
    pub const LEFT_OUT: [(Self, &'static str, &'static str); 7] = [
        (Self::UnknownService, "unknown_service", "flows of services that are not configured here"),
        (Self::UnknownBackend, "unknown_backend", "flows to servers that are not configured here"),
        (
            Self::UnknownSnatAddress,
            "unknown_snat_address",
            "flows through snat addresses that are not configured here",
        ),
        (Self::Collision, "collision", "flows whose fingerprint another one in their line has"),
        (Self::NoRoom, "no_room", "flows for which the flow table has no room: raise flows.capacity"),
        (Self::PortTaken, "port_taken", "flows whose snat port another flow has here"),
        (Self::Busy, "busy", "flows that packets changed at the same moment"),
    ];
}

/// A line as the packet path sees it.
#[derive(Clone, Copy)]
struct Copied(FlowLine);

impl Line for Copied {
    fn load(&self, way: usize) -> FlowWord {
        FlowWord(self.0[way])
    }

    fn replace(&self, _way: usize, _old: FlowWord, _new: FlowWord) -> bool {
        false
    }
}

/// A flow table to enter flows into.
#[derive(Debug)]
pub struct Entry<'a, 'm> {
    pub table: &'a FlowTable<'m>,
    pub directory: &'a Directory,
    pub clock: Clock,
    /// Of the two gateways, the one that decides.
    pub senior: bool,
    /// How many of our batches the other gateway had taken when it said what is to be entered.
    pub seen: u64,
}

impl Entry<'_, '_> {
    /// Takes in what the other gateway says of the flow at `origin` of its table.
    pub fn flow(&self, shadow: &mut Shadow, origin: u32, flow: &Flow) -> Entered {
        let resolved = self.directory.resolve(flow);
        let is_still = |place| resolved.is_ok_and(|new| is_same(&self.table.tuple(place), &new.tuple));
        if shadow.place_of(origin).is_some_and(|place| !is_still(place)) {
            // Its place there has another flow now.
            self.gone(shadow, origin);
        }
        let resolved = match resolved {
            Ok(resolved) => resolved,
            Err(Unknown::Service) => return Entered::UnknownService,
            Err(Unknown::Backend) => return Entered::UnknownBackend,
            Err(Unknown::SnatAddress) => return Entered::UnknownSnatAddress,
        };
        let Some(hash) = hash_behind(&resolved.tuple, &resolved.listen, self.directory.key()) else {
            return Entered::UnknownService;
        };
        let ticks = (f64::from(flow.age) / self.clock.seconds_per_tick).min(f64::from(u16::MAX / 2)) as u16;
        let time = self.clock.now.wrapping_sub(ticks);
        let mut new = FlowWord::new(hash.fingerprint(), resolved.backend, flow.state, time);
        new.0 |= u64::from(flow.moves & 7) << 37;
        let first = hash.line(self.table.lines()) as usize * WAYS;
        let line = self.line(first);
        let way = flow::find(line, hash.fingerprint());
        let entered = if way < WAYS {
            self.meet(shadow, (origin, first + way), line.load(way), new, &resolved, flow.decided)
        } else {
            self.begin(shadow, first, line, new, &resolved)
        };
        match entered {
            Ok((place, word, entered)) => {
                shadow.heard(place, word, origin);
                entered
            }
            Err(entered) => entered,
        }
    }

    /// The flow at `origin` of the other gateway's table is gone. True when it went here, too: one that packets have
    /// changed here lives.
    pub fn gone(&self, shadow: &mut Shadow, origin: u32) -> bool {
        let Some(place) = shadow.place_of(origin) else { return false };
        let word = shadow.agreed(place);
        let tuple = self.table.tuple(place);
        if shadow.is_crossed(place, self.seen) {
            // It has yet to hear of the flow from us, and will have it again then.
            shadow.tell_again(place, self.table.word(place));
            return false;
        }
        if word.is_free() || self.table.change(place, word, FlowWord::FREE).is_err() {
            shadow.tell(place);
            return false;
        }
        self.table.free_way_back(place, word, &tuple);
        shadow.freed(place);
        true
    }

    fn line(&self, first: usize) -> Copied {
        Copied(std::array::from_fn(|way| self.table.word(first + way).0))
    }

    /// A place in the line of the flow has its fingerprint; the other gateway has it at `origin`.
    fn meet(
        &self,
        shadow: &mut Shadow,
        (origin, place): (u32, usize),
        old: FlowWord,
        new: FlowWord,
        resolved: &Resolved,
        decided: bool,
    ) -> Result<(usize, FlowWord, Entered), Entered> {
        let tuple = self.table.tuple(place);
        if old.state() == FlowState::Reverse || !is_same(&tuple, &resolved.tuple) {
            return Err(Entered::Collision);
        }
        let crossed = shadow.is_crossed(place, self.seen);
        let unsaid = shadow.agreed(place).0 >> 16 != old.0 >> 16;
        if decided || !(crossed || unsaid) {
            // Only its age may be ours.
            let same = !decided && new.0 >> 16 == old.0 >> 16;
            let word = if same && self.age(old) < self.age(new) { old } else { new };
            self.replace(place, old, word, &tuple, resolved)?;
            return Ok((place, word, Entered::Changed));
        }
        if crossed && !self.senior {
            // The other gateway sees the same, and decides.
            return Err(Entered::Kept);
        }
        let difference = self.age(old) - self.age(new);
        let joined = join(old.state(), new.state()).filter(|_| old.backend() == new.backend());
        let word = match joined {
            _ if difference > SLACK => new,
            _ if difference < -SLACK => old,
            Some(state) => new.at(state, if difference > 0.0 { new.time() } else { old.time() }),
            None => old,
        };
        if word != old {
            self.replace(place, old, word, &tuple, resolved)?;
        }
        if !crossed && word.0 >> 16 == new.0 >> 16 {
            return Ok((place, word, Entered::Changed));
        }
        shadow.answer(place, origin, crossed);
        Err(Entered::Kept)
    }

    fn age(&self, word: FlowWord) -> f64 {
        let ahead = word.time().wrapping_sub(self.clock.now) < 8;
        if ahead { 0.0 } else { self.clock.age(word.time()) }
    }

    fn replace(
        &self,
        place: usize,
        old: FlowWord,
        new: FlowWord,
        tuple: &FlowTuple,
        resolved: &Resolved,
    ) -> Result<(), Entered> {
        if old != new {
            self.table.change(place, old, new).map_err(|_| Entered::Busy)?;
        }
        let same_way = old.backend() == new.backend()
            && (tuple.snat_port, tuple.snat_index) == (resolved.tuple.snat_port, resolved.tuple.snat_index)
            && (tuple.partner != 0 || !needs_way_back(new, resolved));
        if same_way {
            return Ok(());
        }
        self.table.free_way_back(place, old, tuple);
        self.table.write_tuple(place, &resolved.tuple);
        self.way_back(place, new, resolved)
    }

    /// A flow that is new here.
    fn begin(
        &self,
        shadow: &mut Shadow,
        first: usize,
        line: Copied,
        new: FlowWord,
        resolved: &Resolved,
    ) -> Result<(usize, FlowWord, Entered), Entered> {
        // The packet path makes no room for states that no flow begins in.
        let as_first = match new.state() {
            FlowState::Answered | FlowState::ClientClosed | FlowState::BackendClosed => FlowState::Opening,
            other => other,
        };
        if !flow::takes(line, new.fingerprint(), as_first, self.clock.now) {
            return Err(Entered::NoRoom);
        }
        let way = line.victim(new.fingerprint(), self.clock.now);
        let (place, old) = (first + way, line.load(way));
        let tuple = self.table.tuple(place);
        self.table.change(place, old, new).map_err(|_| Entered::Busy)?;
        shadow.replaced(place);
        if !old.is_free() {
            self.table.free_way_back(place, old, &tuple);
        }
        self.table.write_tuple(place, &resolved.tuple);
        self.way_back(place, new, resolved)?;
        Ok((place, new, Entered::New))
    }

    /// Makes the entry for the way back of the flow at `place`, as the packet path does. Without it a flow with `snat` is
    /// worth nothing and goes.
    fn way_back(&self, place: usize, word: FlowWord, resolved: &Resolved) -> Result<(), Entered> {
        if !needs_way_back(word, resolved) {
            return Ok(());
        }
        let made = self.make_way_back(place, word, resolved);
        if made.is_err() && resolved.local.is_some() {
            // Fails when a packet has changed it: then it is the packet path's.
            let _ = self.table.change(place, word, FlowWord::FREE);
            return made;
        }
        Ok(())
    }

    fn make_way_back(&self, place: usize, word: FlowWord, resolved: &Resolved) -> Result<(), Entered> {
        let Resolved { tuple, server, local, listen, .. } = resolved;
        let server_port = if server.port == 0 { tuple.vip_port.get() } else { server.port };
        let (local, local_port) = match local {
            Some(address) => (address_bytes(*address), tuple.snat_port.get()),
            None => (tuple.client, tuple.client_port.get()),
        };
        let hash =
            self.hash_back(&local, local_port, server.address, server_port, listen.protocol.wire().number());
        let first = hash.line(self.table.lines()) as usize * WAYS;
        let line = self.line(first);
        let new = FlowWord::new(hash.fingerprint(), word.backend(), FlowState::Reverse, word.time());
        let mut way = flow::find(line, hash.fingerprint());
        if way < WAYS {
            let is_way_back = line.load(way).state() == FlowState::Reverse;
            let is_ours = is_way_back && is_same(&self.table.tuple(first + way), tuple);
            // Of two flows that are one to the server, the later one has the way back; not with a port of its own.
            if !(is_ours || is_way_back && resolved.local.is_none()) {
                return Err(Entered::PortTaken);
            }
        } else if flow::takes(line, new.fingerprint(), FlowState::Reverse, self.clock.now) {
            way = line.victim(hash.fingerprint(), self.clock.now);
        } else {
            return Err(Entered::NoRoom);
        }
        let (other, old) = (first + way, line.load(way));
        let before = self.table.tuple(other);
        self.table.change(other, old, new).map_err(|_| Entered::Busy)?;
        if !old.is_free() && old.state() != FlowState::Reverse {
            self.table.free_way_back(other, old, &before);
        }
        let pointing_to = |at: usize| FlowTuple { partner: u32::try_from(at + 1).unwrap_or(0), ..*tuple };
        self.table.write_tuple(other, &pointing_to(place));
        self.table.write_tuple(place, &pointing_to(other));
        Ok(())
    }

    fn hash_back(
        &self,
        local: &[u8; 16],
        port: u16,
        server: IpAddr,
        server_port: u16,
        protocol: u8,
    ) -> FlowHash {
        let (key, ports) = (self.directory.key(), ports(port, server_port));
        match server {
            IpAddr::V4(v4) => flow4(key, lb_common::abi::net::unmapped(local), &v4.octets(), ports, protocol),
            IpAddr::V6(v6) => flow6(key, local, &v6.octets(), ports, protocol),
        }
    }
}

const fn needs_way_back(word: FlowWord, resolved: &Resolved) -> bool {
    resolved.server.reverse && !matches!(word.state(), FlowState::Direct)
}

/// Whether two tuples are of one flow.
fn is_same(one: &FlowTuple, other: &FlowTuple) -> bool {
    (one.client, one.client_port, one.vip_port, one.listener)
        == (other.client, other.client_port, other.vip_port, other.listener)
}

/// The state of a connection of which one gateway has seen one part, and the other another. `None` for what cannot be
/// one.
fn join(one: FlowState, other: FlowState) -> Option<FlowState> {
    use FlowState::{BackendClosed, ClientClosed, Closed, Datagram, Direct};
    match (one, other) {
        _ if one == other => Some(one),
        (Datagram | Direct, _) | (_, Datagram | Direct) => None,
        (ClientClosed, BackendClosed) | (BackendClosed, ClientClosed) => Some(Closed),
        _ => Some(one.max(other)),
    }
}
