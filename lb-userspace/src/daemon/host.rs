//! What the host must allow for a gateway to forward: settings that are checked, and the one that is made.

use std::fs;

use log::{info, warn};

use crate::config::Config;
use crate::net::settings;

/// Warns of settings under which nothing arrives, with the command that mends each, and allows the kernel to forward
/// replies whose source is a VIP.
pub fn prepare(config: &Config) {
    let families = || config.services.iter().flat_map(|s| &s.listen).map(|l| l.address.is_ipv4());
    let (v4, v6) = (families().any(|v4| v4), families().any(|v4| !v4));
    for interface in &config.interfaces {
        let found = settings::read(interface);
        for obstacle in settings::obstacles(interface, &found, v4, v6) {
            warn!("{}: {}", obstacle.message, obstacle.mend);
        }
        if v4 && settings::refuses_vips(interface, &found).is_some() {
            accept_local(interface);
        }
    }
}

fn accept_local(interface: &str) {
    match fs::write(format!("/proc/sys/net/ipv4/conf/{interface}/accept_local"), "1") {
        Ok(()) => {
            info!(
                "set net.ipv4.conf.{interface}.accept_local=1, so that the kernel forwards replies from VIPs"
            );
        }
        Err(error) => warn!("cannot set net.ipv4.conf.{interface}.accept_local=1: {error}"),
    }
}
