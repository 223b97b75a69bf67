//! Settings of the kernel (ip-sysctl) under which nothing arrives. The daemon warns of them at its start, and `matapa
//! doctor` lists them.

use std::fs;

/// One interface's, as read. `None` where there is no such setting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub forwarding4: Option<u32>,
    pub forwarding6: Option<u32>,
    /// The stricter one of the interface's and that of all.
    pub rp_filter: Option<u32>,
    /// Packets from outside may have an address of this machine as their source.
    pub accept_local: Option<u32>,
}

/// A setting in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// The setting's name.
    pub name: &'static str,
    /// What it does, in one sentence without a full stop.
    pub message: String,
    /// The command that ends it.
    pub mend: String,
}

/// Reads an interface's settings.
pub fn read(interface: &str) -> Settings {
    Settings {
        forwarding4: number(&format!("ipv4/conf/{interface}/forwarding")),
        forwarding6: number(&format!("ipv6/conf/{interface}/forwarding")),
        rp_filter: ["all", interface]
            .into_iter()
            .filter_map(|name| number(&format!("ipv4/conf/{name}/rp_filter")))
            .max(),
        accept_local: number(&format!("ipv4/conf/{interface}/accept_local")),
    }
}

/// What is in the way of services that have addresses of these families.
pub fn obstacles(interface: &str, settings: &Settings, v4: bool, v6: bool) -> Vec<Obstacle> {
    let mut found = Vec::new();
    if v4 && settings.forwarding4 == Some(0) {
        found.push(Obstacle {
            name: "ip_forward",
            message: format!("{interface} does not forward IPv4, so nothing reaches a backend"),
            mend: "sysctl -w net.ipv4.ip_forward=1".to_owned(),
        });
    }
    if v4 && settings.rp_filter == Some(1) {
        found.push(Obstacle {
            name: "rp_filter",
            message: format!(
                "the kernel drops replies from {interface} whose next hop it must look up first (rp_filter is 1)"
            ),
            mend: format!(
                "sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.{}.rp_filter=2",
                sysctl_name(interface)
            ),
        });
    }
    if v6 && settings.forwarding6 == Some(0) {
        found.push(Obstacle {
            name: "ip_forward",
            message: format!("{interface} does not forward IPv6, so nothing reaches a backend"),
            mend: "sysctl -w net.ipv6.conf.all.forwarding=1".to_owned(),
        });
    }
    found
}

/// A reply has a VIP as its source. Where the VIP is an address of this machine, the kernel takes such a packet for a
/// forgery, unless it is told that they may come from outside.
pub fn refuses_vips(interface: &str, settings: &Settings) -> Option<Obstacle> {
    (settings.accept_local == Some(0)).then(|| Obstacle {
        name: "accept_local",
        message: format!(
            "the kernel takes replies from VIPs on {interface} for forgeries (accept_local is 0)"
        ),
        mend: format!("sysctl -w net.ipv4.conf.{}.accept_local=1", sysctl_name(interface)),
    })
}

/// In a name of sysctl(8) a dot separates, so the dot of `eth0.10` is written as a slash.
fn sysctl_name(interface: &str) -> String {
    interface.replace('.', "/")
}

fn number(setting: &str) -> Option<u32> {
    fs::read_to_string(format!("/proc/sys/net/{setting}")).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_matters_to_its_family() {
        let closed = Settings {
            forwarding4: Some(0),
            forwarding6: Some(0),
            rp_filter: Some(1),
            accept_local: Some(0),
        };
        let names = |settings: &Settings, v4, v6| -> Vec<&str> {
            obstacles("eth0", settings, v4, v6).iter().map(|obstacle| obstacle.name).collect()
        };
        assert_eq!(names(&closed, true, true), ["ip_forward", "rp_filter", "ip_forward"]);
        assert_eq!(names(&closed, false, true), ["ip_forward"]);
        assert_eq!(names(&closed, false, false), [""; 0]);
        assert!(refuses_vips("eth0", &closed).is_some());
        let open = Settings {
            forwarding4: Some(1),
            forwarding6: Some(1),
            rp_filter: Some(2),
            accept_local: Some(1),
        };
        for settings in [open, Settings::default()] {
            assert_eq!(names(&settings, true, true), [""; 0]);
            assert_eq!(refuses_vips("eth0", &settings), None);
        }
    }

    #[test]
    fn dots_of_interfaces_are_slashes() {
        let strict = Settings { rp_filter: Some(1), ..Settings::default() };
        let obstacle = &obstacles("eth0.10", &strict, true, false)[0];
        assert!(obstacle.mend.contains("conf.eth0/10.rp_filter=2"), "{}", obstacle.mend);
    }
}
