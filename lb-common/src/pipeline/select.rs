//! Which backend gets a client's packet: the one its flow has, else the scheduler's choice.

use crate::abi::flow::{FlowState, FlowTuple, FlowWord, WAYS};
use crate::abi::{Backend, BackendFlags, Listener};
use crate::env::{Env, Line, Step};
use crate::flow::{self, Recorded};
use crate::hash::FlowHash;
use crate::packet::tcp::TcpFlags;
use crate::verdict::{Reason, Verdict};

/// What is to be done to the flow table once the packet is sure to leave.
#[derive(Clone, Copy)]
enum Change {
    Nothing,
    Replace { way: usize, old: FlowWord, new: FlowWord, new_tuple: bool },
    Record(FlowWord),
}

/// A backend, and what sending to it does to the flow table.
pub(super) struct Choice<'e, E: Env> {
    pub id: u32,
    pub backend: &'e Backend,
    /// The flow's backend is down and its connection is to be reset.
    pub reset: bool,
    line: Option<E::Line>,
    line_index: u32,
    change: Change,
}

/// Chooses for a packet of a client. `flags` is `None` for UDP.
#[inline(always)]
pub(super) fn choose<'e, E: Env>(
    env: &'e E,
    listener_id: u32,
    listener: &Listener,
    hash: FlowHash,
    flags: Option<TcpFlags>,
) -> Result<Choice<'e, E>, Verdict> {
    let now = env.now();
    let line_index = hash.line(env.flow_lines());
    let line = env.flow_line(line_index);
    let fingerprint = hash.fingerprint();
    let found = line.and_then(|line| flow::find(line, fingerprint));

    let mut place = None;
    if let Some((way, word)) = found {
        env.trace(Step::Flow, word.backend(), word.state() as u32);
        match env.backend(word.backend()) {
            Some(backend) if backend.flags.has(BackendFlags::VALID) && backend.listener == listener_id => {
                if let Some(state) = continued(word.state(), flags, backend.flags) {
                    let reset =
                        flags.is_some() && backend.flags.has(BackendFlags::DOWN.with(BackendFlags::RESET));
                    let new = word.at(if reset { FlowState::Closed } else { state }, now);
                    let change = if new == word {
                        Change::Nothing
                    } else {
                        Change::Replace { way, old: word, new, new_tuple: false }
                    };
                    return Ok(Choice { id: word.backend(), backend, reset, line, line_index, change });
                }
                place = Some((way, word));
            }
            // Its backend was removed.
            Some(backend) if !backend.flags.has(BackendFlags::VALID) => place = Some((way, word)),
            // Another service's flow with our fingerprint: two in 2^24 that meet in one line. Ours goes unrecorded.
            _ => {
                env.count(Reason::FlowCollision);
                let (id, backend) = pick(env, listener_id, listener, hash)?;
                return Ok(Choice { id, backend, reset: false, line, line_index, change: Change::Nothing });
            }
        }
    } else {
        env.trace(Step::NoFlow, 0, 0);
    }

    let (id, backend) = pick(env, listener_id, listener, hash)?;
    let change = match first(flags) {
        None => Change::Nothing,
        Some(state) => {
            let new = FlowWord::new(fingerprint, id, state, now);
            match place {
                Some((way, old)) => Change::Replace { way, old, new, new_tuple: true },
                None => Change::Record(new),
            }
        }
    };
    Ok(Choice { id, backend, reset: false, line, line_index, change })
}

/// The state of a known flow after this packet; `None` when the packet starts a new flow with the same ports.
#[inline(always)]
fn continued(state: FlowState, flags: Option<TcpFlags>, backend: BackendFlags) -> Option<FlowState> {
    match flags {
        // A datagram needs no connection: it goes on to a backend that is up.
        None if state == FlowState::Datagram && !backend.has(BackendFlags::DOWN) => Some(state),
        None => None,
        Some(flags) if flags.opens() => match state {
            FlowState::Opening | FlowState::Answered if !backend.has(BackendFlags::DOWN) => Some(state),
            _ => None,
        },
        Some(_) if state == FlowState::Direct => None,
        Some(flags) => Some(flow::after_client(state, flags)),
    }
}

/// The state in which a new flow is recorded; `None` when it is not worth a record.
#[inline(always)]
fn first(flags: Option<TcpFlags>) -> Option<FlowState> {
    match flags {
        None => Some(FlowState::Datagram),
        Some(flags) if flags.has(TcpFlags::RST) => None,
        Some(flags) if flags.has(TcpFlags::SYN) => Some(FlowState::Opening),
        Some(flags) if flags.has(TcpFlags::FIN) => Some(FlowState::ClientClosed),
        // Its record was lost; the table's answer is the same unless the backends have changed meanwhile.
        Some(_) => Some(FlowState::Established),
    }
}

/// Asks the listener's Maglev table.
#[inline(always)]
fn pick<'e, E: Env>(
    env: &'e E,
    listener_id: u32,
    listener: &Listener,
    hash: FlowHash,
) -> Result<(u32, &'e Backend), Verdict> {
    let table = listener.current_table();
    if table.size() == 0 {
        return Err(Reason::NoBackend.drop());
    }
    let slot = hash.slot(table.size());
    let id = env.table_slot(table.offset().wrapping_add(slot)).unwrap_or(0);
    env.trace(Step::Picked, slot, id);
    match env.backend(id) {
        Some(backend)
            if id != 0 && backend.flags.has(BackendFlags::VALID) && backend.listener == listener_id =>
        {
            Ok((id, backend))
        }
        _ => Err(Reason::StaleRecord.drop()),
    }
}

impl<E: Env> Choice<'_, E> {
    /// Brings the flow table up to date, now that the packet is about to leave.
    #[inline(always)]
    pub fn commit(&self, env: &E, tuple: impl FnOnce() -> FlowTuple) {
        let Some(line) = self.line else { return };
        let way = match self.change {
            Change::Nothing => return,
            Change::Replace { way, old, new, new_tuple } => {
                // Losing the race to the other direction's packet loses a second of idle time at most.
                if !line.replace(way, old, new) || !new_tuple {
                    return;
                }
                way
            }
            Change::Record(new) => match flow::record(line, new) {
                Recorded::Added(way) => way,
                Recorded::Evicted(way) => {
                    env.count(Reason::FlowEvicted);
                    way
                }
                Recorded::Not => {
                    env.count(Reason::FlowNotRecorded);
                    return;
                }
            },
        };
        env.record_tuple(self.line_index * WAYS as u32 + way as u32, &tuple());
    }
}
