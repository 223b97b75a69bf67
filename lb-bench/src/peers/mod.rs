//! Matapa from end to end beside what would be taken instead: plain routing, nftables, HAProxy, nginx.
//!
//! [`network`] is what all of them stand in, [`gateways`] sets each up and has it prove that it was the one, [`servers`] answer.
//! [`packets`] and [`loads`] are what is measured with, [`table`] is what comes out. Each gateway is measured in a network of
//! its own, so that nothing is left of the one before: no connection that is remembered, no route.

pub mod cpu;
pub mod gateways;
pub mod histogram;
pub mod layout;
pub mod loads;
pub mod network;
pub mod packets;
pub mod plots;
pub mod programs;
pub mod servers;
pub mod table;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lb_lab::interrupt;

use self::gateways::{Gateway, Kind, Unavailable};
use self::histogram::Histogram;
use self::loads::{Done, Exchanges};
use self::network::{Cpus, Network, counted};
use self::packets::Ends;
use self::servers::Servers;
use self::table::{Measure, Report, Samples};
use crate::report::Machine;

/// What is measured, and how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// How often all gateways are gone over.
    pub rounds: u32,
    /// Of each measurement.
    pub time: Duration,
    pub quick: bool,
    /// Besides plain routing.
    pub kinds: Vec<Kind>,
    /// The binary that is measured.
    pub matapa: PathBuf,
    /// The object of the programs that send and count packets.
    pub traffic: PathBuf,
}

/// One gateway in its network, with the servers.
#[derive(Debug)]
pub struct Rig {
    // Dropped in this order: what runs before the network that it runs in.
    pub gateway: Gateway,
    pub servers: Servers,
    pub network: Network,
}

impl Rig {
    /// # Errors
    /// When something does not start.
    pub fn new(kind: Kind, cpus: Cpus, options: &Options) -> Result<Result<Self, Unavailable>> {
        let network = Network::build(cpus)?;
        let servers = Servers::start(&network)?;
        let gateway = match Gateway::start(kind, &network, &options.matapa, &options.traffic)? {
            Ok(gateway) => gateway,
            Err(why) => return Ok(Err(why)),
        };
        Ok(Ok(Self { gateway, servers, network }))
    }

    /// One measurement: figures in the order of the measure's columns. `rate`: a second, for latencies.
    ///
    /// # Errors
    /// When something failed, or the traffic went another way than it should.
    pub fn measure(&mut self, measure: Measure, rate: f64, options: &Options) -> Result<Vec<f64>> {
        let time = options.time;
        match measure {
            Measure::Packets => {
                let flood = Ends::prepare(&self.network, &mut self.gateway, &options.traffic)?.flood(time)?;
                Ok(figures(Done { count: flood.forwarded, time: flood.time }, flood.cpu, 1e9))
            }
            Measure::OneWay => {
                let mut ends = Ends::prepare(&self.network, &mut self.gateway, &options.traffic)?;
                let found = ends.one_way(rate, time)?;
                let mut figures = quantiles(&found.latencies)?;
                figures.push((found.sent - found.arrived) as f64 / found.sent as f64 * 100.0);
                Ok(figures)
            }
            Measure::Connections => self.load(|network| loads::requests(network, time, false)),
            Measure::Requests => self.load(|network| loads::requests(network, time, true)),
            Measure::Mail => {
                let count = (time.as_secs_f64() * MAILS_PER_SECOND) as u32;
                self.load(|network| loads::mail(network, count))
            }
            Measure::Bulk => {
                let (done, cpu) = self.proved(1, |network| loads::bulk(network, time))?;
                let mut figures = figures(Done { count: done.count / 1024, ..done }, cpu, 1e9);
                figures[0] = done.per_second() * 8.0 / 1e9;
                Ok(figures)
            }
            Measure::RoundTrip => quantiles(&self.exchange(rate, time)?.latencies),
        }
    }

    /// Messages to both servers and their answers, at a rate in messages a second.
    ///
    /// # Errors
    /// When one is not answered, one server does not answer, or they went another way than through this gateway.
    pub fn exchange(&mut self, rate: f64, time: Duration) -> Result<Exchanges> {
        let interval = Duration::from_secs_f64(1.0 / rate);
        let (found, _) = self.proved(2, |network| loads::exchange(network, interval, time))?;
        if found.servers.len() != 2 {
            bail!("answers came from the servers {:?} only", found.servers);
        }
        Ok(found)
    }

    /// A load on both servers, with microseconds of CPU for each.
    fn load(&mut self, work: impl FnOnce(&Network) -> Result<Done>) -> Result<Vec<f64>> {
        let (done, cpu) = self.proved(2, work)?;
        Ok(figures(done, cpu, 1e6))
    }

    /// Runs a load of TCP connections. Proves that it went through this gateway to so many servers, and says what the gateway
    /// has spent.
    fn proved<T>(
        &mut self,
        servers: usize,
        work: impl FnOnce(&Network) -> Result<T>,
    ) -> Result<(T, Duration)> {
        let Self { gateway, network, .. } = self;
        let programs = gateway.processes()?;
        let evidence = gateway.evidence(network)?;
        let before = accepted(network)?;
        let spent = cpu::spent(&network.receivers, &programs)?;
        let done = work(network)?;
        let cpu = cpu::spent(&network.receivers, &programs)? - spent;
        let connections: Vec<u64> =
            accepted(network)?.iter().zip(&before).map(|(after, before)| after - before).collect();
        let reached = connections.iter().filter(|count| **count > 0).count();
        if reached != servers {
            bail!("{reached} of {servers} servers had connections through {}", gateway.kind.name());
        }
        // Each connection has more than three packets from the client: SYN, ACK, what is asked for.
        let packets = 3 * connections.iter().sum::<u64>();
        gateway.evidence(network)?.since(evidence).prove(gateway.kind, packets)?;
        self.servers.check()?;
        Ok((done, cpu))
    }

    /// Ends everything.
    ///
    /// # Errors
    /// When the gateway had ended before.
    pub fn finish(self) -> Result<()> {
        self.gateway.finish()
    }
}

/// Mails are counted, not timed: about as many as the client and the servers can do together on one CPU.
const MAILS_PER_SECOND: f64 = 4000.0;

/// Connections that each server has accepted.
fn accepted(network: &Network) -> Result<Vec<u64>> {
    let of = |netns| {
        counted(netns)?.get("Tcp.PassiveOpens").copied().context("a server does not count connections")
    };
    network.servers.iter().map(of).collect()
}

/// So many a second, CPU for each in so many parts of a second, and the share of the CPU in percent.
fn figures(done: Done, cpu: Duration, parts: f64) -> Vec<f64> {
    let each = cpu.as_secs_f64() * parts / done.count as f64;
    vec![done.per_second(), each, cpu.as_secs_f64() / done.time.as_secs_f64() * 100.0]
}

/// In microseconds.
fn quantiles(latencies: &Histogram) -> Result<Vec<f64>> {
    [0.5, 0.99, 0.999]
        .map(|share| {
            let nanoseconds = latencies.quantile(share);
            nanoseconds
                .map(|found| found / 1000.0)
                .with_context(|| format!("only {} latencies", latencies.total()))
        })
        .into_iter()
        .collect()
}

/// What is measured of a gateway: proxies take no UDP (HAProxy cannot, and nginx is set up alike).
fn applies(measure: Measure, kind: Kind) -> bool {
    !(kind.is_proxy() && matches!(measure, Measure::Packets | Measure::OneWay))
}

/// First what the gateways can do, then latencies at a rate that follows from it.
const PASSES: [&[Measure]; 2] = [
    &[Measure::Packets, Measure::Connections, Measure::Requests, Measure::Bulk, Measure::Mail],
    &[Measure::OneWay, Measure::RoundTrip],
];

/// Measures, and says on standard error how far it is.
///
/// # Errors
/// When nothing can be measured. A measurement that went wrong is an error in its cell.
pub fn run(options: &Options) -> Result<Report> {
    let cpus = Cpus::choose()?;
    let mut samples = Samples::default();
    let begun = Instant::now();
    for round in 1..=options.rounds {
        for (pass, measures) in PASSES.iter().enumerate() {
            if pass == 1 && round == 1 {
                choose_rates(&mut samples);
            }
            for kind in &options.kinds {
                if samples.unavailable.contains_key(kind) {
                    continue;
                }
                eprintln!(
                    "round {round} of {}, {}: {} ({:.0} s)",
                    options.rounds,
                    if pass == 0 { "throughput" } else { "latency" },
                    kind.name(),
                    begun.elapsed().as_secs_f64()
                );
                gateway(*kind, measures, cpus, options, &mut samples)?;
                interrupt::check()?;
            }
        }
    }
    let unavailable: BTreeMap<String, String> =
        samples.unavailable.iter().map(|(kind, why)| (kind.name().to_owned(), why.clone())).collect();
    Ok(Report {
        machine: Machine::look(cpus.gateway),
        rounds: options.rounds,
        seconds: options.time.as_secs_f64(),
        quick: options.quick,
        sections: samples.sections(&options.kinds),
        unavailable,
    })
}

/// The same for all: half of what the slowest can do, and a quarter of the requests, as an exchange costs the client and the
/// servers about twice as much.
fn choose_rates(samples: &mut Samples) {
    let of = [(Measure::OneWay, Measure::Packets, 2.0), (Measure::RoundTrip, Measure::Requests, 4.0)];
    for (latency, of, part) in of {
        if let Some(slowest) = samples.slowest(of) {
            samples.rates.insert(latency, slowest / part);
        }
    }
}

/// One gateway from its start to its end.
fn gateway(
    kind: Kind,
    measures: &[Measure],
    cpus: Cpus,
    options: &Options,
    samples: &mut Samples,
) -> Result<()> {
    let mut rig = match Rig::new(kind, cpus, options) {
        Ok(Ok(rig)) => rig,
        Ok(Err(Unavailable(why))) => {
            eprintln!("  left out: {why}");
            samples.unavailable.insert(kind, why);
            return Ok(());
        }
        Err(error) => {
            interrupt::check()?;
            let why = format!("{error:#}");
            for measure in measures.iter().filter(|measure| applies(**measure, kind)) {
                samples.add(*measure, kind, Err(anyhow::anyhow!("not set up: {why}")));
            }
            return Ok(());
        }
    };
    for measure in measures.iter().filter(|measure| applies(**measure, kind)) {
        let rate = samples.rates.get(measure).copied().unwrap_or(1000.0);
        let outcome = rig.measure(*measure, rate, options);
        interrupt::check()?;
        if let Err(error) = &outcome {
            eprintln!("  {}: {error:#}", measure.title());
        }
        samples.add(*measure, kind, outcome);
    }
    if let Err(error) = rig.finish() {
        // What ended before may not have forwarded what was measured.
        eprintln!("  {error:#}");
        for measure in measures.iter().filter(|measure| applies(**measure, kind)) {
            samples.add(*measure, kind, Err(anyhow::anyhow!("{} did not last: {error:#}", kind.name())));
        }
    }
    Ok(())
}
