//! Value of `BACKENDS`: a server as one listener sees it.

use bytemuck::{Pod, Zeroable};

use super::net::Be16;

/// What the packet path must know of a backend besides its address.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct BackendFlags(pub u8);

impl BackendFlags {
    /// The record is in use.
    pub const VALID: Self = Self(1);
    /// The checks say it is down: flows without a connection (UDP) move on.
    pub const DOWN: Self = Self(2);
    /// With [`Self::DOWN`]: its TCP connections are answered with a RST.
    pub const RESET: Self = Self(4);

    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A server behind one listener. The same server behind two listeners has two records.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Backend {
    /// IPv4 as mapped address.
    pub addr: [u8; 16],
    pub port: Be16,
    pub flags: BackendFlags,
    /// What the daemon last knew, for the next daemon: 0 unknown, 1 up, 2 down. Not read by the program.
    pub health: u8,
    /// The number of the listener it belongs to.
    pub listener: u32,
    /// What the operator wants: 0 enabled, 1 draining, 2 disabled. Not read by the program.
    pub admin: u8,
    pub pad: u8,
    /// Share of new flows. Not read by the program, which sees it in the table.
    pub weight: u16,
    pub reserved: [u32; 9],
}

const _: () = assert!(size_of::<Backend>() == 64);
