//! Ethernet II.

use bytemuck::{Pod, Zeroable};

use crate::abi::net::Be16;

pub const LEN: usize = size_of::<Ethernet>();

pub type Mac = [u8; 6];

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Ethernet {
    pub destination: Mac,
    pub source: Mac,
    pub ether_type: EtherType,
}

/// The first two fields of the header, for when the third stays.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Macs {
    pub destination: Mac,
    pub source: Mac,
}

/// What follows the Ethernet header (IEEE 802 numbers).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct EtherType(pub Be16);

impl EtherType {
    pub const IPV4: Self = Self(Be16::new(0x0800));
    pub const IPV6: Self = Self(Be16::new(0x86dd));
    /// 802.1Q customer tag.
    pub const VLAN: Self = Self(Be16::new(0x8100));
    /// 802.1ad service tag.
    pub const SERVICE_VLAN: Self = Self(Be16::new(0x88a8));
}
