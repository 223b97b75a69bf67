//! What TCP and UDP have in common, the little in which they differ, and where a packet's ports lead.

use super::parse::TCP;
use super::work::{NO_FLAGS, Work};
use super::{to_backend, to_client};
use crate::abi::endpoint::ANY_PORT;
use crate::abi::{Backend, Be16, Family, Features, Listener, Protocol, Side};
use crate::env::{Env, Step};
use crate::packet::Packet;
use crate::packet::checksum::{Sum, updated_raw};
use crate::packet::head::{Address, Head};
use crate::packet::tcp::{self, TcpFlags};
use crate::packet::udp;
use crate::verdict::{Reason, Verdict};

/// What a packet is, to code that is made for each kind on its own.
pub(super) const WHOLE: u8 = 0;
/// The first fragment of a datagram: it ends before its transport header says so.
pub(super) const FIRST: u8 = 1;
/// Neither TCP nor UDP.
pub(super) const ANY: u8 = 2;

/// Listeners of ranges at one address that are looked at.
///
/// Twice as many as there may be: while a configuration is replaced, old and new ones are there together.
const RANGES: usize = 16;

/// The first four bytes of either header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ports {
    pub source: Be16,
    pub destination: Be16,
}

impl Ports {
    /// For what has none.
    pub const NONE: Self = Self { source: Be16::new(ANY_PORT), destination: Be16::new(ANY_PORT) };

    #[inline(always)]
    pub fn read<P: Packet>(packet: &P, l4: usize) -> Option<Self> {
        let [a, b, c, d] = packet.read::<u32>(l4)?.to_ne_bytes();
        Some(Self {
            source: Be16::from_raw(u16::from_ne_bytes([a, b])),
            destination: Be16::from_raw(u16::from_ne_bytes([c, d])),
        })
    }

    #[inline(always)]
    pub fn write<P: Packet>(self, packet: &mut P, l4: usize) -> Option<()> {
        let ([a, b], [c, d]) = (self.source.bytes(), self.destination.bytes());
        packet.write(l4, &u32::from_ne_bytes([a, b, c, d]))
    }

    /// What replacing `self` by `new` adds to a checksum.
    #[inline(always)]
    pub const fn change(self, new: Self) -> Sum {
        Sum::ZERO
            .sub_half(self.source.raw())
            .sub_half(self.destination.raw())
            .add(new.source.raw() as u32)
            .add(new.destination.raw() as u32)
    }
}

/// What the packet path needs of a transport header.
#[derive(Clone, Copy)]
pub(super) struct Transport {
    /// TCP's, or [`NO_FLAGS`].
    pub flags: u32,
    /// As it stands in memory.
    pub checksum: u16,
}

/// TCP flags that tell where a connection stands.
pub(super) const TELLING: u32 =
    (TcpFlags::SYN.0 | TcpFlags::FIN.0 | TcpFlags::RST.0 | TcpFlags::ACK.0) as u32;

impl Transport {
    /// Reads and checks the header of a packet that is for a service.
    #[inline(always)]
    pub fn read<const KIND: u8, P: Packet>(
        packet: &P,
        protocol: u8,
        l4: usize,
        l4_len: u32,
        family: Family,
    ) -> Result<Self, Verdict> {
        if KIND == ANY {
            return Ok(Self { flags: NO_FLAGS, checksum: 0 });
        }
        if protocol == TCP {
            // Header length, flags, window, checksum.
            let Some([first, second]) = packet.read::<[u16; 4]>(l4 + 12).map(|[a, _, b, _]| [a, b]) else {
                return Err(Reason::MalformedTcp.drop());
            };
            let [offset, flags] = first.to_ne_bytes();
            let header = u32::from(offset >> 4) * 4;
            if header < tcp::LEN as u32 || header > l4_len {
                return Err(Reason::MalformedTcp.drop());
            }
            return Ok(Self { flags: u32::from(flags), checksum: second });
        }
        // Length and checksum.
        let Some([len, checksum]) = packet.read::<[u16; 2]>(l4 + 4) else {
            return Err(Reason::MalformedUdp.drop());
        };
        let len = u32::from(u16::from_be(len));
        if len < udp::LEN as u32 || (KIND == WHOLE && len > l4_len) {
            return Err(Reason::MalformedUdp.drop());
        }
        if checksum == 0 && matches!(family, Family::V6) {
            return Err(Reason::UdpWithoutChecksum.drop());
        }
        Ok(Self { flags: NO_FLAGS, checksum })
    }

    /// Whether it is a segment in the middle of a connection, or no segment at all.
    #[inline(always)]
    pub const fn is_plain(self) -> bool {
        self.flags == NO_FLAGS || self.flags & TELLING == TcpFlags::ACK.0 as u32
    }

    #[inline(always)]
    pub const fn tcp(self) -> Option<TcpFlags> {
        tcp_flags(self.flags)
    }

    /// The checksum field after `change`. UDP over IPv4 without a checksum stays without one.
    #[inline(always)]
    pub fn updated(self, change: Sum) -> u16 {
        let udp = self.flags == NO_FLAGS;
        if udp && self.checksum == 0 {
            return 0;
        }
        match updated_raw(self.checksum, change) {
            // Zero means "none" in UDP; the other zero of one's complement says the same sum (RFC 768).
            0 if udp => 0xffff,
            new => new,
        }
    }
}

/// From [`Work::flags`].
#[inline(always)]
pub(super) const fn tcp_flags(flags: u32) -> Option<TcpFlags> {
    if flags == NO_FLAGS { None } else { Some(TcpFlags(flags as u8)) }
}

/// Writes ports and checksum.
#[inline(always)]
pub(super) fn rewrite<const KIND: u8, P: Packet>(
    packet: &mut P,
    protocol: u8,
    l4: usize,
    ports: Ports,
    checksum: u16,
) -> Option<()> {
    if KIND == ANY {
        return Some(());
    }
    ports.write(packet, l4)?;
    packet.write(l4 + checksum_offset(protocol), &checksum)
}

/// Offset of the checksum in the transport header.
#[inline(always)]
pub(super) const fn checksum_offset(protocol: u8) -> usize {
    if protocol == TCP { 16 } else { 6 }
}

/// A whole packet of TCP or UDP.
#[inline(always)]
pub(super) fn whole<I: Head, P: Packet, E: Env>(
    packet: &mut P,
    env: &E,
    work: &mut Work,
    ip: I,
    l4: usize,
    l4_len: u32,
    protocol: u8,
) -> Verdict {
    direct::<I, P, E, WHOLE>(packet, env, work, ip, l4, l4_len, protocol)
}

/// The first fragment of one.
#[inline(always)]
pub(super) fn first<I: Head, P: Packet, E: Env>(
    packet: &mut P,
    env: &E,
    work: &mut Work,
    ip: I,
    l4: usize,
    l4_len: u32,
    protocol: u8,
) -> Verdict {
    direct::<I, P, E, FIRST>(packet, env, work, ip, l4, l4_len, protocol)
}

/// Towards a backend, towards a client, or none of our business.
#[inline(always)]
pub(super) fn direct<I: Head, P: Packet, E: Env, const KIND: u8>(
    packet: &mut P,
    env: &E,
    work: &mut Work,
    ip: I,
    l4: usize,
    l4_len: u32,
    protocol: u8,
) -> Verdict {
    let ports = if KIND == ANY {
        Ports::NONE
    } else {
        match Ports::read(packet, l4) {
            Some(ports) => ports,
            None => return Reason::TruncatedTransport.pass(),
        }
    };
    let packet_is = Is { l4, l4_len, protocol, ports };
    let (id, listener) = find_listener::<I, E>(env, ip.destination(), ports.destination, protocol);
    if listener.is_some() {
        env.trace(Step::Listener, id, 0);
        return to_backend::forward::<I, P, E, KIND>(packet, env, work, ip, packet_is, id);
    }
    let (id, backend) = find_backend::<I, E>(env, ip.source(), ports.source, protocol);
    if let Some(backend) = backend {
        env.trace(Step::FromBackend, id, 0);
        return to_client::forward::<I, P, E, KIND>(packet, env, work, ip, packet_is, id, backend);
    }
    if KIND == ANY { Reason::OtherProtocol.pass() } else { Reason::NoService.pass() }
}

/// What a packet is above IP.
#[derive(Clone, Copy)]
pub(super) struct Is {
    pub l4: usize,
    pub l4_len: u32,
    pub protocol: u8,
    pub ports: Ports,
}

/// The listener for a destination, and its number.
#[inline(always)]
pub(super) fn find_listener<I: Head, E: Env>(
    env: &E,
    addr: I::Addr,
    port: Be16,
    protocol: u8,
) -> (u32, Option<&Listener>) {
    let id = env.find_endpoint(I::endpoint_hash(env.hash_key(), Side::Vip, addr, port, protocol));
    if id != 0
        && let Some(listener) = env.listener(id)
        && is_at::<I>(listener, addr, protocol)
        && listener.port == port
    {
        return (id, Some(listener));
    }
    if env.features().has(Features::RANGES) {
        let any = Be16::new(ANY_PORT);
        let mut id = env.find_endpoint(I::endpoint_hash(env.hash_key(), Side::Vip, addr, any, protocol));
        for _ in 0..RANGES {
            let Some(listener) = env.listener(id) else { break };
            if id == 0 || !is_at::<I>(listener, addr, protocol) {
                break;
            }
            if holds(listener, port) {
                return (id, Some(listener));
            }
            id = listener.next;
        }
    }
    (0, None)
}

/// Whether a listener is the one that its endpoint promises: the endpoint has only a fingerprint.
#[inline(always)]
fn is_at<I: Head>(listener: &Listener, addr: I::Addr, protocol: u8) -> bool {
    listener.family == I::FAMILY.number()
        && I::Addr::from_mapped(&listener.vip) == addr
        && listener.protocol == protocol
}

/// Whether a port is one of a listener's.
#[inline(always)]
pub(super) const fn holds(listener: &Listener, port: Be16) -> bool {
    listener.port.get() <= port.get() && port.get() <= listener.last_port.get()
}

/// The backend that a packet from this source comes from, and its number.
#[inline(always)]
pub(super) fn find_backend<I: Head, E: Env>(
    env: &E,
    addr: I::Addr,
    port: Be16,
    protocol: u8,
) -> (u32, Option<&Backend>) {
    let id = env.find_endpoint(I::endpoint_hash(env.hash_key(), Side::Backend, addr, port, protocol));
    if id != 0
        && let Some(backend) = env.backend(id)
        && comes_from::<I>(backend, addr)
        && backend.port == port
        // Port 0 in a packet is none of a range's, though a range is found there.
        && (port.raw() != 0 || protocol == Protocol::Any.number())
    {
        return (id, Some(backend));
    }
    if env.features().has(Features::RANGES) {
        let any = Be16::new(ANY_PORT);
        let mut id = env.find_endpoint(I::endpoint_hash(env.hash_key(), Side::Backend, addr, any, protocol));
        for _ in 0..RANGES {
            let Some(backend) = env.backend(id) else { break };
            if id == 0 || !comes_from::<I>(backend, addr) {
                break;
            }
            if let Some(listener) = env.listener(backend.listener)
                && listener.protocol == protocol
                && holds(listener, port)
            {
                return (id, Some(backend));
            }
            id = backend.next;
        }
    }
    (0, None)
}

#[inline(always)]
fn comes_from<I: Head>(backend: &Backend, addr: I::Addr) -> bool {
    use crate::abi::BackendFlags;
    let v6 = matches!(I::FAMILY, Family::V6);
    backend.flags.has(BackendFlags::VALID)
        && backend.flags.has(BackendFlags::V6) == v6
        && I::Addr::from_mapped(&backend.addr) == addr
}
