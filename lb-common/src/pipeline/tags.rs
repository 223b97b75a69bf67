//! VLAN tags (IEEE 802.1Q): taken off before everything else, and put back after it.

use super::Stage;
use super::work::{self, Work};
use crate::abi::{Be16, Tag, VlanKey};
use crate::env::{Env, Step};
use crate::packet::Packet;
use crate::packet::eth::{self, EtherType, Macs};
use crate::verdict::{Action, Reason, Verdict};

/// Bytes of a tag.
const LEN: usize = size_of::<Tag>();
/// The bits of a tag's control word that are the VLAN's number.
const NUMBER: u16 = 0xfff;

/// Takes up to two tags off, and starts anew with what is under them.
#[inline(always)]
pub(super) fn take_off<P: Packet, E: Env>(packet: &mut P, env: &E, work: &mut Work) -> Verdict {
    let (Some(macs), Some(outer), Some(mut under)) =
        (packet.read::<Macs>(0), packet.read::<Tag>(eth::TYPE_AT), packet.read::<Be16>(eth::TYPE_AT + LEN))
    else {
        return Reason::NotIp.pass();
    };
    let mut inner = Tag::default();
    let mut count = 1;
    if EtherType(under).is_vlan() {
        let (Some(tag), Some(ether_type)) =
            (packet.read::<Tag>(eth::TYPE_AT + LEN), packet.read::<Be16>(eth::TYPE_AT + 2 * LEN))
        else {
            return Reason::NotIp.pass();
        };
        inner = tag;
        under = ether_type;
        count = 2;
    }
    if !matches!(EtherType(under), EtherType::IPV4 | EtherType::IPV6) {
        return Reason::NotIp.pass();
    }
    let number = |tag: Tag| Be16::new(tag.control.get() & NUMBER);
    let device = env.ingress();
    let inner_number = if count == 2 { number(inner) } else { Be16::new(0) };
    let vlan = env.vlan(&VlanKey { device, outer: number(outer), inner: inner_number });
    let off = if count == 2 { 2 * LEN } else { LEN };
    if packet.write(off, &macs).and(packet.shrink(off)).is_none() {
        return Reason::NotIp.pass();
    }
    work.pending = work::TAGS;
    work.tag_count = count;
    work.tags = [outer, inner];
    work.known_vlan = u32::from(vlan != 0);
    work.ingress = if vlan == 0 { device } else { vlan };
    work.egress = 0;
    env.trace(Step::Tags, count, work.ingress);
    Stage::Entry.next()
}

/// Gives the frame the tags that it leaves with.
///
/// What goes to the kernel, to nowhere or back where it came from gets those that it had. What leaves by a VLAN gets that one's;
/// what leaves by a plain interface gets none, unless it had some that this machine knows nothing of.
#[inline(always)]
pub(super) fn put_on<P: Packet, E: Env>(
    packet: &mut P,
    env: &E,
    work: &mut Work,
    verdict: Verdict,
) -> Option<()> {
    let mut count = if work.pending & work::TAGS != 0 { work.tag_count } else { 0 };
    let mut tags = work.tags;
    match verdict.action {
        Action::Drop | Action::Pass | Action::Continue => {}
        Action::Transmit | Action::Redirect => {
            if work.pending & work::VLAN != 0 {
                match env.port(work.egress) {
                    Some(port) if port.tag_count != 0 => {
                        count = port.tag_count;
                        tags = port.tags;
                    }
                    _ if work.known_vlan != 0 => count = 0,
                    _ => {}
                }
            }
        }
    }
    let [outer, inner] = tags;
    let macs = packet.read::<Macs>(0)?;
    match count {
        0 => Some(()),
        1 => {
            packet.grow(LEN)?;
            packet.write(0, &macs)?;
            packet.write(eth::TYPE_AT, &outer)
        }
        _ => {
            packet.grow(2 * LEN)?;
            packet.write(0, &macs)?;
            packet.write(eth::TYPE_AT, &outer)?;
            packet.write(eth::TYPE_AT + LEN, &inner)
        }
    }
}
