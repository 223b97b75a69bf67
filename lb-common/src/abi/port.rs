//! Interfaces: values of `PORTS` and `VLANS`.

use bytemuck::{Pod, Zeroable};

use super::net::Be16;

/// A VLAN tag as it stands in a frame after the MAC addresses (IEEE 802.1Q).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Tag {
    /// 0x8100 or 0x88a8.
    pub ether_type: Be16,
    /// Priority and VLAN number.
    pub control: Be16,
}

/// An interface that packets may leave by: one that carries the program, or a VLAN on one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Port {
    /// Its index; 0 for none.
    pub ifindex: u32,
    /// The interface that sends its frames: itself unless it is a VLAN.
    pub device: u32,
    /// What its frames carry, from the outside in.
    pub tags: [Tag; 2],
    /// How many tags: 0 to 2.
    pub tag_count: u32,
    /// Its own address, the source of what the gateway answers; zeros when it has none.
    pub addr4: [u8; 4],
    pub addr6: [u8; 16],
}

/// Key of `VLANS`; the value is the index of the VLAN's interface.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct VlanKey {
    /// The interface the frame came in on.
    pub device: u32,
    /// VLAN numbers, from the outside in; 0 for no second one.
    pub outer: Be16,
    pub inner: Be16,
}

const _: () = assert!(size_of::<Port>() == 40);
const _: () = assert!(size_of::<VlanKey>() == 8);
