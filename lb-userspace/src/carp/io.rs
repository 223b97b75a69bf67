//! CARP's way to the system: sockets, addresses and links, announcements, commands. No policy.

pub mod announce;
pub mod link;
pub mod notify;
pub mod socket;
pub mod virtual_mac;
