//! Value of `ENDPOINTS`: where an address, a port and a protocol, seen from one side, lead to.
//!
//! A set-associative hash table: a line is one cache line of eight words, chosen by the keyed hash of the endpoint. A
//! lookup costs a fraction of one in the kernel's hash map, and each packet needs one or two. A word has only a
//! fingerprint of its endpoint, so what it leads to is believed when that record's own address, port and protocol
//! are those that were looked for.

use bytemuck::{Pod, Zeroable};

/// Words in a line: one 64-byte cache line.
pub const ENDPOINT_WAYS: usize = 8;

/// A line of `ENDPOINTS`.
pub type EndpointLine = [u64; ENDPOINT_WAYS];

/// Which way a packet that matches the endpoint travels.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// The endpoint is the packet's destination, a VIP; it leads to a listener.
    Vip = 0,
    /// The endpoint is the packet's source, a backend; it leads to a backend.
    Backend = 1,
}

/// Protocol of the endpoint, with port 0, that every VIP has beside those of its listeners: for ICMP and ICMPv6. It
/// leads to any listener of the VIP.
pub const ECHO: u8 = 1;

/// The port under which a range of ports is found, and whatever has no ports.
pub const ANY_PORT: u16 = 0;

/// An endpoint's fingerprint and where it leads, in one word:
///
/// | bits | |
/// |---|---|
/// | 63..24 | fingerprint: low 40 bits of the endpoint's hash |
/// | 23..0 | number of a listener or backend; 0 means that the word is free |
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct EndpointWord(pub u64);

impl EndpointWord {
    pub const FREE: Self = Self(0);

    #[inline(always)]
    pub const fn new(fingerprint: u64, id: u32) -> Self {
        Self(fingerprint << 24 | (id as u64) & 0xff_ffff)
    }

    #[inline(always)]
    pub const fn fingerprint(self) -> u64 {
        self.0 >> 24
    }

    #[inline(always)]
    pub const fn id(self) -> u32 {
        self.0 as u32 & 0xff_ffff
    }

    pub const fn is_free(self) -> bool {
        self.id() == 0
    }
}
