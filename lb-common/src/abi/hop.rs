//! Next hops that were looked up a moment ago: values of `BACKEND_HOPS` and `CLIENT_HOPS`, one per CPU.
//!
//! The kernel's routing table costs more than all the rest of a packet. What it said is used until the flow table's
//! clock ticks, about a second, and no longer than the route epoch in [`super::Settings`] stands.

use bytemuck::{Pod, Zeroable};

use crate::packet::eth::Macs;

/// Where packets to one destination leave.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct NextHop {
    /// The route epoch it was looked up in; 0 means never.
    pub epoch: u32,
    /// The interface the packet came in on.
    pub ingress: u32,
    pub ifindex: u32,
    /// The interface that sends the frame: `ifindex` unless that is a VLAN.
    pub device: u32,
    /// When it was looked up.
    pub tick: u16,
    /// Bytes of the largest IP packet.
    pub mtu: u16,
    pub macs: Macs,
}

/// A next hop with the destination that it is for.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ClientHop {
    /// IPv4 as mapped address.
    pub addr: [u8; 16],
    pub hop: NextHop,
}

/// Elements of `CLIENT_HOPS`, a power of two.
pub const CLIENT_HOPS: u32 = 2048;

const _: () = assert!(size_of::<NextHop>() == 32);
const _: () = assert!(size_of::<ClientHop>() == 48);
