//! Ending the connections of a backend that went down, now instead of at their timeouts.
//!
//! The packet path answers a segment of such a connection with a RST that its sender believes, because it is made from
//! the segment: at the client's end, and at the server's, which may be alive though its check fails. But an end that
//! waits for the other sends nothing. So each gets an acknowledgment that does not fit its connection, to which TCP must
//! answer with where it stands (RFC 9293 section 3.10.7.4: an unacceptable segment is answered with an ACK), and that
//! answer is what the packet path needs.

use std::io;
use std::net::{IpAddr, SocketAddr};

use lb_common::abi::net::{Be16, Protocol};
use lb_common::packet::checksum::Sum;
use lb_common::packet::ip::IpHeader as _;
use lb_common::packet::ip4::Ipv4;
use lb_common::packet::ip6::Ipv6;
use lb_common::packet::tcp::{self, Tcp, TcpFlags};
use socket2::{Domain, Protocol as SocketProtocol, Socket, Type};

use crate::config::Forward;
use crate::dataplane::flows::Flow;
use crate::dataplane::image::{Image, address_from};

/// What one end is asked: a segment as from the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    pub from: SocketAddr,
    pub to: SocketAddr,
}

/// A connection, by what its ends are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    pub client: Question,
    /// `None` where the server answers the client past the gateway, and is left to its own timeout.
    pub server: Option<Question>,
}

impl Connection {
    /// The connection of a flow; `None` when it is not known any more what it belongs to.
    pub fn of(flow: &Flow, image: &Image) -> Option<Self> {
        let tuple = &flow.tuple;
        let listener = image.listeners.get(&tuple.listener)?;
        let server = image.backends.get(&flow.backend)?.server;
        let client = SocketAddr::new(address_from(tuple.client), tuple.client_port.get());
        let vip = SocketAddr::new(listener.listen.address, tuple.vip_port.get());
        let port = if server.port == 0 { vip.port() } else { server.port };
        let server = SocketAddr::new(server.address, port);
        let source = match listener.forward {
            Forward::Nat => Some(client),
            Forward::Snat => {
                let index = u8::try_from(tuple.snat_index).ok();
                let address = index.and_then(|index| image.snat_addresses.get(&index));
                address.map(|address| SocketAddr::new(*address, tuple.snat_port.get()))
            }
            Forward::Dsr | Forward::Ipip | Forward::Gue => None,
        };
        Some(Self {
            client: Question { from: vip, to: client },
            server: source.map(|from| Question { from, to: server }),
        })
    }
}

/// Asks both ends of every connection where they stand. Says how many questions were sent; those that cannot be reached
/// are left to their timeouts.
///
/// # Errors
/// When the system has no raw sockets for us.
pub fn ask(connections: &[Connection]) -> io::Result<usize> {
    let open = |domain| -> io::Result<Socket> {
        // IPPROTO_RAW: we write the IP header too, as the source need not be an address of this machine.
        Socket::new(domain, Type::RAW, Some(SocketProtocol::from(libc::IPPROTO_RAW)))
    };
    let (mut v4, mut v6) = (None, None);
    let mut asked = 0;
    let questions = connections.iter().flat_map(|connection| [Some(connection.client), connection.server]);
    for question in questions.flatten() {
        let (socket, domain) = match question.to {
            SocketAddr::V4(_) => (&mut v4, Domain::IPV4),
            SocketAddr::V6(_) => (&mut v6, Domain::IPV6),
        };
        let socket = match socket {
            Some(socket) => socket,
            None => socket.insert(open(domain)?),
        };
        // Raw sockets want port 0 in the address they send to.
        let to = SocketAddr::new(question.to.ip(), 0);
        let packet = packet(question, rand::random(), rand::random());
        asked += usize::from(socket.send_to(&packet, &to.into()).is_ok());
    }
    Ok(asked)
}

/// The IP packet with the acknowledgment that does not fit.
fn packet(question: Question, sequence: u32, acknowledgment: u32) -> Vec<u8> {
    let mut tcp = Tcp {
        source: Be16::new(question.from.port()),
        destination: Be16::new(question.to.port()),
        sequence: sequence.to_be_bytes(),
        acknowledgment: acknowledgment.to_be_bytes(),
        data_offset: 5 << 4,
        flags: TcpFlags::ACK,
        window: Be16::new(1024),
        checksum: [0; 2],
        urgent: Be16::new(0),
    };
    let length = tcp::LEN as u16;
    let (header, pseudo): (Vec<u8>, Sum) = match (question.from.ip(), question.to.ip()) {
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut ip: Ipv6 = bytemuck::Zeroable::zeroed();
            ip.source = to.octets();
            ip.destination = from.octets();
            ip.answer(Protocol::Tcp, length);
            (bytemuck::bytes_of(&ip).to_vec(), ip.pseudo_sum(Protocol::Tcp, length))
        }
        (from, to) => {
            let mut ip: Ipv4 = bytemuck::Zeroable::zeroed();
            ip.source = v4(to);
            ip.destination = v4(from);
            ip.answer(Protocol::Tcp, length);
            (bytemuck::bytes_of(&ip).to_vec(), ip.pseudo_sum(Protocol::Tcp, length))
        }
    };
    let words = bytemuck::bytes_of(&tcp).chunks_exact(2);
    tcp.checksum = words.fold(pseudo, |sum, word| sum.add16([word[0], word[1]])).checksum();
    let mut packet = header;
    packet.extend_from_slice(bytemuck::bytes_of(&tcp));
    packet
}

fn v4(address: IpAddr) -> [u8; 4] {
    match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => *lb_common::abi::net::unmapped(&v6.octets()),
    }
}

#[cfg(test)]
mod tests {
    use lb_common::abi::FlowTuple;
    use lb_common::abi::flow::FlowState;
    use lb_common::abi::net::mapped;

    use super::*;
    use crate::config::{Listen, Protocol as ConfigProtocol};
    use crate::dataplane::image::Server;
    use crate::dataplane::worlds;

    #[test]
    fn the_question_is_a_whole_segment_from_the_other_end() {
        for (from, to) in
            [("203.0.113.10:25", "192.0.2.1:40000"), ("[2001:db8::10]:25", "[2001:db8::1]:40000")]
        {
            let question = Question { from: from.parse().unwrap(), to: to.parse().unwrap() };
            let packet = packet(question, 1, 2);
            let v6 = question.from.is_ipv6();
            let tcp = &packet[if v6 { 40 } else { 20 }..];
            assert_eq!(tcp.len(), 20);
            assert_eq!(tcp[..4], [0, 25, 0x9c, 0x40]);
            assert_eq!(tcp[13], 0x10);
            // Over pseudo-header and segment, the sum with the checksum in it is all ones.
            let pseudo = Sum::ZERO.add16([0, 6]).add16([0, 20]);
            let addresses = if v6 { &packet[8..40] } else { &packet[12..20] };
            let source = if v6 { &addresses[..16] } else { &addresses[..4] };
            let expected = match question.from.ip() {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => v6.octets().to_vec(),
            };
            assert_eq!(source, expected);
            let sum = addresses.chunks(2).chain(tcp.chunks(2)).fold(pseudo, |s, w| s.add16([w[0], w[1]]));
            assert_eq!(sum.fold(), [0xff, 0xff]);
        }
    }

    /// The connection of a client of port 8025, behind a listener that keeps the port or not.
    fn connection(forward: Forward, server_port: u16) -> Connection {
        let listen = Listen {
            address: "203.0.113.10".parse().unwrap(),
            port: 8000,
            last_port: 8100,
            protocol: ConfigProtocol::Tcp,
        };
        let mut image = Image::default();
        let mut listener = worlds::listener(listen, [1]);
        listener.forward = forward;
        image.listeners.insert(1, listener);
        let mut backend = worlds::server(1, "198.51.100.11".parse().unwrap());
        backend.server = Server { port: server_port, ..backend.server };
        image.backends.insert(1, backend);
        image.snat_addresses.insert(3, "198.51.100.1".parse().unwrap());
        let tuple = FlowTuple {
            client: mapped([192, 0, 2, 1]),
            client_port: Be16::new(40_000),
            vip_port: Be16::new(8025),
            listener: 1,
            partner: 0,
            snat_port: Be16::new(1025),
            snat_index: 3,
        };
        let flow = Flow { backend: 1, state: FlowState::Established, time: 0, tuple };
        Connection::of(&flow, &image).expect("a connection")
    }

    #[test]
    fn each_end_is_asked_as_it_knows_the_other() {
        let question =
            |from: &str, to: &str| Question { from: from.parse().unwrap(), to: to.parse().unwrap() };
        let client = question("203.0.113.10:8025", "192.0.2.1:40000");
        let to_server = |forward, port| {
            let connection = connection(forward, port);
            assert_eq!(connection.client, client);
            connection.server
        };
        let server = |from, to| Some(question(from, to));
        assert_eq!(to_server(Forward::Nat, 25), server("192.0.2.1:40000", "198.51.100.11:25"));
        assert_eq!(to_server(Forward::Nat, 0), server("192.0.2.1:40000", "198.51.100.11:8025"));
        assert_eq!(to_server(Forward::Snat, 25), server("198.51.100.1:1025", "198.51.100.11:25"));
        for forward in [Forward::Dsr, Forward::Ipip, Forward::Gue] {
            assert_eq!(to_server(forward, 0), None);
        }
    }
}
