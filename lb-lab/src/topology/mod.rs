//! Clients, gateways and servers on two Ethernet segments:
//!
//! ```text
//! client ─┐                ┌─ gateway ─┐                ┌─ server
//! client ─┴─ segment "ext" ┴─ gateway ─┴─ segment "int" ┴─ server
//! ```
//!
//! or all of them on one, and with routers in front of the clients, the servers or both ([`Shape`]).
//!
//! Two gateways can have a cable of their own, "sync" ([`Plan::sync_cable`]).
//!
//! The segments are bridges in a namespace of their own, so a machine can be unplugged: its neighbours
//! notice nothing and its packets vanish, as when a real one loses power.

mod machines;
mod segment;

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

pub use self::machines::{Gateway, Host, Router};
use self::segment::Segment;
use crate::lab::Lab;
use crate::netns::Netns;
use crate::process::Finished;
use crate::xdp_pass::Pinned;

/// The gateway's address on the clients' segment.
pub const EXT_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const EXT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xc1, 0, 0, 0, 0, 1);
/// The gateway's address on the servers' segment.
pub const INT_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub const INT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x64, 0, 0, 0, 0, 1);
/// The clients' router as clients behind it see it.
pub const FAR_CLIENTS_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 1);
pub const FAR_CLIENTS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xc2, 0, 0, 0, 0, 1);
/// The servers' router as servers behind it see it.
pub const FAR_SERVERS_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 2, 1);
pub const FAR_SERVERS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x65, 0, 0, 0, 0, 1);
/// The first gateway on the cable between two; the second one's end in 2.
pub const SYNC_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub const SYNC_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x66, 0, 0, 0, 0, 1);
/// The services' first addresses; see [`vip`] for more.
pub const VIP_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
pub const VIP_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xcb, 0, 0, 0, 0, 0x10);

/// The services' address number `number`, from 0: 203.0.113.10 and up, 2001:db8:cb::10 and up.
pub fn vip(number: u8, v6: bool) -> IpAddr {
    if v6 {
        let mut groups = VIP_V6.segments();
        groups[7] += u16::from(number);
        Ipv6Addr::from(groups).into()
    } else {
        let [a, b, c, d] = VIP_V4.octets();
        Ipv4Addr::new(a, b, c, d + number).into()
    }
}

const SETUP_LIMIT: Duration = Duration::from_secs(10);
/// The routers' last numbers on the gateway's segments.
const CLIENTS_ROUTER: u8 = 241;
const SERVERS_ROUTER: u8 = 242;

/// What to build. Clients are 192.0.2.2 and up, servers 198.51.100.11 and up. A single gateway has the
/// addresses ending in 1 and the VIPs; several have .251 and up each, and share the others by themselves.
#[derive(Clone, Debug)]
pub struct Plan {
    pub clients: Vec<String>,
    pub gateways: Vec<String>,
    pub servers: Vec<String>,
    /// Gateways have an interface `sync` to each other as well, with 10.0.0.1 and up.
    pub sync_cable: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            clients: names(&["client"]),
            gateways: names(&["gateway"]),
            servers: names(&["mx1", "mx2"]),
            sync_cable: false,
        }
    }
}

impl Plan {
    /// The gateways `gw1` and `gw2` in place of one.
    #[must_use]
    pub fn pair() -> Self {
        Self { gateways: names(&["gw1", "gw2"]), ..Self::default() }
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// How the machines are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Clients and servers are on the segment `int` with the gateways, which have no other.
    pub one_armed: bool,
    /// Clients are 198.18.1.2 and up, behind the router `r1`.
    pub clients_router: bool,
    /// Servers are 198.18.2.11 and up, behind the router `r2`.
    pub servers_router: bool,
    /// How many pairs of addresses services have.
    pub vips: u8,
    /// Servers have them as well, for modes that leave the destination as it is.
    pub vips_on_servers: bool,
    /// Of every interface, in bytes.
    pub mtu: u16,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            one_armed: false,
            clients_router: false,
            servers_router: false,
            vips: 1,
            vips_on_servers: false,
            mtu: 1500,
        }
    }
}

impl Shape {
    fn near_clients(self) -> Segment {
        if self.one_armed { Segment::Int } else { Segment::Ext }
    }

    fn clients(self) -> Segment {
        if self.clients_router { Segment::FarClients } else { self.near_clients() }
    }

    fn servers(self) -> Segment {
        if self.servers_router { Segment::FarServers } else { Segment::Int }
    }
}

/// The whole network.
#[derive(Debug)]
pub struct Topology {
    pub clients: Vec<Host>,
    pub gateways: Vec<Gateway>,
    pub servers: Vec<Host>,
    /// In front of the clients.
    pub clients_router: Option<Router>,
    /// In front of the servers.
    pub servers_router: Option<Router>,
    pub shape: Shape,
    pub switch: Netns,
    pub lab: Arc<Lab>,
}

impl Topology {
    /// Two segments and no routers.
    ///
    /// # Errors
    /// When a namespace, link or setting is refused.
    pub fn build(lab: Arc<Lab>, plan: &Plan) -> Result<Self> {
        Self::build_shaped(lab, plan, Shape::default())
    }

    /// # Errors
    /// When a namespace, link or setting is refused.
    pub fn build_shaped(lab: Arc<Lab>, plan: &Plan, shape: Shape) -> Result<Self> {
        let switch = lab.netns("switch")?;
        switch.sysctl(&[("ipv6/conf/all/disable_ipv6", "1"), ("ipv6/conf/default/disable_ipv6", "1")])?;
        let mut batch = String::new();
        for segment in Segment::ALL.map(Segment::name) {
            writeln!(batch, "link add {segment} type bridge stp_state 0 forward_delay 0 mcast_snooping 0")?;
            writeln!(batch, "link set {segment} up")?;
        }
        switch.ip(&batch).context("cannot make the segments")?;
        let mut topology = Self {
            clients: vec![],
            gateways: vec![],
            servers: vec![],
            clients_router: None,
            servers_router: None,
            shape,
            switch,
            lab,
        };
        for (name, number) in plan.gateways.iter().zip(0..) {
            let gateway = topology.gateway(name, number, plan)?;
            topology.gateways.push(gateway);
        }
        if shape.clients_router {
            let router = topology.router("r1", shape.near_clients(), Segment::FarClients, CLIENTS_ROUTER)?;
            topology.clients_router = Some(router);
        }
        if shape.servers_router {
            let router = topology.router("r2", Segment::Int, Segment::FarServers, SERVERS_ROUTER)?;
            topology.servers_router = Some(router);
        }
        for (name, number) in plan.clients.iter().zip(2..) {
            let host = topology.host(name, shape.clients(), number, 0)?;
            topology.clients.push(host);
        }
        for (name, number) in plan.servers.iter().zip(11..) {
            let host = topology.host(
                name,
                shape.servers(),
                number,
                if shape.vips_on_servers { shape.vips } else { 0 },
            )?;
            topology.servers.push(host);
        }
        Ok(topology)
    }

    fn host(&self, name: &str, segment: Segment, number: u8, vips: u8) -> Result<Host> {
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
        self.ethtool(&netns, "eth0", &["tx", "off"])?;
        if self.shape != Shape::default() {
            self.wire(name)?;
        }
        if vips > 0 {
            own_vips(&netns, vips)?;
        }
        Ok(Host { name: name.to_owned(), netns, v4, v6, vips, switch: self.switch.clone() })
    }

    /// What the switch sends to `port` is single packets, as on a wire: else frames that were joined on their
    /// way out of the gateway stay so, and whoever looks at frames or at their size sees what never was.
    fn wire(&self, port: &str) -> Result<()> {
        self.ethtool(&self.switch, port, &["tx", "off", "tso", "off", "gso", "off"])
    }

    /// Gives `port` of the switch a program that lets everything pass.
    fn let_pass(&self, port: &str) -> Result<()> {
        self.let_pass_in(&self.switch, port)
    }

    /// Gives an interface a program that lets everything pass, as somebody else's would be there.
    ///
    /// # Errors
    /// When it cannot be loaded, or the interface has one.
    pub fn let_pass_in(&self, netns: &Netns, port: &str) -> Result<()> {
        let pass = Pinned::create(self.lab.pin_directory("pass"))?;
        // Not `ip -n`: it mounts a /sys without the BPF file system.
        let mut command = self.lab.command("ip")?;
        command.args(["link", "set", port, "xdpdrv", "pinned"]).arg(pass.path());
        self.lab.finish(netns, command, SETUP_LIMIT)?.expect("ip link set xdpdrv").map(drop)
    }

    /// The switch sends to `port` no frame for another MAC address than `mac` and those that spoke there, even when
    /// it does not know where else to send it. A network card would not take it; a veth does, and so a gateway
    /// would forward in place of one that has just died.
    fn filter(&self, port: &str, mac: &str) -> Result<()> {
        self.switch.ip(&format!("link set {port} type bridge_slave flood off\n"))?;
        let args = ["fdb", "replace", mac, "dev", port, "master", "static"];
        self.run(&self.switch, "bridge", &args, SETUP_LIMIT)?.expect("bridge fdb replace").map(drop)
    }

    fn gateway(&self, name: &str, number: u8, plan: &Plan) -> Result<Gateway> {
        let netns = self.lab.netns(name)?;
        quiet_addresses(&netns)?;
        forwarding(&netns)?;
        let one_armed = self.shape.one_armed;
        let segments = if one_armed { vec![Segment::Int] } else { vec![Segment::Ext, Segment::Int] };
        let switch = self.switch.clone();
        let (single, sync_cable) = (plan.gateways.len() == 1, plan.sync_cable);
        let gateway = Gateway { name: name.to_owned(), netns, switch, number, single, segments, sync_cable };
        self.connect(&gateway)?;
        Ok(gateway)
    }

    /// All cables of a gateway, with their addresses, and its routes.
    fn connect(&self, gateway: &Gateway) -> Result<()> {
        let Gateway { name, netns, number, single, segments, .. } = gateway;
        let own = if *single { 1 } else { 251 + number };
        for segment in segments.iter().copied() {
            let device = segment.name();
            let port = format!("{name}-{device}");
            self.cable(netns, device, &port, segment, 251 + number)?;
            self.switch.ip(&gateway.filter(&port))?;
            let (v4, v6) = (segment.v4(own), segment.v6(own));
            netns.ip(&format!("addr add {v4}/24 dev {device}\naddr add {v6}/64 dev {device} nodad\n"))?;
            // Frames that XDP sends are dropped unless the other end polls, which GRO makes it do...
            self.ethtool(&self.switch, &port, &["gro", "on"])?;
            // ...and those that leave where they came in stay there unless it has a program, too.
            self.let_pass(&port)?;
            // A tag is a part of the frame, as on a wire, and not a note beside it.
            self.ethtool(
                &self.switch,
                &port,
                &["tx-vlan-hw-insert", "off", "tx-vlan-stag-hw-insert", "off"],
            )?;
            if !single {
                self.filter(&port, &mac(segment, 251 + number))?;
            }
        }
        if gateway.sync_cable {
            let (device, own) = (Segment::Sync.name(), 1 + number);
            self.cable(netns, device, &format!("{name}-{device}"), Segment::Sync, own)?;
            let (v4, v6) = (Segment::Sync.v4(own), Segment::Sync.v6(own));
            netns.ip(&format!("addr add {v4}/24 dev {device}\naddr add {v6}/64 dev {device} nodad\n"))?;
        }
        if *single && let Some(first) = segments.first() {
            netns.ip(&vip_commands(self.shape.vips, first.name()))?;
        }
        let mut routes = String::new();
        for v6 in [false, true] {
            if self.shape.clients_router {
                let via = self.shape.near_clients().address(CLIENTS_ROUTER, v6);
                writeln!(routes, "route add {} via {via}", Segment::FarClients.subnet(v6))?;
            }
            if self.shape.servers_router {
                let via = Segment::Int.address(SERVERS_ROUTER, v6);
                writeln!(routes, "route add {} via {via}", Segment::FarServers.subnet(v6))?;
            }
        }
        netns.ip(&routes)
    }

    fn router(&self, name: &str, near: Segment, far: Segment, number: u8) -> Result<Router> {
        let netns = self.lab.netns(name)?;
        quiet_addresses(&netns)?;
        forwarding(&netns)?;
        for (device, segment, number) in [("near", near, number), ("far", far, 1)] {
            let port = format!("{name}-{device}");
            self.cable(&netns, device, &port, segment, number)?;
            let (v4, v6) = (segment.v4(number), segment.v6(number));
            netns.ip(&format!(
                "addr add {v4}/24 dev {device} noprefixroute\n\
                 addr add {v6}/64 dev {device} nodad noprefixroute\n"
            ))?;
            self.ethtool(&netns, device, &["tx", "off"])?;
            self.wire(&port)?;
        }
        let router = Router { name: name.to_owned(), netns, near, far, number };
        router.narrow(None)?;
        Ok(router)
    }

    /// Servers answer clients behind their router without passing the gateway, as modes need that change or
    /// wrap nothing on the way back. (A one-armed network with a router for the clients.)
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn answer_directly(&self) -> Result<()> {
        let router = self.servers_router.iter().map(|router| &router.netns);
        let hosts = self.servers.iter().map(|host| &host.netns).filter(|_| self.servers_router.is_none());
        for netns in router.chain(hosts) {
            for v6 in [false, true] {
                let via = self.shape.near_clients().address(CLIENTS_ROUTER, v6);
                netns.ip(&format!("route replace {} via {via}\n", Segment::FarClients.subnet(v6)))?;
            }
        }
        Ok(())
    }

    /// Removes all interfaces of a gateway and makes them anew, as when a driver is loaded again.
    ///
    /// # Errors
    /// When a link cannot be made.
    pub fn replace_cables(&self, gateway: &Gateway) -> Result<()> {
        for cable in gateway.cables() {
            gateway.netns.ip(&format!("link del {}\n", cable.name()))?;
        }
        self.connect(gateway)
    }

    /// The gateways that have `address` now, numbered from 1.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn masters(&self, address: IpAddr) -> Result<Vec<usize>> {
        let mut masters = Vec::new();
        for (number, gateway) in (1..).zip(&self.gateways) {
            let shown = self.run(&gateway.netns, "ip", &["-o", "addr", "show"], SETUP_LIMIT)?;
            if shown.expect("ip addr show")?.contains(&format!(" {address}/")) {
                masters.push(number);
            }
        }
        Ok(masters)
    }

    /// A veth pair: `device` in `netns`, `port` on the segment's bridge.
    fn cable(&self, netns: &Netns, device: &str, port: &str, segment: Segment, host: u8) -> Result<()> {
        let (name, bridge, side) = (netns.name(), segment.name(), segment.byte());
        let (mtu, mac) = (self.shape.mtu, mac(segment, host));
        self.switch.ip(&format!(
            "link add {port} address 02:00:00:ff:{side:02x}:{host:02x} mtu {mtu} type veth \
             peer name {device} address {mac} netns {name}\n\
             link set {port} master {bridge}\n\
             link set {port} up\n"
        ))?;
        netns.ip(&format!("link set {device} up mtu {mtu}\n"))
    }

    fn ethtool(&self, netns: &Netns, device: &str, features: &[&str]) -> Result<()> {
        let mut command = self.lab.command("ethtool")?;
        command.args(["-K", device]).args(features);
        let what = format!("ethtool -K {device} {}", features.join(" "));
        self.lab.finish(netns, command, SETUP_LIMIT)?.expect(&what).map(drop)
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

    /// The gateway as the clients' side sees it.
    pub fn gateway_address(&self, v6: bool) -> IpAddr {
        self.shape.near_clients().address(1, v6)
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

/// Of machine `host` on a segment.
fn mac(segment: Segment, host: u8) -> String {
    format!("02:00:00:00:{:02x}:{host:02x}", segment.byte())
}

/// Addresses are usable at once, and no router is looked for.
fn quiet_addresses(netns: &Netns) -> Result<()> {
    netns.sysctl(&[
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/all/accept_ra", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
        ("ipv4/conf/all/accept_redirects", "0"),
        ("ipv4/conf/default/accept_redirects", "0"),
        ("ipv6/conf/all/accept_redirects", "0"),
        ("ipv6/conf/default/accept_redirects", "0"),
    ])
}

fn forwarding(netns: &Netns) -> Result<()> {
    netns.sysctl(&[
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
        // As many errors as there are causes: tests provoke them quickly.
        ("ipv4/icmp_ratelimit", "0"),
        ("ipv6/icmp/ratelimit", "0"),
    ])
}

/// The services' addresses on the loopback interface: answered for, but never announced, and what comes for
/// them may have come out of a tunnel.
fn own_vips(netns: &Netns, count: u8) -> Result<()> {
    netns.sysctl(&[
        ("ipv4/conf/all/arp_ignore", "1"),
        ("ipv4/conf/all/arp_announce", "2"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/conf/eth0/rp_filter", "0"),
    ])?;
    netns.ip(&vip_commands(count, "lo"))
}

fn vip_commands(count: u8, device: &str) -> String {
    let both = |number| (vip(number, false), vip(number, true));
    (0..count)
        .map(both)
        .map(|(v4, v6)| format!("addr add {v4}/32 dev {device}\naddr add {v6}/128 dev {device} nodad\n"))
        .collect()
}
