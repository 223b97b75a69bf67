//! Addresses with a MAC address of their own: a macvlan device on top of the interface.
//!
//! It is up while its vhid is master and down otherwise, so that the interface takes frames for the virtual MAC address
//! only then. An XDP program in the driver of the interface sees those frames first, as all others.

use std::fs;
use std::path::PathBuf;

use log::{info, warn};

use super::announce::Mac;

/// IANA's range for VRRP, which CARP shares (RFC 9568 section 7.3).
#[must_use]
pub const fn mac(vhid: u8) -> Mac {
    [0, 0, 0x5e, 0, 1, vhid]
}

/// The device of a vhid on the interface with this number. At most 15 bytes for up to a million interfaces.
#[must_use]
pub fn device(vhid: u8, parent: u32) -> String {
    format!("carp{vhid}-{parent}")
}

/// Makes the kernel treat the two devices on one network as what they are.
pub fn prepare(parent: &str, device: &str) {
    // The interface would answer ARP for the addresses, and ask in their name, with its own MAC address.
    for (name, value) in [("arp_ignore", "1"), ("arp_announce", "2")] {
        if fs::read_to_string(setting(parent, name)).is_ok_and(|found| found.trim() == "0") {
            set(parent, name, value);
            info!(
                "set net.ipv4.conf.{parent}.{name}={value}, so that only the virtual MAC address is learned"
            );
        }
    }
    // The way back to a neighbour is the interface, whichever of the two its packets come in by.
    set(device, "rp_filter", "2");
    // Replies that the program leaves to the kernel have a shared address as their source.
    set(device, "accept_local", "1");
    // No address of its own that every gateway would have.
    let path = PathBuf::from("/proc/sys/net/ipv6/conf").join(device).join("addr_gen_mode");
    if path.exists()
        && let Err(error) = fs::write(&path, "1")
    {
        warn!("cannot set net.ipv6.conf.{device}.addr_gen_mode=1: {error}");
    }
}

fn setting(device: &str, name: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net/ipv4/conf").join(device).join(name)
}

fn set(device: &str, name: &str, value: &str) {
    if let Err(error) = fs::write(setting(device, name), value) {
        warn!("cannot set net.ipv4.conf.{device}.{name}={value}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit() {
        assert_eq!(device(42, 2), "carp42-2");
        assert!(device(255, 9_999_999).len() <= 15);
        assert_eq!(mac(42), [0, 0, 0x5e, 0, 1, 0x2a]);
    }
}
