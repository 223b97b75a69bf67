//! The network that all gateways are measured in: a client, a gateway and two servers, joined by virtual cables without a
//! switch between them, and who runs on which CPU.
//!
//! ```text
//!             CPU 0          │        CPU 1         │          CPU 0
//!
//!  client ──── client ────── ext ─── gateway ─── int1 ────── server1 ──── server
//!    │                                       └── int2 ────── server2 ──── server
//!    └──────── direct1, direct2 ─────────────────────────── back1, back2 ───┘
//! ```
//!
//! The direct cables carry the answers of `dsr` and `ipip`, and nothing else.
//!
//! Every interface receives as a network card does, by NAPI (`gro on`), and each on a kernel thread of its own, which has a CPU
//! and whose time can be read. Otherwise a packet would be forwarded on the CPU and the account of whoever sent it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use lb_lab::{Lab, Netns, wait_until};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// What clients connect to.
pub const VIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// Likewise, in front of the first server alone.
pub const SINGLE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 11);
/// The client's own.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The servers' own.
pub const SERVERS: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 51, 100, 2), Ipv4Addr::new(198, 51, 100, 6)];
/// The gateway's interfaces.
pub const DEVICES: [&str; 3] = ["ext", "int1", "int2"];

/// Of the gateway, to which the client sends.
pub const EXT_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
/// The client's, from which it does.
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];

const SETUP_LIMIT: Duration = Duration::from_secs(10);

/// Which CPU whose work is done on.
#[derive(Clone, Copy, Debug)]
pub struct Cpus {
    /// The client and the servers.
    pub ends: usize,
    pub gateway: usize,
}

impl Cpus {
    /// The first and the last one that this process may use.
    ///
    /// # Errors
    /// When there is one only.
    pub fn choose() -> Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0)).context("cannot ask for the usable CPUs")?;
        let usable: Vec<usize> =
            (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false)).collect();
        match usable[..] {
            [ends, .., gateway] => Ok(Self { ends, gateway }),
            _ => bail!(
                "only one CPU may be used: the gateway needs another than the client and the servers have"
            ),
        }
    }

    /// Keeps a thread, and what it starts from now on, on one CPU; 0 is the calling thread.
    ///
    /// # Errors
    /// When the kernel does not allow it.
    pub fn keep(thread: i32, cpu: usize) -> Result<()> {
        let mut one = CpuSet::new();
        one.set(cpu).context("cannot name a CPU")?;
        sched_setaffinity(Pid::from_raw(thread), &one)
            .with_context(|| format!("cannot keep a thread on CPU {cpu}"))
    }
}

/// The network, without anything that runs in it.
#[derive(Debug)]
pub struct Network {
    pub lab: Arc<Lab>,
    pub cpus: Cpus,
    pub client: Netns,
    pub gateway: Netns,
    pub servers: [Netns; 2],
    /// The kernel threads that receive for the gateway.
    pub receivers: Vec<i32>,
}

impl Network {
    /// # Errors
    /// When a namespace, link or setting is refused.
    pub fn build(cpus: Cpus) -> Result<Self> {
        let lab = Lab::new()?;
        let netns = |name: &str| lab.netns(name);
        let (client, gateway) = (netns("client")?, netns("gateway")?);
        let servers = [netns("server1")?, netns("server2")?];
        for one in [&client, &gateway, &servers[0], &servers[1]] {
            settle(one)?;
        }
        let mut network = Self { lab, cpus, client, gateway, servers, receivers: Vec::new() };
        network.join()?;
        network.address()?;
        network.receive()?;
        Ok(network)
    }

    /// All cables.
    fn join(&self) -> Result<()> {
        let Self { client, gateway, servers: [server1, server2], .. } = self;
        cable(gateway, ("ext", "1:01"), client, ("client", "1:02"))?;
        cable(gateway, ("int1", "2:01"), server1, ("server1", "2:02"))?;
        cable(gateway, ("int2", "3:01"), server2, ("server2", "3:02"))?;
        cable(client, ("direct1", "4:01"), server1, ("back1", "4:02"))?;
        cable(client, ("direct2", "5:01"), server2, ("back2", "5:02"))
    }

    /// Addresses, routes, and neighbours that nobody has to ask for.
    fn address(&self) -> Result<()> {
        let [first, second] = SERVERS;
        self.client.ip(&format!(
            "addr add {CLIENT}/24 dev client\n\
             route add default via 192.0.2.1\n\
             neigh add 192.0.2.1 lladdr 02:00:00:00:01:01 dev client nud permanent\n"
        ))?;
        self.gateway.ip(&format!(
            "addr add 192.0.2.1/24 dev ext\n\
             addr add 198.51.100.1/30 dev int1\n\
             addr add 198.51.100.5/30 dev int2\n\
             neigh add {CLIENT} lladdr 02:00:00:00:01:02 dev ext nud permanent\n\
             neigh add {first} lladdr 02:00:00:00:02:02 dev int1 nud permanent\n\
             neigh add {second} lladdr 02:00:00:00:03:02 dev int2 nud permanent\n"
        ))?;
        for ((netns, address), (number, gateway)) in
            self.servers.iter().zip(SERVERS).zip([(1, "198.51.100.1"), (2, "198.51.100.5")])
        {
            netns.ip(&format!(
                "addr add {address}/30 dev server{number}\n\
                 addr add {VIP}/32 dev lo\n\
                 addr add {SINGLE}/32 dev lo\n\
                 route add default via {gateway}\n\
                 neigh add {gateway} lladdr 02:00:00:00:0{}:01 dev server{number} nud permanent\n\
                 neigh add {CLIENT} lladdr 02:00:00:00:0{}:01 dev back{number} nud permanent\n",
                number + 1,
                number + 3,
            ))?;
        }
        Ok(())
    }

    /// Every interface receives on a thread of its own.
    fn receive(&mut self) -> Result<()> {
        let Self { client, gateway, servers: [server1, server2], cpus, .. } = &*self;
        let mut receivers = Vec::new();
        for device in DEVICES {
            receivers.push(self.threaded(gateway, device, cpus.gateway)?);
        }
        for device in ["client", "direct1", "direct2"] {
            self.threaded(client, device, cpus.ends)?;
        }
        for (netns, device) in
            [(server1, "server1"), (server2, "server2"), (server1, "back1"), (server2, "back2")]
        {
            self.threaded(netns, device, cpus.ends)?;
        }
        self.receivers = receivers;
        Ok(())
    }

    /// Gives an interface a thread that receives, with the priority that such work has otherwise: before all programs.
    fn threaded(&self, netns: &Netns, device: &str, cpu: usize) -> Result<i32> {
        // What ends send is single packets with whole checksums, as on a wire.
        let ends: &[&str] = &["gro", "on", "tx", "off", "tso", "off", "gso", "off"];
        let features = if DEVICES.contains(&device) { &ends[..2] } else { ends };
        self.run(netns, "ethtool", &[&["-K", device], features].concat())?;
        let before = threads(device)?;
        let setting = format!("echo 1 > /sys/class/net/{device}/threaded");
        // Another /sys than ours shows the interfaces of the namespace.
        self.run(netns, "ip", &["netns", "exec", netns.name(), "sh", "-c", &setting])?;
        let thread = wait_until(&format!("a thread that receives for {device}"), SETUP_LIMIT, || {
            Ok(threads(device)?.difference(&before).next().copied())
        })?;
        Cpus::keep(thread, cpu)?;
        first(thread, RECEIVES).with_context(|| format!("cannot give the thread of {device} priority"))?;
        Ok(thread)
    }

    /// Runs a program to its end, and returns what it printed.
    ///
    /// # Errors
    /// When it is missing or fails, with its own words.
    pub fn run(&self, netns: &Netns, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.lab.command(program)?;
        command.args(arguments);
        let what = format!("{program} {}", arguments.join(" "));
        self.lab.finish(netns, command, SETUP_LIMIT)?.expect(&what)
    }

    /// Packets to the services' addresses go to both servers, or to the first alone, by routes.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn route_services(&self) -> Result<()> {
        let [first, second] = SERVERS;
        self.gateway.ip(&format!(
            "route add {VIP}/32 nexthop via {first} dev int1 nexthop via {second} dev int2\n\
             route add {SINGLE}/32 via {first} dev int1\n"
        ))
    }

    /// The gateway has the services' addresses, as programs that listen there need.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn own_services(&self) -> Result<()> {
        self.gateway.ip(&format!("addr add {VIP}/32 dev lo\naddr add {SINGLE}/32 dev lo\n"))
    }

    /// Servers answer without the gateway.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn answer_directly(&self) -> Result<()> {
        for (netns, number) in self.servers.iter().zip(1..) {
            netns.ip(&format!("route add {CLIENT}/32 dev back{number}\n"))?;
        }
        Ok(())
    }
}

/// Two interfaces, each by its name and the last two bytes of its MAC address, and a cable between them.
fn cable(
    one: &Netns,
    (device, mac): (&str, &str),
    other: &Netns,
    (peer, peer_mac): (&str, &str),
) -> Result<()> {
    one.ip(&format!(
        "link add {device} address 02:00:00:00:0{mac} type veth peer name {peer} address 02:00:00:00:0{peer_mac} netns {}\n",
        other.name()
    ))?;
    for (netns, device) in [(one, device), (other, peer)] {
        netns.ip(&format!("link set {device} up\n"))?;
    }
    Ok(())
}

/// Nothing is asked for or announced that is not measured.
fn settle(netns: &Netns) -> Result<()> {
    netns.sysctl(&[
        ("ipv6/conf/all/disable_ipv6", "1"),
        ("ipv6/conf/default/disable_ipv6", "1"),
        ("ipv4/ip_forward", "1"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
        ("ipv4/conf/all/arp_ignore", "1"),
        // Connections, not addresses, are spread over routes.
        ("ipv4/fib_multipath_hash_policy", "1"),
        ("ipv4/ip_local_port_range", "1024 65535"),
        // The same on every machine, and without timers that pace; the only one that each namespace may choose.
        ("ipv4/tcp_congestion_control", "reno"),
    ])
}

/// The kernel's threads that receive for interfaces of this name, anywhere.
fn threads(device: &str) -> Result<BTreeSet<i32>> {
    let mark = format!("napi/{device}-");
    let entries = fs::read_dir("/proc").context("cannot read /proc")?;
    Ok(entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|thread: &i32| {
            fs::read_to_string(format!("/proc/{thread}/comm")).is_ok_and(|name| name.starts_with(&mark))
        })
        .collect())
}

/// Priorities of what comes before all programs, as interrupts do: the sender of packets, what receives, and who looks.
pub const SENDS: i32 = 1;
const RECEIVES: i32 = 2;
const LOOKS: i32 = 3;

/// Runs before every other program of its CPU; 0 is the calling thread.
///
/// # Errors
/// When the kernel does not allow it.
pub fn first(thread: i32, priority: i32) -> Result<()> {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: a thread's number, and a structure that the kernel reads.
    if unsafe { libc::sched_setscheduler(thread, libc::SCHED_FIFO, &raw const parameters) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(())
}

/// Runs `look` on a thread that does not wait for a busy CPU.
///
/// # Errors
/// Those of `look`.
pub fn looking<T: Send>(look: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            first(0, LOOKS)?;
            look()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// What a namespace's network has counted, by the names of `/proc/net/snmp` such as `Ip.ForwDatagrams`.
///
/// # Errors
/// When it cannot be read.
pub fn counted(netns: &Netns) -> Result<BTreeMap<String, u64>> {
    // The thread that looks must be the one that entered: /proc/net follows the main thread.
    let path = Path::new("/proc/thread-self/net/snmp");
    let text =
        netns.run(|| fs::read_to_string(path))?.with_context(|| format!("cannot read {}", path.display()))?;
    Ok(parse_counted(&text))
}

/// Lines come in pairs: names, then values.
fn parse_counted(text: &str) -> BTreeMap<String, u64> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = BTreeMap::new();
    for pair in lines.chunks_exact(2) {
        let [names, values] = pair else { continue };
        let (Some((kind, names)), Some((_, values))) = (names.split_once(':'), values.split_once(':')) else {
            continue;
        };
        for (name, value) in names.split_whitespace().zip(values.split_whitespace()) {
            if let Ok(value) = value.parse() {
                found.insert(format!("{kind}.{name}"), value);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_names() {
        let text = "Ip: Forwarding ForwDatagrams\nIp: 1 42\nTcp: MaxConn PassiveOpens\nTcp: -1 7\n";
        let found = parse_counted(text);
        assert_eq!(found.get("Ip.ForwDatagrams"), Some(&42));
        assert_eq!(found.get("Tcp.PassiveOpens"), Some(&7));
        assert_eq!(found.get("Tcp.MaxConn"), None, "-1 is no count");
    }
}
