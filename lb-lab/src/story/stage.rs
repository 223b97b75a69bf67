//! The network, the servers and the gateways; the first chapter and the last.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Options;
use super::pair::{self, CONFIG, Station, log_of};
use super::report::{Outcome, Report, time};
use crate::process;
use crate::topology::{EXT_V4, EXT_V6, INT_V4, INT_V6, Plan, Topology, VIP_V4, VIP_V6};
use crate::traffic::prober::{Attempt, shares};
use crate::traffic::smtp::{self, Mailer, Sink};
use crate::traffic::udp::{UdpEcho, UdpStream};
use crate::traffic::{BulkServer, Dialect, Flows, Prober};
use crate::{Lab, interrupt};

/// Messages per address family in the first run.
const BULK: usize = 1500;
const SESSIONS: usize = 20;
const BULK_PORT: u16 = 5001;
/// A connection that takes longer lost its SYN, or worse.
pub(super) const PROMPT: Duration = Duration::from_millis(900);
/// The initial retransmission timeout of TCP is a second; the rest is the answer.
pub(super) const ONE_RETRANSMISSION: Duration = Duration::from_millis(1600);
const PROBE_EVERY: Duration = Duration::from_millis(10);
/// Workers, and the least time from one message of a worker to its next: one process each.
const MAIL: (usize, Duration) = (5, Duration::from_millis(50));
const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// Everything the chapters need.
#[derive(Debug)]
pub(super) struct Stage {
    pub report: Report,
    /// The preferred gateway: the master, unless something happens to it.
    pub gw1: Station,
    pub gw2: Station,
    pub sinks: Vec<Sink>,
    _echo: Vec<(BulkServer, UdpEcho)>,
    pub topology: Topology,
    pub lab: Arc<Lab>,
}

/// The traffic that runs while something happens.
#[derive(Debug)]
pub(super) struct Load {
    pub prober: Prober,
    pub mailer: Mailer,
    pub flows: Flows,
}

impl Stage {
    pub fn build(lab: &Arc<Lab>, options: &Options) -> Result<Self> {
        for program in ["ip", "ethtool", "smtp-sink", "smtp-source"] {
            process::find(program)?;
        }
        let report = Report::new();
        report.title(
            "The network: a client, the gateways gw1 and gw2, the mail servers mx1 and mx2; IPv4 and IPv6",
        );
        let plan = Plan { sync_cable: true, ..Plan::pair() };
        let topology = Topology::build(Arc::clone(lab), &plan)?;
        let sinks = topology
            .servers
            .iter()
            .map(|host| Sink::start(lab, host, 25))
            .collect::<Result<Vec<_>>>()
            .context("cannot start the mail servers")?;
        let start = |host| Ok((BulkServer::start(host, BULK_PORT)?, UdpEcho::start(host, BULK_PORT)?));
        let echo = topology.servers.iter().map(start).collect::<Result<_>>()?;
        let started = Instant::now();
        let [gw1, gw2] = pair::start(lab, &topology, options)?;
        let status = gw1.matapa.status()?;
        let modes: Vec<String> =
            status.interfaces.iter().map(|one| format!("{} ({})", one.name, one.mode)).collect();
        let service = status.service("mail").context("there is no service mail")?;
        let backends: Vec<String> =
            service.backends.iter().map(|backend| format!("{} up", backend.name)).collect();
        report.say(&format!("matapa runs with {CONFIG} on both gateways, on {}", modes.join(" and ")));
        report.say(&backends.join(", "));
        report.say(&format!(
            "gw1 is master, gw2 is backup, and they know each other's flows, {} after their start",
            time(started.elapsed())
        ));
        Ok(Self { report, gw1, gw2, sinks, _echo: echo, topology, lab: Arc::clone(lab) })
    }

    /// Chapter 1.
    pub fn both_servers(&mut self) -> Result<()> {
        self.report.title("1. Mail through both servers");
        let client = self.topology.client()?;
        for (target, sender) in vips().into_iter().zip(["first4", "first6"]) {
            let (netns, limit) = (&client.netns, Duration::from_secs(30));
            let finished = smtp::send(&self.lab, netns, target, sender, (BULK, SESSIONS), limit)?;
            let took = finished.took;
            let end = finished.expect("smtp-source");
            let mut held = BTreeSet::new();
            let (mut shares, mut total, mut own_address) = (Vec::new(), 0, true);
            for sink in &self.sinks {
                let mut received = sink.received()?;
                received.retain(|one| one.sender == sender);
                own_address &= smtp::all_from(&received, client.address(target.is_ipv6()));
                shares.push(received.len());
                total += received.len();
                held.extend(received.into_iter().map(|one| one.recipient));
            }
            let family = if target.is_ipv4() { "IPv4" } else { "IPv6" };
            let all = end.is_ok() && total == BULK && held.len() == BULK;
            let split = format!("mx1 {}, mx2 {}", shares[0], shares[1]);
            let error = end.err().map(|error| format!(" ({error:#})")).unwrap_or_default();
            self.report.promise(
                &format!("{family}: every message arrives, once"),
                all,
                format!("{total} of {BULK} in {}; {split}{error}", time(took)),
            );
            let fair = shares.iter().all(|share| share * 10 >= BULK * 3);
            self.report.promise(&format!("{family}: both servers take their share"), fair, split);
            self.report.promise(
                &format!("{family}: the servers see the client's own address"),
                own_address && total > 0,
                client.address(target.is_ipv6()).to_string(),
            );
            self.report.figure(&format!("bulk_{family}"), &shares);
            self.report.figure(&format!("bulk_{family}_seconds"), took.as_secs_f64());
        }
        Ok(())
    }

    /// Starts mail, probes and open connections; `flows` of the last.
    pub fn load(&self, tag: &str, flows: usize) -> Result<Load> {
        let netns = &self.topology.client()?.netns;
        let flows = Flows::open(netns, vips(), flows, Dialect::Smtp, Duration::from_millis(100))?;
        let prober = Prober::start(netns, vips(), PROBE_EVERY, PROBE_LIMIT)?;
        let mailer = Mailer::start(&self.lab, netns, &vips(), tag, MAIL)?;
        Ok(Load { prober, mailer, flows })
    }

    /// Starts a datagram to each address every few milliseconds, from one port for each: what is lost shows when
    /// nothing was forwarded for what is open.
    pub fn datagrams(&self) -> Result<Vec<UdpStream>> {
        let netns = &self.topology.client()?.netns;
        bulk().into_iter().map(|target| UdpStream::start(netns, target, PROBE_EVERY)).collect()
    }

    /// Messages on both servers.
    pub fn received(&self) -> Result<Vec<smtp::Received>> {
        let mut all = Vec::new();
        for sink in &self.sinks {
            all.extend(sink.received()?);
        }
        Ok(all)
    }

    /// The daemon is taken off, and nothing of it remains.
    pub fn end(&mut self) -> Result<()> {
        self.report.title("8. The end");
        // The backup first, so that nobody takes over from the other.
        for (number, station) in [(2, &mut self.gw2), (1, &mut self.gw1)] {
            let matapa = &mut station.matapa;
            let status = matapa.stop()?;
            matapa.detach()?;
            let left = matapa.check_nothing_left().and_then(|()| no_address_left(&self.topology, number));
            let figures = left.as_ref().map_or_else(|error| format!("{error:#}"), |()| status.to_string());
            let name = matapa.gateway();
            self.report.promise(
                &format!(
                    "stopped and detached, it leaves nothing on {name}: no program, pin or shared address"
                ),
                left.is_ok() && status.success(),
                figures,
            );
        }
        Ok(())
    }

    pub fn log_on_failure(&self) {
        for station in [&self.gw1, &self.gw2] {
            eprintln!("{}", log_of(&station.matapa));
        }
    }

    pub fn into_outcome(self, took: Duration) -> Outcome {
        self.report.outcome(took)
    }
}

fn no_address_left(topology: &Topology, number: usize) -> Result<()> {
    for address in [EXT_V4.into(), EXT_V6.into(), INT_V4.into(), INT_V6.into(), VIP_V4.into(), VIP_V6.into()]
    {
        ensure!(!topology.masters(address)?.contains(&number), "{address} is left");
    }
    Ok(())
}

/// Where the mail service listens.
pub(super) fn vips() -> Vec<SocketAddr> {
    vec![SocketAddr::new(VIP_V4.into(), 25), SocketAddr::new(VIP_V6.into(), 25)]
}

/// Where the bulk service listens, TCP and UDP.
pub(super) fn bulk() -> Vec<SocketAddr> {
    vec![SocketAddr::new(VIP_V4.into(), BULK_PORT), SocketAddr::new(VIP_V6.into(), BULK_PORT)]
}

/// Lets the load run for a while.
pub(super) fn run_for(duration: Duration) -> Result<()> {
    let end = Instant::now() + duration;
    while Instant::now() < end {
        interrupt::check()?;
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// `mx1 100, mx2 98`, and what failed.
pub(super) fn describe(attempts: &[Attempt]) -> String {
    let parts: Vec<String> = shares(attempts)
        .into_iter()
        .map(|(server, count)| format!("{} {count}", server.as_deref().unwrap_or("failed")))
        .collect();
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}

/// The longest time to a greeting.
pub(super) fn slowest(attempts: &[Attempt]) -> Duration {
    let answers = attempts.iter().filter_map(|attempt| attempt.result.as_ref().ok());
    answers.map(|answer| answer.greeting).max().unwrap_or_default()
}

/// Those begun at `from` or later.
pub(super) fn since(attempts: &[Attempt], from: Instant) -> Vec<Attempt> {
    attempts.iter().filter(|attempt| attempt.started >= from).cloned().collect()
}
