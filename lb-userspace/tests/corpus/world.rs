//! A world: a configuration, the state of its backends, and the network around the gateway. The same description
//! answers the packet code's questions on the host, and is built in a network namespace for the kernel.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use lb_common::abi::{Be16, Port, Tag, VlanKey};
use lb_common::env::{Reach, Route};
use lb_common::hash::{FlowHash, HashKey, flow4, flow6, ports};
use lb_common::packet::eth::Macs;
use lb_userspace::api::types::AdminState;
use lb_userspace::config::{self, Backend, Config, Listen, Member, Service};
use lb_userspace::dataplane::Capacity;
use lb_userspace::dataplane::desired::Verdicts;
use lb_userspace::dataplane::image::address_bytes;
use lb_userspace::health::Health;
use serde::Deserialize;

use super::frame::{Ends, Mac, Names, Tunnel, parse_mac};

/// The same in every run, so that a flow has the same backend and the same place in the flow table.
pub const KEY: HashKey = HashKey {
    words: [
        0x9e37_79b9,
        0x7f4a_7c15,
        0x243f_6a88,
        0x85a3_08d3,
        0x1319_8a2e,
        0x0370_7344,
        0xa409_3822,
        0x299f_31d0,
        0x082e_fa98,
        0xec4e_6c89,
    ],
    seed: 0x4528_21e6_38d0_1377,
};

pub const CAPACITY: Capacity = Capacity { listeners: 128, backends: 256, table_slots: 1 << 17 };

/// The hash of a flow with [`KEY`].
pub fn flow_hash(ends: &Ends) -> FlowHash {
    let Ends { client, vip, client_port, vip_port, protocol } = *ends;
    let ports = ports(client_port, vip_port);
    match (client, vip) {
        (IpAddr::V4(client), IpAddr::V4(vip)) => {
            flow4(&KEY, &client.octets(), &vip.octets(), ports, protocol)
        }
        (client, vip) => flow6(&KEY, &address_bytes(client), &address_bytes(vip), ports, protocol),
    }
}

/// Name of a backend to what is known of it.
pub type States = BTreeMap<String, State>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Up,
    Down,
    /// Never checked.
    Unknown,
    Draining,
    Disabled,
}

impl State {
    /// By its name in the files.
    pub fn named(name: &str) -> Option<Self> {
        let all = [Self::Up, Self::Down, Self::Unknown, Self::Draining, Self::Disabled];
        all.into_iter().find(|state| format!("{state:?}").eq_ignore_ascii_case(name))
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    config: String,
    flow_lines: u32,
    /// The interface that packets come in on unless said otherwise.
    ingress: String,
    #[serde(default)]
    state: States,
    interfaces: BTreeMap<String, InterfaceFile>,
    #[serde(default)]
    neighbours: Vec<NeighbourFile>,
    #[serde(default)]
    routes: Vec<RouteFile>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct InterfaceFile {
    mac: String,
    #[serde(default)]
    addresses: Vec<String>,
    /// The neighbour that sends the frames that come in here unless said otherwise.
    peer: String,
    mtu: u16,
    forwarding: Option<bool>,
    program: Option<bool>,
    /// A VLAN: the interface it is on, and its tag: `vlan 10` or `qinq 100`.
    on: Option<String>,
    tag: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NeighbourFile {
    name: String,
    dev: String,
    mac: String,
    addresses: Vec<IpAddr>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteFile {
    to: String,
    dev: Option<String>,
    via: Option<IpAddr>,
    mtu: Option<u16>,
    refuse: Option<Refuse>,
    #[serde(default)]
    encapsulates: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Refuse {
    Blackhole,
    Unreachable,
    Prohibit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    pub address: IpAddr,
    pub len: u8,
}

#[derive(Clone, Debug)]
pub struct Interface {
    pub name: String,
    pub mac: Mac,
    pub addresses: Vec<Prefix>,
    pub peer: String,
    pub mtu: u16,
    pub forwarding: bool,
    /// Whether it carries the program; frames to others are left to the kernel.
    pub program: bool,
    /// The kernel's number, or one of ours on the host.
    pub index: u32,
    pub vlan: Option<Vlan>,
}

/// What makes an interface a VLAN.
#[derive(Clone, Debug)]
pub struct Vlan {
    /// The interface it is on.
    pub on: String,
    /// 0x8100 or 0x88a8.
    pub ether_type: u16,
    pub number: u16,
}

#[derive(Clone, Debug)]
pub struct Neighbour {
    pub name: String,
    pub dev: String,
    pub mac: Mac,
    pub addresses: Vec<IpAddr>,
}

#[derive(Clone, Debug)]
pub struct NetworkRoute {
    pub to: Prefix,
    pub dev: Option<String>,
    pub via: Option<IpAddr>,
    pub mtu: Option<u16>,
    pub refuse: Option<Refuse>,
    pub encapsulates: bool,
}

#[derive(Clone, Debug)]
pub struct World {
    pub name: String,
    pub config: Config,
    pub flow_lines: u32,
    pub ingress: String,
    pub state: States,
    pub interfaces: Vec<Interface>,
    pub neighbours: Vec<Neighbour>,
    pub routes: Vec<NetworkRoute>,
    macs: BTreeMap<String, Mac>,
}

/// Where the corpus is.
pub fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata")
}

impl World {
    /// Reads `testdata/worlds/NAME.toml`. Panics, as tests do, with a text that says what is wrong there.
    pub fn load(name: &str) -> Self {
        let path = testdata().join("worlds").join(format!("{name}.toml"));
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self::parse(name, &text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    fn parse(name: &str, text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|e| e.to_string())?;
        let config = config::parse(&file.config, Path::new("config")).map_err(|e| e.render(false))?;
        let mac = |text: &str| parse_mac(text).ok_or_else(|| format!("{text} is no MAC address"));
        let mut macs = BTreeMap::new();
        let mut interfaces = Vec::new();
        for (index, (name, i)) in (11..).zip(file.interfaces) {
            let addresses = i.addresses.iter().map(|a| prefix(a)).collect::<Result<_, _>>()?;
            let mac = mac(&i.mac)?;
            let forwarding = i.forwarding.unwrap_or(true);
            let program = i.program.unwrap_or(true);
            let vlan = match (i.on, i.tag) {
                (Some(on), Some(tag)) => Some(Vlan::new(on, &tag)?),
                (None, None) => None,
                _ => return Err(format!("{name}: a VLAN has `on` and `tag`")),
            };
            macs.insert(name.clone(), mac);
            interfaces.push(Interface {
                name,
                mac,
                addresses,
                peer: i.peer,
                mtu: i.mtu,
                forwarding,
                program,
                index,
                vlan,
            });
        }
        let mut neighbours = Vec::new();
        for n in file.neighbours {
            let mac = mac(&n.mac)?;
            macs.insert(n.name.clone(), mac);
            neighbours.push(Neighbour { name: n.name, dev: n.dev, mac, addresses: n.addresses });
        }
        let mut routes = Vec::new();
        for r in file.routes {
            routes.push(NetworkRoute {
                to: prefix(&r.to)?,
                dev: r.dev,
                via: r.via,
                mtu: r.mtu,
                refuse: r.refuse,
                encapsulates: r.encapsulates,
            });
        }
        let world = Self {
            name: name.to_owned(),
            config,
            flow_lines: file.flow_lines,
            ingress: file.ingress,
            state: file.state,
            interfaces,
            neighbours,
            routes,
            macs,
        };
        world.check_names()?;
        Ok(world)
    }

    fn check_names(&self) -> Result<(), String> {
        let devs =
            self.neighbours.iter().map(|n| &n.dev).chain(self.routes.iter().filter_map(|r| r.dev.as_ref()));
        let below = self.interfaces.iter().filter_map(|i| i.vlan.as_ref()).map(|vlan| &vlan.on);
        for dev in devs.chain(below).chain([&self.ingress]) {
            self.interface(dev).ok_or_else(|| format!("there is no interface {dev}"))?;
        }
        for peer in self.interfaces.iter().map(|i| &i.peer) {
            self.neighbours.iter().find(|n| n.name == *peer).ok_or_else(|| format!("no neighbour {peer}"))?;
        }
        self.check_states(&self.state)
    }

    pub fn check_states(&self, states: &States) -> Result<(), String> {
        let known = |name: &str| self.config.pools.iter().flat_map(|p| &p.backends).any(|b| b.name == name);
        match states.keys().find(|name| !known(name)) {
            Some(name) => Err(format!("there is no backend {name}")),
            None => Ok(()),
        }
    }

    pub fn interface(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|i| i.name == name)
    }

    /// The tags of the frames of an interface, from the outside in, and the interface that sends them.
    fn tags(&self, interface: &Interface) -> (Vec<Tag>, u32) {
        let (mut tags, mut below) = (Vec::new(), interface);
        while let Some(vlan) = &below.vlan {
            tags.insert(0, Tag { ether_type: Be16::new(vlan.ether_type), control: Be16::new(vlan.number) });
            below = self.interface(&vlan.on).unwrap_or_else(|| panic!("there is no interface {}", vlan.on));
        }
        (tags, below.index)
    }

    /// What the daemon would put into `PORTS` and `VLANS`.
    pub fn ports(&self) -> (Vec<Port>, BTreeMap<VlanKey, u32>) {
        let (mut ports, mut vlans) = (Vec::new(), BTreeMap::new());
        for interface in self.interfaces.iter().filter(|i| i.program) {
            let (tags, device) = self.tags(interface);
            let mut port =
                Port { ifindex: interface.index, device, tag_count: tags.len() as u32, ..Port::default() };
            port.tags[..tags.len()].copy_from_slice(&tags);
            let own = || interface.addresses.iter().map(|a| a.address);
            port.addr4 = own()
                .find_map(|a| if let IpAddr::V4(v4) = a { Some(v4.octets()) } else { None })
                .unwrap_or_default();
            port.addr6 = own()
                .find_map(|a| if let IpAddr::V6(v6) = a { Some(v6.octets()) } else { None })
                .unwrap_or_default();
            if let Some(outer) = tags.first() {
                let inner = tags.get(1).map(|t| t.control).unwrap_or_default();
                vlans.insert(VlanKey { device, outer: outer.control, inner }, interface.index);
            }
            ports.push(port);
        }
        (ports, vlans)
    }

    /// What frames that come in on this interface may leave out.
    pub fn names(&self, ingress: &Interface) -> Names<'_> {
        let config::Tunnel { source4, source6 } = self.config.tunnel;
        let (IpAddr::V4(v4), IpAddr::V6(v6)) = (source4.address, source6.address) else {
            panic!("{}: networks of the wrong family: {:?}", self.name, self.config.tunnel);
        };
        let tunnel =
            Tunnel { source4: (v4, source4.len), source6: (v6, source6.len), hash: |ends| flow_hash(ends).0 };
        Names { macs: &self.macs, default: (self.macs[&ingress.peer], ingress.mac), tunnel }
    }

    /// What the routing table says of a packet of `len` bytes that came in on the interface of this number.
    fn route(&self, ingress: u32, to: IpAddr, len: u16) -> Route {
        let forwarding = self.interfaces.iter().any(|i| i.index == ingress && i.forwarding);
        if !forwarding {
            return Route::none(Reach::ForwardingDisabled);
        }
        let own = self.interfaces.iter().flat_map(|i| &i.addresses);
        if to.is_multicast() || own.clone().any(|a| a.address == to || a.is_broadcast(to) || a.is_anycast(to))
        {
            return Route::none(Reach::NotForwarded);
        }
        let connected = self.interfaces.iter().flat_map(|i| {
            let route = |a: &Prefix| NetworkRoute {
                to: *a,
                dev: Some(i.name.clone()),
                via: None,
                mtu: None,
                refuse: None,
                encapsulates: false,
            };
            i.addresses.iter().map(route).collect::<Vec<_>>()
        });
        let best =
            connected.chain(self.routes.clone()).filter(|r| r.to.contains(to)).max_by_key(|r| r.to.len);
        let Some(route) = best else { return Route::none(Reach::NotForwarded) };
        if route.refuse.is_some() {
            return Route::none(Reach::Refused);
        }
        let Some(out) = route.dev.as_deref().and_then(|dev| self.interface(dev)) else {
            return Route::none(Reach::NotForwarded);
        };
        let mtu = route.mtu.unwrap_or(out.mtu);
        if len > mtu {
            return Route { mtu, ..Route::none(Reach::TooBig) };
        }
        if route.encapsulates {
            return Route::none(Reach::Unsupported);
        }
        let next_hop = route.via.unwrap_or(to);
        match self.neighbours.iter().find(|n| n.dev == out.name && n.addresses.contains(&next_hop)) {
            Some(neighbour) => Route {
                reach: Reach::Known,
                mtu,
                ifindex: out.index,
                macs: Macs { destination: neighbour.mac, source: out.mac },
            },
            None => Route::none(Reach::NeighbourUnknown),
        }
    }

    /// The routing table for packets that come in on the interface whose number is in the cell.
    pub fn routes(&self) -> (Rc<Cell<u32>>, lb_userspace::dataplane::memory::Routes) {
        let ingress = Rc::new(Cell::new(0));
        let (world, cell) = (self.clone(), Rc::clone(&ingress));
        (ingress, Box::new(move |to, len| world.route(cell.get(), to, len)))
    }
}

impl Vlan {
    fn new(on: String, tag: &str) -> Result<Self, String> {
        let parsed = tag.split_once(' ').and_then(|(kind, number)| {
            let ether_type = match kind {
                "vlan" => 0x8100,
                "qinq" => 0x88a8,
                _ => return None,
            };
            Some((ether_type, number.parse().ok()?))
        });
        let (ether_type, number) = parsed.ok_or_else(|| format!("{tag} is no tag such as `vlan 10`"))?;
        Ok(Self { on, ether_type, number })
    }
}

impl Prefix {
    fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                self.len == 0 || (a.to_bits() ^ b.to_bits()) >> (32 - self.len) == 0
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                self.len == 0 || (a.to_bits() ^ b.to_bits()) >> (128 - self.len) == 0
            }
            _ => false,
        }
    }

    /// The routers of an IPv6 subnet all have its own address (RFC 4291 section 2.6.1).
    fn is_anycast(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(_) => false,
            IpAddr::V6(v6) => self.contains(address) && self.len < 127 && v6.to_bits() << self.len == 0,
        }
    }

    fn is_broadcast(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => {
                self.contains(address)
                    && self.len < 31
                    && v4.to_bits() | u32::MAX << (32 - self.len) == u32::MAX
            }
            IpAddr::V6(_) => false,
        }
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

fn prefix(text: &str) -> Result<Prefix, String> {
    let parsed = text
        .split_once('/')
        .and_then(|(address, len)| Some(Prefix { address: address.parse().ok()?, len: len.parse().ok()? }));
    parsed.ok_or_else(|| format!("{text} is no prefix such as 192.0.2.0/24"))
}

/// The verdicts of a world's checks and operator.
#[derive(Debug)]
pub struct Known<'a>(pub &'a States);

impl Known<'_> {
    fn of(&self, backend: &Backend) -> State {
        self.0.get(&backend.name).copied().unwrap_or(State::Up)
    }
}

impl Verdicts for Known<'_> {
    fn health(&self, _: &Service, _: &Listen, member: &Member<'_>) -> Health {
        match self.of(member.backend) {
            State::Down => Health::Down,
            State::Unknown => Health::Unknown,
            State::Up | State::Draining | State::Disabled => Health::Up,
        }
    }

    fn admin(&self, _: &Service, backend: &Backend) -> AdminState {
        match self.of(backend) {
            State::Draining => AdminState::Draining,
            State::Disabled => AdminState::Disabled,
            State::Up | State::Down | State::Unknown => AdminState::Enabled,
        }
    }
}
