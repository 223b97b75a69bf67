//! Values of the maps that the programs for traffic and the bench share, and the buckets of latencies. Compiled into both.

use bytemuck::{Pod, Zeroable};

/// Bytes of every frame, which with its check sequence of four are the 64 that Ethernet needs at least.
pub const FRAME: usize = 60;

/// Where UDP packets that are counted go.
pub const PORT: u16 = 9;

/// Packets that are sent at once where a rate is given, as network cards hand them over. A power of two.
pub const BURST: u64 = 16;

/// Names of the maps.
pub mod map {
    pub const SOURCE: &str = "SOURCE";
    pub const SENT: &str = "SENT";
    pub const SINK: &str = "SINK";
    pub const COUNTED: &str = "COUNTED";
    pub const LATENCIES: &str = "LATENCIES";
}

/// Value of `SOURCE`: what is sent.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Source {
    /// The first flow's frame; the last four bytes are not sent.
    pub frame: [u64; 8],
    /// Nanoseconds between two packets on average, sent in bursts of [`BURST`]; 0: as fast as can be, and without the time in
    /// them.
    pub interval: u64,
    /// The first flow's port.
    pub port: u32,
    /// The number of flows less one; that is a power of two.
    pub mask: u32,
}

/// Value of `SENT`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Sent {
    pub packets: u64,
    /// When the next burst is to be sent, by the kernel's monotonic clock, in nanoseconds.
    pub due: u64,
}

/// Value of `SINK`: what becomes of packets to [`PORT`].
pub mod sink {
    /// They are counted and dropped.
    pub const DROP: u32 = 0;
    /// They are counted and sent back.
    pub const ANSWER: u32 = 1;
    /// They are forwarded, as all others are, by the kernel's routes.
    pub const ROUTE: u32 = 2;
}

/// Value of `COUNTED`, on each CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Counted {
    /// To [`PORT`].
    pub packets: u64,
    /// From [`PORT`]: answers.
    pub answers: u64,
    /// Unwrapped from a tunnel, counted above or handed to the system.
    pub unwrapped: u64,
    /// Forwarded by the kernel's routes.
    pub routed: u64,
}

/// Sixteen buckets for each power of two: a bucket is at most 1/16 wider than it is high.
const FINE: u32 = 4;
/// How many there are: up to 2^36 ns, which is a minute.
pub const BUCKETS: u32 = (36 - FINE + 1) << FINE;

/// The bucket of a latency in nanoseconds.
#[inline(always)]
pub const fn bucket(nanoseconds: u64) -> u32 {
    if nanoseconds < 1 << FINE {
        return nanoseconds as u32;
    }
    let exponent = 63 - nanoseconds.leading_zeros();
    let fine = (nanoseconds >> (exponent - FINE)) as u32 & ((1 << FINE) - 1);
    let bucket = ((exponent - FINE + 1) << FINE) + fine;
    if bucket < BUCKETS { bucket } else { BUCKETS - 1 }
}
