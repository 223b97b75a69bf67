//! Value of `SETTINGS`, which has one element: what holds for all packets and may change while they flow.

use bytemuck::{Pod, Zeroable};

/// What some service uses, so that packets need not look for what none uses.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Features(pub u32);

impl Features {
    /// A listener has a range of ports.
    pub const RANGES: Self = Self(1);
    /// A listener is for what is neither TCP nor UDP.
    pub const ANY_PROTOCOL: Self = Self(2);
    /// Flows are coming over from another table: that a reply has none here says nothing about whose it is.
    pub const MOVING: Self = Self(4);

    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The element.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Settings {
    pub features: Features,
    /// Changes whenever routes, neighbours or interfaces do, so that next hops are looked up anew. 0: they are looked
    /// up for every packet, as the way may depend on more than the destination.
    pub route_epoch: u32,
    /// Outer sources of tunnels: a network, and the bits of it that vary with the flow.
    pub tunnel4: [u8; 4],
    pub tunnel4_vary: [u8; 4],
    pub tunnel6: [u8; 16],
    pub tunnel6_vary: [u8; 16],
}

const _: () = assert!(size_of::<Settings>() == 48);
