//! Raw sockets of IP protocol 112 on one interface.
//!
//! They are ordinary IP sockets and not packet sockets: the kernel has checked the IP header, and the host's firewall
//! has its say.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd as _};
use std::task::{Context, Poll};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};
use tokio::io::unix::AsyncFd;

use crate::carp::wire::{GROUP4, GROUP6, LENGTH, PROTOCOL, TTL};

/// IPTOS_LOWDELAY, as all implementations set it.
const LOW_DELAY: u32 = 0x10;
/// Enough for an IPv4 header with options and anything that could be taken for an advertisement.
const BUFFER: usize = 512;

/// An IP packet of protocol 112.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Or hop limit.
    pub ttl: u8,
    /// After the IP header. Cut off where no advertisement is that long.
    pub payload: Vec<u8>,
}

/// The sockets of one interface: one for each family that its vhids need.
#[derive(Debug)]
pub struct Sockets {
    v4: Option<AsyncFd<Socket>>,
    v6: Option<AsyncFd<Socket>>,
    index: u32,
}

impl Sockets {
    /// Opens the sockets on an interface and joins the groups. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// Without `CAP_NET_RAW`, or when the interface is gone.
    pub fn open(interface: &str, index: u32, v4: bool, v6: bool) -> io::Result<Self> {
        let open = |wanted: bool, open: fn(&str, u32) -> io::Result<Socket>| {
            wanted.then(|| open(interface, index).and_then(register)).transpose()
        };
        Ok(Self { v4: open(v4, open_v4)?, v6: open(v6, open_v6)?, index })
    }

    /// The interface's number when they were opened.
    pub fn index(&self) -> u32 {
        self.index
    }

    fn all(&self) -> impl Iterator<Item = &AsyncFd<Socket>> {
        self.v4.iter().chain(&self.v6)
    }

    /// Ready when [`Sockets::receive`] is worth a try.
    pub fn poll_readable(&self, context: &mut Context<'_>) -> Poll<()> {
        for socket in self.all() {
            match socket.poll_read_ready(context) {
                Poll::Ready(Ok(mut guard)) => {
                    if has_input(socket.get_ref()) {
                        return Poll::Ready(());
                    }
                    guard.clear_ready();
                    // Registers for the next time.
                    if socket.poll_read_ready(context).is_ready() {
                        context.waker().wake_by_ref();
                    }
                }
                // The runtime is shutting down.
                Poll::Ready(Err(_)) | Poll::Pending => {}
            }
        }
        Poll::Pending
    }

    /// The next packet that has arrived, if any. What is no IP packet at all is skipped.
    pub fn receive(&self) -> Option<Packet> {
        let v4 = self.v4.as_ref().and_then(|socket| next(socket.get_ref(), receive_v4));
        v4.or_else(|| self.v6.as_ref().and_then(|socket| next(socket.get_ref(), receive_v6)))
    }

    /// Sends an advertisement from `source` to `destination`, both of one family.
    ///
    /// # Errors
    /// When the system refuses; the text says what of.
    pub fn send(&self, source: IpAddr, destination: IpAddr, bytes: &[u8; LENGTH]) -> io::Result<()> {
        let slices = [IoSlice::new(bytes)];
        let missing = || io::Error::from(io::ErrorKind::AddrNotAvailable);
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let socket = self.v4.as_ref().ok_or_else(missing)?;
                let info = libc::in_pktinfo {
                    ipi_ifindex: i32::try_from(self.index).unwrap_or(0),
                    ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(source.octets()) },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                let to = SockaddrIn::from(SocketAddrV4::new(destination, 0));
                let control = [ControlMessage::Ipv4PacketInfo(&info)];
                sendmsg(socket.as_raw_fd(), &slices, &control, MsgFlags::empty(), Some(&to))?;
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let socket = self.v6.as_ref().ok_or_else(missing)?;
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr { s6_addr: source.octets() },
                    ipi6_ifindex: self.index,
                };
                let to = SockaddrIn6::from(SocketAddrV6::new(destination, 0, 0, self.index));
                let control = [ControlMessage::Ipv6PacketInfo(&info)];
                sendmsg(socket.as_raw_fd(), &slices, &control, MsgFlags::empty(), Some(&to))?;
            }
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
        Ok(())
    }
}

fn open_v4(interface: &str, index: u32) -> io::Result<Socket> {
    let socket = raw(Domain::IPV4, interface)?;
    let index = InterfaceIndexOrAddress::Index(index);
    socket.set_ttl_v4(u32::from(TTL))?;
    socket.set_multicast_ttl_v4(u32::from(TTL))?;
    socket.set_multicast_loop_v4(false)?;
    socket.set_tos_v4(LOW_DELAY)?;
    set_dont_fragment(&socket)?;
    socket.join_multicast_v4_n(&GROUP4, &index)?;
    Ok(socket)
}

/// Nothing of 56 bytes is fragmented, but all implementations set the flag.
fn set_dont_fragment(socket: &Socket) -> io::Result<()> {
    let value: libc::c_int = libc::IP_PMTUDISC_DO;
    let length = libc::socklen_t::try_from(size_of_val(&value)).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the option takes an int, which `value` is for the time of the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            (&raw const value).cast(),
            length,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn register(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: a Socket owns its descriptor and closes it when it is dropped, after its registration.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

fn open_v6(interface: &str, index: u32) -> io::Result<Socket> {
    let socket = raw(Domain::IPV6, interface)?;
    socket.set_unicast_hops_v6(u32::from(TTL))?;
    socket.set_multicast_hops_v6(u32::from(TTL))?;
    socket.set_multicast_if_v6(index)?;
    socket.set_multicast_loop_v6(false)?;
    setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    socket.set_recv_hoplimit_v6(true)?;
    socket.join_multicast_v6(&GROUP6, index)?;
    Ok(socket)
}

fn raw(domain: Domain, interface: &str) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(i32::from(PROTOCOL))))?;
    socket.set_nonblocking(true)?;
    // Nothing of other interfaces may come in between this and the next line: it would be counted as of this one.
    socket.bind_device(Some(interface.as_bytes()))?;
    Ok(socket)
}

fn has_input(socket: &Socket) -> bool {
    let mut poll = [nix::poll::PollFd::new(socket.as_fd(), nix::poll::PollFlags::POLLIN)];
    nix::poll::poll(&mut poll, nix::poll::PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Errors of the socket, such as that its interface went down, are over once they have been read.
fn next(socket: &Socket, receive: fn(&Socket) -> io::Result<Option<Packet>>) -> Option<Packet> {
    loop {
        match receive(socket) {
            Ok(Some(packet)) => return Some(packet),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(error) => {
                log::debug!("receiving advertisements: {error}");
                return None;
            }
        }
    }
}

fn receive_v4(socket: &Socket) -> io::Result<Option<Packet>> {
    let mut buffer = [0; BUFFER];
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let length = recvmsg::<()>(socket.as_raw_fd(), &mut slices, None, MsgFlags::empty())?.bytes;
    Ok(parse_v4(&buffer[..length]))
}

/// The whole IP packet. `None` if it is none, which the kernel would not hand out.
fn parse_v4(bytes: &[u8]) -> Option<Packet> {
    let header = bytes.first_chunk::<20>()?;
    let header_length = usize::from(header[0] & 0xf) * 4;
    let address =
        |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]).into();
    Some(Packet {
        source: address(12),
        destination: address(16),
        ttl: header[8],
        payload: bytes.get(header_length..)?.to_vec(),
    })
}

fn receive_v6(socket: &Socket) -> io::Result<Option<Packet>> {
    let mut buffer = [0; BUFFER];
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let mut control = nix::cmsg_space!(libc::in6_pktinfo, libc::c_int);
    let received =
        recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty())?;
    let (length, source) = (received.bytes, received.address.map(|address| address.ip()));
    let (mut destination, mut hops) = (None, None);
    for message in received.cmsgs()? {
        match message {
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                destination = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr));
            }
            ControlMessageOwned::Ipv6HopLimit(limit) => hops = u8::try_from(limit).ok(),
            _ => {}
        }
    }
    let (Some(source), Some(destination), Some(ttl)) = (source, destination, hops) else { return Ok(None) };
    let payload = buffer[..length].to_vec();
    Ok(Some(Packet { source: source.into(), destination: destination.into(), ttl, payload }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_skipped() {
        let mut bytes = vec![0x46, 0x10, 0, 28, 0, 0, 0, 0, 255, 112, 0, 0, 192, 0, 2, 1, 224, 0, 0, 18];
        bytes.extend([1, 1, 1, 1, 0x21, 7, 7, 7]);
        let packet = parse_v4(&bytes).unwrap();
        assert_eq!(packet.source, IpAddr::from([192, 0, 2, 1]));
        assert_eq!(packet.destination, IpAddr::from(GROUP4));
        assert_eq!((packet.ttl, packet.payload), (255, vec![0x21, 7, 7, 7]));
        for length in 0..24 {
            assert_eq!(parse_v4(&bytes[..length]), None);
        }
    }
}
