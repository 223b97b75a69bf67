//! Keys of the endpoint maps: an address, a port and a protocol, seen from one side.

use bytemuck::{Pod, Zeroable};

use super::net::{Be16, Protocol};

/// Which way a packet that matches the endpoint travels.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// The endpoint is the packet's destination, a VIP; the value is a listener's number.
    Vip = 0,
    /// The endpoint is the packet's source, a backend; the value is a backend's number.
    Backend = 1,
}

/// Key of `ENDPOINTS4`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
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

/// Key of `ENDPOINTS6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
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

const _: () = assert!(size_of::<Endpoint4>() == 8);
const _: () = assert!(size_of::<Endpoint6>() == 20);
