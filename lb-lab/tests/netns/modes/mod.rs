//! The forwarding modes, each over IPv4 and IPv6, TCP and UDP, with real programs.
//!
//! One daemon serves all modes that a network allows, each on a pair of addresses of its own: so they share
//! servers and ports, which must not confuse the answers.

mod any_protocol;
pub mod checks;
mod large_frames;
mod one_segment;
mod path_mtu;
mod ranges;
mod tags;
pub mod two_segments;
mod via_vip;

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use lb_lab::decap::Decapsulator;
use lb_lab::topology::{INT_V4, INT_V6, vip};
use lb_lab::traffic::dns::DnsServer;
use lb_lab::traffic::http::HttpServer;
use lb_lab::traffic::iperf;
use lb_lab::traffic::udp::UdpEcho;
use lb_lab::{Host, Lab, Process, Shape, Topology};

use crate::support::ECHO;

const WEB: u16 = 80;
const DNS: u16 = 53;
/// iperf3's; one server only, because a test is two connections.
pub const BULK: u16 = 5201;
/// Both servers.
pub const ALL: &[usize] = &[1, 2];

/// A mode, and the family of the backends' addresses where that is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    pub forward: &'static str,
    /// Of the backends' addresses, for tunnels; others take the client's.
    outer_v6: Option<bool>,
    /// Which pair of addresses its services have.
    vip: u8,
}

const fn way(forward: &'static str, outer_v6: Option<bool>, vip: u8) -> Way {
    Way { forward, outer_v6, vip }
}

pub const NAT: Way = way("nat", None, 0);
pub const SNAT: Way = way("snat", None, 1);
pub const DSR: Way = way("dsr", None, 2);
const IPIP_V4: Way = way("ipip", Some(false), 3);
const IPIP_V6: Way = way("ipip", Some(true), 4);
const GUE_V4: Way = way("gue", Some(false), 5);
const GUE_V6: Way = way("gue", Some(true), 6);
/// How many pairs of addresses they take.
pub const VIPS: u8 = 7;

/// One segment, clients from behind a router, and servers that have the services' addresses.
pub fn one_segment() -> Shape {
    Shape { one_armed: true, clients_router: true, vips: VIPS, vips_on_servers: true, ..Shape::default() }
}

impl Way {
    fn name(self) -> String {
        match self.outer_v6 {
            None => self.forward.to_owned(),
            Some(v6) => format!("{}{}", self.forward, if v6 { 6 } else { 4 }),
        }
    }

    pub fn target(self, v6: bool, port: u16) -> SocketAddr {
        SocketAddr::new(vip(self.vip, v6), port)
    }

    fn tunnels(self) -> bool {
        self.outer_v6.is_some()
    }

    /// Bytes in front of the packet on its way to the server.
    fn overhead(self) -> u16 {
        let outer = self.outer_v6.map_or(0, |v6| if v6 { 40 } else { 20 });
        outer + if self.forward == "gue" { 8 } else { 0 }
    }

    /// Whom the server sees.
    pub fn seen_client(self, topology: &Topology, v6: bool) -> IpAddr {
        match self.forward {
            "snat" if v6 => INT_V6.into(),
            "snat" => INT_V4.into(),
            _ => topology.clients[0].address(v6),
        }
    }

    /// One service on both addresses. `listen` is a port, a range or nothing, with its protocol: `:80/tcp`,
    /// `/any`; `more` are further lines, and `port` is for the backends.
    pub fn service(
        self,
        topology: &Topology,
        name: &str,
        listen: &str,
        servers: &[usize],
        more: &str,
    ) -> String {
        self.service_at(topology, name, listen, servers, "", more)
    }

    fn service_at(
        self,
        topology: &Topology,
        name: &str,
        listen: &str,
        servers: &[usize],
        port: &str,
        more: &str,
    ) -> String {
        let mut backends = String::new();
        for number in servers {
            let host = &topology.servers[number - 1];
            for v6 in [false, true].into_iter().filter(|v6| self.outer_v6.is_none_or(|outer| outer == *v6)) {
                let (name, address) = (&host.name, host.address(v6));
                let suffix = if v6 { "-v6" } else { "" };
                let _ =
                    writeln!(backends, "  {{ name = \"{name}{suffix}\", address = \"{address}\"{port} }},");
            }
        }
        let own = self.name();
        let snat = if self.forward == "snat" {
            format!("snat = {{ addresses = [\"{INT_V4}\", \"{INT_V6}\"], ports = \"1024-32767\" }}\n")
        } else {
            String::new()
        };
        format!(
            "\n[services.{own}-{name}]\nlisten = [\"{}{listen}\", \"[{}]{listen}\"]\n\
             forward = \"{}\"\n{snat}{more}\nbackends = [\n{backends}]\n",
            vip(self.vip, false),
            vip(self.vip, true),
            self.forward
        )
    }

    /// The services that [`Programs`] serve.
    fn services(self, topology: &Topology) -> String {
        self.service(topology, "web", &format!(":{WEB}/tcp"), ALL, "")
            + &self.service(topology, "dns", &format!(":{DNS}/udp"), ALL, "")
            + &self.service(topology, "echo", &format!(":{ECHO}/udp"), ALL, "")
            + &self.service(topology, "bulk", &format!(":{BULK}/tcp"), &[1], "")
    }
}

/// Services of all `ways`, and the interfaces of the network.
fn config(topology: &Topology, ways: &[Way]) -> String {
    let devices: Vec<String> =
        topology.gateways[0].devices().iter().map(|device| format!("\"{device}\"")).collect();
    let mut text = format!("interfaces = [{}]\nxdp_mode = \"native\"\n", devices.join(", "));
    for way in ways {
        text += &way.services(topology);
    }
    text
}

/// What runs on a server.
pub struct Programs {
    _web: HttpServer,
    _dns: DnsServer,
    _echo: UdpEcho,
    _bulk: Process,
    /// On those that have the services' addresses.
    decapsulator: Option<Decapsulator>,
}

impl Programs {
    pub fn start(lab: &Arc<Lab>, host: &Host) -> Self {
        Self {
            _web: HttpServer::start(lab, host, WEB).unwrap(),
            _dns: DnsServer::start(lab, host, DNS).unwrap(),
            _echo: UdpEcho::start(host, ECHO).unwrap(),
            _bulk: iperf::server(lab, host, BULK).unwrap(),
            decapsulator: (host.vips > 0).then(|| Decapsulator::start(&host.netns).unwrap()),
        }
    }
}
