//! What is neither TCP nor UDP, for services that take every protocol: hashed and rewritten by addresses only.

use super::fragment;
use super::parse::{head4, head6, is_fragment};
use super::transport::{self, ANY};
use super::work::Work;
use crate::abi::Protocol;
use crate::env::Env;
use crate::packet::Packet;
use crate::packet::eth;
use crate::packet::head::{Head, Head4, Head6};
use crate::verdict::{Reason, Verdict};

const NUMBER: u8 = Protocol::Any.number();

#[inline(always)]
pub(super) fn v4<P: Packet, E: Env>(packet: &mut P, env: &E, work: &mut Work) -> Verdict {
    let ip = match head4(packet) {
        Ok(ip) => ip,
        Err(verdict) => return verdict,
    };
    let header = ip.header_len();
    let len = ip.total_len() - header as u32;
    let verdict =
        transport::direct::<Head4, P, E, ANY>(packet, env, work, ip, eth::LEN + header, len, NUMBER);
    as_fragment::<Head4, E>(env, work, ip.destination(), verdict)
}

#[inline(always)]
pub(super) fn v6<P: Packet, E: Env>(packet: &mut P, env: &E, work: &mut Work) -> Verdict {
    let ip = match head6(packet) {
        Ok(ip) => ip,
        Err(verdict) => return verdict,
    };
    let l4 = work.l4();
    let len = (eth::LEN as u32 + ip.packet_len()).saturating_sub(l4 as u32);
    let verdict = transport::direct::<Head6, P, E, ANY>(packet, env, work, ip, l4, len, NUMBER);
    as_fragment::<Head6, E>(env, work, ip.destination(), verdict)
}

/// A fragment for no service is counted as such.
#[inline(always)]
fn as_fragment<I: Head, E: Env>(env: &E, work: &Work, destination: I::Addr, verdict: Verdict) -> Verdict {
    if is_fragment(work) && verdict.reason as u8 == Reason::OtherProtocol as u8 {
        return fragment::leave::<I, E>(env, work, destination, Reason::Fragment.pass());
    }
    verdict
}
