//! A client's packet on its way to a backend (`nat`: the destination is rewritten).

use super::transport::{Ports, Transport};
use super::{Parsed, select, write};
use crate::abi::net::{Be16, Family, Protocol};
use crate::abi::{FlowTuple, SchedulerCode};
use crate::env::{Env, Reach};
use crate::packet::Packet;
use crate::packet::eth::{self, Macs};
use crate::packet::ip::IpHeader;
use crate::packet::tcp::{self, Tcp, TcpFlags};
use crate::verdict::{Action, Reason, Verdict};

/// A function of its own in the program too: BPF allows 512 bytes of stack, and each function gets its frame.
#[inline(never)]
pub(super) fn forward<I: IpHeader, P: Packet, E: Env>(
    packet: &mut P,
    env: &E,
    parsed: &mut Parsed<I>,
    ports: Ports,
    listener_id: u32,
) -> Verdict {
    try_forward(packet, env, parsed, ports, listener_id).unwrap_or_else(|verdict| verdict)
}

#[inline(always)]
fn try_forward<I: IpHeader, P: Packet, E: Env>(
    packet: &mut P,
    env: &E,
    parsed: &mut Parsed<I>,
    ports: Ports,
    listener_id: u32,
) -> Result<Verdict, Verdict> {
    let listener = env.listener(listener_id).ok_or(Reason::StaleRecord.drop())?;
    let transport =
        Transport::read(packet, parsed.protocol, parsed.l4(), parsed.l4_len, I::FAMILY == Family::V4)?;

    let hash = I::flow_hash(
        env.hash_key(),
        parsed.ip.source(),
        parsed.ip.destination(),
        ports.source,
        ports.destination,
        parsed.protocol,
    );
    let source = if listener.scheduler == SchedulerCode::SOURCE_HASH {
        let client = parsed.ip.source();
        I::flow_hash(env.hash_key(), client, client, Be16::new(0), Be16::new(0), Protocol::Tcp)
    } else {
        hash
    };
    let choice = select::choose(env, listener_id, listener, hash, source, transport.flags)?;
    if choice.reset {
        choice.commit(env);
        return answer_reset(packet, parsed);
    }
    if parsed.ip.hops() <= 1 {
        return Ok(Reason::HopsExhausted.pass());
    }

    let addr_change = parsed.ip.set_destination(I::from_mapped(&choice.backend.addr));
    let new_ports = Ports { source: ports.source, destination: choice.backend.port };
    let checksum = transport.updated(addr_change.plus(ports.change(new_ports)));

    parsed.find_route(env);
    let verdict = match parsed.route.reach {
        Reach::Known => {
            parsed.ip.decrement_hops();
            Reason::ToBackend.send(parsed.route.ifindex, env.ingress())
        }
        // The kernel forwards what it gets, takes the hop off, and asks for the MAC address meanwhile.
        Reach::NeighbourUnknown | Reach::Elsewhere => Reason::ToBackendByKernel.pass(),
        Reach::TooBig => return Ok(Reason::TooBig.pass()),
        Reach::NotForwarded | Reach::Refused => return Err(Reason::NoRoute.drop()),
        Reach::ForwardingDisabled => return Err(Reason::ForwardingDisabled.drop()),
        Reach::Unsupported => return Err(Reason::UnusableRoute.drop()),
    };
    let index = choice.commit(env);
    if index != select::NO_TUPLE {
        let tuple = parsed.tuple.write(FlowTuple {
            client: I::to_mapped(parsed.ip.source()),
            client_port: ports.source,
            vip_port: ports.destination,
            listener: listener_id,
        });
        env.record_tuple(index, tuple);
    }
    env.count_to_backend(choice.id, parsed.ip.packet_len() as u32);
    write(packet, parsed, new_ports, checksum)?;
    Ok(verdict)
}

/// Turns the client's segment into the RST that ends its connection (RFC 9293 section 3.10.7.1) and sends it back.
///
/// The client accepts it because its sequence number is the one it expects next: what it acknowledged.
#[inline(always)]
fn answer_reset<I: IpHeader, P: Packet>(packet: &mut P, parsed: &mut Parsed<I>) -> Result<Verdict, Verdict> {
    let l4 = parsed.l4();
    let Parsed { ip, tcp, route, .. } = parsed;
    let tcp: &mut Tcp = tcp.write(packet.read(l4).ok_or(Reason::MalformedTcp.drop())?);
    // Never a RST for a RST; and without an acknowledgment there is no connection to end.
    if tcp.flags.has(TcpFlags::RST) || !tcp.flags.has(TcpFlags::ACK) {
        return Err(Reason::BackendGone.drop());
    }
    ip.answer(Protocol::Tcp, tcp::LEN as u16);
    *tcp = Tcp {
        source: tcp.destination,
        destination: tcp.source,
        sequence: tcp.acknowledgment,
        acknowledgment: [0; 4],
        data_offset: 5 << 4,
        flags: TcpFlags::RST,
        window: Be16::new(0),
        checksum: [0; 2],
        urgent: Be16::new(0),
    };
    tcp.checksum = ip
        .pseudo_sum(Protocol::Tcp, tcp::LEN as u16)
        .add16(tcp.source.0)
        .add16(tcp.destination.0)
        .add32(tcp.sequence)
        .add16([tcp.data_offset, tcp.flags.0])
        .checksum();

    let came: Macs = packet.read(0).ok_or(Reason::TruncatedFrame.drop())?;
    route.macs = Macs { destination: came.source, source: came.destination };
    packet
        .write(0, &route.macs)
        .and(packet.write(eth::LEN, ip))
        .and(packet.write(eth::LEN + I::LEN, tcp))
        .and(packet.truncate(eth::LEN + I::LEN + tcp::LEN))
        .ok_or(Reason::WriteFailed.drop())?;
    Ok(Verdict { ifindex: 0, action: Action::Transmit, reason: Reason::ClientReset })
}
