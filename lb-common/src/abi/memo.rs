//! What is remembered of few packets only, in the kernel's own hash maps: fragments, and sticky clients.

use bytemuck::{Pod, Zeroable};

/// Key of `FRAGMENTS`: what the fragments of one datagram have in common (RFC 791, RFC 8200 section 4.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct FragmentKey {
    /// IPv4 as mapped address.
    pub source: [u8; 16],
    pub destination: [u8; 16],
    /// As on the wire; of IPv4, in the first two bytes.
    pub id: [u8; 4],
    /// 0 with IPv6, where only the first fragment must tell.
    pub protocol: u8,
    pub pad: [u8; 3],
}

/// Where the first fragment went.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Fragment {
    /// Number of the backend that it went to or came from; 0 when it was left to the kernel.
    pub backend: u32,
    /// 0 for a client's, 1 for a backend's.
    pub from_backend: u8,
    /// With `snat`, index in `SNAT_ADDRESSES`.
    pub snat_index: u8,
    /// The coarse time.
    pub time: u16,
    /// With `snat`, the client that a backend's goes to. Otherwise zeros.
    pub client: [u8; 16],
}

/// Key of `STICKY`: a client of a service.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct StickyKey {
    /// IPv4 as mapped address.
    pub client: [u8; 16],
    /// As in [`super::Listener::service`].
    pub service: u32,
}

/// The server that a client has.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Sticky {
    /// As in [`super::Backend::server`].
    pub server: u32,
    /// The coarse time of the client's last new flow.
    pub time: u16,
    pub pad: u16,
}

/// Key of `SIBLINGS`: a service's server behind one of its listeners. The value is the backend's number.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct SiblingKey {
    pub listener: u32,
    /// As in [`super::Backend::server`].
    pub server: u32,
}

/// Bytes of a fragment that can be held back until the first one of its datagram comes.
pub const HELD_BYTES: usize = 2032;

/// Element of the ring buffer `HELD`: a fragment that came before the first one of its datagram.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Held {
    /// The interface that it came in on.
    pub ingress: u32,
    /// Bytes of the frame.
    pub len: u32,
    pub frame: [u8; HELD_BYTES],
}

const _: () = assert!(size_of::<FragmentKey>() == 40);
const _: () = assert!(size_of::<Fragment>() == 24);
const _: () = assert!(size_of::<StickyKey>() == 20);
const _: () = assert!(size_of::<Sticky>() == 8);
