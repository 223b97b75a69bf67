//! What stands on the segments: hosts, gateways and routers.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use super::segment::Segment;
use super::vip;
use crate::netns::Netns;
use crate::process::run_tool;

/// A machine with one interface, `eth0`.
#[derive(Debug)]
pub struct Host {
    pub name: String,
    pub netns: Netns,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    /// How many pairs of the services' addresses it has as well, on its loopback interface and without telling
    /// anybody.
    pub vips: u8,
    pub(super) switch: Netns,
}

/// A machine with the interfaces `ext` and `int`, or `int` alone, and forwarding on.
#[derive(Debug)]
pub struct Gateway {
    pub name: String,
    pub netns: Netns,
    pub(super) switch: Netns,
    pub(super) number: u8,
    pub(super) single: bool,
    pub(super) segments: Vec<Segment>,
    pub(super) sync_cable: bool,
}

/// A machine that only forwards, between a segment of the gateway (`near`) and hosts (`far`).
#[derive(Debug)]
pub struct Router {
    pub name: String,
    pub netns: Netns,
    pub(super) near: Segment,
    pub(super) far: Segment,
    /// Its address on `near`.
    pub(super) number: u8,
}

impl Host {
    pub fn address(&self, v6: bool) -> IpAddr {
        if v6 { self.v6.into() } else { self.v4.into() }
    }

    /// Everything a program on it may listen on, its own addresses first.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let vips = (0..self.vips).flat_map(|number| [vip(number, false), vip(number, true)]);
        [self.v4.into(), self.v6.into()].into_iter().chain(vips).collect()
    }

    /// The machine is cut off at once and nobody is told: its frames and those to it vanish.
    ///
    /// # Errors
    /// When the link cannot be set.
    pub fn unplug(&self) -> Result<()> {
        self.switch.ip(&format!("link set {} down\n", self.name))
    }

    /// Undoes [`Host::unplug`].
    ///
    /// # Errors
    /// When the link cannot be set.
    pub fn plug(&self) -> Result<()> {
        self.switch.ip(&format!("link set {} up\n", self.name))
    }

    /// Forgets every path MTU it has learned.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn forget_paths(&self) -> Result<()> {
        for family in ["-4", "-6"] {
            run_tool("ip", &[family, "-n", self.netns.name(), "route", "flush", "cache"], None)?;
        }
        Ok(())
    }
}

impl Gateway {
    /// Where the program is attached.
    pub fn devices(&self) -> Vec<&'static str> {
        self.segments.iter().map(|segment| segment.name()).collect()
    }

    /// Everything it is plugged into.
    pub(super) fn cables(&self) -> impl Iterator<Item = Segment> {
        self.segments.iter().copied().chain(self.sync_cable.then_some(Segment::Sync))
    }

    fn ports(&self) -> impl Iterator<Item = String> {
        self.cables().map(|cable| format!("{}-{}", self.name, cable.name()))
    }

    /// All cables at once, as when the machine loses power.
    ///
    /// # Errors
    /// When a link cannot be set.
    pub fn unplug(&self) -> Result<()> {
        self.set_cables("down")
    }

    /// Undoes [`Gateway::unplug`].
    ///
    /// # Errors
    /// When a link cannot be set.
    pub fn plug(&self) -> Result<()> {
        self.set_cables("up")
    }

    fn set_cables(&self, state: &str) -> Result<()> {
        self.switch.ip(&self.ports().map(|port| format!("link set {port} {state}\n")).collect::<String>())
    }

    /// Cuts one of its cables in the middle: its interface still has a link.
    ///
    /// # Errors
    /// When the link cannot be set.
    pub fn cut(&self, device: &str) -> Result<()> {
        self.switch.ip(&format!("link set {}-{device} nomaster\n", self.name))
    }

    /// Undoes [`Gateway::cut`].
    ///
    /// # Errors
    /// When the link cannot be set.
    pub fn mend(&self, device: &str) -> Result<()> {
        self.mend_on(device, device)
    }

    /// As [`Gateway::mend`], with the cable's end on another bridge.
    ///
    /// # Errors
    /// When the link cannot be set.
    pub fn mend_on(&self, device: &str, bridge: &str) -> Result<()> {
        let port = format!("{}-{device}", self.name);
        self.switch.ip(&format!("link set {port} master {bridge}\n{}", self.filter(&port)))
    }

    /// A real interface takes frames to its own addresses only. Here the switch must not send it others: where it does
    /// not know a dead gateway's any more, it would send its frames to every port, and XDP on the other gateway would
    /// forward them.
    pub(super) fn filter(&self, port: &str) -> String {
        if self.single { String::new() } else { format!("link set {port} type bridge_slave flood off\n") }
    }

    /// Forgets every neighbour, so that the next packet to each finds none.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn flush_neighbours(&self) -> Result<()> {
        for device in self.devices() {
            // Without a family it takes IPv4 and IPv6.
            self.netns.ip(&format!("neigh flush dev {device}\n"))?;
        }
        Ok(())
    }

    /// Sets the largest packet of one of its interfaces, in bytes.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn set_mtu(&self, device: &str, mtu: u16) -> Result<()> {
        self.netns.ip(&format!("link set {device} mtu {mtu}\n"))
    }
}

impl Router {
    /// Where the hosts behind it see it, and what it sends errors about their packets from.
    pub fn far_address(&self, v6: bool) -> IpAddr {
        self.far.address(1, v6)
    }

    /// Where gateways see it, and what it sends errors about packets to the hosts from.
    pub fn near_address(&self, v6: bool) -> IpAddr {
        self.near.address(self.number, v6)
    }

    /// No packet of more than `mtu` bytes passes, in either direction; `None` ends that.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn narrow(&self, mtu: Option<u16>) -> Result<()> {
        // Locked: else the kernel takes the interface's for what it forwards.
        let limit = mtu.map(|mtu| format!(" mtu lock {mtu}")).unwrap_or_default();
        let mut batch = String::new();
        for v6 in [false, true] {
            let (subnet, gateway) = (self.far.subnet(v6), self.near.address(1, v6));
            writeln!(batch, "route replace {} dev near{limit}", self.near.subnet(v6))?;
            writeln!(batch, "route replace {subnet} dev far{limit}")?;
            writeln!(batch, "route replace default via {gateway} dev near{limit}")?;
        }
        self.netns.ip(&batch)
    }
}
