//! Keys of the hash maps that the packet path is compared with: an address, a port and a protocol, seen from one side.

use bytemuck::{Pod, Zeroable};
use lb_common::abi::{Be16, Protocol, Side};

/// Eight bytes, as a balancer over the kernel's own maps would look up.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Endpoint4 {
    pub addr: [u8; 4],
    pub port: Be16,
    pub protocol: u8,
    pub side: u8,
}

impl Endpoint4 {
    pub const fn new(side: Side, addr: [u8; 4], port: Be16, protocol: Protocol) -> Self {
        Self { addr, port, protocol: protocol as u8, side: side as u8 }
    }
}

/// Twenty bytes for IPv6.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Endpoint6 {
    pub addr: [u8; 16],
    pub port: Be16,
    pub protocol: u8,
    pub side: u8,
}

impl Endpoint6 {
    pub const fn new(side: Side, addr: [u8; 16], port: Be16, protocol: Protocol) -> Self {
        Self { addr, port, protocol: protocol as u8, side: side as u8 }
    }
}
