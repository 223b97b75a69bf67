//! Value of `LISTENERS`: one VIP, port or range of ports, and protocol of a service.

use bytemuck::{Pod, Zeroable};

use super::net::{Be16, Family};

/// Where a listener's table stands in `TABLES`: one word, so that a table is swapped whole.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct TableRef(pub u64);

impl TableRef {
    /// No table: new flows are dropped and counted, unless the listener's flags say otherwise.
    pub const EMPTY: Self = Self(0);

    /// `offset` below 2^28, `size` below 2^20.
    pub const fn new(offset: u32, size: u32, members: u16) -> Self {
        Self((offset as u64) << 36 | (size as u64) << 16 | members as u64)
    }

    /// Index of the first slot.
    #[inline(always)]
    pub const fn offset(self) -> u32 {
        (self.0 >> 36) as u32
    }

    /// Number of slots.
    #[inline(always)]
    pub const fn size(self) -> u32 {
        (self.0 >> 16) as u32 & 0xf_ffff
    }

    /// How many backends share the slots.
    #[inline(always)]
    pub const fn members(self) -> u32 {
        self.0 as u32 & 0xffff
    }
}

/// How a listener treats its flows.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ListenerFlags(pub u32);

impl ListenerFlags {
    /// An opening connection whose backend does not answer is offered to another one. Only with `nat` and `snat`, where
    /// the answers are seen.
    pub const SECOND_CHANCE: Self = Self(1);
    /// New flows of a client go where its earlier ones went.
    pub const STICKY: Self = Self(2);
    /// Its service was enabled by hand. Not read by the program.
    pub const ENABLED_BY_HAND: Self = Self(4);
    /// Its service was disabled by hand. Not read by the program.
    pub const DISABLED_BY_HAND: Self = Self(8);
    /// What no backend can take is left to the kernel.
    pub const PASS_WHEN_EMPTY: Self = Self(16);
    /// TCP and UDP that no backend can take are answered with a RST or an ICMP error. Without this and
    /// [`Self::PASS_WHEN_EMPTY`] they are dropped.
    pub const REFUSE_WHEN_EMPTY: Self = Self(32);

    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// How a new flow picks its slot in the table.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SchedulerCode(pub u8);

impl SchedulerCode {
    /// By the hash of its 5-tuple.
    pub const MAGLEV: Self = Self(0);
    /// By the hash of the client's address alone.
    pub const SOURCE_HASH: Self = Self(1);
    /// The next one, on each CPU for itself.
    pub const ROUND_ROBIN: Self = Self(2);
    /// Any.
    pub const RANDOM: Self = Self(3);
    /// The one with the fewest live flows for its weight. The table has each backend once.
    pub const LEAST_CONNECTIONS: Self = Self(4);

    /// Whether the same packet would get the same slot again.
    #[inline(always)]
    pub const fn is_stateless(self) -> bool {
        self.0 == Self::MAGLEV.0 || self.0 == Self::SOURCE_HASH.0
    }
}

/// One VIP, port or range of ports, and protocol.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Listener {
    pub table: TableRef,
    /// IPv4 as mapped address.
    pub vip: [u8; 16],
    /// The first port.
    pub port: Be16,
    /// The last port: `port` unless this is a range.
    pub last_port: Be16,
    /// As in [`super::Protocol`].
    pub protocol: u8,
    /// 4 or 6; 0 means that this record is not in use.
    pub family: u8,
    pub scheduler: SchedulerCode,
    pub pad: u8,
    /// Seconds after which an idle established flow is forgotten. Read by the daemon's sweep only.
    pub session_timeout: u32,
    pub flags: ListenerFlags,
    /// New flows that each CPU records in a tick.
    pub new_flow_limit: u32,
    /// The next listener with a range of ports at this address and protocol; 0 after the last.
    pub next: u32,
    /// Ticks after which a client without new flows may go elsewhere. With [`ListenerFlags::STICKY`].
    pub sticky_ticks: u16,
    /// For `snat`: how many of `SNAT_ADDRESSES` it uses, and the first of them.
    pub snat_count: u8,
    pub snat_first: u8,
    /// Number of its service: what sticky clients are remembered by.
    pub service: u32,
    /// For `snat`: ports that clients' are replaced with, in host order.
    pub snat_port: u16,
    pub snat_last_port: u16,
    pub reserved: u32,
}

impl Listener {
    /// The table, read once: the daemon may replace it at any moment.
    #[inline(always)]
    pub fn current_table(&self) -> TableRef {
        // SAFETY: a plain read of an aligned field of `self`; volatile only keeps the compiler from reading it twice.
        unsafe { core::ptr::read_volatile(&raw const self.table) }
    }

    pub const fn family(&self) -> Option<Family> {
        match self.family {
            4 => Some(Family::V4),
            6 => Some(Family::V6),
            _ => None,
        }
    }

    /// Whether it has more than one port.
    pub const fn is_range(&self) -> bool {
        self.port.get() != self.last_port.get()
    }
}

const _: () = assert!(size_of::<Listener>() == 64);
