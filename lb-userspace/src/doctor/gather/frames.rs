//! Watching an interface by a packet socket (packet(7)): checksums that are not finished, and answers to ARP.
//!
//! The socket sees what the program lets pass, such as answers to checks; what it forwards is gone before.

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::super::facts::{ArpAnswer, Frames, Interface, Mac};
use crate::carp::io::announce::Announcer;

/// What was seen, by interface, and who answered.
pub(super) type Seen = (BTreeMap<String, Frames>, Vec<ArpAnswer>);

/// Of linux/if_packet.h.
const PACKET_AUXDATA: libc::c_int = 8;
const TP_STATUS_CSUMNOTREADY: u32 = 1 << 3;
const ETHERTYPE_ARP: [u8; 2] = [8, 6];
/// Frames of more are cut off; only their beginning is of interest.
const BUFFER: usize = 128;

/// `struct tpacket_auxdata`.
#[repr(C)]
struct Auxiliary {
    status: u32,
    len: u32,
    snaplen: u32,
    mac: u16,
    net: u16,
    vlan_tci: u16,
    vlan_tpid: u16,
}

/// Cards finish checksums; interfaces that lead to another system's memory may not.
pub(super) fn may_be_unfinished(interface: &Interface) -> bool {
    interface.kind == "veth"
        || ["veth", "virtio_net", "xen_netfront", "tun"].contains(&interface.driver.as_str())
}

/// What to watch an interface for.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) name: String,
    pub(super) index: u32,
    pub(super) mac: Mac,
    pub(super) checksums: bool,
    /// Who has these?
    pub(super) ask: Vec<Ipv4Addr>,
}

impl Watch {
    /// Watches for so long. Without the right to, it sees nothing.
    pub(super) fn run(self, time: Duration) -> (String, Option<Frames>, Vec<ArpAnswer>) {
        let mut frames = Frames::default();
        let mut answers = Vec::new();
        let watched = self.watch(time, &mut frames, &mut answers).is_ok();
        answers.dedup();
        (self.name, (watched && self.checksums).then_some(frames), answers)
    }

    fn watch(&self, time: Duration, frames: &mut Frames, answers: &mut Vec<ArpAnswer>) -> io::Result<()> {
        let end = Instant::now() + time;
        let socket = open(self.index)?;
        let announcer = Announcer::open()?;
        for vip in &self.ask {
            announcer.probe(self.index, self.mac, *vip)?;
        }
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Some(left) = u16::try_from(left.as_millis()).ok().filter(|left| *left > 0) else {
                return Ok(());
            };
            let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            if poll(&mut ready, PollTimeout::from(left))? == 0 {
                return Ok(());
            }
            let Some((frame, status)) = receive(&socket)? else { continue };
            if let Some((vip, mac)) = arp_answer(&frame).filter(|(vip, _)| self.ask.contains(vip)) {
                answers.push(ArpAnswer { vip, interface: self.name.clone(), mac });
            } else if has_checksum(&frame) {
                frames.seen += 1;
                frames.unfinished += u64::from(status & TP_STATUS_CSUMNOTREADY != 0);
            }
        }
    }
}

/// A socket for what comes in on one interface.
fn open(index: u32) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    // Protocol 0: nothing comes in before it is bound.
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
    let on: libc::c_int = 1;
    // SAFETY: the option takes an int, which `on` is for the time of the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            PACKET_AUXDATA,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: sockaddr_ll is a plain C struct of integers, for which zeros are valid.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = i32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?;
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address is valid for reads of the length given with it.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// The beginning of the next frame that came in, with its status; nothing for one that this machine has sent.
fn receive(socket: &OwnedFd) -> io::Result<Option<(Vec<u8>, u32)>> {
    let mut buffer = [0_u8; BUFFER];
    // As many words as a control message with a `struct tpacket_auxdata` needs, and a few more.
    let mut control = [0_u64; 16];
    // SAFETY: these are plain C structs of integers and pointers, for which zeros are valid.
    let (mut from, mut message): (libc::sockaddr_ll, libc::msghdr) =
        unsafe { (mem::zeroed(), mem::zeroed()) };
    let mut slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    message.msg_name = (&raw mut from).cast();
    message.msg_namelen = size_of_val(&from) as libc::socklen_t;
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: every pointer in `message` is valid for the length given with it.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let Ok(length) = usize::try_from(received) else {
        let error = io::Error::last_os_error();
        return match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
            _ => Err(error),
        };
    };
    if from.sll_pkttype == libc::PACKET_OUTGOING {
        return Ok(None);
    }
    let mut status = 0;
    // SAFETY: the kernel has written whole control messages into `control`, and the macros stay within them.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while let Some(found) = header.as_ref() {
            if found.cmsg_level == libc::SOL_PACKET && found.cmsg_type == PACKET_AUXDATA {
                status = libc::CMSG_DATA(header).cast::<Auxiliary>().read_unaligned().status;
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Ok(Some((buffer.get(..length.min(BUFFER)).unwrap_or_default().to_vec(), status)))
}

/// Who says that it has which address (RFC 826).
fn arp_answer(frame: &[u8]) -> Option<(Ipv4Addr, Mac)> {
    if frame.get(12..14)? != ETHERTYPE_ARP || frame.get(14..22)? != [0, 1, 8, 0, 6, 4, 0, 2] {
        return None;
    }
    let mac = Mac::try_from(frame.get(22..28)?).ok()?;
    let address = <[u8; 4]>::try_from(frame.get(28..32)?).ok()?;
    Some((address.into(), mac))
}

/// TCP and UDP: others have no checksum that a card would finish.
fn has_checksum(frame: &[u8]) -> bool {
    let protocol = match frame.get(12..14) {
        Some([8, 0]) => frame.get(23),
        Some([0x86, 0xdd]) => frame.get(20),
        _ => None,
    };
    matches!(protocol, Some(6 | 17))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_told_apart() {
        let mut frame = vec![0; 60];
        frame[12..14].copy_from_slice(&[8, 6]);
        frame[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 2]);
        frame[22..32].copy_from_slice(&[2, 0, 0, 0, 0, 7, 203, 0, 113, 10]);
        assert_eq!(arp_answer(&frame), Some(([203, 0, 113, 10].into(), [2, 0, 0, 0, 0, 7])));
        frame[21] = 1;
        assert_eq!(arp_answer(&frame), None, "a question");
        assert!(!has_checksum(&frame));
        for length in 0..frame.len() {
            arp_answer(&frame[..length]);
            has_checksum(&frame[..length]);
        }
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[23] = 6;
        assert!(has_checksum(&frame));
        assert_eq!(size_of::<Auxiliary>(), 20);
    }

    #[test]
    fn cards_finish_checksums() {
        let interface = |kind: &str, driver: &str| Interface {
            kind: kind.to_owned(),
            driver: driver.to_owned(),
            ..Interface::default()
        };
        assert!(may_be_unfinished(&interface("veth", "veth")));
        assert!(may_be_unfinished(&interface("", "virtio_net")));
        assert!(!may_be_unfinished(&interface("", "ixgbe")));
    }
}
