//! The gateway's own answers: a packet becomes the ICMP error or the RST that its sender gets for it.
//!
//! The kernel cannot answer for a VIP: it would take the packet for its own, or quote addresses that its sender does
//! not know.

use super::Stage;
use super::hop;
use super::parse::{TCP, UDP};
use super::work::Work;
use crate::abi::{Be16, Family, ListenerFlags};
use crate::env::Env;
use crate::packet::Packet;
use crate::packet::checksum::Sum;
use crate::packet::eth::{self, Macs};
use crate::packet::head::{Address, Head};
use crate::packet::tcp::{self, Tcp, TcpFlags};
use crate::verdict::{Action, Reason, Verdict};

/// Values of [`Work::refusal`].
const HOPS: u32 = 1;
const TOO_BIG: u32 = 2;
const RESET_CLIENT: u32 = 3;
const RESET_BACKEND: u32 = 4;
const NOBODY: u32 = 5;

/// What is quoted after the IP header: the ports, and with TCP the sequence number (RFC 792, RFC 4443).
const QUOTED: usize = 8;
/// Bytes of the ICMP header.
const ICMP: usize = 8;
/// Words of the longest quote.
const WORDS: usize = 62;

/// Its TTL or hop limit ends here.
#[inline(always)]
pub(super) fn hops<I: Head>(work: &mut Work, l4: usize) -> Verdict {
    work.refusal = HOPS;
    work.l4 = l4 as u32;
    stage::<I>()
}

/// It is larger than `mtu`, which the way takes.
#[inline(always)]
pub(super) fn too_big<I: Head>(work: &mut Work, l4: usize, mtu: u32) -> Verdict {
    work.refusal = TOO_BIG;
    work.l4 = l4 as u32;
    work.mtu = mtu;
    stage::<I>()
}

/// A client's segment for a backend that is down.
#[inline(always)]
pub(super) fn reset<I: Head>(work: &mut Work) -> Verdict {
    work.refusal = RESET_CLIENT;
    stage::<I>()
}

/// A segment of a backend that is held to be down.
#[inline(always)]
pub(super) fn reset_backend<I: Head>(work: &mut Work) -> Verdict {
    work.refusal = RESET_BACKEND;
    stage::<I>()
}

/// A new flow that no backend can take: what its service wants then.
#[inline(always)]
pub(super) fn nobody<I: Head, E: Env>(env: &E, work: &mut Work) -> Verdict {
    let Some(listener) = env.listener(work.listener) else { return Reason::StaleRecord.drop() };
    let flags = listener.flags;
    if flags.has(ListenerFlags::PASS_WHEN_EMPTY) {
        return Reason::NoBackendPassed.pass();
    }
    let protocol = work.protocol as u8;
    if !flags.has(ListenerFlags::REFUSE_WHEN_EMPTY) || (protocol != TCP && protocol != UDP) {
        return Reason::NoBackend.drop();
    }
    work.refusal = NOBODY;
    stage::<I>()
}

#[inline(always)]
fn stage<I: Head>() -> Verdict {
    match I::FAMILY {
        Family::V4 => Stage::Refuse4.next(),
        Family::V6 => Stage::Refuse6.next(),
    }
}

/// Builds the answer and sends it back.
#[inline(always)]
pub(super) fn answer<I: Head, P: Packet, E: Env>(packet: &mut P, env: &E, work: &mut Work) -> Verdict {
    let refusal = work.refusal;
    if refusal == RESET_CLIENT || refusal == RESET_BACKEND {
        let reason = if refusal == RESET_CLIENT { Reason::ClientReset } else { Reason::BackendReset };
        return answer_reset::<I, P>(packet, work.l4(), reason);
    }
    if refusal == NOBODY && work.protocol as u8 == TCP {
        return answer_reset::<I, P>(packet, work.l4(), Reason::NoBackendRefused);
    }
    answer_error::<I, P, E>(packet, env, work, refusal)
}

/// An ICMP error that quotes the packet (RFC 792, RFC 1191 section 4, RFC 4443 sections 3.1 to 3.3).
#[inline(always)]
fn answer_error<I: Head, P: Packet, E: Env>(
    packet: &mut P,
    env: &E,
    work: &mut Work,
    refusal: u32,
) -> Verdict {
    let too_big = refusal == TOO_BIG;
    let nobody = refusal == NOBODY;
    // One after the other: of what is compared at once, the verifier does not know which was found.
    let Some(ip) = I::read(packet, eth::LEN) else { return Reason::WriteFailed.drop() };
    let Some(macs) = packet.read::<Macs>(0) else { return Reason::WriteFailed.drop() };
    let mut quote = (work.l4() + QUOTED).saturating_sub(eth::LEN);
    // What is not the packet's, such as padding, is not quoted.
    if quote > ip.packet_len() as usize {
        quote = ip.packet_len() as usize & 0xff;
    }
    let port = env.port(hop::ingress(env, work));
    let own = match (port, I::FAMILY) {
        (Some(port), Family::V4) if port.addr4 != [0; 4] => {
            I::Addr::from_mapped(&crate::abi::net::mapped(port.addr4))
        }
        (Some(port), Family::V6) if port.addr6 != [0; 16] => I::Addr::from_mapped(&port.addr6),
        // The address that the packet was sent to is ours too.
        _ => ip.destination(),
    };
    if !packet.holds(eth::LEN + quote) {
        return Reason::WriteFailed.drop();
    }
    let front = I::LEN + ICMP;
    let done = packet
        .truncate(eth::LEN + quote)
        .and(packet.grow(front))
        .and(packet.write(0, &macs.swapped()))
        .and(packet.write(eth::TYPE_AT, &I::ETHER_TYPE));
    if done.is_none() {
        return Reason::WriteFailed.drop();
    }
    let [a, b] = (work.mtu as u16).to_be_bytes();
    let rest = if too_big { [0, 0, a, b] } else { [0; 4] };
    let (kind, code) = match (I::FAMILY, too_big) {
        // Port unreachable.
        (Family::V4, _) if nobody => (3, 3),
        (Family::V6, _) if nobody => (1, 4),
        (Family::V4, true) => (3, 4),
        (Family::V4, false) => (11, 0),
        (Family::V6, true) => (2, 0),
        (Family::V6, false) => (3, 0),
    };
    let len = ICMP + quote;
    let mut sum = Sum::ZERO.add(u32::from(u16::from_ne_bytes([kind, code]))).add(u32::from_ne_bytes(rest));
    if matches!(I::FAMILY, Family::V6) {
        let next = super::parse::ICMP6;
        sum = sum
            .plus(own.sum())
            .plus(ip.source().sum())
            .add(u32::from(Be16::new(len as u16).raw()))
            .add(u32::from(u16::from_ne_bytes([0, next])));
    }
    let at = eth::LEN + front;
    for word in 0..WORDS {
        let offset = word * 4;
        if offset + 4 > quote {
            break;
        }
        let Some(value) = packet.read::<u32>(at + offset) else { return Reason::WriteFailed.drop() };
        sum = sum.add(value);
    }
    if quote & 2 != 0 {
        let Some(value) = packet.read::<u16>(at + (quote & 0xfc)) else { return Reason::WriteFailed.drop() };
        sum = sum.add(u32::from(value));
    }
    if quote & 1 != 0 {
        // As if a zero followed.
        let Some(value) = packet.read::<u8>(at + (quote & 0xfe)) else { return Reason::WriteFailed.drop() };
        sum = sum.add(u32::from(u16::from_ne_bytes([value, 0])));
    }
    let [c, d] = sum.checksum();
    let written = I::write_new(packet, eth::LEN, own, ip.source(), I::ICMP, len as u16).and(
        packet.write(eth::LEN + I::LEN, &[u32::from_ne_bytes([kind, code, c, d]), u32::from_ne_bytes(rest)]),
    );
    if written.is_none() {
        return Reason::WriteFailed.drop();
    }
    let reason = match refusal {
        NOBODY => Reason::NoBackendRefused,
        TOO_BIG => Reason::TooBigAnswered,
        _ => Reason::HopsAnswered,
    };
    Verdict { ifindex: 0, action: Action::Transmit, reason }
}

/// The RST that ends the sender's connection (RFC 9293 section 3.10.7.1).
///
/// The sender accepts it because its sequence number is the one it expects next: what it acknowledged.
#[inline(always)]
fn answer_reset<I: Head, P: Packet>(packet: &mut P, l4: usize, reason: Reason) -> Verdict {
    // One after the other: of what is compared at once, the verifier does not know which was found.
    let Some(ip) = I::read(packet, eth::LEN) else { return Reason::WriteFailed.drop() };
    let Some(macs) = packet.read::<Macs>(0) else { return Reason::WriteFailed.drop() };
    // Ports, sequence, acknowledgment, and the word with the flags.
    let Some([ports, sequence, acknowledgment, offset]) = packet.read::<[u32; 4]>(l4) else {
        return Reason::MalformedTcp.drop();
    };
    let flags = TcpFlags(offset.to_ne_bytes()[1]);
    // Never a RST for a RST; and without an acknowledgment there is no connection to end, but an attempt may be refused.
    let opens = flags.has(TcpFlags::SYN) && reason as u8 == Reason::NoBackendRefused as u8;
    if flags.has(TcpFlags::RST) || !(flags.has(TcpFlags::ACK) || opens) {
        return Reason::BackendGone.drop();
    }
    // Without one of its sender's, the RST acknowledges the SYN, and its own number says nothing.
    let (number, acknowledged, answer) = if flags.has(TcpFlags::ACK) {
        (acknowledgment, 0, TcpFlags::RST.0)
    } else {
        (0, u32::from_be(sequence).wrapping_add(1).to_be(), TcpFlags::RST.0 | TcpFlags::ACK.0)
    };
    let [a, b, c, d] = ports.to_ne_bytes();
    let ports = u32::from_ne_bytes([c, d, a, b]);
    let word = u32::from_ne_bytes([5 << 4, answer, 0, 0]);
    let sum = ip
        .source()
        .sum()
        .plus(ip.destination().sum())
        .add(u32::from(u16::from_ne_bytes([0, TCP])))
        .add(u32::from(Be16::new(tcp::LEN as u16).raw()))
        .add(ports)
        .add(number)
        .add(acknowledged)
        .add(word);
    let [e, f] = sum.checksum();
    let segment = [ports, number, acknowledged, word, u32::from_ne_bytes([e, f, 0, 0])];
    const _: () = assert!(size_of::<Tcp>() == 20);
    let done = packet
        .write(0, &macs.swapped())
        .and(I::write_new(packet, eth::LEN, ip.destination(), ip.source(), TCP, tcp::LEN as u16))
        .and(packet.write(eth::LEN + I::LEN, &segment))
        .and(packet.truncate(eth::LEN + I::LEN + tcp::LEN));
    if done.is_none() {
        return Reason::WriteFailed.drop();
    }
    Verdict { ifindex: 0, action: Action::Transmit, reason }
}
