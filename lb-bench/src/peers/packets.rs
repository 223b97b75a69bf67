//! UDP packets in one direction: how many a gateway forwards, and how long each is under way.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::cpu;
use super::gateways::{Gateway, Kind};
use super::histogram::Histogram;
use super::layout::sink;
use super::network::Network;
use super::programs::{Attached, Receiver, Source, settled};

/// Before it is looked at, a flood goes on for so long.
const RAMP: Duration = Duration::from_millis(200);

/// A part of the packets at a rate. More than this, and those that were late are missing among the latencies.
const MOST_LOST: f64 = 0.05;

/// The programs at the ends of a network.
#[derive(Debug)]
pub struct Ends<'g> {
    network: &'g Network,
    gateway: &'g mut Gateway,
    source: Source,
    /// At the servers, unless the gateway's tunnels need them there already.
    own: Vec<Receiver>,
}

/// A flood that went through.
#[derive(Clone, Copy, Debug)]
pub struct Flood {
    /// Packets that arrived at the servers while it was looked at.
    pub forwarded: u64,
    pub time: Duration,
    /// What the gateway spent in that time.
    pub cpu: Duration,
}

/// The ways of single packets at a rate.
#[derive(Clone, Debug)]
pub struct OneWay {
    pub latencies: Histogram,
    pub sent: u64,
    pub arrived: u64,
}

impl<'g> Ends<'g> {
    /// Also sends each flow's first packet, and its first answer where answers pass the gateway.
    ///
    /// # Errors
    /// When the kernel refuses a program, or a packet does not arrive, or one server gets none.
    pub fn prepare(network: &'g Network, gateway: &'g mut Gateway, traffic: &Path) -> Result<Self> {
        let mut own = Vec::new();
        if gateway.unwrapping.is_empty() {
            for (netns, number) in network.servers.iter().zip(1..) {
                own.push(Receiver::attach(traffic, netns, &format!("server{number}"), Attached::Counts)?);
            }
        }
        let source = Source::load(traffic)?;
        let mut ends = Self { network, gateway, source, own };
        ends.first_packets(traffic)?;
        Ok(ends)
    }

    fn receivers(&self) -> &[Receiver] {
        if self.own.is_empty() { &self.gateway.unwrapping } else { &self.own }
    }

    fn set(&mut self, mode: u32) -> Result<()> {
        let receivers = if self.own.is_empty() { &mut self.gateway.unwrapping } else { &mut self.own };
        receivers.iter_mut().try_for_each(|one| one.set(mode))
    }

    fn first_packets(&mut self, traffic: &Path) -> Result<()> {
        let kind = self.gateway.kind;
        let answers = Receiver::attach(traffic, &self.network.client, "client", Attached::Counts)?;
        self.set(if kind.answers_directly() { sink::DROP } else { sink::ANSWER })?;
        self.source.each_flow_once(&self.network.client, self.network.cpus)?;
        let sent = self.source.sent()?;
        let arrived = settled(|| self.arrived())?;
        if arrived != sent {
            bail!("{arrived} of {sent} packets of as many flows arrived through {}", kind.name());
        }
        for (receiver, number) in self.receivers().iter().zip(1..) {
            let counted = receiver.counted()?;
            if counted.packets < sent / 4 {
                bail!("server {number} got {} of {sent} flows through {}", counted.packets, kind.name());
            }
            if (kind == Kind::Ipip) != (counted.unwrapped >= counted.packets) {
                bail!("{} of {} packets came in a tunnel", counted.unwrapped, counted.packets);
            }
        }
        if !kind.answers_directly() {
            let answered = settled(|| Ok(answers.counted()?.answers))?;
            if answered != sent {
                bail!("{answered} of {sent} answers came back through {}", kind.name());
            }
        }
        self.set(sink::DROP)
    }

    /// Packets that have arrived at the servers.
    fn arrived(&self) -> Result<u64> {
        self.receivers().iter().map(|one| Ok(one.counted()?.packets)).sum()
    }

    fn latencies(&self) -> Result<Histogram> {
        let mut all = Histogram::default();
        for receiver in self.receivers() {
            all.merge(&receiver.latencies()?);
        }
        Ok(all)
    }

    /// Sends as fast as can be and counts what arrives.
    ///
    /// # Errors
    /// When packets went another way than through this gateway.
    pub fn flood(&mut self, time: Duration) -> Result<Flood> {
        self.source.prepare(None)?;
        let programs = self.gateway.processes()?;
        let evidence = self.gateway.evidence(self.network)?;
        let before = self.arrived()?;
        let this = &*self;
        let window = || {
            std::thread::sleep(RAMP);
            let look =
                || Ok::<_, anyhow::Error>((this.arrived()?, cpu::spent(&this.network.receivers, &programs)?));
            let (begun, (arrived, cpu)) = (Instant::now(), look()?);
            std::thread::sleep(time);
            let (took, (arrived_then, cpu_then)) = (begun.elapsed(), look()?);
            Ok(Flood { forwarded: arrived_then - arrived, time: took, cpu: cpu_then - cpu })
        };
        let flood = this.source.sending(&this.network.client, this.network.cpus, window)?;
        let arrived = settled(|| self.arrived())? - before;
        self.gateway.evidence(self.network)?.since(evidence).prove(self.gateway.kind, arrived)?;
        if flood.forwarded == 0 {
            bail!("no packet came through {}", self.gateway.kind.name());
        }
        Ok(flood)
    }

    /// Sends at a rate.
    ///
    /// # Errors
    /// When more is lost than makes latencies meaningless, or packets went another way.
    pub fn one_way(&mut self, per_second: f64, time: Duration) -> Result<OneWay> {
        let interval = (1e9 / per_second).round().max(1.0) as u64;
        self.source.prepare(Some(interval))?;
        let evidence = self.gateway.evidence(self.network)?;
        let (sent, arrived) = (self.source.sent()?, self.arrived()?);
        let this = &*self;
        let latencies = this.source.sending(&this.network.client, this.network.cpus, || {
            std::thread::sleep(RAMP);
            let before = this.latencies()?;
            std::thread::sleep(time);
            Ok(this.latencies()?.since(&before))
        })?;
        let arrived = settled(|| self.arrived())? - arrived;
        let sent = self.source.sent()? - sent;
        self.gateway.evidence(self.network)?.since(evidence).prove(self.gateway.kind, arrived)?;
        let lost = sent.checked_sub(arrived).context("more packets arrived than were sent")?;
        if lost as f64 > sent as f64 * MOST_LOST {
            bail!("{lost} of {sent} packets were lost at {per_second:.0} a second");
        }
        let expected = per_second * time.as_secs_f64();
        if (latencies.total() as f64) < expected * 0.9 {
            bail!(
                "{} packets were sent in {time:?} instead of {expected:.0}: this machine is too slow",
                latencies.total()
            );
        }
        Ok(OneWay { latencies, sent, arrived })
    }
}
