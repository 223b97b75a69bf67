//! A server's end of the tunnels, for kernels without the modules: IP in IP (RFC 2003, RFC 2473, RFC 4213)
//! and GUE variant 1 (draft-ietf-intarea-gue-09, section 4: the inner IP header follows the UDP header).
//!
//! What arrives is unwrapped and given to the machine by a TUN device, so that any program on the services'
//! addresses answers. The kernel has verified the outer checksums and verifies the inner ones.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Netns;

/// Where GUE packets arrive.
pub const GUE_PORT: u16 = 6080;
const DEVICE: &std::ffi::CStr = c"decap";
/// IPv4 in whatever (RFC 2003).
const IN_IPV4: i32 = 4;
/// IPv6 in whatever (RFC 4213).
const IN_IPV6: i32 = 41;
/// `UDP_NO_CHECK6_RX` of linux/udp.h: GUE may leave its checksum out over IPv6, too (RFC 6936).
const UDP_NO_CHECK6_RX: i32 = 102;
/// Milliseconds between looks at whether to stop.
const PATIENCE: i32 = 50;

/// How a packet was wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wrapping {
    pub gue: bool,
    pub outer_v6: bool,
    pub inner_v6: bool,
}

/// What arrived in one kind of wrapping.
#[derive(Clone, Debug, Default)]
pub struct Unwrapped {
    pub packets: u64,
    /// Outer source addresses, with the source port of GUE.
    pub sources: BTreeSet<SocketAddr>,
    /// IPv4 outside: what its header should not look like.
    pub oddities: BTreeSet<String>,
}

type Seen = Arc<Mutex<BTreeMap<Wrapping, Unwrapped>>>;

/// Unwraps until dropped.
#[derive(Debug)]
pub struct Decapsulator {
    stop: Arc<AtomicBool>,
    seen: Seen,
}

struct Entrance {
    socket: UdpSocket,
    gue: bool,
    outer_v6: bool,
}

impl Decapsulator {
    /// In the namespace of a server that has the services' addresses.
    ///
    /// # Errors
    /// When the device or a socket cannot be made.
    pub fn start(netns: &Netns) -> Result<Self> {
        let (tun, entrances) = netns.run(|| Ok::<_, anyhow::Error>((tun()?, entrances()?)))??;
        netns.ip("link set decap up mtu 65535\n")?;
        netns.sysctl(&[("ipv4/conf/decap/rp_filter", "0")])?;
        let this = Self { stop: Arc::default(), seen: Seen::default() };
        let (stop, seen) = (Arc::clone(&this.stop), Arc::clone(&this.seen));
        std::thread::Builder::new()
            .name("decapsulator".to_owned())
            .spawn(move || unwrap_all(&tun, &entrances, &stop, &seen))?;
        Ok(this)
    }

    /// What arrived so far.
    pub fn seen(&self) -> BTreeMap<Wrapping, Unwrapped> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Packets that arrived so in that wrapping.
    pub fn packets(&self, wrapping: Wrapping) -> u64 {
        self.seen().get(&wrapping).map_or(0, |unwrapped| unwrapped.packets)
    }
}

impl Drop for Decapsulator {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A device whose packets are written by us, without a header in front (tun(4)).
fn tun() -> Result<File> {
    let path = "/dev/net/tun";
    let file =
        File::options().read(true).write(true).open(path).with_context(|| format!("cannot open {path}"))?;
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(DEVICE.to_bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_TUN | libc::IFF_NO_PI)?;
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } != 0 {
        return Err(std::io::Error::last_os_error()).context("cannot make a TUN device");
    }
    Ok(file)
}

fn entrances() -> Result<Vec<Entrance>> {
    let mut entrances = Vec::new();
    for outer_v6 in [false, true] {
        let domain = if outer_v6 { Domain::IPV6 } else { Domain::IPV4 };
        for protocol in [IN_IPV4, IN_IPV6] {
            let socket = Socket::new(domain, Type::from(libc::SOCK_RAW), Some(Protocol::from(protocol)))
                .with_context(|| format!("cannot make a raw socket for protocol {protocol}"))?;
            // A raw socket receives as a UDP socket does, which the standard library has.
            entrances.push(Entrance { socket: socket.into(), gue: false, outer_v6 });
        }
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        let any: IpAddr = if outer_v6 {
            socket.set_only_v6(true)?;
            accept_no_checksum(&socket)?;
            Ipv6Addr::UNSPECIFIED.into()
        } else {
            Ipv4Addr::UNSPECIFIED.into()
        };
        socket
            .bind(&SocketAddr::new(any, GUE_PORT).into())
            .with_context(|| format!("cannot listen on UDP port {GUE_PORT}"))?;
        entrances.push(Entrance { socket: socket.into(), gue: true, outer_v6 });
    }
    for entrance in &entrances {
        entrance.socket.set_nonblocking(true)?;
    }
    Ok(entrances)
}

fn accept_no_checksum(socket: &Socket) -> Result<()> {
    let on: libc::c_int = 1;
    let size = libc::socklen_t::try_from(size_of_val(&on))?;
    // SAFETY: the option takes an int.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_UDP,
            UDP_NO_CHECK6_RX,
            (&raw const on).cast(),
            size,
        )
    };
    if result != 0 {
        return Err(std::io::Error::last_os_error()).context("cannot set UDP_NO_CHECK6_RX");
    }
    Ok(())
}

fn unwrap_all(
    tun: &File,
    entrances: &[Entrance],
    stop: &AtomicBool,
    seen: &Mutex<BTreeMap<Wrapping, Unwrapped>>,
) {
    let mut buffer = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        let mut polls: Vec<_> = entrances
            .iter()
            .map(|one| libc::pollfd { fd: one.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 })
            .collect();
        let count = libc::nfds_t::try_from(polls.len()).unwrap_or(0);
        // SAFETY: a valid array of `count` elements.
        unsafe { libc::poll(polls.as_mut_ptr(), count, PATIENCE) };
        for (entrance, poll) in entrances.iter().zip(&polls) {
            while poll.revents != 0
                && let Ok((length, from)) = entrance.socket.recv_from(&mut buffer)
            {
                take(tun, entrance, &buffer[..length], from, seen);
            }
        }
    }
}

fn take(
    mut tun: &File,
    entrance: &Entrance,
    packet: &[u8],
    mut from: SocketAddr,
    seen: &Mutex<BTreeMap<Wrapping, Unwrapped>>,
) {
    let Entrance { gue, outer_v6, .. } = *entrance;
    // Raw sockets show the IPv4 header and hide the IPv6 one (raw(7), RFC 3542).
    let shown = !gue && !outer_v6;
    let start = if shown { packet.first().map_or(0, |byte| usize::from(byte & 0x0f) * 4) } else { 0 };
    let Some((outer, inner)) = packet.split_at_checked(start) else { return };
    let Some(version) = inner.first().map(|byte| byte >> 4) else { return };
    if !gue {
        // It is the protocol's number, which says nothing about the flow.
        from.set_port(0);
    }
    let wrapping = Wrapping { gue, outer_v6, inner_v6: version == 6 };
    {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = seen.entry(wrapping).or_default();
        entry.packets += 1;
        entry.sources.insert(from);
        if shown {
            entry.oddities.extend(oddities(outer, inner));
        }
    }
    // A packet the kernel refuses is one that is lost, as on any other device.
    let _ = tun.write(inner);
}

/// Ways in which an outer IPv4 header differs from what a tunnel writes: no options, the inner ToS, "do not
/// fragment" (the length and checksum were the kernel's to verify).
fn oddities(outer: &[u8], inner: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    if outer.len() != 20 {
        found.push(format!("a header of {} bytes", outer.len()));
    }
    if let (Some(outer), Some([first, second])) = (outer.get(1), inner.get(..2)) {
        let tos = if first >> 4 == 6 { (first << 4) | (second >> 4) } else { *second };
        if *outer != tos {
            found.push(format!("ToS {outer:#04x} around {tos:#04x}"));
        }
    }
    if outer.get(6).is_some_and(|flags| flags & 0x40 == 0) {
        found.push("may be fragmented".to_owned());
    }
    found
}
