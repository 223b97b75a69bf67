//! ICMP and ICMPv6: echo to a VIP is answered, errors are sent to whom they concern, with the packet that they quote as
//! that one knows it (RFC 5508 section 4.2).

use super::parse::{TCP, UDP, head4};
use super::to_client::{Ends, has_chance};
use super::transport::{self, Ports, checksum_offset};
use super::work::{NO_FLAGS, Work};
use super::{hop, out, reverse, to_backend};
use crate::abi::endpoint::{ANY_PORT, ECHO};
use crate::abi::flow::{FlowState, FlowWord, WAYS};
use crate::abi::{BackendFlags, Be16, Family, Features, Mode, Protocol, SchedulerCode, Side};
use crate::env::{Env, Line, Reach, Step};
use crate::flow;
use crate::packet::Packet;
use crate::packet::checksum::{Sum, updated_raw};
use crate::packet::eth::{self, Macs};
use crate::packet::head::{Address, Head};
use crate::verdict::{Action, Reason, Verdict};

/// Bytes of the ICMP header in front of a quoted packet.
const LEN: usize = 8;
/// What must be quoted after the IP header.
const QUOTED: usize = 8;

#[inline(always)]
pub(super) fn handle<I: Head, P: Packet, E: Env>(packet: &mut P, env: &E, work: &mut Work) -> Verdict {
    let Some(ip) = I::read(packet, eth::LEN) else { return Reason::WriteFailed.drop() };
    let l4 = match I::FAMILY {
        Family::V4 => match head4(packet) {
            Ok(head) => eth::LEN + head.header_len(),
            Err(verdict) => return verdict,
        },
        Family::V6 => work.l4(),
    };
    let end = eth::LEN + ip.packet_len() as usize;
    let Some(first) = packet.read::<u16>(l4) else { return Reason::OtherProtocol.pass() };
    if l4 + LEN > end {
        return Reason::OtherProtocol.pass();
    }
    let [kind, code] = first.to_ne_bytes();
    let v4 = matches!(I::FAMILY, Family::V4);
    let (echo, reply) = if v4 { (8, 0) } else { (128, 129) };
    if kind == echo && code == 0 {
        return answer_echo::<I, P, E>(packet, env, ip, l4, echo, reply);
    }
    let is_error = if v4 { matches!(kind, 3 | 11 | 12) } else { matches!(kind, 1..=4) };
    if !is_error {
        return Reason::OtherProtocol.pass();
    }
    env.trace(Step::IcmpError, u32::from(kind), u32::from(code));
    // What a client would take for the end of its attempt to connect.
    let refuses = if v4 { kind == 3 && code != 4 } else { kind == 1 };

    let at = l4 + LEN;
    let Some(inner) = I::read(packet, at) else { return Reason::UnrelatedError.pass() };
    let header = inner.checked_len();
    let inner_l4 = at + header;
    if header == 0 || inner.is_later() || inner_l4 + QUOTED > end {
        return Reason::UnrelatedError.pass();
    }
    let protocol = match inner.protocol() {
        protocol @ (TCP | UDP) => protocol,
        number if number == I::ICMP || !env.features().has(Features::ANY_PROTOCOL) => {
            return Reason::UnrelatedError.pass();
        }
        _ => Protocol::Any.number(),
    };
    let ports = if protocol == Protocol::Any.number() {
        Ports::NONE
    } else {
        match Ports::read(packet, inner_l4) {
            Some(ports) => ports,
            None => return Reason::UnrelatedError.pass(),
        }
    };
    let quote = Quote { l4, at, inner_l4, inner, protocol, ports, refuses };
    let (listener, found) = transport::find_listener::<I, E>(env, inner.source(), ports.source, protocol);
    if found.is_some() && ip.destination() == inner.source() {
        return error_to_backend::<I, P, E>(packet, env, work, ip, quote, listener);
    }
    let (backend, found) =
        transport::find_backend::<I, E>(env, inner.destination(), ports.destination, protocol);
    if found.is_some() && ip.destination() == inner.source() {
        return error_to_client::<I, P, E>(packet, env, work, ip, quote, backend);
    }
    Reason::UnrelatedError.pass()
}

/// An error and the packet in it.
#[derive(Clone, Copy)]
struct Quote<I> {
    /// Offsets of the ICMP header, of the quoted IP header, and of its transport header.
    l4: usize,
    at: usize,
    inner_l4: usize,
    inner: I,
    protocol: u8,
    ports: Ports,
    /// The destination cannot be reached.
    refuses: bool,
}

/// RFC 792, RFC 4443 section 4.
#[inline(always)]
fn answer_echo<I: Head, P: Packet, E: Env>(
    packet: &mut P,
    env: &E,
    ip: I,
    l4: usize,
    echo: u8,
    reply: u8,
) -> Verdict {
    let vip = ip.destination();
    let any = Be16::new(ANY_PORT);
    let id = env.find_endpoint(I::endpoint_hash(env.hash_key(), Side::Vip, vip, any, ECHO));
    let is_vip = id != 0
        && env.listener(id).is_some_and(|listener| {
            listener.family == I::FAMILY.number() && I::Addr::from_mapped(&listener.vip) == vip
        });
    if !is_vip {
        return Reason::OtherProtocol.pass();
    }
    let Some(macs) = packet.read::<Macs>(0) else { return Reason::OtherProtocol.pass() };
    let Some(checksum) = packet.read::<u16>(l4 + 2) else { return Reason::OtherProtocol.pass() };
    /// TTL and hop limit of the answer.
    const HOPS: u8 = 64;
    let change =
        Sum::ZERO.sub_half(u16::from_ne_bytes([echo, 0])).add(u32::from(u16::from_ne_bytes([reply, 0])));
    let [a, b] = updated_raw(checksum, change).to_ne_bytes();
    // As late as it can be: the verifier follows all that comes after it twice.
    if env.is_abandoned() {
        return Reason::NoDaemon.drop();
    }
    let done = packet
        .write(0, &macs.swapped())
        .and(ip.rewrite(packet, eth::LEN, vip, ip.source(), ip.hops().wrapping_sub(HOPS)))
        .and(packet.write(l4, &u32::from_ne_bytes([reply, 0, a, b])));
    if done.is_none() {
        return Reason::WriteFailed.drop();
    }
    Verdict { ifindex: 0, action: Action::Transmit, reason: Reason::EchoAnswered }
}

/// About a backend's packet on its way to a client.
#[inline(always)]
fn error_to_backend<I: Head, P: Packet, E: Env>(
    packet: &mut P,
    env: &E,
    work: &mut Work,
    ip: I,
    quote: Quote<I>,
    listener_id: u32,
) -> Verdict {
    let Quote { inner, protocol, ports, .. } = quote;
    let Some(listener) = env.listener(listener_id) else { return Reason::StaleRecord.drop() };
    let (client, vip) = (inner.destination(), inner.source());
    let hash = I::flow_hash(env.hash_key(), client, vip, ports.destination, ports.source, protocol);
    let line_index = hash.line(env.flow_lines());
    let Some(line) = env.flow_line(line_index) else { return Reason::StaleRecord.drop() };
    let way = flow::find(line, hash.fingerprint());
    let word = if way < WAYS { line.load(way) } else { FlowWord::FREE };
    let mut id = word.backend();
    let known = way < WAYS
        && word.state() as u8 != FlowState::Reverse as u8
        && word.state() as u8 != FlowState::Direct as u8
        && env.backend_of(listener_id, id).is_some();
    if !known {
        let table = listener.current_table();
        if !listener.scheduler.is_stateless() || table.size() == 0 {
            return Reason::UnrelatedError.pass();
        }
        let slot = if listener.scheduler == SchedulerCode::SOURCE_HASH {
            I::flow_hash(env.hash_key(), client, client, Be16::new(0), Be16::new(0), TCP).slot(table.size())
        } else {
            hash.slot(table.size())
        };
        id = env.table_slot(table.offset().wrapping_add(slot)).unwrap_or(0);
    }
    let Some(backend) = env.backend_of(listener_id, id) else { return Reason::UnrelatedError.pass() };
    if ip.hops() <= 1 {
        return Reason::HopsExhausted.pass();
    }
    work.backend = id;
    work.from_backend = 0;
    let mode = backend.mode;
    if mode != Mode::NAT && mode != Mode::SNAT {
        work.hash = hash.0;
        work.l4 = quote.l4 as u32;
        work.protocol = u32::from(I::ICMP);
        work.flags = NO_FLAGS;
        work.leave_flow = out::ERROR;
        return out::fragment_stage::<I>();
    }
    let server = I::Addr::from_mapped(&backend.addr);
    let server_port = if backend.port.raw() == 0 { ports.source } else { backend.port };
    let (mut to, mut to_port) = (client, ports.destination);
    if mode == Mode::SNAT {
        let place = line_index.wrapping_mul(WAYS as u32).wrapping_add(way as u32);
        let tuple = env.tuple(place);
        match tuple {
            Some(tuple) if known && tuple.client == client.to_mapped() && tuple.client_port == to_port => {
                to_port = tuple.snat_port;
                match env.snat_address(u32::from(tuple.snat_index)) {
                    Some(addr) => to = I::Addr::from_mapped(addr),
                    None => return Reason::StaleRecord.drop(),
                }
            }
            _ => return Reason::UnrelatedError.pass(),
        }
    }
    let icmp = I::ICMP;
    let found = hop::to_backend(env, work, id, ip.packet_len(), |q| {
        hop::query(q, &ip, ip.source(), server, icmp);
    });
    let (verdict, hops) = match found.reach {
        Reach::Known => (hop::send(env, work, Reason::ErrorToBackend, &found.hop), 1),
        Reach::NeighbourUnknown | Reach::Elsewhere => (Reason::ErrorToBackend.pass(), 0),
        Reach::TooBig => return Reason::TooBig.pass(),
        reach => return to_backend::no_way(reach),
    };
    let quoted = Ends { client: to, client_port: to_port, vip: server, vip_port: server_port };
    let new_ports = Ports { source: quoted.vip_port, destination: quoted.client_port };
    let written =
        rewrite(packet, &ip, &quote, ip.source(), server, quoted.vip, quoted.client, new_ports, hops);
    if hops != 0 && packet.write(0, &found.hop.macs).is_none() || written.is_none() {
        return Reason::WriteFailed.drop();
    }
    verdict
}

/// About a client's packet on its way to a backend.
#[inline(always)]
fn error_to_client<I: Head, P: Packet, E: Env>(
    packet: &mut P,
    env: &E,
    work: &mut Work,
    ip: I,
    quote: Quote<I>,
    backend_id: u32,
) -> Verdict {
    let Quote { inner, protocol, ports, refuses, .. } = quote;
    let mut id = backend_id;
    let Some(backend) = env.backend(id) else { return Reason::StaleRecord.drop() };
    let Some(listener) = env.listener(backend.listener) else { return Reason::StaleRecord.drop() };
    let server = inner.destination();
    let mut ends = Ends {
        client: inner.source(),
        client_port: ports.source,
        vip: I::Addr::from_mapped(&listener.vip),
        vip_port: if backend.port.raw() == 0 { ports.destination } else { listener.port },
    };
    if backend.mode != Mode::NAT || backend.flags.has(BackendFlags::REVERSE) {
        let found =
            reverse::find::<I, E>(env, server, inner.source(), ports.destination, ports.source, protocol);
        match found {
            Some(back) => {
                id = back.backend;
                ends = back.ends;
            }
            None if backend.mode == Mode::NAT => {}
            None => return Reason::UnrelatedError.pass(),
        }
    }
    let Some(backend) = env.backend(id) else { return Reason::StaleRecord.drop() };
    let Some(listener) = env.listener(backend.listener) else { return Reason::StaleRecord.drop() };
    let hash = I::flow_hash(env.hash_key(), ends.client, ends.vip, ends.client_port, ends.vip_port, protocol);
    let Some(line) = env.flow_line(hash.line(env.flow_lines())) else { return Reason::StaleRecord.drop() };
    let way = flow::find(line, hash.fingerprint());
    if way >= WAYS {
        return Reason::UnrelatedError.pass();
    }
    let word = line.load(way);
    if word.backend() != id || word.state() as u8 == FlowState::Direct as u8 {
        return Reason::UnrelatedError.pass();
    }
    if refuses && word.state() as u8 == FlowState::Opening as u8 && has_chance(listener, word) {
        return Reason::RefusalHeld.drop();
    }
    if ip.hops() <= 1 {
        return Reason::HopsExhausted.pass();
    }
    work.backend = id;
    work.from_backend = 1;
    let source = if ip.source() == server { ends.vip } else { ip.source() };
    let icmp = I::ICMP;
    let found = hop::to_client::<I, E>(env, work, ends.client, ip.packet_len(), |q| {
        hop::query(q, &ip, source, ends.client, icmp);
    });
    let (verdict, hops) = match found.reach {
        Reach::Known => (hop::send(env, work, Reason::ErrorToClient, &found.hop), 1),
        Reach::NeighbourUnknown | Reach::Elsewhere => (Reason::ErrorToClient.pass(), 0),
        Reach::TooBig => return Reason::TooBig.pass(),
        reach => return to_backend::no_way(reach),
    };
    let new_ports = Ports { source: ends.client_port, destination: ends.vip_port };
    let written = rewrite(packet, &ip, &quote, source, ends.client, ends.client, ends.vip, new_ports, hops);
    if hops != 0 && packet.write(0, &found.hop.macs).is_none() || written.is_none() {
        return Reason::WriteFailed.drop();
    }
    verdict
}

/// Gives the error and the packet in it other addresses, and all checksums what these change.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "addresses of two headers")]
fn rewrite<I: Head, P: Packet>(
    packet: &mut P,
    ip: &I,
    quote: &Quote<I>,
    source: I::Addr,
    destination: I::Addr,
    inner_source: I::Addr,
    inner_destination: I::Addr,
    new_ports: Ports,
    hops: u8,
) -> Option<()> {
    let Quote { l4, at, inner_l4, ref inner, protocol, ports, .. } = *quote;
    let addresses = inner
        .source()
        .negative_sum()
        .plus(inner.destination().negative_sum())
        .plus(inner_source.sum())
        .plus(inner_destination.sum());
    let mut change = Sum::ZERO;
    if matches!(I::FAMILY, Family::V6) {
        // The quoted header has no checksum of its own, and the error's covers the addresses outside too.
        change = addresses
            .plus(ip.source().negative_sum())
            .plus(ip.destination().negative_sum())
            .plus(source.sum())
            .plus(destination.sum());
    }
    inner.rewrite(packet, at, inner_source, inner_destination, 0)?;
    if protocol == TCP || protocol == UDP {
        change = change.plus(ports.change(new_ports));
        new_ports.write(packet, inner_l4)?;
        let field = inner_l4 + checksum_offset(protocol);
        let end = eth::LEN + ip.packet_len() as usize;
        if field + 2 <= end
            && let Some(old) = packet.read::<u16>(field)
            && (protocol == TCP || old != 0)
        {
            let mut new = updated_raw(old, addresses.plus(ports.change(new_ports)));
            if protocol == UDP && new == 0 {
                new = 0xffff;
            }
            packet.write(field, &new)?;
            change = change.sub_half(old).add(u32::from(new));
        }
    }
    let checksum = packet.read::<u16>(l4 + 2)?;
    packet.write(l4 + 2, &updated_raw(checksum, change))?;
    ip.rewrite(packet, eth::LEN, source, destination, hops)
}
