//! Whether the VIP answers on one server, asked by the way that clients' packets go: `via = "vip"`.
//!
//! The kernel of this gateway would find a VIP that it has itself, and no socket option names the server's MAC address or
//! a tunnel. So the SYN is made here and sent around the routing table. Its source is the gateway's own, so that the
//! answer comes straight back, as it does to clients. The connection is opened half only, and then reset: by its SYN-ACK
//! the server has said all that is to be known of the way, and its log has no line for it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use etherparse::{PacketBuilder, TcpHeader, TcpHeaderSlice};
use netlink_packet_route::neighbour::NeighbourAttribute;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use super::{Path, step};
use crate::health::{Carriage, CheckError, Stage, Via};
use crate::net::Kernel;
use crate::net::neighbours::next_hop;

/// TTL and hop limit that most systems begin with.
const HOPS: u8 = 64;
const WINDOW: u16 = 64_240;
/// A SYN that got lost is sent once more after this part of the time.
const AGAIN_AFTER: u32 = 2;
/// How long to wait for the kernel to have asked for the server's MAC address, before looking again.
const NEIGHBOUR: Duration = Duration::from_millis(50);
/// IP in IP: protocol numbers of what is inside.
const IPV4: i32 = 4;
const IPV6: i32 = 41;

type Mac = [u8; 6];

/// Sends a SYN, and another one at half-time, and waits for what the VIP says.
/// `source` is of the VIP's family; `None`: what the kernel uses to the server.
pub(super) async fn examine(path: Path, via: Via, source: Option<IpAddr>) -> Result<(), CheckError> {
    let source = source.map_or_else(|| towards(path.address.ip(), via.vip.ip()), Ok).map_err(local)?;
    // It keeps the port from others. Nothing listens there: the kernel resets what it hears of.
    let (_kept, own) = reserve(source).map_err(local)?;
    let ear = ear(source, via.vip.ip()).map_err(local)?;
    let carrier = Carrier::open(path, via).await?;
    let connection = Connection { own, vip: via.vip, first: rand::random() };
    let (syn, reset) = (connection.syn().map_err(local)?, connection.reset().map_err(local)?);
    let mut buffer = [0; 1500];
    for attempt in 1..=2 {
        step(Stage::Connect, path.deadline, async { carrier.send(&syn) }).await?;
        let left = path.deadline.saturating_duration_since(Instant::now());
        let until = if attempt == 1 { Instant::now() + left / AGAIN_AFTER } else { path.deadline };
        while let Ok(received) = timeout_at(until, ear.recv(&mut buffer)).await {
            let length = received.map_err(local)?;
            match connection.answer(&buffer[..length]) {
                Some(Answer::Accepted) => {
                    // Without it the server would keep half a connection for a while.
                    return carrier.send(&reset).map_err(local);
                }
                Some(Answer::Refused) => return Err(CheckError::VipRefused),
                // Others may speak with the VIP.
                None => tokio::task::consume_budget().await,
            }
        }
    }
    Err(CheckError::VipSilent)
}

#[expect(clippy::needless_pass_by_value, reason = "what map_err hands over")]
fn local(error: io::Error) -> CheckError {
    CheckError::from_io(&error, Stage::Connect)
}

/// The address of this gateway that the kernel would use to the server, if it is of the VIP's family: the server's answer
/// finds it.
fn towards(server: IpAddr, vip: IpAddr) -> io::Result<IpAddr> {
    if server.is_ipv4() != vip.is_ipv4() {
        // In a tunnel of the other family.
        return Err(io::Error::from_raw_os_error(libc::EADDRNOTAVAIL));
    }
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = std::net::UdpSocket::bind(any)?;
    // Nothing is sent; the port is of no meaning.
    socket.connect(SocketAddr::new(server, 9))?;
    Ok(socket.local_addr()?.ip())
}

fn reserve(source: IpAddr) -> io::Result<(Socket, SocketAddr)> {
    let any = SocketAddr::new(source, 0);
    let socket = Socket::new(Domain::for_address(any), Type::STREAM, None)?;
    socket.bind(&any.into())?;
    let own = socket.local_addr()?.as_socket();
    Ok((socket, own.ok_or_else(|| io::Error::from_raw_os_error(libc::EADDRNOTAVAIL))?))
}

/// Hears what the VIP says to the gateway's address, and nothing else (raw(7)).
fn ear(source: IpAddr, vip: IpAddr) -> io::Result<UdpSocket> {
    let any = SocketAddr::new(source, 0);
    let socket = Socket::new(Domain::for_address(any), Type::RAW, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.bind(&any.into())?;
    socket.connect(&SocketAddr::new(vip, 0).into())?;
    UdpSocket::from_std(socket.into())
}

/// One that is begun.
struct Connection {
    own: SocketAddr,
    vip: SocketAddr,
    /// Sequence number of the SYN.
    first: u32,
}

/// What the VIP says to a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Accepted,
    Refused,
}

impl Connection {
    fn syn(&self) -> io::Result<Vec<u8>> {
        let mut header = TcpHeader::new(self.own.port(), self.vip.port(), self.first, WINDOW);
        header.syn = true;
        self.packet(header)
    }

    fn reset(&self) -> io::Result<Vec<u8>> {
        let next = self.first.wrapping_add(1);
        let mut header = TcpHeader::new(self.own.port(), self.vip.port(), next, WINDOW);
        header.rst = true;
        self.packet(header)
    }

    fn packet(&self, header: TcpHeader) -> io::Result<Vec<u8>> {
        let step = match (self.own.ip(), self.vip.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), HOPS),
            (from, to) => PacketBuilder::ipv6(octets(from), octets(to), HOPS),
        };
        let mut bytes = Vec::new();
        step.tcp_header(header).write(&mut bytes, &[]).map_err(io::Error::other)?;
        Ok(bytes)
    }

    /// What the packet is to this connection. Raw IPv4 sockets also get the IP header (raw(7)).
    fn answer(&self, packet: &[u8]) -> Option<Answer> {
        let header = match self.own {
            SocketAddr::V4(_) => usize::from(packet.first()? & 0xf) * 4,
            SocketAddr::V6(_) => 0,
        };
        let tcp = TcpHeaderSlice::from_slice(packet.get(header..)?).ok()?;
        let ports = (tcp.source_port(), tcp.destination_port());
        let ours = ports == (self.vip.port(), self.own.port())
            && tcp.ack()
            && tcp.acknowledgment_number() == self.first.wrapping_add(1);
        match (ours, tcp.rst(), tcp.syn()) {
            (true, true, _) => Some(Answer::Refused),
            (true, false, true) => Some(Answer::Accepted),
            _ => None,
        }
    }
}

const fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Brings packets for the VIP to the server.
enum Carrier {
    /// In frames to this address, by a socket that hears nothing.
    Link { socket: Socket, to: libc::sockaddr_ll },
    /// In what the socket puts around them.
    Tunnel(Socket),
}

impl Carrier {
    async fn open(path: Path, via: Via) -> Result<Self, CheckError> {
        let server = path.address.ip();
        match via.carriage {
            Carriage::Direct => {
                let (device, mac) = neighbour(server, path.deadline).await?;
                Self::link(device, mac, via.vip.is_ipv4()).map_err(local)
            }
            Carriage::Ipip => {
                let inside = if via.vip.is_ipv4() { IPV4 } else { IPV6 };
                Self::tunnel(path, 0, Type::RAW, Protocol::from(inside)).map_err(local)
            }
            // Of variant 1 the packet inside follows at once: its version tells it from other variants.
            Carriage::Gue(port) => Self::tunnel(path, port, Type::DGRAM, Protocol::UDP).map_err(local),
        }
    }

    fn tunnel(path: Path, port: u16, kind: Type, protocol: Protocol) -> io::Result<Self> {
        let server = SocketAddr::new(path.address.ip(), port);
        let socket = Socket::new(Domain::for_address(server), kind, Some(protocol))?;
        if let Some(source) = path.source {
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        socket.connect(&server.into())?;
        Ok(Self::Tunnel(socket))
    }

    fn link(device: u32, mac: Mac, v4: bool) -> io::Result<Self> {
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
        let ether_type = if v4 { libc::ETH_P_IP } else { libc::ETH_P_IPV6 };
        // SAFETY: sockaddr_ll is a plain C struct of integers, for which zeros are valid.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_protocol = (ether_type as u16).to_be();
        to.sll_ifindex = i32::try_from(device).map_err(|_| io::ErrorKind::InvalidInput)?;
        to.sll_halen = mac.len() as u8;
        to.sll_addr[..mac.len()].copy_from_slice(&mac);
        Ok(Self::Link { socket, to })
    }

    fn send(&self, packet: &[u8]) -> io::Result<()> {
        let (socket, to) = match self {
            Self::Tunnel(socket) => return socket.send(packet).map(drop),
            Self::Link { socket, to } => (socket, to),
        };
        let length = libc::socklen_t::try_from(size_of_val(to)).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the packet and the address are valid for reads of the lengths given with them.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                std::ptr::from_ref(to).cast(),
                length,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// The interface that the server is behind, and the MAC address to send to.
async fn neighbour(server: IpAddr, deadline: Instant) -> Result<(u32, Mac), CheckError> {
    loop {
        if let Some(found) = ask(server).map_err(local)? {
            return Ok(found);
        }
        if Instant::now() + NEIGHBOUR >= deadline {
            return Err(CheckError::HostUnreachable);
        }
        tokio::time::sleep(NEIGHBOUR).await;
    }
}

/// Nothing while it is not known: the daemon has the kernel ask for it every second ([`crate::net::neighbours`]). Takes some
/// microseconds.
fn ask(server: IpAddr) -> io::Result<Option<(u32, Mac)>> {
    let kernel = Kernel::open()?;
    let Some(route) = kernel.route(server)? else { return Ok(None) };
    let Some((device, hop)) = next_hop(&route, server) else { return Ok(None) };
    let attributes = kernel.neighbour(device, hop)?.map(|entry| entry.attributes).unwrap_or_default();
    Ok(attributes.into_iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => Some((device, Mac::try_from(bytes.as_slice()).ok()?)),
        _ => None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(own: &str, vip: &str) -> Connection {
        Connection { own: own.parse().unwrap(), vip: vip.parse().unwrap(), first: u32::MAX }
    }

    #[test]
    fn answers_are_told_from_what_else_the_vip_says() {
        for (own, vip, skip) in [
            ("198.51.100.1:40000", "203.0.113.10:25", 0),
            ("[2001:db8:64::1]:40000", "[2001:db8::10]:25", 40),
        ] {
            let ours = connection(own, vip);
            let say = |change: &dyn Fn(&mut TcpHeader)| {
                let mut header = TcpHeader::new(25, 40_000, 7, WINDOW);
                header.ack = true;
                change(&mut header);
                let packet = connection(vip, own).packet(header).unwrap();
                ours.answer(&packet[skip..])
            };
            // The SYN has the last of all sequence numbers.
            assert_eq!(say(&|tcp| tcp.syn = true), Some(Answer::Accepted));
            assert_eq!(say(&|tcp| tcp.rst = true), Some(Answer::Refused));
            assert_eq!(say(&|_| {}), None);
            assert_eq!(say(&|tcp| (tcp.syn, tcp.ack) = (true, false)), None);
            assert_eq!(say(&|tcp| (tcp.syn, tcp.acknowledgment_number) = (true, 1)), None);
            assert_eq!(say(&|tcp| (tcp.syn, tcp.source_port) = (true, 26)), None);
            assert_eq!(say(&|tcp| (tcp.syn, tcp.destination_port) = (true, 40_001)), None);
            assert_eq!(ours.answer(&[]), None);
            assert_eq!(ours.answer(&[0x45; 20]), None);
        }
    }
}
