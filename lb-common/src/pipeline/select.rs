//! Which backend gets a client's packet: the one its flow has, else the scheduler's choice.

use crate::abi::flow::{FlowState, FlowWord, WAYS};
use crate::abi::{Backend, BackendFlags, Listener, ListenerFlags, SchedulerCode, TableRef};
use crate::env::{Env, Line, Step};
use crate::flow;
use crate::hash::FlowHash;
use crate::packet::tcp::TcpFlags;
use crate::verdict::{Reason, Verdict};

/// A backend, and what sending to it does to the flow table.
///
/// Every field has a value in every case, and `usize` says where: the verifier refuses a program that copies the
/// undefined half of an enum.
pub(super) struct Choice<'e, E: Env> {
    pub id: u32,
    pub backend: &'e Backend,
    /// The flow's backend is down and its connection is to be reset.
    pub reset: bool,
    line: E::Line,
    line_index: u32,
    /// The way in the line that changes from `old` to `new`; [`ANY_WAY`] or [`NO_WAY`].
    way: usize,
    old: FlowWord,
    new: FlowWord,
    /// It is another flow than before.
    begins: bool,
}

/// Wherever there is room.
const ANY_WAY: usize = WAYS;
/// The flow is not recorded, or its record stays as it is.
const NO_WAY: usize = WAYS + 1;

/// No tuple is to be recorded.
pub(super) const NO_TUPLE: u32 = u32::MAX;

/// Chooses for a packet of a client. `flags` is `None` for UDP; `source` is the hash of the client's address alone
/// where the listener goes by that, else the flow's.
#[inline(always)]
pub(super) fn choose<'e, E: Env>(
    env: &'e E,
    listener_id: u32,
    listener: &Listener,
    hash: FlowHash,
    source: FlowHash,
    flags: Option<TcpFlags>,
) -> Result<Choice<'e, E>, Verdict> {
    let now = env.now();
    let line_index = hash.line(env.flow_lines());
    let line = env.flow_line(line_index).ok_or(Reason::StaleRecord.drop())?;
    let fingerprint = hash.fingerprint();
    let found = line.find(fingerprint);

    let mut way = ANY_WAY;
    let mut old = FlowWord::FREE;
    if found < WAYS {
        old = line.load(found);
        env.trace(Step::Flow, old.backend(), old.state() as u32);
        let backend = env.backend(old.backend()).ok_or(Reason::StaleRecord.drop())?;
        let valid = backend.flags.has(BackendFlags::VALID);
        if valid && backend.listener != listener_id {
            // Another service's flow with our fingerprint: two in 2^24 that meet in one line. Ours goes unrecorded.
            env.count(Reason::FlowCollision);
            way = NO_WAY;
        } else {
            // Otherwise its backend was removed, or it begins anew with the same ports: a new flow in the old one's
            // place.
            way = found;
            let state = continued(old.state(), flags, backend.flags);
            if valid && state == FlowState::Opening && may_move(listener, flags) {
                // A repeated SYN: the backend is silent, or its refusal was held back.
                let table = filled(listener)?;
                let slot = source.slot(table.size());
                let from = old.backend();
                let id = env.next_candidate(table, slot, from);
                env.trace(Step::Moved, from, id);
                let next = usable(env, listener_id, id)?;
                let new = if id == from { old.at(state, now) } else { old.moved(id, now) };
                return Ok(Choice {
                    id,
                    backend: next,
                    reset: false,
                    line,
                    line_index,
                    way,
                    old,
                    new,
                    begins: false,
                });
            }
            if valid && state != FlowState::Free {
                let reset =
                    flags.is_some() && backend.flags.has(BackendFlags::DOWN.with(BackendFlags::RESET));
                let new = old.at(if reset { FlowState::Closed } else { state }, now);
                let way = if new == old { NO_WAY } else { way };
                let id = old.backend();
                return Ok(Choice { id, backend, reset, line, line_index, way, old, new, begins: false });
            }
        }
    } else {
        env.trace(Step::NoFlow, 0, 0);
    }

    let table = filled(listener)?;
    let state = first(flags);
    let mut slot = source.slot(table.size());
    if !listener.scheduler.is_stateless()
        && matches!(state, FlowState::Opening | FlowState::Datagram)
        && way != NO_WAY
        && (way < WAYS || flow::takes(line, state, now))
    {
        // Only for a flow that will be remembered: its next packet would get another slot.
        slot = if listener.scheduler == SchedulerCode::RANDOM {
            ((u64::from(env.random()) * u64::from(table.size())) >> 32) as u32
        } else {
            env.turn(listener_id).checked_rem(table.size()).unwrap_or(0)
        };
    }
    let id = env.table_slot(table.offset().wrapping_add(slot)).ok_or(Reason::StaleRecord.drop())?;
    env.trace(Step::Picked, slot, id);
    let backend = usable(env, listener_id, id)?;
    if state == FlowState::Free {
        way = NO_WAY;
    }
    let new = FlowWord::new(fingerprint, id, state, now);
    Ok(Choice { id, backend, reset: false, line, line_index, way, old, new, begins: true })
}

/// The state of a known flow after this packet; `Free` when the packet starts a new flow with the same ports.
#[inline(always)]
fn continued(state: FlowState, flags: Option<TcpFlags>, backend: BackendFlags) -> FlowState {
    match flags {
        // A datagram needs no connection: it goes on to a backend that is up.
        None if state == FlowState::Datagram && !backend.has(BackendFlags::DOWN) => state,
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
        Some(_) if state == FlowState::Direct => FlowState::Free,
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

/// The listener's table, which has at least one slot.
#[inline(always)]
fn filled(listener: &Listener) -> Result<TableRef, Verdict> {
    let table = listener.current_table();
    if table.size() == 0 { Err(Reason::NoBackend.drop()) } else { Ok(table) }
}

/// The record of a backend that a table has named.
#[inline(always)]
fn usable<E: Env>(env: &E, listener_id: u32, id: u32) -> Result<&Backend, Verdict> {
    let backend = env.backend(id).ok_or(Reason::StaleRecord.drop())?;
    if id == 0 || !backend.flags.has(BackendFlags::VALID) || backend.listener != listener_id {
        return Err(Reason::StaleRecord.drop());
    }
    Ok(backend)
}

impl<E: Env> Choice<'_, E> {
    /// Brings the flow table up to date, now that the packet is about to leave. Where a flow begins, says at which index of
    /// `FLOW_TUPLES` its tuple is to be recorded; else [`NO_TUPLE`].
    #[inline(always)]
    pub fn commit(&self, env: &E) -> u32 {
        if self.way == NO_WAY {
            return NO_TUPLE;
        }
        let mut way = self.way;
        if way == ANY_WAY {
            let recorded = flow::record(self.line, self.new);
            if recorded.way >= WAYS {
                env.count(Reason::FlowNotRecorded);
                return NO_TUPLE;
            }
            if recorded.evicted {
                env.count(Reason::FlowEvicted);
            }
            way = recorded.way;
        } else if !self.line.replace(way, self.old, self.new) {
            // Losing the race to the other direction's packet loses a second of idle time at most.
            return NO_TUPLE;
        } else if !self.begins {
            if self.old.backend() != self.id {
                env.count(Reason::SecondChance);
                env.count_moved_away(self.old.backend());
            }
            return NO_TUPLE;
        }
        self.line_index * WAYS as u32 + way as u32
    }
}
