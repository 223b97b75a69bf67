//! Values of the maps that the measuring programs and the bench share. Compiled into both.

use bytemuck::{Pod, Zeroable};

/// Bytes of every frame that is measured with: room for Ethernet, IPv6 and TCP, and for [`Setup::UNUSED`].
pub const FRAME: usize = 96;

/// Names of the maps.
pub mod map {
    pub const SETUP: &str = "SETUP";
    pub const RUN: &str = "RUN";
    pub const TARGETS: &str = "TARGETS";
    pub const FLOOR_HASH: &str = "FLOOR_HASH";
    pub const FLOOR_LRU: &str = "FLOOR_LRU";
    pub const FLOOR_LRU_INSERT: &str = "FLOOR_LRU_INSERT";
    pub const FLOOR_LINES: &str = "FLOOR_LINES";
}

/// Value of `SETUP`: how the wrapper makes the next frame. In each, an address word, its port and a second port are
/// written over what the template has there.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Setup {
    /// The frame's bytes.
    pub frame: [u64; FRAME / 8],
    /// The flow's number is `sequence * stride & mask`.
    pub mask: u32,
    pub stride: u32,
    /// Offset of the four bytes that are `address` plus the flow's number without its low 14 bits.
    pub address_at: u32,
    pub address: u32,
    /// Offset of the two bytes that are `port` plus the low 14 bits of the flow's number.
    pub port_at: u32,
    pub port: u32,
    /// Offset of the two bytes that are `service` plus the flow's number under `service_mask`.
    pub service_at: u32,
    pub service: u32,
    pub service_mask: u32,
    /// Bytes that the program under test takes off the front.
    pub taken: u32,
    pub pad: u32,
    /// Lines of `FLOOR_LINES`.
    pub lines: u32,
}

/// Value of `RUN`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Run {
    /// Frames made so far.
    pub sequence: u64,
    /// Frames that a floor did not find what it looked for with, or that reached no program.
    pub failed: u64,
}

impl Setup {
    /// An offset that no header reaches: what varies there is not seen.
    pub const UNUSED: u32 = 88;
}
