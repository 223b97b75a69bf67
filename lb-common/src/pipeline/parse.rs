//! From a frame to its transport header.

use super::Parsed;
use core::mem::MaybeUninit;

use crate::abi::Protocol;
use crate::packet::Packet;
use crate::packet::eth;
use crate::packet::ip4::{self, Ipv4};
use crate::packet::ip6::{self, Ipv6, next_header};
use crate::verdict::Reason;

#[inline(always)]
pub(super) fn ipv4<'w, P: Packet>(
    packet: &P,
    work: &'w mut MaybeUninit<Parsed<Ipv4>>,
) -> Result<&'w mut Parsed<Ipv4>, Reason> {
    let ip: Ipv4 = packet.read(eth::LEN).ok_or(Reason::TruncatedIp)?;
    let header_len = ip.header_len();
    let total_len = ip.total_len.get() as usize;
    if ip.version() != 4
        || header_len < ip4::LEN
        || total_len < header_len
        || !packet.holds(eth::LEN + total_len)
    {
        return Err(Reason::MalformedIp);
    }
    if ip.is_fragment() {
        return Err(Reason::Fragment);
    }
    let protocol = Protocol::from_number(ip.protocol).ok_or(Reason::OtherProtocol)?;
    Ok(work.write(Parsed::new(ip, protocol, eth::LEN + header_len, total_len - header_len)))
}

#[inline(always)]
pub(super) fn ipv6<'w, P: Packet>(
    packet: &P,
    work: &'w mut MaybeUninit<Parsed<Ipv6>>,
) -> Result<&'w mut Parsed<Ipv6>, Reason> {
    let ip: Ipv6 = packet.read(eth::LEN).ok_or(Reason::TruncatedIp)?;
    let l4_len = ip.payload_len.get() as usize;
    if ip.version() != 6 || !packet.holds(eth::LEN + ip6::LEN + l4_len) {
        return Err(Reason::MalformedIp);
    }
    let protocol = match ip.next_header {
        next_header::FRAGMENT => return Err(Reason::Fragment),
        next_header::HOP_BY_HOP | next_header::ROUTING | next_header::DESTINATION => {
            return Err(Reason::ExtensionHeader);
        }
        other => Protocol::from_number(other).ok_or(Reason::OtherProtocol)?,
    };
    Ok(work.write(Parsed::new(ip, protocol, eth::LEN + ip6::LEN, l4_len)))
}
