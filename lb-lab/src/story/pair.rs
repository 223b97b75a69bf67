//! The two gateways: their configurations, and what an operator has of each.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};

use super::Options;
use crate::Lab;
use crate::matapa::types::EventKind;
use crate::matapa::{Matapa, Monitor};
use crate::process::{tail, wait_until};
use crate::topology::{Gateway, Topology};

/// The first gateway's configuration, and the second one's but for [`OTHER`]; below the repository.
pub(super) const CONFIG: &str = "examples/lab.toml";
/// How the second gateway's file differs.
const OTHER: [(&str, &str); 2] =
    [("\nadvskew = 0\n", "\nadvskew = 10\n"), ("peer = \"10.0.0.2\"", "peer = \"10.0.0.1\"")];
/// Where the keys are in [`CONFIG`].
const KEYS: &str = "/etc/matapa/";
/// For the first start, the wait for another master, and the checks.
const START_LIMIT: Duration = Duration::from_secs(15);

/// Matapa on one gateway, watched.
#[derive(Debug)]
pub(super) struct Station {
    pub matapa: Matapa,
    pub monitor: Monitor,
}

/// Both, with the first one as master, the second one as backup, and every server up on both.
pub(super) fn start(lab: &Arc<Lab>, topology: &Topology, options: &Options) -> Result<[Station; 2]> {
    let [first, second] = topology.gateways.as_slice() else { anyhow::bail!("the plan has no pair") };
    let files = configure(lab, &options.root)?;
    let prepare = |gateway: &Gateway, file: &Path| Matapa::new(lab, gateway, &options.binary, file);
    let (mut one, mut other) = (prepare(first, &files[0]), prepare(second, &files[1]));
    // At once, so that the first one need not wait for a peer that does not come.
    one.launch()?;
    other.start().with_context(|| log_of(&other))?;
    one.wait_answer().with_context(|| log_of(&one))?;
    let stations = [Station::watch(one)?, Station::watch(other)?];
    for (station, state) in stations.iter().zip(["master", "backup"]) {
        station.wait_healthy()?;
        station.wait_carp(state, START_LIMIT)?;
        station.wait_synchronised()?;
    }
    Ok(stations)
}

/// Writes both files, and the keys they name, into the lab's directory.
fn configure(lab: &Lab, root: &Path) -> Result<[PathBuf; 2]> {
    lab.secret("carp.key", "a password\n")?;
    lab.secret("seed", &"5e".repeat(32))?;
    lab.secret("sync.key", &"c0".repeat(32))?;
    let path = root.join(CONFIG);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let directory = lab.directory().display();
    let first = replaced(&text, KEYS, &format!("{directory}/"))?;
    let second = OTHER.iter().try_fold(first.clone(), |text, (from, to)| replaced(&text, from, to))?;
    let write = |name: &str, text: &str| -> Result<PathBuf> {
        let path = lab.directory().join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    };
    Ok([write("gw1.toml", &first)?, write("gw2.toml", &second)?])
}

/// `text` with `to` for every `from`, of which there must be one.
fn replaced(text: &str, from: &str, to: &str) -> Result<String> {
    ensure!(text.contains(from), "there is no {from:?} in {CONFIG}");
    Ok(text.replace(from, to))
}

impl Station {
    fn watch(matapa: Matapa) -> Result<Self> {
        let monitor = matapa.monitor()?;
        Ok(Self { matapa, monitor })
    }

    /// Starts the daemon, after it was killed.
    pub fn restart(&mut self) -> Result<()> {
        self.matapa.start().with_context(|| log_of(&self.matapa))?;
        self.monitor = self.matapa.monitor()?;
        Ok(())
    }

    /// Every process ends by `kill -9`, all cables are dead, and what was in memory is gone. Returns how long it
    /// took until the cables were dead: until then the program still forwards, but nobody can tell the other
    /// gateway anything.
    pub fn lose_power(&mut self, gateway: &Gateway) -> Result<Duration> {
        let (start, mut dead) = (Instant::now(), Duration::ZERO);
        self.matapa.kill_and(|| {
            gateway.unplug()?;
            dead = start.elapsed();
            Ok(())
        })?;
        self.monitor.kill()?;
        self.matapa.detach()?;
        Ok(dead)
    }

    /// Packets of all services that it has forwarded, in both directions.
    pub fn forwarded(&self) -> Result<u64> {
        Ok(self.matapa.status()?.services.iter().map(|service| service.packets).sum())
    }

    pub fn wait_healthy(&self) -> Result<()> {
        self.matapa.wait_healthy(START_LIMIT).with_context(|| log_of(&self.matapa)).map(drop)
    }

    /// Waits until every vhid is in this state.
    pub fn wait_carp(&self, state: &str, limit: Duration) -> Result<()> {
        wait_until(&format!("all vhids to be {state}"), limit, || {
            Ok(self.matapa.carp()?.all(state).then_some(()))
        })
        .with_context(|| log_of(&self.matapa))
    }

    /// Waits for the event that says so of both vhids, and returns how long after `clock` the later one came.
    pub fn wait_carp_events(
        &self,
        to: &str,
        (since, clock): (Instant, SystemTime),
        limit: Duration,
    ) -> Result<Duration> {
        let mut latest = Duration::ZERO;
        for vhid in ["outside", "inside"] {
            let seen = self.monitor.wait(
                &format!("{vhid} to become {to}"),
                since,
                limit,
                |kind| matches!(kind, EventKind::Carp { name, to: state, .. } if name == vhid && state == to),
            );
            latest = latest.max(seen.with_context(|| log_of(&self.matapa))?.after(clock));
        }
        Ok(latest)
    }

    fn wait_synchronised(&self) -> Result<()> {
        wait_until("the gateways to be synchronised", START_LIMIT, || {
            Ok((self.matapa.sync()?.state == "synchronised").then_some(()))
        })
        .with_context(|| log_of(&self.matapa))
    }
}

pub(super) fn log_of(matapa: &Matapa) -> String {
    format!("the log of the daemon on {} ends with:\n{}", matapa.gateway(), tail(&matapa.log()))
}
