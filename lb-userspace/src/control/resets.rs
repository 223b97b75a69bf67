//! Ending the connections of a backend that went down, now instead of at their timeouts.
//!
//! The packet path answers a client's segment for such a backend with a RST that the client believes, because it is
//! made from the segment. But a client that waits for an answer sends nothing. So each gets an acknowledgment that does
//! not fit its connection, to which TCP must answer with where it stands (RFC 9293 section 3.10.7.4: an unacceptable
//! segment is answered with an ACK), and that answer is what the packet path needs.

use std::io;
use std::net::{IpAddr, SocketAddr};

use lb_common::abi::net::{Be16, Protocol};
use lb_common::packet::checksum::Sum;
use lb_common::packet::ip::IpHeader as _;
use lb_common::packet::ip4::Ipv4;
use lb_common::packet::ip6::Ipv6;
use lb_common::packet::tcp::{self, Tcp, TcpFlags};
use socket2::{Domain, Protocol as SocketProtocol, Socket, Type};

/// A connection as its client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    pub client: SocketAddr,
    pub vip: SocketAddr,
}

/// Asks every client where it stands. Says how many were asked; those that cannot be reached are left to their
/// timeouts.
///
/// # Errors
/// When the system has no raw sockets for us.
pub fn ask(connections: &[Connection]) -> io::Result<usize> {
    let open = |domain| -> io::Result<Socket> {
        // IPPROTO_RAW: we write the IP header too, as the VIP need not be an address of this machine.
        Socket::new(domain, Type::RAW, Some(SocketProtocol::from(libc::IPPROTO_RAW)))
    };
    let (mut v4, mut v6) = (None, None);
    let mut asked = 0;
    for connection in connections {
        let (socket, domain) = match connection.client {
            SocketAddr::V4(_) => (&mut v4, Domain::IPV4),
            SocketAddr::V6(_) => (&mut v6, Domain::IPV6),
        };
        let socket = match socket {
            Some(socket) => socket,
            None => socket.insert(open(domain)?),
        };
        // Raw sockets want port 0 in the address they send to.
        let to = SocketAddr::new(connection.client.ip(), 0);
        let packet = question(*connection, rand::random(), rand::random());
        asked += usize::from(socket.send_to(&packet, &to.into()).is_ok());
    }
    Ok(asked)
}

/// The IP packet with the acknowledgment that does not fit.
fn question(connection: Connection, sequence: u32, acknowledgment: u32) -> Vec<u8> {
    let mut tcp = Tcp {
        source: Be16::new(connection.vip.port()),
        destination: Be16::new(connection.client.port()),
        sequence: sequence.to_be_bytes(),
        acknowledgment: acknowledgment.to_be_bytes(),
        data_offset: 5 << 4,
        flags: TcpFlags::ACK,
        window: Be16::new(1024),
        checksum: [0; 2],
        urgent: Be16::new(0),
    };
    let length = tcp::LEN as u16;
    let (header, pseudo): (Vec<u8>, Sum) = match (connection.vip.ip(), connection.client.ip()) {
        (IpAddr::V6(vip), IpAddr::V6(client)) => {
            let mut ip: Ipv6 = bytemuck::Zeroable::zeroed();
            ip.source = client.octets();
            ip.destination = vip.octets();
            ip.answer(Protocol::Tcp, length);
            (bytemuck::bytes_of(&ip).to_vec(), ip.pseudo_sum(Protocol::Tcp, length))
        }
        (vip, client) => {
            let mut ip: Ipv4 = bytemuck::Zeroable::zeroed();
            ip.source = v4(client);
            ip.destination = v4(vip);
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
    use super::*;

    #[test]
    fn the_question_is_a_whole_segment_from_the_vip() {
        for (vip, client) in
            [("203.0.113.10:25", "192.0.2.1:40000"), ("[2001:db8::10]:25", "[2001:db8::1]:40000")]
        {
            let connection = Connection { vip: vip.parse().unwrap(), client: client.parse().unwrap() };
            let packet = question(connection, 1, 2);
            let v6 = connection.vip.is_ipv6();
            let tcp = &packet[if v6 { 40 } else { 20 }..];
            assert_eq!(tcp.len(), 20);
            assert_eq!(tcp[..4], [0, 25, 0x9c, 0x40]);
            assert_eq!(tcp[13], 0x10);
            // Over pseudo-header and segment, the sum with the checksum in it is all ones.
            let pseudo = Sum::ZERO.add16([0, 6]).add16([0, 20]);
            let addresses = if v6 { &packet[8..40] } else { &packet[12..20] };
            let sum = addresses.chunks(2).chain(tcp.chunks(2)).fold(pseudo, |s, w| s.add16([w[0], w[1]]));
            assert_eq!(sum.fold(), [0xff, 0xff]);
        }
    }
}
