//! The daemon itself, on a gateway in a network of namespaces: starts, reloads, adoption, memory, idle work.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lb_lab::lab::Lab;
use lb_lab::matapa::Matapa;
use lb_lab::packets;
use lb_lab::topology::{Plan, Topology, vip};
use lb_lab::traffic::raw::PacketSender;
use lb_userspace::api::client::Client;
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use tokio::runtime::Runtime;

use super::Row;

/// Longest wait for a daemon to be ready.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two questions whether it is.
const PAUSE: Duration = Duration::from_millis(1);
/// Of the first service; the others follow.
const FIRST_PORT: u16 = 1000;
/// Where the forged clients are.
const CLIENTS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 0);

/// A gateway between a client and two servers, and the daemon that runs on it.
#[derive(Debug)]
pub struct Gateway {
    topology: Topology,
    matapa: Matapa,
    client: Client,
    runtime: Runtime,
}

/// So many services on ports of one VIP, each with both servers. `note` is in the last one's backends, to have a change.
fn configuration(services: u16, capacity: u32, note: &str) -> Result<String> {
    let mut text = format!("interfaces = [\"ext\", \"int\"]\n[flows]\ncapacity = {capacity}\n");
    for n in 0..services {
        let (port, more) = (FIRST_PORT + n, if n + 1 == services { note } else { "" });
        write!(
            text,
            "[services.s{n}]\nlisten = \"{}:{port}\"\nbackends = [\"198.51.100.11:25\", \"198.51.100.12:25\"{more}]\n\
             new_flow_limit = 10000000\n",
            vip(0, false)
        )?;
    }
    Ok(text)
}

impl Gateway {
    /// # Errors
    /// When the network cannot be built.
    pub fn new(binary: &Path) -> Result<Self> {
        let lab = Lab::new()?;
        let topology = Topology::build(Arc::clone(&lab), &Plan::default())?;
        // What the servers would answer to flows of nobody leads nowhere.
        for server in &topology.servers {
            server.netns.ip(&format!("route add blackhole {CLIENTS}/8\n"))?;
        }
        let matapa = Matapa::with_config(&lab, topology.first_gateway()?, binary, "")?;
        let client = Client::new(matapa.socket());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { topology, matapa, client, runtime })
    }

    /// Starts the daemon; says how long it took until it forwarded.
    fn start(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        self.matapa.launch()?;
        loop {
            if self.runtime.block_on(self.client.ready()).is_ok() {
                return Ok(begun.elapsed());
            }
            self.matapa.check_running()?;
            if begun.elapsed() > PATIENCE {
                bail!("the daemon is not ready after {PATIENCE:?}:\n{}", self.matapa.log());
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Ends it, and the forwarding.
    fn detach(&mut self) -> Result<()> {
        self.matapa.stop()?;
        self.matapa.cli(&["detach"])?.expect("matapa detach")?;
        Ok(())
    }

    /// From nothing until packets of so many services are forwarded.
    ///
    /// # Errors
    /// When the daemon does not start.
    pub fn cold_start(&mut self, services: u16, rounds: u32) -> Result<Row> {
        self.matapa.write_config(&configuration(services, 1 << 20, "")?)?;
        let mut took = Vec::new();
        for _ in 0..rounds {
            took.push(self.start()?);
            self.detach()?;
        }
        Ok(Row::times("cold start to forwarding", services.into(), "services", &took))
    }

    /// A server more and a server less in one of so many services.
    ///
    /// # Errors
    /// When a reload is refused.
    pub fn reload(&mut self, services: u16, rounds: u32) -> Result<Row> {
        self.matapa.write_config(&configuration(services, 1 << 20, "")?)?;
        self.start()?;
        let mut took = Vec::new();
        for round in 0..rounds {
            let note = if round % 2 == 0 { ", \"198.51.100.13:25\"" } else { "" };
            self.matapa.write_config(&configuration(services, 1 << 20, note)?)?;
            let begun = Instant::now();
            let outcome = self.runtime.block_on(self.client.reload()).context("the reload was refused")?;
            took.push(begun.elapsed());
            if outcome.operations == 0 {
                bail!("the reload changed nothing");
            }
        }
        self.detach()?;
        Ok(Row::times("reload of one change", services.into(), "services", &took))
    }

    /// From the start of a daemon after `kill -9` until it forwards as configured, with so many flows in the table.
    ///
    /// # Errors
    /// When the flows are not there before and after.
    pub fn adoption(&mut self, flows: u32, rounds: u32) -> Result<Row> {
        self.matapa.write_config(&configuration(1, 1 << 22, "")?)?;
        self.start()?;
        self.make_flows(flows)?;
        let mut took = Vec::new();
        for _ in 0..rounds {
            self.matapa.kill()?;
            took.push(self.start()?);
        }
        self.expect_flows(flows)?;
        self.detach()?;
        Ok(Row::times("adoption after a crash", flows, "flows", &took))
    }

    /// Packets in the middle of connections that nobody knows of: each is recorded as one.
    fn make_flows(&self, flows: u32) -> Result<()> {
        let sender = PacketSender::new(&self.topology.client()?.netns)?;
        for n in 0..flows {
            let client = Ipv4Addr::from_bits(CLIENTS.to_bits() + 1 + n / 50_000);
            let mut header = [0; 20];
            header[..2].copy_from_slice(&(1024 + (n % 50_000) as u16).to_be_bytes());
            header[2..4].copy_from_slice(&FIRST_PORT.to_be_bytes());
            // Five words, ACK.
            (header[12], header[13]) = (5 << 4, 0x10);
            let packet = packets::ip(IpAddr::V4(client), vip(0, false), 6, None, &header);
            sender.send(vip(0, false), &packet)?;
        }
        self.expect_flows(flows)
    }

    /// A few may have found their line full.
    fn expect_flows(&self, flows: u32) -> Result<()> {
        let there = self.runtime.block_on(self.client.flows(1, None))?.total;
        if there < u64::from(flows) / 100 * 99 || there > u64::from(flows) {
            bail!("{flows} flows were made, and {there} are there");
        }
        Ok(())
    }

    /// What the daemon needs while nothing happens, beside a table of so many places, half full.
    ///
    /// # Errors
    /// When its costs cannot be read.
    pub fn idle(&mut self, capacity: u32, flows: u32, time: Duration) -> Result<Row> {
        self.matapa.write_config(&configuration(1, capacity, "")?)?;
        self.start()?;
        self.make_flows(flows)?;
        let clock = self.clock()?;
        let (begun, before) = (Instant::now(), clock_gettime(clock)?);
        std::thread::sleep(time);
        let spent = Duration::from(clock_gettime(clock)? - before);
        let share = spent.as_secs_f64() / begun.elapsed().as_secs_f64() * 100.0;
        self.detach()?;
        Ok(Row::new("CPU while nothing happens", capacity, "places", "%", vec![share]))
    }

    /// The memory of the daemon and of its process that checks, beside the maps.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn memory(&mut self, services: u16) -> Result<Row> {
        self.matapa.write_config(&configuration(services, 1 << 20, "")?)?;
        self.start()?;
        let daemon = self.pid()?;
        let mut kib = anonymous(daemon)?;
        for process in children(daemon)? {
            kib += anonymous(process)?;
        }
        self.detach()?;
        Ok(Row::new("memory of the daemon", services.into(), "services", "MiB", vec![kib / 1024.0]))
    }

    fn pid(&self) -> Result<u32> {
        Ok(self.runtime.block_on(self.client.status())?.pid)
    }

    fn clock(&self) -> Result<ClockId> {
        Ok(clock_getcpuclockid(Pid::from_raw(self.pid()?.try_into()?))?)
    }
}

/// What a process has for itself, in KiB. What is mapped from maps and files is counted elsewhere (proc_pid_status(5)).
fn anonymous(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    line.trim().trim_end_matches(" kB").parse().context("RssAnon")
}

/// Processes that one has started, by any of its threads.
fn children(pid: u32) -> Result<Vec<u32>> {
    let mut all = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("children"))?;
        for word in text.split_whitespace() {
            all.push(word.parse()?);
        }
    }
    Ok(all)
}
