//! Value of `CONTROL`, which has one element: what a daemon must know before it adopts pinned maps.

use bytemuck::{Pod, Zeroable};

use crate::hash::HashKey;

/// Written by the daemon that creates the maps, and its heartbeat by each.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Control {
    /// [`super::ABI_VERSION`].
    pub abi_version: u32,
    /// Lines of `FLOWS`.
    pub flow_lines: u32,
    /// The key of every flow's hash. Never changes during the life of the maps.
    pub hash_key: HashKey,
    /// Nanoseconds on the monotonic clock at which a daemon was last alive.
    pub heartbeat: u64,
}
