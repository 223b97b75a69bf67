//! What stands between the client and the servers: how each gateway is set up, and how it proves that it was the one.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use lb_lab::matapa::Matapa;
use lb_lab::process::find;
use lb_lab::{Process, wait_until};

use super::layout::PORT;
use super::network::{Cpus, DEVICES, Network, SERVERS, SINGLE, VIP, counted};
use super::programs::{Attached, Receiver};
use super::servers::{BULK, ECHO, MAIL, WEB};

const START_LIMIT: Duration = Duration::from_secs(10);
/// What a tunnel's header adds, with room to spare.
const TUNNEL_MTU: u16 = 1600;

/// One of what is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Routing,
    XdpRouting,
    Nat,
    Dsr,
    Ipip,
    Generic,
    Nftables,
    Flowtable,
    Haproxy,
    Nginx,
}

impl Kind {
    pub const ALL: [Self; 10] = [
        Self::Routing,
        Self::XdpRouting,
        Self::Nat,
        Self::Dsr,
        Self::Ipip,
        Self::Generic,
        Self::Nftables,
        Self::Flowtable,
        Self::Haproxy,
        Self::Nginx,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Routing => "plain routing",
            Self::XdpRouting => "routing by XDP",
            Self::Nat => "Matapa nat",
            Self::Dsr => "Matapa dsr",
            Self::Ipip => "Matapa ipip",
            Self::Generic => "Matapa nat, generic",
            Self::Nftables => "nftables",
            Self::Flowtable => "nftables, flowtable",
            Self::Haproxy => "HAProxy, tcp",
            Self::Nginx => "nginx stream",
        }
    }

    /// How Matapa forwards, where it does.
    const fn matapa(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Nat => Some(("nat", "native")),
            Self::Dsr => Some(("dsr", "native")),
            Self::Ipip => Some(("ipip", "native")),
            Self::Generic => Some(("nat", "generic")),
            _ => None,
        }
    }

    /// Whether clients' connections end there and new ones begin.
    pub const fn is_proxy(self) -> bool {
        matches!(self, Self::Haproxy | Self::Nginx)
    }

    /// Whether servers answer without it.
    pub const fn answers_directly(self) -> bool {
        matches!(self, Self::Dsr | Self::Ipip)
    }
}

/// A gateway at work.
#[derive(Debug)]
pub struct Gateway {
    pub kind: Kind,
    matapa: Option<Matapa>,
    /// HAProxy or nginx.
    proxy: Option<Process>,
    /// The router that is an XDP program, on each of the gateway's interfaces.
    router: Vec<Receiver>,
    /// What unwraps tunnels at the servers.
    pub unwrapping: Vec<Receiver>,
}

/// What a gateway has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Packets forwarded by the kernel.
    pub routed: u64,
    /// Connections that ended there.
    pub accepted: u64,
    /// Packets that Matapa has sent to servers.
    pub balanced: u64,
    /// Connections whose destination nftables has replaced.
    pub translated: u64,
    /// Packets forwarded by the router that is an XDP program.
    pub by_xdp: u64,
}

/// Why there are no figures of a gateway on this machine.
#[derive(Debug)]
pub struct Unavailable(pub String);

impl Gateway {
    /// Sets one up in a network where nothing else is.
    ///
    /// # Errors
    /// When it does not start. A kernel that cannot do it is [`Unavailable`] instead.
    pub fn start(
        kind: Kind,
        network: &Network,
        binary: &Path,
        traffic: &Path,
    ) -> Result<Result<Self, Unavailable>> {
        // What is started inherits the CPU.
        Cpus::keep(0, network.cpus.gateway)?;
        let mut gateway =
            Self { kind, matapa: None, proxy: None, router: Vec::new(), unwrapping: Vec::new() };
        match kind {
            Kind::Routing => network.route_services()?,
            Kind::XdpRouting => {
                network.route_services()?;
                for device in DEVICES {
                    gateway.router.push(Receiver::attach(
                        traffic,
                        &network.gateway,
                        device,
                        Attached::Routes,
                    )?);
                }
            }
            Kind::Nat | Kind::Dsr | Kind::Ipip | Kind::Generic => gateway.matapa(network, binary, traffic)?,
            Kind::Nftables | Kind::Flowtable => {
                if let Err(why) = nftables(network, kind)? {
                    return Ok(Err(why));
                }
            }
            Kind::Haproxy => gateway.haproxy(network)?,
            Kind::Nginx => gateway.nginx(network)?,
        }
        Ok(Ok(gateway))
    }

    fn matapa(&mut self, network: &Network, binary: &Path, traffic: &Path) -> Result<()> {
        let (forward, mode) = self.kind.matapa().context("not Matapa")?;
        if self.kind.answers_directly() {
            network.answer_directly()?;
        }
        if self.kind == Kind::Ipip {
            for ((server, number), device) in network.servers.iter().zip(1..).zip(&DEVICES[1..]) {
                network.gateway.ip(&format!("link set {device} mtu {TUNNEL_MTU}\n"))?;
                let name = format!("server{number}");
                server.ip(&format!("link set {name} mtu {TUNNEL_MTU}\n"))?;
                self.unwrapping.push(Receiver::attach(traffic, server, &name, Attached::Counts)?);
            }
        }
        let text = configuration(forward, mode)?;
        let mut matapa = Matapa::on(&network.lab, "gateway", &network.gateway, &DEVICES, binary, &text)?;
        let status = matapa.start()?;
        for device in DEVICES {
            let found = status.interfaces.iter().find(|one| one.name == device);
            if found.is_none_or(|one| one.mode != mode) {
                bail!("Matapa is not on {device} in {mode} mode: {found:?}");
            }
        }
        matapa.wait_healthy(START_LIMIT)?;
        self.matapa = Some(matapa);
        Ok(())
    }

    fn haproxy(&mut self, network: &Network) -> Result<()> {
        network.own_services()?;
        let path = network.lab.directory().join("haproxy.cfg");
        fs::write(&path, haproxy()?).with_context(|| format!("cannot write {}", path.display()))?;
        let mut command = network.lab.command("haproxy")?;
        command.arg("-db").arg("-f").arg(&path);
        self.proxy(network, command, "haproxy")
    }

    fn nginx(&mut self, network: &Network) -> Result<()> {
        network.own_services()?;
        let directory = network.lab.directory().join("nginx-gateway");
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let path = directory.join("nginx.conf");
        fs::write(&path, nginx(&directory)?).with_context(|| format!("cannot write {}", path.display()))?;
        let mut command = network.lab.command("nginx")?;
        command.arg("-e").arg("stderr").arg("-p").arg(&directory).arg("-c").arg(&path);
        self.proxy(network, command, "nginx")
    }

    fn proxy(&mut self, network: &Network, command: std::process::Command, name: &str) -> Result<()> {
        let mut process = network.lab.start(&network.gateway, &format!("{name}-proxy"), command)?;
        let targets = [(VIP, WEB), (VIP, MAIL), (VIP, ECHO)];
        wait_until(&format!("{name} to listen"), START_LIMIT, || {
            process.check_running()?;
            network.gateway.run(|| {
                targets.iter().all(|target| std::net::TcpStream::connect(target).is_ok()).then_some(())
            })
        })?;
        self.proxy = Some(process);
        Ok(())
    }

    /// The programs that forward or keep watch, beside the kernel's threads.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let daemon = self.matapa.as_ref().map(Matapa::status).transpose()?.map(|status| status.pid);
        Ok(daemon.into_iter().chain(self.proxy.as_ref().map(Process::pid)).collect())
    }

    /// What it has counted so far.
    ///
    /// # Errors
    /// When something cannot be asked.
    pub fn evidence(&self, network: &Network) -> Result<Evidence> {
        let counters = counted(&network.gateway)?;
        let counter = |name: &str| {
            counters.get(name).copied().with_context(|| format!("the gateway does not count {name}"))
        };
        let balanced = match &self.matapa {
            Some(matapa) => {
                let counters = matapa.counters()?.counters;
                counters.get("to_backend").context("Matapa does not count to_backend")?.value
            }
            None => 0,
        };
        let mut by_xdp = 0;
        for one in &self.router {
            by_xdp += one.counted()?.routed;
        }
        let translated = match self.kind {
            Kind::Nftables | Kind::Flowtable => {
                translated(&network.run(&network.gateway, "nft", &["-j", "list", "counters"])?)?
            }
            _ => 0,
        };
        Ok(Evidence {
            routed: counter("Ip.ForwDatagrams")?,
            accepted: counter("Tcp.PassiveOpens")?,
            balanced,
            translated,
            by_xdp,
        })
    }

    /// Ends it, and says what did not go well.
    ///
    /// # Errors
    /// When a daemon or proxy has ended before, with its words.
    pub fn finish(mut self) -> Result<()> {
        if let Some(proxy) = &mut self.proxy {
            proxy.check_running()?;
            proxy.kill()?;
        }
        if let Some(matapa) = &mut self.matapa {
            matapa.stop()?;
            matapa.detach()?;
        }
        Ok(())
    }
}

impl Evidence {
    /// What was counted since `earlier`.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self {
            routed: self.routed - earlier.routed,
            accepted: self.accepted - earlier.accepted,
            balanced: self.balanced - earlier.balanced,
            translated: self.translated - earlier.translated,
            by_xdp: self.by_xdp - earlier.by_xdp,
        }
    }

    /// The traffic of one measurement, at least `packets` from the client, went through a gateway of this kind and no other.
    ///
    /// # Errors
    /// Naming what was counted instead.
    pub fn prove(self, kind: Kind, packets: u64) -> Result<()> {
        let right = match kind {
            Kind::Routing => self.routed >= packets && self.accepted == 0,
            Kind::XdpRouting => {
                self.by_xdp >= packets && self.routed <= self.by_xdp / 100 + 10 && self.accepted == 0
            }
            Kind::Nat | Kind::Dsr | Kind::Ipip | Kind::Generic => {
                self.balanced >= packets && self.routed <= self.balanced / 100 + 10 && self.accepted == 0
            }
            Kind::Nftables => self.routed >= packets && self.accepted == 0,
            // What flow tables forward is counted nowhere.
            Kind::Flowtable => self.accepted == 0,
            Kind::Haproxy | Kind::Nginx => self.accepted > 0 && self.routed == 0,
        };
        if !right {
            bail!("{packets} packets through {}, which counted {self:?}", kind.name());
        }
        Ok(())
    }
}

/// Matapa's file.
fn configuration(forward: &str, mode: &str) -> Result<String> {
    let devices = DEVICES.map(|device| format!("\"{device}\"")).join(", ");
    let mut text = format!("interfaces = [{devices}]\nxdp_mode = \"{mode}\"\n");
    let [first, second] = SERVERS;
    let all = [("web", WEB, "tcp"), ("mail", MAIL, "tcp"), ("echo", ECHO, "tcp"), ("packets", PORT, "udp")]
        .map(|(name, port, protocol)| (name, VIP, port, protocol, format!("\"{first}\", \"{second}\"")));
    let bulk = ("bulk", SINGLE, BULK, "tcp", format!("\"{first}\""));
    for (name, vip, port, protocol, backends) in all.into_iter().chain([bulk]) {
        write!(
            text,
            "[services.{name}]\nlisten = \"{vip}:{port}/{protocol}\"\nbackends = [{backends}]\n\
             forward = \"{forward}\"\nnew_flow_limit = 10000000\n"
        )?;
    }
    Ok(text)
}

/// Destinations replaced, in turn for each connection; with a flowtable, what is known by then takes the short way.
fn ruleset(kind: Kind) -> String {
    let [first, second] = SERVERS;
    let devices = DEVICES.join(", ");
    let (table, forward) = if kind == Kind::Flowtable {
        (
            format!("flowtable known {{ hook ingress priority 0; devices = {{ {devices} }}; }}\n"),
            "chain known_flows { type filter hook forward priority 0; meta l4proto { tcp, udp } flow add @known; }\n",
        )
    } else {
        (String::new(), "")
    };
    format!(
        "table ip peers {{\n\
         {table}counter translated {{ }}\n\
         chain before {{ type nat hook prerouting priority dstnat;\n\
         ip daddr {VIP} counter name translated dnat to numgen inc mod 2 map {{ 0 : {first}, 1 : {second} }}\n\
         ip daddr {SINGLE} counter name translated dnat to {first}\n\
         }}\n{forward}}}\n"
    )
}

fn nftables(network: &Network, kind: Kind) -> Result<Result<(), Unavailable>> {
    let path = network.lab.directory().join("peers.nft");
    fs::write(&path, ruleset(kind)).with_context(|| format!("cannot write {}", path.display()))?;
    let mut command = network.lab.command("nft")?;
    command.arg("-f").arg(&path);
    let finished = network.lab.finish(&network.gateway, command, START_LIMIT)?;
    // A kernel without flow tables (CONFIG_NF_FLOW_TABLE) does not know the word.
    let unknown = ["Operation not supported", "No such file or directory", "Not supported"];
    if kind == Kind::Flowtable && !finished.ok() && unknown.iter().any(|text| finished.stderr.contains(text))
    {
        let why = finished.stderr.lines().next().unwrap_or_default();
        return Ok(Err(Unavailable(format!("this kernel has no flow tables: {}", without_path(why)))));
    }
    finished.expect("nft -f")?;
    Ok(Ok(()))
}

/// nft begins with the file's name and the place in it.
fn without_path(line: &str) -> &str {
    line.split_once("Error: ").map_or(line, |(_, text)| text)
}

/// The packets of the counter `translated`, of what `nft -j list counters` prints.
fn translated(json: &str) -> Result<u64> {
    let value: serde_json::Value = serde_json::from_str(json).context("nft printed no JSON")?;
    let all = value["nftables"].as_array().context("nft printed no list")?;
    all.iter()
        .find_map(|one| one["counter"]["packets"].as_u64())
        .with_context(|| format!("nft has no counter: {json}"))
}

fn haproxy() -> Result<String> {
    let mut text = String::from(
        "global\n  nbthread 1\n  maxconn 4000\n\
         defaults\n  mode tcp\n  balance roundrobin\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n",
    );
    for (name, vip, port, servers) in proxied() {
        writeln!(text, "listen {name}\n  bind {vip}:{port}")?;
        for (server, number) in servers.iter().zip(1..) {
            writeln!(text, "  server s{number} {server}:{port}")?;
        }
    }
    Ok(text)
}

/// Where it was unpacked, or where distributions have it; `None`: it may be built in.
fn stream_module() -> Option<PathBuf> {
    const NAME: &str = "ngx_stream_module.so";
    let installed =
        ["/usr/lib/nginx/modules", "/usr/lib64/nginx/modules"].map(|dir| Path::new(dir).join(NAME));
    find(NAME).ok().into_iter().chain(installed).find(|path| path.is_file())
}

fn nginx(directory: &Path) -> Result<String> {
    let shown = directory.display();
    // Built in where a distribution has no module of it.
    let module = stream_module().map_or(String::new(), |path| format!("load_module {};\n", path.display()));
    let mut text = format!(
        "{module}daemon off; master_process off; user root; pid {shown}/pid; error_log stderr crit;\n\
         events {{ worker_connections 8192; }}\nstream {{\n"
    );
    for (name, vip, port, servers) in proxied() {
        let servers: String = servers.iter().map(|server| format!("server {server}:{port}; ")).collect();
        writeln!(
            text,
            "upstream {name} {{ {servers}}}\nserver {{ listen {vip}:{port} backlog=4096; tcp_nodelay on; proxy_pass {name}; }}"
        )?;
    }
    Ok(text + "}\n")
}

type Proxied = (&'static str, std::net::Ipv4Addr, u16, &'static [std::net::Ipv4Addr]);

fn proxied() -> [Proxied; 4] {
    [
        ("web", VIP, WEB, &SERVERS),
        ("mail", VIP, MAIL, &SERVERS),
        ("echo", VIP, ECHO, &SERVERS),
        ("bulk", SINGLE, BULK, &SERVERS[..1]),
    ]
}

/// Those whose name contains this.
pub fn named(text: &str) -> impl Iterator<Item = Kind> {
    Kind::ALL.into_iter().filter(move |kind| kind.name().to_lowercase().contains(&text.to_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gateway_is_found_by_a_part_of_its_name() {
        assert_eq!(named("haproxy").collect::<Vec<_>>(), [Kind::Haproxy]);
        assert_eq!(named("matapa").count(), 4);
        assert_eq!(named("").count(), Kind::ALL.len());
    }

    #[test]
    fn traffic_that_another_way_forwarded_is_no_proof() {
        let routed = Evidence { routed: 1000, ..Evidence::default() };
        let balanced = Evidence { balanced: 1000, ..Evidence::default() };
        let accepted = Evidence { accepted: 10, ..Evidence::default() };
        routed.prove(Kind::Routing, 1000).unwrap();
        balanced.prove(Kind::Nat, 1000).unwrap();
        accepted.prove(Kind::Haproxy, 1000).unwrap();
        for (evidence, kind) in
            [(routed, Kind::Nat), (balanced, Kind::Routing), (routed, Kind::Nginx), (accepted, Kind::Generic)]
        {
            evidence.prove(kind, 1000).unwrap_err();
        }
        balanced.prove(Kind::Nat, 1001).unwrap_err();
    }

    #[test]
    fn the_counter_of_nftables_is_read() {
        let printed = r#"{"nftables": [{"metainfo": {}}, {"counter": {"name": "translated", "packets": 7, "bytes": 1}}]}"#;
        assert_eq!(translated(printed).unwrap(), 7);
        translated("{}").unwrap_err();
    }
}
