//! What the program tells of single packets: the values of its constant `TRACE`, and of the maps `TRACE_STEPS`,
//! `TRACE_FILTER` and `TRACE_EVENTS`. None of these is pinned.

use bytemuck::{Pod, Zeroable};

use super::net::Be16;

/// Nothing is told: what follows is not even in the program that the kernel runs.
pub const OFF: u32 = 0;
/// Each step of each packet is logged.
pub const LOG: u32 = 1;
/// The steps stay in `TRACE_STEPS`, and nothing else is written to any map that other programs use.
pub const EXPLAIN: u32 = 2;
/// The steps of packets that a filter wants go to `TRACE_EVENTS`.
pub const EVENTS: u32 = 3;

/// More steps than any way has. `TRACE_STEPS` has one element more: the first says how many there are.
pub const MAX_STEPS: u32 = 12;

/// Element of `TRACE_STEPS`: what [`crate::env::Step::number`] says, and the two numbers beside it.
pub type StepWords = [u32; 3];

/// Elements of `TRACE_FILTER`: a packet is told of when one of them fits.
pub const FILTERS: u32 = 8;

/// Element of `TRACE_FILTER`. Addresses and ports are those that the packet comes in with.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct TraceFilter {
    /// 0: not in use.
    pub used: u32,
    /// What must be equal; 0: any. As in the IP header.
    pub protocol: u32,
    /// Of either side; 0: any.
    pub port: Be16,
    pub pad: u16,
    pub pad2: u32,
    /// IPv4 as mapped address, with all its bits or a network's; zeros in the masks: any.
    pub source: [u64; 2],
    pub source_mask: [u64; 2],
    pub destination: [u64; 2],
    pub destination_mask: [u64; 2],
    /// Of either side.
    pub host: [u64; 2],
    pub host_mask: [u64; 2],
}

/// Element of `TRACE_EVENTS`: a packet, as it came in, and its way.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct TraceEvent {
    /// Nanoseconds of the monotonic clock.
    pub time: u64,
    /// The interface that it came in on.
    pub ingress: u32,
    /// Bytes of the frame.
    pub len: u32,
    /// IPv4 as mapped address; zeros when it is not IP.
    pub source: [u8; 16],
    pub destination: [u8; 16],
    /// 0 when there are none.
    pub source_port: Be16,
    pub destination_port: Be16,
    /// As in the frame, below VLAN tags.
    pub ether_type: Be16,
    /// The outer VLAN tag's control word, and 0 without one.
    pub vlan: Be16,
    /// As in the IP header.
    pub protocol: u8,
    /// Of TCP; 0 with others.
    pub flags: u8,
    /// 1: a later fragment, without ports.
    pub fragment: u8,
    pub pad: u8,
    /// How many of `steps` there are.
    pub count: u32,
    pub steps: [StepWords; MAX_STEPS as usize],
}

const _: () = assert!(size_of::<TraceFilter>() == 120 - 8);
const _: () = assert!(size_of::<TraceEvent>() == 64 + 12 * 12);
