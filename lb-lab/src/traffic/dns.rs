//! A real DNS server (dnsmasq) that knows its own host's name, and dig.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use crate::lab::Lab;
use crate::netns::Netns;
use crate::process::{Process, wait_until};
use crate::topology::Host;

/// The name whose TXT record is the host's name.
const NAME: &str = "who.lab.example";

/// dnsmasq on one host.
#[derive(Debug)]
pub struct DnsServer {
    pub process: Process,
}

impl DnsServer {
    /// Serves `port` on all addresses of `host`, over UDP and TCP.
    ///
    /// # Errors
    /// When dnsmasq is missing or does not start.
    pub fn start(lab: &Arc<Lab>, host: &Host, port: u16) -> Result<Self> {
        let mut command = lab.command("dnsmasq")?;
        command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-hosts", "--no-resolv"]);
        command.args(["--user=root", "--group=root", "--pid-file", "--bind-interfaces", "--log-facility=-"]);
        command.arg(format!("--port={port}"));
        for address in host.addresses() {
            command.arg(format!("--listen-address={address}"));
        }
        command.arg(format!("--txt-record={NAME},{}", host.name));
        let mut process = lab.start(&host.netns, &format!("dnsmasq-{}", host.name), command)?;
        let targets = [false, true].map(|v6| SocketAddr::new(host.address(v6), port));
        wait_until("dnsmasq to answer", Duration::from_secs(5), || {
            process.check_running()?;
            for target in targets {
                if query(lab, &host.netns, target)?.is_none() {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })?;
        Ok(Self { process })
    }
}

/// Asks once, without a second try, which server answers; `None` when none does in a second.
///
/// # Errors
/// When dig is missing.
pub fn query(lab: &Lab, netns: &Netns, target: SocketAddr) -> Result<Option<String>> {
    let mut command = lab.command("dig")?;
    command.arg(format!("@{}", target.ip())).arg("-p").arg(target.port().to_string());
    command.args(["+short", "+tries=1", "+time=1", "+noedns", NAME, "TXT"]);
    let finished = lab.finish(netns, command, Duration::from_secs(5))?;
    let answer = finished.stdout.trim().trim_matches('"').to_owned();
    Ok((finished.ok() && !answer.is_empty() && !answer.starts_with(';')).then_some(answer))
}
