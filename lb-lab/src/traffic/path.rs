//! The way to an address: ping, traceroute, and the path MTU the kernel has learned.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;

use crate::lab::Lab;
use crate::netns::Netns;
use crate::process::Finished;

const LIMIT: Duration = Duration::from_secs(15);
/// Of a trace.
const MOST_HOPS: &str = "6";

/// Three echo requests that carry `size` bytes; succeeds when all are answered.
///
/// # Errors
/// When ping is missing.
pub fn ping(lab: &Lab, netns: &Netns, target: IpAddr, size: u16) -> Result<Finished> {
    let mut command = lab.command("ping")?;
    // A deadline counts answers: without all of them it fails.
    command.args(["-n", "-c", "3", "-i", "0.05", "-w", "3", "-s", &size.to_string(), &target.to_string()]);
    lab.finish(netns, command, LIMIT)
}

/// How a trace asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    Udp,
    Icmp,
    Tcp,
}

/// Who answers along the way to `target`, in order; `*` where nobody does. (ICMP has no port.)
///
/// # Errors
/// With traceroute's own words, when it fails.
pub fn trace(lab: &Lab, netns: &Netns, target: SocketAddr, probe: Probe) -> Result<Vec<String>> {
    let mut command = lab.command("traceroute")?;
    // One probe at a time: its kernel may answer slower than several are sent.
    command.args(["-n", "-q", "1", "-N", "1", "-w", "1", "-m", MOST_HOPS]);
    let port = target.port().to_string();
    match probe {
        Probe::Udp => command.args(["-U", "-p", &port]),
        Probe::Icmp => command.arg("-I"),
        Probe::Tcp => command.args(["-T", "-p", &port]),
    };
    command.arg(target.ip().to_string());
    let text = lab.finish(netns, command, LIMIT)?.expect("traceroute")?;
    // ` 2  192.0.2.1  0.123 ms`, after a line about the trace.
    let hops = text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1));
    Ok(hops.map(str::to_owned).collect())
}

/// The path MTU a machine has learned for `target`, in bytes; `None` while it has not.
///
/// # Errors
/// When there is no route.
pub fn learned_mtu(lab: &Lab, netns: &Netns, target: IpAddr) -> Result<Option<u16>> {
    let mut command = lab.command("ip")?;
    command.args(["route", "get", &target.to_string()]);
    let text = lab.finish(netns, command, LIMIT)?.expect("ip route get")?;
    let mut words = text.split_whitespace().skip_while(|word| *word != "mtu").skip(1);
    Ok(words.next().and_then(|word| word.parse().ok()))
}
