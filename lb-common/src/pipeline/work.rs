//! What is known of the packet in hand beyond what fits into registers.

use crate::abi::flow::FlowWord;
use crate::abi::{Be16, FragmentKey, NextHop, StickyKey, Tag};
use crate::env::Query;
use crate::packet::eth::Macs;

/// Bits of [`Work::pending`]: VLAN tags were taken off.
pub(super) const TAGS: u32 = 1;
/// It leaves by a VLAN, or came in by one.
pub(super) const VLAN: u32 = 2;
/// It is the first fragment of a datagram.
pub(super) const FRAGMENT: u32 = 4;

/// For [`Work::flags`]: there are no TCP flags.
pub(super) const NO_FLAGS: u32 = u32::MAX;

/// The packet in hand. The kernel keeps it in a map, as a program's stack has 512 bytes only.
///
/// Between two packets `pending` is 0; everything else is what the last one left.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// What [`super::finish`] has to do. Bits.
    pub(super) pending: u32,

    /// With [`TAGS`]: how many there were, which, and the interface they stand for, or the one they came in on.
    pub(super) tag_count: u32,
    pub(super) tags: [Tag; 2],
    pub(super) ingress: u32,
    /// Whether `ingress` is a VLAN's own interface.
    pub(super) known_vlan: u32,
    /// With [`VLAN`]: the interface it leaves by; 0 when it goes back where it came from.
    pub(super) egress: u32,

    /// What a first fragment is remembered by.
    pub(super) fragment: FragmentKey,
    /// What a client of a sticky service is remembered by.
    pub(super) sticky: StickyKey,

    /// The backend that the packet goes to or comes from.
    pub(super) backend: u32,
    /// 1 when it comes from there.
    pub(super) from_backend: u32,
    /// With `snat`: index of the address.
    pub(super) snat_index: u32,
    pub(super) snat_port: Be16,
    pub(super) pad: u16,
    /// 1: these two are what the flow had a moment ago.
    pub(super) snat_known: u32,

    /// Offset of the transport header, below 256, and the bytes from there on.
    pub(super) l4: u32,
    pub(super) l4_len: u32,
    /// As in [`crate::abi::Protocol`].
    pub(super) protocol: u32,
    /// TCP flags, or [`NO_FLAGS`].
    pub(super) flags: u32,

    /// The flow: who, by mapped addresses.
    pub(super) client: [u8; 16],
    pub(super) client_port: Be16,
    pub(super) vip_port: Be16,
    pub(super) listener: u32,
    pub(super) hash: u64,
    /// Where it stands or may stand: its line, the way in it, and the word to be replaced there by another.
    pub(super) line: u32,
    pub(super) way: u32,
    pub(super) old: FlowWord,
    pub(super) new: FlowWord,
    /// 1: it is another flow than before.
    pub(super) begins: u32,
    /// 1: its connection is to be reset.
    pub(super) reset: u32,
    /// The flow's place in the table; [`super::select::NO_PLACE`] for none.
    pub(super) place: u32,
    /// 0 when the flow's backend is yet to be chosen. Otherwise [`super::to_backend::KNOWN`], or as in [`super::out`] what
    /// has no flow here.
    pub(super) leave_flow: u32,
    /// 1: `hop` is where the packet to the backend goes; 0: the kernel finds the way.
    pub(super) known_hop: u32,

    /// Why and with which MTU a packet is answered.
    pub(super) refusal: u32,
    pub(super) mtu: u32,

    /// A question to the routing table, and its answer.
    pub(super) query: Query,
    pub(super) hop: NextHop,
}

impl Work {
    pub const fn new() -> Self {
        const TAG: Tag = Tag { ether_type: Be16::new(0), control: Be16::new(0) };
        const MACS: Macs = Macs { destination: [0; 6], source: [0; 6] };
        Self {
            pending: 0,
            tag_count: 0,
            tags: [TAG; 2],
            ingress: 0,
            known_vlan: 0,
            egress: 0,
            fragment: FragmentKey {
                source: [0; 16],
                destination: [0; 16],
                id: [0; 4],
                protocol: 0,
                pad: [0; 3],
            },
            sticky: StickyKey { client: [0; 16], service: 0 },
            backend: 0,
            from_backend: 0,
            snat_index: 0,
            snat_port: Be16::new(0),
            pad: 0,
            snat_known: 0,
            l4: 0,
            l4_len: 0,
            protocol: 0,
            flags: NO_FLAGS,
            client: [0; 16],
            client_port: Be16::new(0),
            vip_port: Be16::new(0),
            listener: 0,
            hash: 0,
            line: 0,
            way: 0,
            old: FlowWord::FREE,
            new: FlowWord::FREE,
            begins: 0,
            reset: 0,
            place: 0,
            leave_flow: 0,
            known_hop: 0,
            refusal: 0,
            mtu: 0,
            query: Query {
                source: [0; 16],
                destination: [0; 16],
                ingress: 0,
                len: 0,
                protocol: 0,
                class: 0,
                flow_info: [0; 4],
                v6: false,
            },
            hop: NextHop { epoch: 0, ingress: 0, ifindex: 0, device: 0, tick: 0, mtu: 0, macs: MACS },
        }
    }

    /// The transport header's offset, with a bound that the verifier sees.
    #[inline(always)]
    pub(super) const fn l4(&self) -> usize {
        (self.l4 & 0xff) as usize
    }
}

impl Default for Work {
    fn default() -> Self {
        Self::new()
    }
}
