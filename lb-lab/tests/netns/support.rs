//! A network with one gateway and Matapa on it, and how a test ends.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lb_lab::matapa::Matapa;
use lb_lab::topology::{VIP_V4, VIP_V6};
use lb_lab::traffic::prober::Attempt;
use lb_lab::traffic::{EchoServer, Prober};
use lb_lab::{Gateway, Host, Lab, Netns, Plan, Shape, Topology};

/// The usual port of the echo service, TCP and UDP.
pub const ECHO: u16 = 7;
/// A SYN that is lost costs a second; whatever is faster lost none.
pub const PROMPT: Duration = Duration::from_millis(900);
/// One retransmission of a SYN, and the second server's answer.
pub const ONE_RETRANSMISSION: Duration = Duration::from_millis(1600);
/// Quick checks, so that tests are quick.
pub const TCP_CHECK: &str =
    r#"check = { type = "tcp", interval = "200ms", timeout = "150ms", rise = 1, fall = 2 }"#;
/// Backends count as up.
pub const NO_CHECK: &str = "";

pub fn binary() -> PathBuf {
    let path = std::env::var_os("MATAPA_BIN").expect("MATAPA_BIN names the matapa to test: cargo xtask test");
    PathBuf::from(path)
}

/// The repository.
pub fn root() -> PathBuf {
    std::env::var_os("MATAPA_ROOT")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".."), PathBuf::from)
}

/// Where a service on `port` listens: IPv4, IPv6.
pub fn vips(port: u16) -> Vec<SocketAddr> {
    vec![SocketAddr::new(VIP_V4.into(), port), SocketAddr::new(VIP_V6.into(), port)]
}

/// The first lines of every configuration.
pub fn interfaces() -> String {
    "interfaces = [\"ext\", \"int\"]\n".to_owned()
}

/// A service on both VIPs with a pool of its own: `servers` (numbered from 1), each with both addresses.
pub fn service(name: &str, port: u16, protocol: &str, check: &str, servers: &[u8]) -> String {
    let mut backends = String::new();
    for server in servers {
        let host = server + 10;
        writeln!(backends, "  {{ name = \"mx{server}\", address = \"198.51.100.{host}\" }},").unwrap();
        writeln!(backends, "  {{ name = \"mx{server}-v6\", address = \"2001:db8:64::{host}\" }},").unwrap();
    }
    format!(
        "\n[pools.{name}]\n{check}\nbackends = [\n{backends}]\n\n[services.{name}]\n\
         listen = [\"{VIP_V4}:{port}/{protocol}\", \"[{VIP_V6}]:{port}/{protocol}\"]\npool = \"{name}\"\n"
    )
}

/// The configuration most tests use: one echo service on both servers.
pub fn echo_config(check: &str) -> String {
    interfaces() + &service("echo", ECHO, "tcp", check, &[1, 2])
}

/// A client, a gateway with Matapa, and servers.
pub struct Rig {
    pub matapa: Matapa,
    pub topology: Topology,
}

impl Rig {
    /// Not started.
    pub fn prepare(config: &str, servers: &[&str]) -> Self {
        let lab = Lab::new().unwrap();
        let servers = servers.iter().map(|name| (*name).to_owned()).collect();
        let topology = Topology::build(Arc::clone(&lab), &Plan { servers, ..Plan::default() }).unwrap();
        let matapa = Matapa::with_config(&lab, topology.first_gateway().unwrap(), &binary(), config).unwrap();
        Self { matapa, topology }
    }

    /// Two servers; started; `serve` starts what listens on them, so that checks find it.
    pub fn start<T>(config: &str, serve: impl FnMut(&Arc<Lab>, &Host) -> T) -> (Self, Vec<T>) {
        Self::start_with(config, &["mx1", "mx2"], serve)
    }

    pub fn start_with<T>(
        config: &str,
        servers: &[&str],
        mut serve: impl FnMut(&Arc<Lab>, &Host) -> T,
    ) -> (Self, Vec<T>) {
        let mut rig = Self::prepare(config, servers);
        let serving = rig.topology.servers.iter().map(|host| serve(&rig.topology.lab, host)).collect();
        rig.start_daemon();
        (rig, serving)
    }

    /// Two servers in a network of `shape`; `configure` writes the configuration for it. Started.
    pub fn shaped<T>(
        shape: Shape,
        configure: impl FnOnce(&Topology) -> String,
        mut serve: impl FnMut(&Arc<Lab>, &Host) -> T,
    ) -> (Self, Vec<T>) {
        let lab = Lab::new().unwrap();
        let topology = Topology::build_shaped(Arc::clone(&lab), &Plan::default(), shape).unwrap();
        let config = configure(&topology);
        let gateway = topology.first_gateway().unwrap();
        let matapa = Matapa::with_config(&lab, gateway, &binary(), &config).unwrap();
        let mut rig = Self { matapa, topology };
        let serving = rig.topology.servers.iter().map(|host| serve(&lab, host)).collect();
        rig.start_daemon();
        (rig, serving)
    }

    /// The daemon runs and every backend is up.
    fn start_daemon(&mut self) {
        self.matapa.start().unwrap_or_else(|error| panic!("{error:#}\n{}", self.matapa.log()));
        self.matapa
            .wait_healthy(Duration::from_secs(5))
            .unwrap_or_else(|error| panic!("{error:#}\n{}", self.matapa.log()));
    }

    /// Two servers with the echo service.
    pub fn echo(config: &str) -> (Self, Vec<EchoServer>) {
        Self::start(config, |_, host| EchoServer::start(host, ECHO).unwrap())
    }

    pub fn lab(&self) -> &Arc<Lab> {
        &self.topology.lab
    }

    pub fn client(&self) -> &Netns {
        &self.topology.clients[0].netns
    }

    pub fn gateway(&self) -> &Gateway {
        &self.topology.gateways[0]
    }

    pub fn server(&self, number: usize) -> &Host {
        &self.topology.servers[number - 1]
    }

    /// Connects to the echo service all the time.
    pub fn prober(&self) -> Prober {
        probe(self.client(), vips(ECHO))
    }

    /// A short series of connections from `netns` to `targets`.
    pub fn connect(netns: &Netns, targets: Vec<SocketAddr>, duration: Duration) -> Vec<Attempt> {
        let prober = probe(netns, targets);
        std::thread::sleep(duration);
        prober.finish().unwrap()
    }

    /// Connections to the echo service, for a while.
    pub fn connect_echo(&self) -> Vec<Attempt> {
        Self::connect(self.client(), vips(ECHO), Duration::from_millis(400))
    }

    /// Stops the daemon, takes forwarding off, and checks that nothing is left: neither by the daemon nor by
    /// the lab. What was started in the lab must have been dropped.
    pub fn finish(mut self) {
        self.matapa.stop().unwrap_or_else(|error| panic!("{error:#}\n{}", self.matapa.log()));
        self.matapa.detach().unwrap();
        self.matapa.check_nothing_left().unwrap();
        self.remove();
    }

    /// As [`Rig::finish`], where the daemon has ended.
    pub fn remove(self) {
        let id = self.lab().id().to_owned();
        drop(self);
        assert_eq!(Lab::leftovers(&id), Vec::<String>::new(), "the lab left something behind");
    }
}

fn probe(netns: &Netns, targets: Vec<SocketAddr>) -> Prober {
    Prober::start(netns, targets, Duration::from_millis(10), Duration::from_secs(8)).unwrap()
}

/// Every attempt succeeded at once.
pub fn assert_prompt(attempts: &[Attempt]) {
    assert!(!attempts.is_empty(), "nothing was tried");
    let bad: Vec<_> = attempts.iter().filter(|attempt| !attempt.prompt(PROMPT)).collect();
    assert!(bad.is_empty(), "{} of {} failed or were slow: {:?}", bad.len(), attempts.len(), bad[0]);
}

/// Who answered, without repetition and in order.
pub fn servers(attempts: &[Attempt]) -> Vec<&str> {
    let mut names: Vec<&str> = attempts.iter().filter_map(Attempt::server).collect();
    names.sort_unstable();
    names.dedup();
    names
}
