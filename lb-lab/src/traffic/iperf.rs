//! iperf3. It opens two connections to one server, so its service needs one backend or `source-hash`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::netns::Netns;
use crate::process::Process;
use crate::topology::Host;

/// For a transfer whose first packets may be too large for the way.
const TRANSFER_LIMIT: Duration = Duration::from_secs(15);
/// For the server to be done with an earlier test.
const FREE_LIMIT: Duration = Duration::from_secs(5);
/// Of a transfer's socket.
const WINDOW: &str = "128K";

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
    let time = seconds.to_string();
    let mut options = vec!["-t", &time];
    if udp {
        options.extend(["-u", "-b", "20M", "-l", "1200"]);
    }
    let report = run(lab, netns, target, &options, Duration::from_secs(u64::from(seconds) + 10))?;
    let sum = if udp { &report["end"]["sum"] } else { &report["end"]["sum_received"] };
    sum["bits_per_second"].as_f64().with_context(|| format!("iperf3 gave no result: {}", report["error"]))
}

/// Sends `bytes` over TCP, to the server or (`back`) from it, and returns how many were received: less by what
/// was under way when the last ones had been sent, up to half a megabyte.
///
/// # Errors
/// With iperf3's own words.
pub fn transfer(lab: &Lab, netns: &Netns, target: SocketAddr, bytes: u64, back: bool) -> Result<u64> {
    let bytes = bytes.to_string();
    let mut options = vec!["-n", &bytes, "-w", WINDOW];
    options.extend(back.then_some("-R"));
    let report = run(lab, netns, target, &options, TRANSFER_LIMIT)?;
    let received = &report["end"]["sum_received"]["bytes"];
    received.as_u64().with_context(|| format!("iperf3 gave no result: {}", report["error"]))
}

fn run(
    lab: &Lab,
    netns: &Netns,
    target: SocketAddr,
    options: &[&str],
    limit: Duration,
) -> Result<serde_json::Value> {
    let until = Instant::now() + FREE_LIMIT;
    loop {
        let mut command = lab.command("iperf3")?;
        command.args(["-J", "-c", &target.ip().to_string(), "-p", &target.port().to_string()]).args(options);
        let output = lab.finish(netns, command, limit)?.expect("iperf3")?;
        let report: serde_json::Value = serde_json::from_str(&output).context("iperf3 printed no JSON")?;
        // Its client ends a moment before its server does, which takes one test at a time.
        let is_busy = report["error"].as_str().is_some_and(|error| error.contains("server is busy"));
        if !is_busy || Instant::now() > until {
            return Ok(report);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
