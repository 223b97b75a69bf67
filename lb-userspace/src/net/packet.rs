//! A packet that nobody sends, to run the program on.

use std::net::IpAddr;

use etherparse::err::packet::BuildVecWriteError;
use etherparse::{IpNumber, PacketBuilder, TcpHeader};
use lb_common::abi::Tag;
use lb_common::packet::eth;
use lb_common::packet::tcp::TcpFlags;

use crate::api::explain::{Carries, Question};

/// Locally administered: the program looks at neither.
const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
/// TTL and hop limit that most systems begin with.
const HOPS: u8 = 64;
/// Of a segment in the middle of nowhere.
const SEQUENCE: u32 = 1;
const WINDOW: u16 = 64_240;
/// What is above a header without a payload of its own.
const PAYLOAD: [u8; 16] = *b"matapa explains.";

/// The frame, with these VLAN tags from the outside in.
///
/// # Errors
/// Never, as these packets are short.
pub fn frame(question: &Question, tags: &[Tag]) -> Result<Vec<u8>, BuildVecWriteError> {
    let [source, destination] = MACS;
    let step = PacketBuilder::ethernet2(source, destination);
    let step = match (question.source, question.destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => step.ipv4(from.octets(), to.octets(), HOPS),
        (from, to) => step.ipv6(mapped(from), mapped(to), HOPS),
    };
    let mut frame = Vec::new();
    match question.carries {
        Carries::Tcp { source, destination, flags } => {
            let mut header = TcpHeader::new(source, destination, SEQUENCE, WINDOW);
            header.syn = flags.has(TcpFlags::SYN);
            header.ack = flags.has(TcpFlags::ACK);
            header.fin = flags.has(TcpFlags::FIN);
            header.rst = flags.has(TcpFlags::RST);
            header.acknowledgment_number = if header.ack { SEQUENCE } else { 0 };
            step.tcp_header(header).write_to_vec(&mut frame, &[])?;
        }
        Carries::Udp { source, destination } => {
            step.udp(source, destination).write_to_vec(&mut frame, &PAYLOAD)?;
        }
        Carries::Ping if question.source.is_ipv4() => {
            step.icmpv4_echo_request(1, 1).write_to_vec(&mut frame, &PAYLOAD)?;
        }
        Carries::Ping => step.icmpv6_echo_request(1, 1).write_to_vec(&mut frame, &PAYLOAD)?,
        Carries::Other(number) => step.write_to_vec(&mut frame, IpNumber(number), &PAYLOAD)?,
    }
    for tag in tags.iter().rev() {
        let bytes = bytemuck::bytes_of(tag).to_vec();
        frame.splice(eth::TYPE_AT..eth::TYPE_AT, bytes);
    }
    Ok(frame)
}

const fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{SlicedPacket, TransportSlice};
    use lb_common::abi::Be16;

    use super::*;

    #[test]
    fn frames_are_what_was_asked_for() {
        let asked = |source, destination, flags| {
            Question::parse(source, destination, flags, None, None).expect("a question")
        };
        let bytes = frame(&asked("192.0.2.1:40000", "203.0.113.10:25", Some("ack,fin")), &[]).expect("short");
        let packet = SlicedPacket::from_ethernet(&bytes).expect("a packet");
        let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("{packet:?}") };
        assert_eq!((tcp.source_port(), tcp.destination_port()), (40_000, 25));
        assert_eq!([tcp.syn(), tcp.ack(), tcp.fin(), tcp.rst()], [false, true, true, false]);

        let tag = |number| Tag { ether_type: Be16::new(0x8100), control: Be16::new(number) };
        let question = asked("[2001:db8::1]:5000", "[2001:db8::10]:53/udp", None);
        let bytes = frame(&question, &[tag(10), tag(20)]).expect("short");
        let packet = SlicedPacket::from_ethernet(&bytes).expect("a packet");
        let numbers: Vec<u16> = packet.vlan_ids().iter().map(|id| id.value()).collect();
        assert_eq!(numbers, [10, 20]);
        let Some(TransportSlice::Udp(udp)) = packet.transport else { panic!("{packet:?}") };
        assert_eq!((udp.source_port(), udp.destination_port()), (5000, 53));

        for (source, destination, number, at) in [
            ("192.0.2.1", "203.0.113.10/icmp", 1, 23),
            ("192.0.2.1", "203.0.113.10/47", 47, 23),
            ("2001:db8::1", "2001:db8::10/icmp6", 58, 20),
            ("2001:db8::1", "2001:db8::10/132", 132, 20),
        ] {
            let bytes = frame(&asked(source, destination, None), &[]).expect("short");
            assert_eq!(bytes[at], number, "{destination}");
        }
    }
}
