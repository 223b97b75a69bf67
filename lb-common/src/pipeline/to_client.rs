//! A backend's packet on its way back to the client (`nat`: the source is rewritten to the VIP).
//!
//! The way back needs no flow: the backend's address and port tell the VIP. The flow only tells apart what is not a reply
//! at all, and has its state followed.

use super::transport::{Ports, Transport};
use super::{Parsed, write};
use crate::abi::BackendFlags;
use crate::abi::flow::{FlowState, FlowTuple, FlowWord, WAYS};
use crate::abi::net::Family;
use crate::env::{Env, Line, Route, Step};
use crate::flow::{self, Recorded};
use crate::packet::Packet;
use crate::packet::eth::Macs;
use crate::packet::ip::IpHeader;
use crate::packet::tcp::TcpFlags;
use crate::verdict::{Reason, Verdict};

/// A function of its own in the program too: BPF allows 512 bytes of stack, and each function gets its frame.
#[inline(never)]
pub(super) fn forward<I: IpHeader, P: Packet, E: Env>(
    packet: &mut P,
    env: &E,
    parsed: &mut Parsed<I>,
    ports: Ports,
    backend_id: u32,
) -> Verdict {
    try_forward(packet, env, parsed, ports, backend_id).unwrap_or_else(|verdict| verdict)
}

#[inline(always)]
fn try_forward<I: IpHeader, P: Packet, E: Env>(
    packet: &mut P,
    env: &E,
    parsed: &mut Parsed<I>,
    ports: Ports,
    backend_id: u32,
) -> Result<Verdict, Verdict> {
    let backend = env.backend(backend_id).ok_or(Reason::StaleRecord.drop())?;
    if !backend.flags.has(BackendFlags::VALID) {
        return Ok(Reason::NoService.pass());
    }
    let listener = env.listener(backend.listener).ok_or(Reason::StaleRecord.drop())?;
    let transport =
        Transport::read(packet, parsed.protocol, parsed.l4, parsed.l4_len, I::FAMILY == Family::V4)?;
    let vip = I::from_mapped(&listener.vip);
    let client = parsed.ip.destination();
    let hash = I::flow_hash(env.hash_key(), client, vip, ports.destination, listener.port, parsed.protocol);

    let addr_change = parsed.ip.set_source(vip);
    let new_ports = Ports { source: listener.port, destination: ports.destination };
    let checksum = transport.updated(addr_change.plus(ports.change(new_ports)));

    let route = parsed.ip.route(env, parsed.protocol);
    env.trace(Step::Routed, route.number(), 0);
    if route == Route::NotForwarded {
        return Ok(Reason::ReplyToGateway.pass());
    }

    let line_index = hash.line(env.flow_lines());
    let line = env.flow_line(line_index).ok_or(Reason::StaleRecord.drop())?;
    match flow::find(line, hash.fingerprint()) {
        Some((way, word)) if word.backend() == backend_id => {
            env.trace(Step::Flow, word.backend(), word.state() as u32);
            if word.state() == FlowState::Direct {
                return Ok(Reason::ReplyNotOurs.pass());
            }
            let state =
                transport.flags.map_or(word.state(), |flags| flow::after_backend(word.state(), flags));
            let new = word.at(state, env.now());
            if new != word {
                // Losing the race to the client's packet loses a second of idle time at most.
                line.replace(way, word, new);
            }
        }
        // The client has moved on to another backend; this one's last words keep the address they had.
        Some(_) => {}
        None => {
            env.trace(Step::NoFlow, 0, 0);
            let new = FlowWord::new(hash.fingerprint(), backend_id, FlowState::Direct, env.now());
            if not_ours(line, transport.flags, new, |way| {
                let tuple = FlowTuple {
                    client: I::to_mapped(client),
                    client_port: ports.destination,
                    vip_port: listener.port,
                    listener: backend.listener,
                };
                env.record_tuple(line_index * WAYS as u32 + way as u32, &tuple);
            }) {
                return Ok(Reason::ReplyNotOurs.pass());
            }
        }
    }

    if parsed.ip.hops() <= 1 {
        return Ok(Reason::HopsExhausted.pass());
    }
    let (verdict, macs) = match route {
        Route::Via { ifindex, source, destination } => {
            parsed.ip.decrement_hops();
            (Reason::ToClient.send(ifindex, env.ingress()), Some(Macs { destination, source }))
        }
        Route::NeighbourUnknown => (Reason::ToClientByKernel.pass(), None),
        Route::TooBig => return Ok(Reason::TooBig.pass()),
        Route::NotForwarded | Route::Refused => return Err(Reason::NoRoute.drop()),
        Route::ForwardingDisabled => return Err(Reason::ForwardingDisabled.drop()),
        Route::Unsupported => return Err(Reason::UnusableRoute.drop()),
    };
    env.count_from_backend(backend_id, parsed.ip.packet_len() as u32);
    write(packet, parsed, macs.as_ref(), new_ports, checksum)?;
    Ok(verdict)
}

/// Whether a reply without a flow answers a host that spoke to the backend's own address.
///
/// A client's first packet leaves a record unless its line is full, so where there is room, no record means no client of
/// ours. TCP is judged at the backend's SYN-ACK and the judgement is recorded: a record that is lost later must not break
/// a connection.
#[inline(always)]
fn not_ours<L: Line>(line: L, flags: Option<TcpFlags>, new: FlowWord, recorded: impl FnOnce(usize)) -> bool {
    match flags {
        Some(flags) if flags.answers() => match flow::record(line, new) {
            Recorded::Added(way) | Recorded::Evicted(way) => {
                recorded(way);
                true
            }
            Recorded::Not => false,
        },
        Some(_) => false,
        None => flow::has_room(line),
    }
}
