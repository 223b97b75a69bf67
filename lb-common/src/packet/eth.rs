//! Ethernet II.

use bytemuck::{Pod, Zeroable};

use crate::abi::net::Be16;

/// Bytes of the header.
pub const LEN: usize = 14;
/// Offset of the EtherType.
pub const TYPE_AT: usize = 12;

pub type Mac = [u8; 6];

/// The header without its EtherType.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Macs {
    pub destination: Mac,
    pub source: Mac,
}

impl Macs {
    /// For the way back.
    #[must_use]
    #[inline(always)]
    pub const fn swapped(self) -> Self {
        Self { destination: self.source, source: self.destination }
    }
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

    pub const fn is_vlan(self) -> bool {
        matches!(self, Self::VLAN | Self::SERVICE_VLAN)
    }
}
