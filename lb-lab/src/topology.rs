//! Clients, gateways and servers on two Ethernet segments:
//!
//! ```text
//! client ─┐                ┌─ gateway ─┐                ┌─ server
//! client ─┴─ segment "ext" ┴─ gateway ─┴─ segment "int" ┴─ server
//! ```
//!
//! The segments are bridges in a namespace of their own, so a machine can be unplugged: its neighbours
//! notice nothing and its packets vanish, as when a real one loses power.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::netns::Netns;
use crate::process::Finished;

/// The gateway's address on the clients' segment.
pub const EXT_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const EXT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xc1, 0, 0, 0, 0, 1);
/// The gateway's address on the servers' segment.
pub const INT_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub const INT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x64, 0, 0, 0, 0, 1);
/// The services' addresses.
pub const VIP_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
pub const VIP_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xcb, 0, 0, 0, 0, 0x10);

const SETUP_LIMIT: Duration = Duration::from_secs(10);

/// What to build. Clients are 192.0.2.2 and up, servers 198.51.100.11 and up. A single gateway has the
/// addresses ending in 1 and the VIPs; several have .251 and up each, and share the others by themselves.
#[derive(Clone, Debug)]
pub struct Plan {
    pub clients: Vec<String>,
    pub gateways: Vec<String>,
    pub servers: Vec<String>,
}

impl Default for Plan {
    fn default() -> Self {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Self { clients: names(&["client"]), gateways: names(&["gateway"]), servers: names(&["mx1", "mx2"]) }
    }
}

/// A machine with one interface, `eth0`.
#[derive(Debug)]
pub struct Host {
    pub name: String,
    pub netns: Netns,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    switch: Netns,
}

/// A machine with the interfaces `ext` and `int`, and forwarding on.
#[derive(Debug)]
pub struct Gateway {
    pub name: String,
    pub netns: Netns,
    switch: Netns,
    number: u8,
    single: bool,
}

/// The whole network.
#[derive(Debug)]
pub struct Topology {
    pub clients: Vec<Host>,
    pub gateways: Vec<Gateway>,
    pub servers: Vec<Host>,
    pub switch: Netns,
    pub lab: Arc<Lab>,
}

#[derive(Clone, Copy)]
enum Segment {
    Ext,
    Int,
}

impl Segment {
    fn name(self) -> &'static str {
        match self {
            Self::Ext => "ext",
            Self::Int => "int",
        }
    }

    fn byte(self) -> u8 {
        match self {
            Self::Ext => 1,
            Self::Int => 2,
        }
    }

    fn v4(self, host: u8) -> Ipv4Addr {
        let [a, b, c, _] = match self {
            Self::Ext => EXT_V4.octets(),
            Self::Int => INT_V4.octets(),
        };
        Ipv4Addr::new(a, b, c, host)
    }

    /// The last group is spelled like the last number of the IPv4 address.
    fn v6(self, host: u8) -> Ipv6Addr {
        let mut groups = match self {
            Self::Ext => EXT_V6.segments(),
            Self::Int => INT_V6.segments(),
        };
        groups[7] = u16::from_str_radix(&host.to_string(), 16).unwrap_or(u16::from(host));
        Ipv6Addr::from(groups)
    }
}

impl Topology {
    /// # Errors
    /// When a namespace, link or setting is refused.
    pub fn build(lab: Arc<Lab>, plan: &Plan) -> Result<Self> {
        let switch = lab.netns("switch")?;
        switch.sysctl(&[("ipv6/conf/all/disable_ipv6", "1"), ("ipv6/conf/default/disable_ipv6", "1")])?;
        let mut batch = String::new();
        for segment in ["ext", "int"] {
            writeln!(batch, "link add {segment} type bridge stp_state 0 forward_delay 0 mcast_snooping 0")?;
            writeln!(batch, "link set {segment} up")?;
        }
        switch.ip(&batch).context("cannot make the segments")?;
        let mut topology = Self { clients: vec![], gateways: vec![], servers: vec![], switch, lab };
        for (name, number) in plan.gateways.iter().zip(0..) {
            let gateway = topology.gateway(name, number, plan.gateways.len() == 1)?;
            topology.gateways.push(gateway);
        }
        for (name, number) in plan.clients.iter().zip(2..) {
            let host = topology.host(name, Segment::Ext, number)?;
            topology.clients.push(host);
        }
        for (name, number) in plan.servers.iter().zip(11..) {
            let host = topology.host(name, Segment::Int, number)?;
            topology.servers.push(host);
        }
        Ok(topology)
    }

    fn host(&self, name: &str, segment: Segment, number: u8) -> Result<Host> {
        let netns = self.lab.netns(name)?;
        quiet_addresses(&netns)?;
        let (v4, v6) = (segment.v4(number), segment.v6(number));
        self.cable(&netns, "eth0", name, segment, number)?;
        let (gateway4, gateway6) = (segment.v4(1), segment.v6(1));
        netns.ip(&format!(
            "addr add {v4}/24 dev eth0\n\
             addr add {v6}/64 dev eth0 nodad\n\
             route add default via {gateway4}\n\
             route add default via {gateway6}\n"
        ))?;
        // XDP sees a packet before its checksum is filled in unless the sender does it itself.
        self.ethtool(&netns, "eth0", "tx", "off")?;
        Ok(Host { name: name.to_owned(), netns, v4, v6, switch: self.switch.clone() })
    }

    fn gateway(&self, name: &str, number: u8, single: bool) -> Result<Gateway> {
        let netns = self.lab.netns(name)?;
        quiet_addresses(&netns)?;
        netns.sysctl(&[
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
        ])?;
        let gateway = Gateway { name: name.to_owned(), netns, switch: self.switch.clone(), number, single };
        self.connect(&gateway)?;
        Ok(gateway)
    }

    /// Both cables of a gateway, with their addresses.
    fn connect(&self, gateway: &Gateway) -> Result<()> {
        let Gateway { name, netns, number, single, .. } = gateway;
        let own = if *single { 1 } else { 251 + number };
        for segment in [Segment::Ext, Segment::Int] {
            let device = segment.name();
            let port = format!("{name}-{device}");
            self.cable(netns, device, &port, segment, 251 + number)?;
            let (v4, v6) = (segment.v4(own), segment.v6(own));
            netns.ip(&format!("addr add {v4}/24 dev {device}\naddr add {v6}/64 dev {device} nodad\n"))?;
            // Frames that XDP sends are dropped unless the other end polls, which GRO makes it do.
            self.ethtool(&self.switch, &port, "gro", "on")?;
        }
        if *single {
            netns.ip(&format!("addr add {VIP_V4}/32 dev ext\naddr add {VIP_V6}/128 dev ext nodad\n"))?;
        }
        Ok(())
    }

    /// Removes both interfaces of a gateway and makes them anew, as when a driver is loaded again.
    ///
    /// # Errors
    /// When a link cannot be made.
    pub fn replace_cables(&self, gateway: &Gateway) -> Result<()> {
        gateway.netns.ip("link del ext\nlink del int\n")?;
        self.connect(gateway)
    }

    /// A veth pair: `device` in `netns`, `port` on the segment's bridge.
    fn cable(&self, netns: &Netns, device: &str, port: &str, segment: Segment, host: u8) -> Result<()> {
        let (name, bridge, side) = (netns.name(), segment.name(), segment.byte());
        self.switch.ip(&format!(
            "link add {port} address 02:00:00:ff:{side:02x}:{host:02x} type veth \
             peer name {device} address 02:00:00:00:{side:02x}:{host:02x} netns {name}\n\
             link set {port} master {bridge}\n\
             link set {port} up\n"
        ))?;
        netns.ip(&format!("link set {device} up mtu 1500\n"))
    }

    fn ethtool(&self, netns: &Netns, device: &str, feature: &str, value: &str) -> Result<()> {
        let mut command = self.lab.command("ethtool")?;
        command.args(["-K", device, feature, value]);
        self.lab
            .finish(netns, command, SETUP_LIMIT)?
            .expect(&format!("ethtool -K {device} {feature} {value}"))
            .map(drop)
    }

    /// The first client.
    ///
    /// # Errors
    /// When the plan had none.
    pub fn client(&self) -> Result<&Host> {
        self.clients.first().context("the plan has no client")
    }

    /// The first gateway.
    ///
    /// # Errors
    /// When the plan had none.
    pub fn first_gateway(&self) -> Result<&Gateway> {
        self.gateways.first().context("the plan has no gateway")
    }

    /// Runs a program on a machine of this network to its end.
    ///
    /// # Errors
    /// When it is missing or cannot be started.
    pub fn run(&self, netns: &Netns, program: &str, args: &[&str], limit: Duration) -> Result<Finished> {
        let mut command = self.lab.command(program)?;
        command.args(args);
        self.lab.finish(netns, command, limit)
    }
}

impl Host {
    pub fn address(&self, v6: bool) -> IpAddr {
        if v6 { self.v6.into() } else { self.v4.into() }
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
}

impl Gateway {
    /// Both cables at once, as when the machine loses power.
    ///
    /// # Errors
    /// When a link cannot be set.
    pub fn unplug(&self) -> Result<()> {
        let name = &self.name;
        self.switch.ip(&format!("link set {name}-ext down\nlink set {name}-int down\n"))
    }

    /// Undoes [`Gateway::unplug`].
    ///
    /// # Errors
    /// When a link cannot be set.
    pub fn plug(&self) -> Result<()> {
        let name = &self.name;
        self.switch.ip(&format!("link set {name}-ext up\nlink set {name}-int up\n"))
    }

    /// Forgets every neighbour, so that the next packet to each finds none.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn flush_neighbours(&self) -> Result<()> {
        for device in ["ext", "int"] {
            // Without a family it takes IPv4 and IPv6.
            self.netns.ip(&format!("neigh flush dev {device}\n"))?;
        }
        Ok(())
    }
}

/// Addresses are usable at once, and no router is looked for.
fn quiet_addresses(netns: &Netns) -> Result<()> {
    netns.sysctl(&[
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/all/accept_ra", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
    ])
}
