//! A client's packet on its way to a backend. One of a known flow is rewritten and sent here by `nat`; new flows and other
//! modes go on in [`super::out`].

use super::transport::{self, Is, Ports, Transport};
use super::work::Work;
use super::{Stage, hop, refuse};
use crate::abi::flow::{FlowState, FlowWord, WAYS};
use crate::abi::{BackendFlags, Family, Mode};
use crate::env::{Env, Line, Reach, Step};
use crate::flow;
use crate::packet::Packet;
use crate::packet::eth;
use crate::packet::head::{Address, Head};
use crate::verdict::{Reason, Verdict};

/// For [`Work::leave_flow`]: the flow is in the middle of its life, and its backend is well.
pub(super) const KNOWN: u32 = 3;

#[inline(always)]
pub(super) fn forward<I: Head, P: Packet, E: Env, const KIND: u8>(
    packet: &mut P,
    env: &E,
    work: &mut Work,
    ip: I,
    is: Is,
    listener_id: u32,
) -> Verdict {
    let Is { l4, l4_len, protocol, ports } = is;
    let transport = match Transport::read::<KIND, P>(packet, protocol, l4, l4_len, I::FAMILY) {
        Ok(transport) => transport,
        Err(verdict) => return verdict,
    };
    let (client, vip) = (ip.source(), ip.destination());
    let hash = I::flow_hash(env.hash_key(), client, vip, ports.source, ports.destination, protocol);
    let line_index = hash.line(env.flow_lines());
    let Some(line) = env.flow_line(line_index) else { return Reason::StaleRecord.drop() };
    let way = flow::find(line, hash.fingerprint());
    let word = if way < WAYS { line.load(way) } else { FlowWord::FREE };

    // The common case: a known flow in the middle of its life, whose backend is well.
    let steady = if transport.tcp().is_some() { FlowState::Established } else { FlowState::Datagram };
    let id = word.backend();
    let Some(backend) = env.backend(id) else { return Reason::StaleRecord.drop() };
    let now = env.now();
    let known = way < WAYS
        && word.state() as u8 == steady as u8
        && transport.is_plain()
        && backend.flags.has(BackendFlags::VALID)
        && !backend.flags.has(BackendFlags::DOWN)
        && backend.listener == listener_id;
    if known {
        env.trace(Step::Flow, id, word.state() as u32);
    }
    if !known || backend.mode != Mode::NAT || backend.flags.has(BackendFlags::REVERSE) {
        work.l4 = l4 as u32;
        work.l4_len = l4_len;
        work.protocol = u32::from(protocol);
        work.flags = transport.flags;
        work.client = client.to_mapped();
        work.client_port = ports.source;
        work.vip_port = ports.destination;
        work.listener = listener_id;
        work.hash = hash.0;
        work.line = line_index;
        work.way = way as u32;
        work.old = word;
        work.leave_flow = if known { KNOWN } else { 0 };
        return out_stage::<I>();
    }
    work.backend = id;
    work.from_backend = 0;
    if ip.hops() <= 1 {
        return refuse::hops::<I>(work, l4);
    }

    let server = I::Addr::from_mapped(&backend.addr);
    let found =
        hop::to_backend(env, work, id, ip.packet_len(), |q| hop::query(q, &ip, client, server, protocol));
    let (verdict, hops) = match found.reach {
        Reach::Known => (hop::send(env, work, Reason::ToBackend, &found.hop), 1),
        // The kernel forwards what it gets, takes the hop off, and asks for the MAC address meanwhile.
        Reach::NeighbourUnknown | Reach::Elsewhere => (Reason::ToBackendByKernel.pass(), 0),
        // And it cuts into fragments what may be cut.
        Reach::TooBig if ip.may_fragment() => (Reason::ToBackendByKernel.pass(), 0),
        Reach::TooBig => return refuse::too_big::<I>(work, l4, work.mtu),
        reach => return no_way(reach),
    };
    let new = word.at(word.state(), now);
    if new != word {
        // Losing the race to the other direction's packet loses a second of idle time at most.
        line.replace(way, word, new);
    }

    // A range of ports keeps the one that the client has used.
    let port = if backend.port.raw() == 0 { ports.destination } else { backend.port };
    let new_ports = Ports { source: ports.source, destination: port };
    let change = vip.negative_sum().plus(server.sum()).plus(ports.change(new_ports));
    env.count_to_backend(id, ip.packet_len());
    let written = ip.rewrite(packet, eth::LEN, client, server, hops).and(transport::rewrite::<KIND, P>(
        packet,
        protocol,
        l4,
        new_ports,
        transport.updated(change),
    ));
    if hops != 0 && packet.write(0, &found.hop.macs).is_none() || written.is_none() {
        return Reason::WriteFailed.drop();
    }
    verdict
}

/// Why a packet cannot be sent to its backend.
#[inline(always)]
pub(super) const fn no_way(reach: Reach) -> Verdict {
    match reach {
        Reach::ForwardingDisabled => Reason::ForwardingDisabled.drop(),
        Reach::Unsupported => Reason::UnusableRoute.drop(),
        Reach::Abandoned => Reason::NoDaemon.drop(),
        _ => Reason::NoRoute.drop(),
    }
}

#[inline(always)]
pub(super) const fn out_stage<I: Head>() -> Verdict {
    match I::FAMILY {
        Family::V4 => Stage::Out4.next(),
        Family::V6 => Stage::Out6.next(),
    }
}
