//! A real DNS server (dnsmasq) whose answers change.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::process::{Process, wait_until};
use crate::topology::Host;

/// Names below `lab.example`, each with the addresses that it is given, for a second.
#[derive(Debug)]
pub struct NameServer {
    process: Process,
    records: PathBuf,
}

impl NameServer {
    /// Serves `port` on all addresses of `host`.
    ///
    /// # Errors
    /// When dnsmasq is missing or does not start.
    pub fn start(lab: &Arc<Lab>, host: &Host, port: u16, records: &[(&str, &[&str])]) -> Result<Self> {
        let path = lab.directory().join("names.hosts");
        write(&path, records)?;
        let mut command = lab.command("dnsmasq")?;
        command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-hosts", "--no-resolv"]);
        command.args(["--user=root", "--group=root", "--pid-file", "--bind-interfaces", "--log-facility=-"]);
        // What is not in the file does not exist.
        command.args(["--local=/lab.example/", "--local-ttl=1", "--log-queries"]);
        command.arg(format!("--addn-hosts={}", path.display())).arg(format!("--port={port}"));
        for address in host.addresses() {
            command.arg(format!("--listen-address={address}"));
        }
        let mut process = lab.start(&host.netns, "dnsmasq-names", command)?;
        let target = SocketAddr::new(host.address(false), port);
        wait_until("dnsmasq to answer", Duration::from_secs(5), || {
            process.check_running()?;
            let mut command = lab.command("dig")?;
            command.arg(format!("@{}", target.ip())).arg("-p").arg(target.port().to_string());
            command.args(["+tries=1", "+time=1", "up.lab.example", "A"]);
            let finished = lab.finish(&host.netns, command, Duration::from_secs(5))?;
            Ok(finished.ok().then_some(()))
        })?;
        Ok(Self { process, records: path })
    }

    /// Answers like this from now on.
    ///
    /// # Errors
    /// When the file cannot be written, or the server has ended.
    pub fn set(&mut self, records: &[(&str, &[&str])]) -> Result<()> {
        write(&self.records, records)?;
        self.process.signal(libc::SIGHUP)
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(mut self) -> Result<()> {
        self.process.kill()
    }
}

fn write(path: &PathBuf, records: &[(&str, &[&str])]) -> Result<()> {
    let mut text = String::new();
    for (name, addresses) in records {
        for address in *addresses {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{address} {name}");
        }
    }
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
