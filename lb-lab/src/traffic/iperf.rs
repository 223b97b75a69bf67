//! iperf3. It opens two connections to one server, so its service needs one backend or `source-hash`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::netns::Netns;
use crate::process::Process;
use crate::topology::Host;

/// Starts `iperf3 -s` on `host`, for both families.
///
/// # Errors
/// When iperf3 is missing or does not start.
pub fn server(lab: &Arc<Lab>, host: &Host, port: u16) -> Result<Process> {
    let mut command = lab.command("iperf3")?;
    command.args(["-s", "-p", &port.to_string()]);
    let mut process = lab.start(&host.netns, &format!("iperf3-{}", host.name), command)?;
    // A connection would count as a test: its listening socket is looked for instead.
    let mark = format!(":{port:04X} 0000000000");
    crate::process::wait_until("iperf3 to listen", Duration::from_secs(5), || {
        process.check_running()?;
        // The thread that looks must be the one that entered: /proc/net follows the main thread.
        let table = host.netns.run(|| std::fs::read_to_string("/proc/thread-self/net/tcp6"))?;
        Ok(table.is_ok_and(|table| table.contains(&mark)).then_some(()))
    })?;
    Ok(process)
}

/// Runs a test of `seconds` and returns bits per second as the receiver saw them.
///
/// # Errors
/// With iperf3's own words.
pub fn measure(lab: &Lab, netns: &Netns, target: SocketAddr, udp: bool, seconds: u32) -> Result<f64> {
    let mut command = lab.command("iperf3")?;
    command.args(["-J", "-c", &target.ip().to_string(), "-p", &target.port().to_string()]);
    command.args(["-t", &seconds.to_string()]);
    if udp {
        command.args(["-u", "-b", "20M", "-l", "1200"]);
    }
    let limit = Duration::from_secs(u64::from(seconds) + 10);
    let output = lab.finish(netns, command, limit)?.expect("iperf3")?;
    let report: serde_json::Value = serde_json::from_str(&output).context("iperf3 printed no JSON")?;
    let end = &report["end"];
    let sum = if udp { &end["sum"] } else { &end["sum_received"] };
    sum["bits_per_second"].as_f64().with_context(|| format!("iperf3 gave no result: {}", report["error"]))
}
