//! Value of `CONTROL`, which has one element: what a daemon must know before it adopts pinned maps.

use bytemuck::{Pod, Zeroable};

use crate::hash::HashKey;

/// Written by the daemon that creates the maps, and the last word by each.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Control {
    /// [`super::ABI_VERSION`].
    pub abi_version: u32,
    /// Lines of `FLOWS`.
    pub flow_lines: u32,
    /// The key of every flow's hash. Never changes during the life of the maps.
    pub hash_key: HashKey,
    /// Nanoseconds on the monotonic clock up to which packets are forwarded, unless a daemon that is alive says another
    /// time; 0: for ever.
    pub forward_until: u64,
}
