//! Raw sockets: whole packets as they are written, any IP protocol, and Ethernet frames.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Netns;
use crate::topology::Host;

/// `IPPROTO_RAW`: what is sent is a packet with its own header (raw(7); IPv6 since Linux 4.5).
const WHOLE: i32 = 255;

/// A socket for one IP protocol, bound to `address`.
///
/// # Errors
/// When it cannot be made.
fn raw(netns: &Netns, address: IpAddr, protocol: i32) -> Result<UdpSocket> {
    netns
        .run(|| {
            let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
            let socket = Socket::new(domain, Type::from(libc::SOCK_RAW), Some(Protocol::from(protocol)))?;
            socket.bind(&SocketAddr::new(address, 0).into())?;
            // Sends and receives as a UDP socket does, which the standard library has.
            let socket: UdpSocket = socket.into();
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            Ok::<_, std::io::Error>(socket)
        })?
        .with_context(|| format!("cannot have a raw socket for protocol {protocol} on {address}"))
}

/// Raw sockets of IPv4 show the header.
fn payload(packet: &[u8], v4: bool) -> Option<&[u8]> {
    let start = if v4 { usize::from(packet.first()? & 0x0f) * 4 } else { 0 };
    packet.get(start..)
}

/// Sends whole packets, each to the destination in its header.
#[derive(Debug)]
pub struct PacketSender {
    v4: UdpSocket,
    v6: UdpSocket,
}

impl PacketSender {
    /// # Errors
    /// When a raw socket cannot be made.
    pub fn new(netns: &Netns) -> Result<Self> {
        let v4 = raw(netns, Ipv4Addr::UNSPECIFIED.into(), WHOLE)?;
        Ok(Self { v4, v6: raw(netns, Ipv6Addr::UNSPECIFIED.into(), WHOLE)? })
    }

    /// # Errors
    /// When the kernel refuses it.
    pub fn send(&self, destination: IpAddr, packet: &[u8]) -> Result<()> {
        let socket = if destination.is_ipv4() { &self.v4 } else { &self.v6 };
        socket
            .send_to(packet, SocketAddr::new(destination, 0))
            .with_context(|| format!("cannot send a packet to {destination}"))
            .map(drop)
    }
}

/// Answers packets of one protocol that is neither TCP nor UDP with what they carry and the server's name.
#[derive(Debug)]
pub struct RawEcho {
    stop: Arc<AtomicBool>,
}

impl RawEcho {
    /// On all addresses of `host`.
    ///
    /// # Errors
    /// When a raw socket cannot be made.
    pub fn start(host: &Host, protocol: u8) -> Result<Self> {
        let echo = Self { stop: Arc::default() };
        for address in host.addresses() {
            let socket = raw(&host.netns, address, protocol.into())?;
            let (stop, name) = (Arc::clone(&echo.stop), host.name.clone());
            std::thread::Builder::new().name(format!("raw-echo-{name}")).spawn(move || {
                let mut buffer = vec![0; 65_536];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((count, from)) = socket.recv_from(&mut buffer)
                        && let Some(text) = payload(&buffer[..count], address.is_ipv4())
                    {
                        let answer = [text, b" ", name.as_bytes()].concat();
                        let _ = socket.send_to(&answer, SocketAddr::new(from.ip(), 0));
                    }
                }
            })?;
        }
        Ok(echo)
    }
}

impl Drop for RawEcho {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Asks `target`, from `source`, once and returns which server answered; `None` when none does in a second.
///
/// # Errors
/// When no raw socket can be had.
pub fn ask(
    netns: &Netns,
    source: IpAddr,
    target: IpAddr,
    protocol: u8,
    text: &str,
) -> Result<Option<String>> {
    let socket = raw(netns, source, protocol.into())?;
    socket
        .send_to(text.as_bytes(), SocketAddr::new(target, 0))
        .with_context(|| format!("cannot send to {target}"))?;
    let start = Instant::now();
    let mut buffer = vec![0; 65_536];
    while start.elapsed() < Duration::from_secs(1) {
        let Ok((count, from)) = socket.recv_from(&mut buffer) else { continue };
        let answer = payload(&buffer[..count], source.is_ipv4()).map(String::from_utf8_lossy);
        if from.ip() == target
            && let Some(server) = answer.as_deref().and_then(|answer| answer.strip_prefix(text))
        {
            return Ok(Some(server.trim().to_owned()));
        }
    }
    Ok(None)
}

/// Sends and receives whole Ethernet frames on one interface (packet(7)).
#[derive(Debug)]
pub struct FrameSocket {
    socket: OwnedFd,
}

impl FrameSocket {
    /// # Errors
    /// When there is no such interface.
    pub fn open(netns: &Netns, device: &str) -> Result<Self> {
        netns.run(|| {
            let index = nix::net::if_::if_nametoindex(device)
                .with_context(|| format!("there is no interface {device} in {}", netns.name()))?;
            let all = u16::try_from(libc::ETH_P_ALL)?.to_be();
            // SAFETY: socket takes integers.
            let fd =
                unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(all)) };
            if fd < 0 {
                return Err(std::io::Error::last_os_error()).context("cannot make a packet socket");
            }
            // SAFETY: the descriptor was just opened and belongs to nobody else.
            let socket = unsafe { OwnedFd::from_raw_fd(fd) };
            // SAFETY: all zeroes is a valid sockaddr_ll.
            let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            address.sll_family = u16::try_from(libc::AF_PACKET)?;
            address.sll_protocol = all;
            address.sll_ifindex = i32::try_from(index)?;
            let size = libc::socklen_t::try_from(size_of_val(&address))?;
            // SAFETY: a sockaddr_ll and its size.
            if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) } != 0 {
                return Err(std::io::Error::last_os_error())
                    .with_context(|| format!("cannot bind a packet socket to {device}"));
            }
            let on: libc::c_int = 1;
            let size = libc::socklen_t::try_from(size_of_val(&on))?;
            // Received frames lose their outer tag to the packet's description; it is asked for.
            // SAFETY: the option takes an int.
            let set = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_PACKET,
                    libc::PACKET_AUXDATA,
                    (&raw const on).cast(),
                    size,
                )
            };
            if set != 0 {
                return Err(std::io::Error::last_os_error()).context("cannot set PACKET_AUXDATA");
            }
            Ok(Self { socket })
        })?
    }

    /// # Errors
    /// When the kernel refuses it.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: the buffer and its length.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if usize::try_from(sent) != Ok(frame.len()) {
            return Err(std::io::Error::last_os_error()).context("cannot send a frame");
        }
        Ok(())
    }

    /// The first frame that is `right`, within `limit`. Frames of this machine's own are passed over.
    pub fn receive(&self, limit: Duration, mut right: impl FnMut(&[u8]) -> bool) -> Option<Vec<u8>> {
        let start = Instant::now();
        loop {
            let left = limit.checked_sub(start.elapsed())?;
            let millis = i32::try_from(left.as_millis().max(1)).unwrap_or(1000);
            let mut poll = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid pollfd.
            if unsafe { libc::poll(&raw mut poll, 1, millis) } <= 0 {
                continue;
            }
            if let Some(frame) = self.take()
                && right(&frame)
            {
                return Some(frame);
            }
        }
    }

    /// One frame with its outer tag put back; `None` for one that was sent from here.
    fn take(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0_u8; 65_536];
        let mut control = [0_u64; 16];
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: all zeroes are a valid sockaddr_ll and msghdr.
        let (mut from, mut message): (libc::sockaddr_ll, libc::msghdr) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        message.msg_name = (&raw mut from).cast();
        message.msg_namelen = libc::socklen_t::try_from(size_of_val(&from)).ok()?;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: every pointer of the message is to a live buffer of the length beside it.
        let count = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, 0) };
        buffer.truncate(usize::try_from(count).ok()?);
        if from.sll_pkttype == libc::PACKET_OUTGOING {
            return None;
        }
        // SAFETY: the kernel has filled the message in; the macros stay within its control buffer.
        let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        if !header.is_null() {
            // SAFETY: the only control message this socket asks for is a tpacket_auxdata.
            let data = unsafe { libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned() };
            if data.tp_status & libc::TP_STATUS_VLAN_VALID != 0 {
                let tag = [data.tp_vlan_tpid.to_be_bytes(), data.tp_vlan_tci.to_be_bytes()].concat();
                buffer.splice(12..12, tag);
            }
        }
        Some(buffer)
    }
}
