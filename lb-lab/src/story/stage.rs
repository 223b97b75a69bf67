//! The network, the mail servers and the daemon; and the first chapter.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Options;
use super::report::{Outcome, Report, time};
use crate::matapa::{Matapa, Monitor};
use crate::process::{self, tail};
use crate::topology::{Plan, Topology, VIP_V4, VIP_V6};
use crate::traffic::prober::{Attempt, shares};
use crate::traffic::smtp::{self, Mailer, Sink};
use crate::traffic::{Dialect, Flows, Prober};
use crate::{Lab, interrupt};

/// Messages per address family in the first run.
const BULK: usize = 1500;
const SESSIONS: usize = 20;
/// A connection that takes longer lost its SYN, or worse.
pub(super) const PROMPT: Duration = Duration::from_millis(900);
const PROBE_EVERY: Duration = Duration::from_millis(10);
/// Workers, and the least time from one message of a worker to its next: one process each.
const MAIL: (usize, Duration) = (5, Duration::from_millis(50));
const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// Everything the chapters need.
#[derive(Debug)]
pub(super) struct Stage {
    pub report: Report,
    pub matapa: Matapa,
    pub monitor: Monitor,
    pub sinks: Vec<Sink>,
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
        report.title("The network: a client, a gateway, and the mail servers mx1 and mx2; IPv4 and IPv6");
        let topology = Topology::build(Arc::clone(lab), &Plan::default())?;
        let sinks = topology
            .servers
            .iter()
            .map(|host| Sink::start(lab, host, 25))
            .collect::<Result<Vec<_>>>()
            .context("cannot start the mail servers")?;
        let config = options.root.join("examples/lab.toml");
        let mut matapa = Matapa::new(lab, topology.first_gateway()?, &options.binary, &config);
        let started = Instant::now();
        let status = matapa.start().with_context(|| log_of(&matapa))?;
        let modes: Vec<String> =
            status.interfaces.iter().map(|one| format!("{} ({})", one.name, one.mode)).collect();
        report.say(&format!(
            "matapa runs with {} on {}, {} after its start",
            config.display(),
            modes.join(" and "),
            time(started.elapsed())
        ));
        let monitor = matapa.monitor()?;
        let status = matapa.wait_healthy(Duration::from_secs(10)).with_context(|| log_of(&matapa))?;
        let backends: Vec<String> = status
            .services
            .iter()
            .flat_map(|service| service.backends.iter().map(|backend| format!("{} up", backend.name)))
            .collect();
        report.say(&backends.join(", "));
        Ok(Self { report, matapa, monitor, sinks, topology, lab: Arc::clone(lab) })
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
        self.report.title("5. The end");
        let status = self.matapa.stop()?;
        self.matapa.detach()?;
        let left = self.matapa.check_nothing_left();
        let figures = left.as_ref().map_or_else(|error| format!("{error:#}"), |()| status.to_string());
        self.report.promise(
            "stopped and detached, it leaves no program and no pin",
            left.is_ok() && status.success(),
            figures,
        );
        Ok(())
    }

    pub fn log_on_failure(&self) {
        eprintln!("{}", log_of(&self.matapa));
    }

    pub fn into_outcome(self, took: Duration) -> Outcome {
        self.report.outcome(took)
    }
}

/// Where the mail service listens.
pub(super) fn vips() -> Vec<SocketAddr> {
    vec![SocketAddr::new(VIP_V4.into(), 25), SocketAddr::new(VIP_V6.into(), 25)]
}

fn log_of(matapa: &Matapa) -> String {
    format!("the daemon's log ends with:\n{}", tail(&matapa.log()))
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
