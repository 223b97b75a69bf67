//! A backend's packet on its way back to the client (`nat`: the source is rewritten to the VIP).
//!
//! The way back needs no flow: the backend's address and port tell the VIP. The flow only tells apart what is not a
//! reply at all, and has its state followed.
//!
//! A reply without a flow answers a host that spoke to the backend's own address: a client's first packet leaves a
//! record unless its line is full, so where there is room, no record means no client of ours. TCP is judged at the
//! backend's SYN-ACK and the judgement is recorded: a record that is lost later must not break a connection.

use super::transport::{Ports, Transport};
use super::{Parsed, write};
use crate::abi::flow::{FlowState, FlowTuple, FlowWord, WAYS};
use crate::abi::net::Family;
use crate::abi::{BackendFlags, Listener, ListenerFlags};
use crate::env::{Env, Line, Reach, Step};
use crate::flow;
use crate::packet::Packet;
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
        Transport::read(packet, parsed.protocol, parsed.l4(), parsed.l4_len, I::FAMILY == Family::V4)?;
    let vip = I::from_mapped(&listener.vip);
    let hash = I::flow_hash(
        env.hash_key(),
        parsed.ip.destination(),
        vip,
        ports.destination,
        listener.port,
        parsed.protocol,
    );

    let line_index = hash.line(env.flow_lines());
    let line = env.flow_line(line_index).ok_or(Reason::StaleRecord.drop())?;
    let way = line.find(hash.fingerprint());
    let known = way < WAYS;
    let word = if known { line.load(way) } else { FlowWord::FREE };
    if known {
        env.trace(Step::Flow, word.backend(), word.state() as u32);
    } else {
        env.trace(Step::NoFlow, 0, 0);
    }
    // A flow with another backend means that the client has moved on; this one's last words keep the address they had.
    let ours = known && word.backend() == backend_id;
    if ours && word.state() == FlowState::Direct {
        return Ok(Reason::ReplyNotOurs.pass());
    }

    let addr_change = parsed.ip.set_source(vip);
    let new_ports = Ports { source: listener.port, destination: ports.destination };
    let checksum = transport.updated(addr_change.plus(ports.change(new_ports)));
    parsed.find_route(env);
    if parsed.ip.hops() <= 1 {
        return Ok(Reason::HopsExhausted.pass());
    }
    let verdict = match parsed.route.reach {
        Reach::Known => {
            parsed.ip.decrement_hops();
            Reason::ToClient.send(parsed.route.ifindex, env.ingress())
        }
        // The kernel forwards what it gets, takes the hop off, and asks for the MAC address meanwhile.
        Reach::NeighbourUnknown | Reach::Elsewhere => Reason::ToClientByKernel.pass(),
        Reach::TooBig => return Ok(Reason::TooBig.pass()),
        Reach::NotForwarded => return Ok(Reason::ReplyToGateway.pass()),
        // Whoever is no client of ours may be reached in ways that only the kernel knows.
        _ if !known => return Ok(Reason::ReplyNotOurs.pass()),
        Reach::Refused => return Err(Reason::NoRoute.drop()),
        Reach::ForwardingDisabled => return Err(Reason::ForwardingDisabled.drop()),
        Reach::Unsupported => return Err(Reason::UnusableRoute.drop()),
    };

    if ours {
        if word.state() == FlowState::Opening && holds_back(listener, word, transport.flags) {
            return Err(Reason::RefusalHeld.drop());
        }
        let state = match transport.flags {
            Some(flags) => flow::after_backend(word.state(), flags),
            None => word.state(),
        };
        let new = word.at(state, env.now());
        if new != word {
            // Losing the race to the client's packet loses a second of idle time at most.
            line.replace(way, word, new);
        }
    } else if known {
        if is_late_answer(word, transport.flags) {
            return Err(Reason::LateAnswer.drop());
        }
    } else {
        let new = FlowWord::new(hash.fingerprint(), backend_id, FlowState::Direct, env.now());
        match transport.flags {
            Some(flags) if flags.answers() => {
                let recorded = flow::record(line, new);
                if recorded.way < WAYS {
                    if recorded.evicted {
                        env.count(Reason::FlowEvicted);
                    }
                    let tuple = parsed.tuple.write(FlowTuple {
                        client: I::to_mapped(parsed.ip.destination()),
                        client_port: ports.destination,
                        vip_port: listener.port,
                        listener: backend.listener,
                    });
                    env.record_tuple(line_index * WAYS as u32 + recorded.way as u32, tuple);
                    return Ok(Reason::ReplyNotOurs.pass());
                }
            }
            Some(_) => {}
            None if flow::has_room(line) => return Ok(Reason::ReplyNotOurs.pass()),
            None => {}
        }
    }

    env.count_from_backend(backend_id, parsed.ip.packet_len() as u32);
    write(packet, parsed, new_ports, checksum)?;
    Ok(verdict)
}

/// Whether a backend's refusal is kept from the client, as another backend can take its next attempt. The last one's
/// goes through.
#[inline(always)]
fn holds_back(listener: &Listener, word: FlowWord, flags: Option<TcpFlags>) -> bool {
    let refuses = match flags {
        Some(flags) => flags.has(TcpFlags::RST),
        None => false,
    };
    refuses
        && listener.flags.has(ListenerFlags::SECOND_CHANCE)
        && word.moves() + 1 < listener.current_table().members().min(8)
}

/// Whether this is a backend's answer to an attempt that was since offered to another one: two answers would confuse
/// the client.
#[inline(always)]
const fn is_late_answer(word: FlowWord, flags: Option<TcpFlags>) -> bool {
    let answers = match flags {
        Some(flags) => flags.answers() || flags.has(TcpFlags::RST),
        None => false,
    };
    answers && word.moves() > 0
}
