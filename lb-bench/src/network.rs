//! Where the packets go: a network namespace with two interfaces, routes, and neighbours whose addresses are known.
//! Nothing is sent into it.

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::unistd::Pid;

/// How many servers there are, of each family.
pub const SERVERS: u16 = 10_000;

/// The VLAN that some clients are in.
pub const VLAN: u16 = 5;

/// What packets are told to have come in on.
#[derive(Clone, Copy, Debug)]
pub struct Interfaces {
    /// Where the clients are.
    pub client: u32,
    /// Where the servers are.
    pub server: u32,
    /// What stands for the clients' VLAN with the number [`VLAN`]. Not one itself: some kernels lack them.
    pub vlan: u32,
}

/// The address of a server, from 1.
pub const fn server4(n: u16) -> Ipv4Addr {
    let [high, low] = n.to_be_bytes();
    Ipv4Addr::new(198, 18, high, low)
}

/// Likewise.
pub const fn server6(n: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0x18, 0, 0, 0, 0, n)
}

/// A server on the clients' side: packets to it leave as they came.
pub const ONE_ARMED: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 1);

/// The first client's address of a network of 65,536.
pub const fn client4(network: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, network, 0, 0)
}

/// Likewise.
pub const fn client6(network: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, network as u16, 0)
}

/// Moves the calling thread into a new network namespace, which ends with it, and builds the network there.
///
/// # Errors
/// Without root, or when `ip` fails.
pub fn enter() -> Result<Interfaces> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace; this needs root")?;
    let mut lines = String::from(
        "link set lo up\n\
         link add client0 type veth peer name client1\n\
         link add server0 type veth peer name server1\n\
         link add vlan0 type veth peer name vlan1\n\
         link set vlan0 up\nlink set vlan1 up\n\
         link set client0 up\nlink set client1 up\nlink set server0 up\nlink set server1 up\n\
         addr add 192.0.2.1/24 dev client0\n\
         addr add 2001:db8:2::1/64 dev client0 nodad\n\
         addr add 198.18.255.254/16 dev server0\n\
         addr add 2001:db8:18::fffe/64 dev server0 nodad\n\
         neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev client0 nud permanent\n\
         neigh add 2001:db8:2::2 lladdr 02:00:00:00:00:02 dev client0 nud permanent\n\
         route add 10.0.0.0/8 via 192.0.2.2\n\
         route add 198.19.0.0/16 via 192.0.2.2\n\
         route add 2001:db8:c::/48 via 2001:db8:2::2 dev client0\n",
    );
    for n in 1..=SERVERS {
        let [high, low] = n.to_be_bytes();
        for address in [server4(n).to_string(), server6(n).to_string()] {
            let line = format!(
                "neigh add {address} lladdr 02:00:00:01:{high:02x}:{low:02x} dev server0 nud permanent\n"
            );
            lines.push_str(&line);
        }
    }
    ip(&lines)?;
    for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        // /proc/sys/net shows the namespace of the thread that looks at it.
        fs::write(Path::new("/proc/sys/net").join(setting), "1")
            .with_context(|| format!("cannot set net/{setting}"))?;
    }
    let index = |name: &str| if_nametoindex(name).with_context(|| format!("there is no interface {name}"));
    Ok(Interfaces { client: index("client0")?, server: index("server0")?, vlan: index("vlan0")? })
}

fn ip(lines: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run ip (iproute2)")?;
    child
        .stdin
        .take()
        .context("ip has no input")?
        .write_all(lines.as_bytes())
        .context("cannot write to ip")?;
    let output = child.wait_with_output().context("cannot wait for ip")?;
    if !output.status.success() {
        bail!("the network cannot be built: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Keeps the calling thread on the last CPU that it may use.
///
/// # Errors
/// When the kernel does not allow it.
pub fn pin() -> Result<usize> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this).context("cannot ask for the usable CPUs")?;
    let cpu = (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let cpu = cpu.context("there is no usable CPU")?;
    let mut one = CpuSet::new();
    one.set(cpu).context("cannot name a CPU")?;
    sched_setaffinity(this, &one).context("cannot stay on one CPU")?;
    Ok(cpu)
}
