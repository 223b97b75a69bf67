//! What the host must allow for a gateway to forward: settings that are checked, and the one that is made.

use std::fs;

use log::{info, warn};

use crate::config::Config;

/// Warns of settings under which nothing arrives, with the command that mends each, and allows the kernel to forward
/// replies whose source is a VIP.
pub fn prepare(config: &Config) {
    let families = || config.services.iter().flat_map(|s| &s.listen).map(|l| l.address.is_ipv4());
    for interface in &config.interfaces {
        if families().any(|v4| v4) {
            prepare_v4(interface);
        }
        if families().any(|v4| !v4) && read(&format!("ipv6/conf/{interface}/forwarding")) == Some(0) {
            warn!(
                "{interface} does not forward IPv6, so nothing reaches a backend: \
                 sysctl -w net.ipv6.conf.all.forwarding=1"
            );
        }
    }
}

fn prepare_v4(interface: &str) {
    if read(&format!("ipv4/conf/{interface}/forwarding")) == Some(0) {
        warn!(
            "{interface} does not forward IPv4, so nothing reaches a backend: sysctl -w net.ipv4.ip_forward=1"
        );
    }
    let strict =
        ["all", interface].into_iter().filter_map(|i| read(&format!("ipv4/conf/{i}/rp_filter"))).max();
    if strict == Some(1) {
        warn!(
            "the kernel drops replies from {interface} whose next hop it must look up first (rp_filter is 1): \
             sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.{interface}.rp_filter=2"
        );
    }
    // A reply has a VIP as its source. Where the VIP is an address of this machine, the kernel takes such a packet for
    // a forgery, unless it is told that they may come from outside.
    let setting = format!("/proc/sys/net/ipv4/conf/{interface}/accept_local");
    if read(&format!("ipv4/conf/{interface}/accept_local")) == Some(0) {
        match fs::write(&setting, "1") {
            Ok(()) => info!(
                "set net.ipv4.conf.{interface}.accept_local=1, so that the kernel forwards replies from VIPs"
            ),
            Err(error) => warn!("cannot set net.ipv4.conf.{interface}.accept_local=1: {error}"),
        }
    }
}

fn read(setting: &str) -> Option<u32> {
    fs::read_to_string(format!("/proc/sys/net/{setting}")).ok()?.trim().parse().ok()
}
