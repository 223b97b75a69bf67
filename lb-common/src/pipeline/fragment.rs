//! Fragments: the first one of a datagram has the ports and decides; the later ones follow it.

use super::parse::{ICMP, ICMP6, TCP, UDP, head4, head6, is_fragment, other6};
use super::work::{self, NO_FLAGS, Work};
use super::{Stage, hop, out, refuse, to_backend, transport};
use crate::abi::endpoint::{ANY_PORT, ECHO};
use crate::abi::{Be16, Family, Features, Fragment, FragmentKey, Mode, Protocol, Side};
use crate::env::{Env, Reach, Step};
use crate::packet::Packet;
use crate::packet::eth;
use crate::packet::head::{Address, Head, Head4, Head6, OFFSET_MASK};
use crate::verdict::{Action, Reason, Verdict};

/// An IPv4 fragment.
#[inline(always)]
pub(super) fn v4<P: Packet, E: Env>(packet: &mut P, env: &E, work: &mut Work) -> Verdict {
    let ip = match head4(packet) {
        Ok(ip) => ip,
        Err(verdict) => return verdict,
    };
    let [a, b] = ip.id();
    work.fragment.id = [a, b, 0, 0];
    work.fragment.protocol = ip.protocol();
    work.l4 = (eth::LEN + ip.header_len()) as u32;
    if ip.flags_fragment() & OFFSET_MASK != 0 {
        return later(packet, env, work, ip);
    }
    begin(work, ip);
    let header = ip.header_len();
    let (l4, len) = (eth::LEN + header, ip.total_len() - header as u32);
    let verdict = match ip.protocol() {
        protocol @ (TCP | UDP) => transport::first::<Head4, P, E>(packet, env, work, ip, l4, len, protocol),
        ICMP | ICMP6 => Reason::Fragment.pass(),
        _ if env.features().has(Features::ANY_PROTOCOL) => Stage::Any4.next(),
        _ => Reason::Fragment.pass(),
    };
    leave::<Head4, E>(env, work, ip.destination(), verdict)
}

/// An IPv6 fragment. `work` has what stands behind its headers.
#[inline(always)]
pub(super) fn v6<P: Packet, E: Env>(packet: &mut P, env: &E, work: &mut Work) -> Verdict {
    let ip = match head6(packet) {
        Ok(ip) => ip,
        Err(verdict) => return verdict,
    };
    if !is_fragment(work) {
        return later(packet, env, work, ip);
    }
    let (l4, l4_len, protocol) = (work.l4(), work.l4_len, work.protocol as u8);
    let verdict = match protocol {
        TCP | UDP => transport::first::<Head6, P, E>(packet, env, work, ip, l4, l4_len, protocol),
        ICMP6 => Reason::Fragment.pass(),
        _ => other6(env, protocol),
    };
    leave::<Head6, E>(env, work, ip.destination(), verdict)
}

/// A first fragment to a VIP that is for no service, such as of a ping: that the later ones are not held, it is
/// remembered, too.
#[inline(always)]
pub(super) fn leave<I: Head, E: Env>(
    env: &E,
    work: &Work,
    destination: I::Addr,
    verdict: Verdict,
) -> Verdict {
    if verdict.action == Action::Pass && !went(verdict) && is_vip::<I, E>(env, destination) {
        let value = Fragment { backend: 0, from_backend: 0, snat_index: 0, time: env.now(), client: [0; 16] };
        env.remember_fragment(&work.fragment, &value);
    }
    verdict
}

/// Whether the packet was forwarded to a backend or a client.
#[inline(always)]
fn went(verdict: Verdict) -> bool {
    matches!(
        verdict.reason,
        Reason::ToBackend | Reason::ToClient | Reason::ToBackendByKernel | Reason::ToClientByKernel
    )
}

/// Whether a listener has this address.
#[inline(always)]
fn is_vip<I: Head, E: Env>(env: &E, address: I::Addr) -> bool {
    let any = Be16::new(ANY_PORT);
    let id = env.find_endpoint(I::endpoint_hash(env.hash_key(), Side::Vip, address, any, ECHO));
    id != 0
        && env.listener(id).is_some_and(|listener| {
            listener.family == I::FAMILY.number() && I::Addr::from_mapped(&listener.vip) == address
        })
}

/// Notes that this is the first fragment of a datagram.
#[inline(always)]
pub(super) fn begin<I: Head>(work: &mut Work, ip: I) {
    work.fragment.source = ip.source().to_mapped();
    work.fragment.destination = ip.destination().to_mapped();
    work.fragment.pad = [0; 3];
    work.snat_index = 0;
    work.pending |= work::FRAGMENT;
}

/// Remembers where the first fragment went.
#[inline(always)]
pub(super) fn remember<E: Env>(env: &E, work: &Work, verdict: Verdict) {
    if went(verdict) {
        let value = Fragment {
            backend: work.backend,
            from_backend: work.from_backend as u8,
            snat_index: work.snat_index as u8,
            time: env.now(),
            client: if work.from_backend != 0 { work.client } else { [0; 16] },
        };
        env.remember_fragment(&work.fragment, &value);
    }
}

/// A fragment without ports.
#[inline(always)]
pub(super) fn later<I: Head, P: Packet, E: Env>(packet: &mut P, env: &E, work: &mut Work, ip: I) -> Verdict {
    let (source, destination) = (ip.source(), ip.destination());
    work.fragment.source = source.to_mapped();
    work.fragment.destination = destination.to_mapped();
    work.fragment.pad = [0; 3];
    let key: FragmentKey = work.fragment;
    let Some(first) = env.fragment(&key) else { return unknown::<I, E>(env, work, destination) };
    if first.backend == 0 {
        return Reason::Fragment.pass();
    }
    env.count(Reason::FragmentFollowed);
    env.trace(Step::Fragment, first.backend, u32::from(first.from_backend));
    let Some(backend) = env.backend(first.backend) else { return Reason::StaleRecord.drop() };
    let Some(listener) = env.listener(backend.listener) else { return Reason::StaleRecord.drop() };
    if env.backend_of(backend.listener, first.backend).is_none() {
        return Reason::StaleRecord.drop();
    }
    let any = Protocol::Any.number();
    let mode = backend.mode;
    let server = I::Addr::from_mapped(&backend.addr);
    // Of what stands where the first one has its transport header, as much is quoted.
    let l4 = work.l4();
    work.backend = first.backend;
    work.from_backend = u32::from(first.from_backend);
    if first.from_backend != 0 {
        let vip = I::Addr::from_mapped(&listener.vip);
        let client = if mode == Mode::SNAT { I::Addr::from_mapped(&first.client) } else { destination };
        let found = hop::to_client::<I, E>(env, work, client, ip.packet_len(), |q| {
            hop::query(q, &ip, vip, client, any);
        });
        if ip.hops() <= 1 {
            return Reason::HopsExhausted.pass();
        }
        let (verdict, hops) = match found.reach {
            Reach::Known => (hop::send(env, work, Reason::ToClient, &found.hop), 1),
            Reach::NeighbourUnknown | Reach::Elsewhere => (Reason::ToClientByKernel.pass(), 0),
            Reach::TooBig if ip.may_fragment() => (Reason::ToClientByKernel.pass(), 0),
            Reach::TooBig => return Reason::TooBig.pass(),
            reach => return to_backend::no_way(reach),
        };
        env.count_from_backend(first.backend, ip.packet_len());
        return write(packet, &ip, vip, client, hops, &found, verdict);
    }
    if mode != Mode::NAT && mode != Mode::SNAT {
        let hash =
            I::flow_hash(env.hash_key(), source, destination, Be16::new(ANY_PORT), Be16::new(ANY_PORT), any);
        work.hash = hash.0;
        work.protocol = u32::from(any);
        work.flags = NO_FLAGS;
        work.leave_flow = out::FRAGMENT;
        work.pending |= work::FRAGMENT;
        return out::fragment_stage::<I>();
    }
    if ip.hops() <= 1 {
        return refuse::hops::<I>(work, l4);
    }
    let from = if mode == Mode::SNAT {
        match env.snat_address(u32::from(first.snat_index)) {
            Some(addr) => I::Addr::from_mapped(addr),
            None => return Reason::StaleRecord.drop(),
        }
    } else {
        source
    };
    let found = hop::to_backend(env, work, first.backend, ip.packet_len(), |q| {
        hop::query(q, &ip, from, server, any);
    });
    let (verdict, hops) = match found.reach {
        Reach::Known => (hop::send(env, work, Reason::ToBackend, &found.hop), 1),
        Reach::NeighbourUnknown | Reach::Elsewhere => (Reason::ToBackendByKernel.pass(), 0),
        Reach::TooBig if ip.may_fragment() => (Reason::ToBackendByKernel.pass(), 0),
        Reach::TooBig => return refuse::too_big::<I>(work, l4, work.mtu),
        reach => return to_backend::no_way(reach),
    };
    env.count_to_backend(first.backend, ip.packet_len());
    write(packet, &ip, from, server, hops, &found, verdict)
}

#[inline(always)]
fn write<I: Head, P: Packet>(
    packet: &mut P,
    ip: &I,
    source: I::Addr,
    destination: I::Addr,
    hops: u8,
    found: &hop::Found,
    verdict: Verdict,
) -> Verdict {
    let written = ip.rewrite(packet, eth::LEN, source, destination, hops);
    if hops != 0 && packet.write(0, &found.hop.macs).is_none() || written.is_none() {
        return Reason::WriteFailed.drop();
    }
    verdict
}

/// The first one has not come, or was none of ours. One to a VIP is held until it has.
#[inline(always)]
fn unknown<I: Head, E: Env>(env: &E, work: &Work, destination: I::Addr) -> Verdict {
    let icmp = match I::FAMILY {
        Family::V4 => work.fragment.protocol == I::ICMP,
        // Which protocol it is only the first one tells.
        Family::V6 => false,
    };
    if !icmp && work.pending & work::TAGS == 0 && is_vip::<I, E>(env, destination) && env.hold() {
        return Verdict { ifindex: 0, action: Action::Drop, reason: Reason::FragmentHeld };
    }
    Reason::Fragment.pass()
}
