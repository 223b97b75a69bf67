//! Value of `BACKEND_STATS`, one per CPU.

use bytemuck::{Pod, Zeroable};

/// What was forwarded for a backend. Bytes are of the IP packets, without Ethernet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct BackendStats {
    pub to_packets: u64,
    pub to_bytes: u64,
    pub from_packets: u64,
    pub from_bytes: u64,
    /// Opening connections that were offered to another backend because this one did not answer.
    pub moved_away: u64,
}
