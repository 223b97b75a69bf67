//! A backend's packet on its way back to the client (`nat`: the source is rewritten to the VIP).
//!
//! The way back needs no flow where the backend's address and port tell the VIP; otherwise it goes on in
//! [`super::reverse`]. The flow only tells apart what is not a reply at all, and has its state followed.
//!
//! A reply without a flow answers a host that spoke to the backend's own address: a client's first packet leaves a
//! record unless its line is full, so where there is room, no record means no client of ours. TCP is judged at the
//! backend's SYN-ACK and the judgement is recorded: a record that is lost later must not break a connection. While flows
//! come over from another table nobody is judged: the record may not have come yet.

use super::transport::{self, Is, Ports, Transport};
use super::work::Work;
use super::{Stage, hop, refuse};
use crate::abi::flow::{FlowState, FlowTuple, FlowWord, WAYS};
use crate::abi::{Backend, BackendFlags, Be16, Family, Features, Listener, ListenerFlags, Mode};
use crate::env::{Env, Line, Reach, Step};
use crate::flow;
use crate::packet::Packet;
use crate::packet::eth;
use crate::packet::head::{Address, Head};
use crate::packet::tcp::TcpFlags;
use crate::verdict::{Reason, Verdict};

/// What a reply becomes: the client and the VIP that it is between.
#[derive(Clone, Copy)]
pub(super) struct Ends<A> {
    pub client: A,
    pub client_port: Be16,
    pub vip: A,
    pub vip_port: Be16,
}

#[inline(always)]
pub(super) fn forward<I: Head, P: Packet, E: Env, const KIND: u8>(
    packet: &mut P,
    env: &E,
    work: &mut Work,
    ip: I,
    is: Is,
    backend_id: u32,
    backend: &Backend,
) -> Verdict {
    if backend.mode != Mode::NAT || backend.flags.has(BackendFlags::REVERSE) {
        work.backend = backend_id;
        work.l4 = is.l4 as u32;
        work.l4_len = is.l4_len;
        work.protocol = u32::from(is.protocol);
        return match I::FAMILY {
            Family::V4 => Stage::Back4.next(),
            Family::V6 => Stage::Back6.next(),
        };
    }
    let Some(listener) = env.listener(backend.listener) else { return Reason::StaleRecord.drop() };
    let ends = Ends {
        client: ip.destination(),
        client_port: is.ports.destination,
        vip: I::Addr::from_mapped(&listener.vip),
        // A range of ports has been kept.
        vip_port: if backend.port.raw() == 0 { is.ports.source } else { listener.port },
    };
    reply::<I, P, E, KIND>(packet, env, work, ip, is, backend_id, ends)
}

/// Sends a reply on between these ends.
#[inline(always)]
pub(super) fn reply<I: Head, P: Packet, E: Env, const KIND: u8>(
    packet: &mut P,
    env: &E,
    work: &mut Work,
    ip: I,
    is: Is,
    backend_id: u32,
    ends: Ends<I::Addr>,
) -> Verdict {
    let Is { l4, l4_len, protocol, ports } = is;
    let Some(backend) = env.backend(backend_id) else { return Reason::StaleRecord.drop() };
    let Some(listener) = env.listener(backend.listener) else { return Reason::StaleRecord.drop() };
    let transport = match Transport::read::<KIND, P>(packet, protocol, l4, l4_len, I::FAMILY) {
        Ok(transport) => transport,
        Err(verdict) => return verdict,
    };
    let hash = I::flow_hash(env.hash_key(), ends.client, ends.vip, ends.client_port, ends.vip_port, protocol);
    let line_index = hash.line(env.flow_lines());
    let Some(line) = env.flow_line(line_index) else { return Reason::StaleRecord.drop() };
    let way = flow::find(line, hash.fingerprint());
    let known = way < WAYS;
    let word = if known { line.load(way) } else { FlowWord::FREE };
    if known {
        env.trace(Step::Flow, word.backend(), word.state() as u32);
    } else {
        env.trace(Step::NoFlow, 0, 0);
    }
    // A flow with another backend means that the client has moved on; this one's last words keep the address they had.
    let ours = known && word.backend() == backend_id;
    if ours && word.state() as u8 == FlowState::Direct as u8 {
        return Reason::ReplyNotOurs.pass();
    }
    work.backend = backend_id;
    work.from_backend = 1;
    work.client = [0; 16];
    let snat = backend.mode == Mode::SNAT;
    if snat {
        work.client = ends.client.to_mapped();
    }

    let tcp = transport.tcp();
    if ours
        && backend.flags.has(BackendFlags::DOWN.with(BackendFlags::RESET))
        && let Some(flags) = tcp
        && flags.has(TcpFlags::ACK)
        && !flags.has(TcpFlags::RST)
    {
        env.change(line, way, word, word.at(FlowState::Closed, env.now()));
        work.l4 = l4 as u32;
        return refuse::reset_backend::<I>(work);
    }

    if snat && ip.hops() <= 1 {
        return refuse::hops::<I>(work, l4);
    }
    let found = hop::to_client::<I, E>(env, work, ends.client, ip.packet_len(), |q| {
        hop::query(q, &ip, ends.vip, ends.client, protocol);
    });
    if ip.hops() <= 1 {
        return Reason::HopsExhausted.pass();
    }
    let (verdict, hops) = match found.reach {
        Reach::Known => (hop::send(env, work, Reason::ToClient, &found.hop), 1),
        // The kernel forwards what it gets, takes the hop off, and asks for the MAC address meanwhile.
        Reach::NeighbourUnknown | Reach::Elsewhere => (Reason::ToClientByKernel.pass(), 0),
        // And it cuts into fragments what may be cut.
        Reach::TooBig if ip.may_fragment() => (Reason::ToClientByKernel.pass(), 0),
        Reach::TooBig if snat => return refuse::too_big::<I>(work, l4, work.mtu),
        Reach::TooBig => return Reason::TooBig.pass(),
        Reach::NotForwarded => return Reason::ReplyToGateway.pass(),
        // Whoever is no client of ours may be reached in ways that only the kernel knows.
        _ if !known => return Reason::ReplyNotOurs.pass(),
        Reach::Abandoned => return Reason::NoDaemon.drop(),
        Reach::Refused => return Reason::NoRoute.drop(),
        Reach::ForwardingDisabled => return Reason::ForwardingDisabled.drop(),
        Reach::Unsupported => return Reason::UnusableRoute.drop(),
    };

    if ours {
        if word.state() as u8 == FlowState::Opening as u8 && holds_back(listener, word, tcp) {
            return Reason::RefusalHeld.drop();
        }
        let state = match tcp {
            Some(flags) => flow::after_backend(word.state(), flags),
            None => word.state(),
        };
        let new = word.at(state, env.now());
        if new != word {
            // Losing the race to the client's packet loses a second of idle time at most.
            env.change(line, way, word, new);
        }
    } else if known {
        if is_late_answer(word, tcp) {
            return Reason::LateAnswer.drop();
        }
    } else {
        match tcp {
            Some(flags) if flags.answers() && !env.features().has(Features::MOVING) => {
                let new = FlowWord::new(hash.fingerprint(), backend_id, FlowState::Direct, env.now());
                let recorded = flow::record(env, line, new);
                if recorded.way < WAYS {
                    if recorded.evicted {
                        env.count(Reason::FlowEvicted);
                    }
                    let tuple = FlowTuple {
                        client: ends.client.to_mapped(),
                        client_port: ends.client_port,
                        vip_port: ends.vip_port,
                        listener: backend.listener,
                        ..FlowTuple::default()
                    };
                    env.record_tuple(line_index * WAYS as u32 + recorded.way as u32, &tuple);
                    return Reason::ReplyNotOurs.pass();
                }
            }
            Some(_) => {}
            None if flow::has_room(line) && !env.features().has(Features::MOVING) => {
                return Reason::ReplyNotOurs.pass();
            }
            None => {}
        }
    }

    env.count_from_backend(backend_id, ip.packet_len());
    let new_ports = Ports { source: ends.vip_port, destination: ends.client_port };
    let mut change = ip.source().negative_sum().plus(ends.vip.sum()).plus(ports.change(new_ports));
    if snat {
        change = change.plus(ip.destination().negative_sum()).plus(ends.client.sum());
    }
    let written = ip
        .rewrite(packet, eth::LEN, ends.vip, ends.client, hops)
        .and(transport::rewrite::<KIND, P>(packet, protocol, l4, new_ports, transport.updated(change)));
    if hops != 0 && packet.write(0, &found.hop.macs).is_none() || written.is_none() {
        return Reason::WriteFailed.drop();
    }
    verdict
}

/// Whether a backend's refusal is kept from the client, as another backend can take its next attempt. The last one's
/// goes through.
#[inline(always)]
fn holds_back(listener: &Listener, word: FlowWord, flags: Option<TcpFlags>) -> bool {
    let refuses = match flags {
        Some(flags) => flags.has(TcpFlags::RST),
        None => false,
    };
    refuses && has_chance(listener, word)
}

/// Whether an opening flow can still go to another backend.
#[inline(always)]
pub(super) fn has_chance(listener: &Listener, word: FlowWord) -> bool {
    listener.flags.has(ListenerFlags::SECOND_CHANCE)
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
