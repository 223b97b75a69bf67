//! Two gateways that share addresses and flows, with servers, and their deaths.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lb_lab::decap::Decapsulator;
use lb_lab::matapa::Matapa;
use lb_lab::topology::{EXT_V6, INT_V4, INT_V6, VIP_V4, VIP_V6};
use lb_lab::traffic::udp::UdpEcho;
use lb_lab::traffic::{EchoServer, TransferServer};
use lb_lab::{Lab, Plan, Shape, Topology, wait_until};
use serde_json::Value;

use crate::carp_support::{Gateways, SHARED, Setting, finish, start};
use crate::support::{ECHO, interfaces};

pub const SETTLED: Duration = Duration::from_secs(6);
/// Where servers send and take transfers.
pub const BULK: u16 = 9000;
/// Patient: on a busy machine a takeover with many transfers is no reason to reset connections.
const CHECK: &str =
    r#"check = { type = "tcp", port = 7, interval = "500ms", timeout = "400ms", rise = 1, fall = 6 }"#;
/// What stands for the clients, shared like the others.
const SNAT: [&str; 2] = ["198.51.100.5", "2001:db8:64::5"];

/// What is configured on both gateways.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub forward: &'static str,
    /// Servers that the pool has, of the three that there are.
    pub servers: Vec<u8>,
    pub advbase: u8,
    /// Of each gateway.
    pub advskew: [u8; 2],
    pub preempt_delay: &'static str,
    /// The last number of the address that the other one is expected at, of each gateway; `None`: no synchronisation.
    pub peers: [Option<u8>; 2],
    /// Further keys of `sync`.
    pub sync: String,
}

impl Wanted {
    pub fn mode(forward: &'static str) -> Self {
        Self {
            forward,
            servers: vec![1, 2],
            advbase: 1,
            advskew: [0, 100],
            preempt_delay: "2s",
            peers: [Some(252), Some(251)],
            sync: String::new(),
        }
    }

    /// Servers answer past the gateway in these modes, so everybody is on one segment.
    fn one_armed(&self) -> bool {
        matches!(self.forward, "dsr" | "ipip" | "gue")
    }

    fn shape(&self) -> Shape {
        let one_armed = self.one_armed();
        Shape { one_armed, vips_on_servers: one_armed, ..Shape::default() }
    }

    /// The configuration of gateway `number`, 1 or 2.
    pub fn config(&self, number: usize, key: &Path) -> String {
        let Self { forward, advbase, preempt_delay, .. } = self;
        let setting = |addresses: String| Setting {
            advbase: *advbase,
            advskew: self.advskew[number - 1],
            more: format!("preempt = true\npreempt_delay = \"{preempt_delay}\""),
            addresses,
            ..Setting::default()
        };
        let vips = format!("\"{VIP_V4}/32\", \"{VIP_V6}/128\"");
        let inside = format!("\"{INT_V4}/24\", \"{INT_V6}/64\"");
        let mut text = if self.one_armed() {
            "interfaces = [\"int\"]\n".to_owned()
                + &setting(format!("{inside}, {vips}")).table("inside", "int", 43)
        } else {
            let snat = SNAT.map(|address| format!("\"{address}/{}\"", prefix(address))).join(", ");
            interfaces()
                + &setting(format!("\"{SHARED}/24\", \"{EXT_V6}/64\", {vips}")).table("outside", "ext", 42)
                + &setting(format!("{inside}, {snat}")).table("inside", "int", 43)
        };
        if let Some(peer) = self.peers[number - 1] {
            text += &format!(
                "[cluster]\nsync = {{ interface = \"int\", peer = \"198.51.100.{peer}\", key_file = \"{}\"{} }}\n\n",
                key.display(),
                self.sync
            );
        }
        let backends: String = self.servers.iter().map(|server| self.backends(*server)).collect();
        text += &format!("[pools.all]\n{CHECK}\nbackends = [\n{backends}]\n\n");
        let snat = if *forward == "snat" {
            format!("snat = {{ addresses = [\"{}\", \"{}\"] }}\n", SNAT[0], SNAT[1])
        } else {
            String::new()
        };
        for (name, port, protocol) in
            [("echo", ECHO, "tcp"), ("datagrams", ECHO, "udp"), ("bulk", BULK, "tcp")]
        {
            text += &format!(
                "[services.{name}]\nlisten = [\"{VIP_V4}:{port}/{protocol}\", \"[{VIP_V6}]:{port}/{protocol}\"]\n\
                 pool = \"all\"\nforward = \"{forward}\"\n{snat}\n"
            );
        }
        text
    }

    fn backends(&self, server: u8) -> String {
        let host = server + 10;
        let v4 = format!("  {{ name = \"mx{server}\", address = \"198.51.100.{host}\" }},\n");
        let v6 = format!("  {{ name = \"mx{server}-v6\", address = \"2001:db8:64::{host}\" }},\n");
        // The outside of a tunnel is what one likes.
        if matches!(self.forward, "ipip" | "gue") { v4 } else { v4 + &v6 }
    }

    /// Names of the entries of one server.
    fn names(&self, server: u8) -> Vec<String> {
        let names = [format!("mx{server}"), format!("mx{server}-v6")];
        if matches!(self.forward, "ipip" | "gue") { names[..1].to_vec() } else { names.to_vec() }
    }
}

fn prefix(address: &str) -> u8 {
    if address.contains(':') { 64 } else { 24 }
}

/// Services by IPv4 and IPv6.
pub fn targets(port: u16) -> Vec<SocketAddr> {
    [IpAddr::from(VIP_V4), VIP_V6.into()].map(|vip| SocketAddr::new(vip, port)).to_vec()
}

/// A file with a key in the lab's directory.
pub fn key(lab: &Arc<Lab>, name: &str, digit: char) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let path = lab.directory().join(name);
    std::fs::write(&path, digit.to_string().repeat(64)).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// `matapa show sync --json`
pub fn sync(matapa: &Matapa) -> Value {
    let text = matapa.cli(&["show", "sync", "--json"]).unwrap().expect("matapa show sync").unwrap();
    serde_json::from_str(&text).unwrap()
}

pub fn wait_synchronised(matapa: &Matapa) {
    wait_until("the gateways to be synchronised", SETTLED, || {
        Ok((sync(matapa)["state"] == "synchronised").then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}\n{}", sync(matapa), matapa.log()));
}

/// The gateways, three servers, and what runs on them.
pub struct Pair {
    pub first: Matapa,
    pub second: Matapa,
    pub wanted: Wanted,
    pub key: PathBuf,
    pub gateways: Gateways,
    serving: (Vec<EchoServer>, Vec<UdpEcho>, Vec<TransferServer>, Vec<Decapsulator>),
}

impl Pair {
    /// With so many clients; nothing is started.
    pub fn network(wanted: &Wanted, clients: usize) -> Gateways {
        let names = |what: &str, count: usize| (1..=count).map(|n| format!("{what}{n}")).collect();
        let plan = Plan {
            clients: names("client", clients),
            gateways: names("gw", 2),
            servers: names("mx", 3),
            sync_cable: false,
        };
        Gateways { topology: Topology::build_shaped(Lab::new().unwrap(), &plan, wanted.shape()).unwrap() }
    }

    /// Both run, all servers are up, and the first gateway alone is master.
    pub fn start(wanted: Wanted) -> Self {
        let gateways = Self::network(&wanted, 1);
        Self::start_in(gateways, wanted)
    }

    pub fn start_in(gateways: Gateways, wanted: Wanted) -> Self {
        let hosts = &gateways.topology.servers;
        let echo = hosts.iter().map(|host| EchoServer::start(host, ECHO).unwrap()).collect();
        let datagrams = hosts.iter().map(|host| UdpEcho::start(host, ECHO).unwrap()).collect();
        let bulk = hosts.iter().map(|host| TransferServer::start(host, BULK).unwrap()).collect();
        let opening = hosts.iter().filter(|_| wanted.forward == "ipip");
        let opening = opening.map(|host| Decapsulator::start(&host.netns).unwrap()).collect();
        let key = key(gateways.lab(), "sync.key", '5');
        let matapa = |number| gateways.matapa(number, &wanted.config(number, &key));
        let (first, second) = (matapa(1), matapa(2));
        let mut pair =
            Self { first, second, wanted, key, gateways, serving: (echo, datagrams, bulk, opening) };
        start(&mut pair.first);
        pair.wait_alone();
        start(&mut pair.second);
        pair.wait_ready();
        pair
    }

    /// An address that only the master has.
    pub fn shared(&self) -> IpAddr {
        if self.wanted.one_armed() { INT_V4 } else { SHARED }.into()
    }

    pub fn client(&self) -> &lb_lab::Netns {
        &self.gateways.topology.clients[0].netns
    }

    /// Both know all servers and each other's flows.
    pub fn wait_ready(&self) {
        for (matapa, peer) in [&self.first, &self.second].into_iter().zip(self.wanted.peers) {
            if peer.is_some() {
                wait_synchronised(matapa);
            }
            matapa
                .wait_healthy(Duration::from_secs(5))
                .unwrap_or_else(|error| panic!("{error:#}\n{}", matapa.log()));
        }
    }

    /// Waits until the first gateway alone has the addresses.
    pub fn wait_alone(&self) {
        wait_until("gw1 alone to be master", Duration::from_secs(12), || {
            Ok((self.gateways.masters(self.shared()) == [1]).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}\n{}", self.first.log(), self.second.log()));
    }

    /// On both gateways: no new connections for this server.
    pub fn drain(&self, server: u8) {
        for name in self.wanted.names(server) {
            for matapa in [&self.first, &self.second] {
                for service in ["echo", "datagrams", "bulk"] {
                    matapa.backend("drain", &name, service).unwrap();
                }
            }
        }
    }

    /// Undoes [`Pair::drain`].
    pub fn enable(&self, server: u8) {
        for name in self.wanted.names(server) {
            for matapa in [&self.first, &self.second] {
                for service in ["echo", "datagrams", "bulk"] {
                    matapa.backend("enable", &name, service).unwrap();
                }
            }
        }
    }

    /// Both gateways get the configuration that is wanted now.
    pub fn reload(&self) {
        for (number, matapa) in [(1, &self.first), (2, &self.second)] {
            matapa.write_config(&self.wanted.config(number, &self.key)).unwrap();
            matapa.reload().unwrap();
        }
        for matapa in [&self.first, &self.second] {
            matapa.wait_healthy(Duration::from_secs(5)).unwrap();
        }
    }

    /// Everything on the first gateway ends, and its cables carry nothing. In this order: a daemon that sees a link go
    /// down says so on the others.
    pub fn kill_first(&mut self) {
        self.first.kill().unwrap();
        self.gateways.gateway(1).unplug().unwrap();
    }

    /// Waits until the second gateway has the addresses. The dead one's stay where they are.
    pub fn wait_second(&self) {
        wait_until("the second gateway to be master", Duration::from_secs(8), || {
            Ok(self.gateways.masters(self.shared()).contains(&2).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", self.second.log()));
    }

    /// The first gateway starts again with its cables, learns all flows, and takes over.
    pub fn revive_first(&mut self) {
        self.gateways.gateway(1).plug().unwrap();
        start(&mut self.first);
        self.wait_ready();
        self.wait_alone();
    }

    pub fn finish(self) {
        let Self { mut first, second, gateways, serving, .. } = self;
        drop(serving);
        if first.check_running().is_ok() {
            finish(first);
        } else {
            first.detach().unwrap();
            drop(first);
        }
        finish(second);
        gateways.remove();
    }
}
