//! What came out, for people and for programs.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::cases::{FLOOR, Flows, MAPS};
use crate::measure::Options;
use crate::plot::{Line, Words, lines};

/// Cases that are drawn over the number of flows.
const DRAWN: [&str; 6] = [
    FLOOR,
    MAPS,
    "to backend, TCP IPv4",
    "to backend, TCP IPv6",
    "from backend, TCP IPv4",
    "to backend, 10,000 services, 8,192 in use",
];

/// Writes figures to a file, for programs. Makes its directory, so that nothing is lost after minutes of measuring.
///
/// # Errors
/// When the file cannot be written.
pub fn write_json(path: &Path, figures: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(figures).context("cannot write the figures as JSON")?;
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
}

/// One case's figures, in nanoseconds per packet.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub case: String,
    pub flows: String,
    /// Not the product.
    pub floor: bool,
    pub min: u64,
    pub median: u64,
    pub max: u64,
    /// The median less that of the floor with the same flows.
    pub net: Option<i64>,
    /// The median by that of the floor with the same flows.
    pub ratio: Option<f64>,
    /// The net by that of a hash and an LRU lookup with the same flows.
    pub to_maps: Option<f64>,
    /// In the order in which they were measured.
    pub rounds: Vec<u64>,
    /// Why the figures are none.
    pub error: Option<String>,
    #[serde(skip)]
    kind: Flows,
}

impl Row {
    pub fn new(case: &str, flows: Flows, floor: bool, rounds: Vec<u64>, error: Option<String>) -> Self {
        let mut sorted = rounds.clone();
        sorted.sort_unstable();
        let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
        Self {
            case: case.to_owned(),
            flows: flows.to_string(),
            floor,
            min: at(0),
            median: at(sorted.len() / 2),
            max: at(sorted.len().saturating_sub(1)),
            net: None,
            ratio: None,
            to_maps: None,
            rounds,
            error,
            kind: flows,
        }
    }
}

/// What the figures are true of.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    pub cpu: String,
    pub cpus: usize,
    pub virtual_machine: bool,
    pub kernel: String,
    pub spectre_v2: String,
    pub pinned_to: usize,
}

impl Machine {
    pub fn look(pinned_to: usize) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let line = |name: &str| cpuinfo.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        let after_colon = |line: &str| line.split_once(':').map_or("", |(_, text)| text).trim().to_owned();
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        Self {
            cpu: after_colon(line("model name")),
            cpus: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            virtual_machine: line("flags").split_whitespace().any(|flag| flag == "hypervisor"),
            kernel: text("/proc/sys/kernel/osrelease"),
            spectre_v2: text("/sys/devices/system/cpu/vulnerabilities/spectre_v2"),
            pinned_to,
        }
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub machine: Machine,
    pub rounds: u32,
    pub packets: u32,
    pub quick: bool,
    /// Instructions that the verifier looked at.
    pub verified_instructions: BTreeMap<String, u32>,
    pub rows: Vec<Row>,
}

impl Report {
    pub fn new(
        machine: Machine,
        options: &Options,
        verified_instructions: BTreeMap<String, u32>,
        mut rows: Vec<Row>,
    ) -> Self {
        let good = |rows: &[Row], name: &str, flows: Flows| {
            rows.iter().find(|r| r.case == name && r.kind == flows && r.error.is_none()).map(|r| r.median)
        };
        let net = |a: u64, b: u64| a as i64 - b as i64;
        let compared: Vec<_> = rows
            .iter()
            .map(|row| {
                let floor = good(&rows, FLOOR, row.kind).filter(|floor| *floor > 0)?;
                let maps = good(&rows, MAPS, row.kind).map(|maps| net(maps, floor)).filter(|net| *net > 0);
                Some((floor, maps))
            })
            .collect();
        for (row, compared) in rows.iter_mut().zip(compared) {
            if row.error.is_some() {
                continue;
            }
            let Some((floor, maps)) = compared else { continue };
            let own = net(row.median, floor);
            row.net = Some(own);
            row.ratio = Some(row.median as f64 / floor as f64);
            row.to_maps = maps.map(|maps| own as f64 / maps as f64);
        }
        Self {
            machine,
            rounds: options.rounds,
            packets: options.repeat,
            quick: options.quick,
            verified_instructions,
            rows,
        }
    }

    /// The row of a case.
    pub fn row(&self, case: &str, flows: Flows) -> Option<&Row> {
        self.rows.iter().find(|row| row.case == case && row.kind == flows)
    }

    /// Draws the cost of a packet over the number of flows into a directory, if there are rows with several, and returns what
    /// was written.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn draw(&self, directory: &Path) -> Result<Option<PathBuf>> {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let series: Vec<Line> = DRAWN.iter().filter_map(|case| self.line(case)).collect();
        if series.is_empty() {
            return Ok(None);
        }
        let path = directory.join("datapath-flows.svg");
        let words = Words { title: "A packet in the XDP program", x: "flows", y: "ns" };
        lines(&path, words, &series)?;
        Ok(Some(path))
    }

    /// A case's medians over its numbers of flows, if there are several.
    fn line(&self, case: &str) -> Option<Line> {
        let good = self.rows.iter().filter(|row| row.case == case && row.error.is_none());
        let points: Vec<(f64, f64)> = good
            .filter_map(|row| Some((row.flows.replace(',', "").parse().ok()?, row.median as f64)))
            .collect();
        (points.len() > 1).then(|| Line { name: case.to_owned(), points })
    }

    /// Rows that are no measurements.
    pub fn errors(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| row.error.is_some())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { cpu, cpus, virtual_machine, kernel, spectre_v2, pinned_to } = &self.machine;
        let place = if *virtual_machine { "virtual machine" } else { "bare metal" };
        writeln!(f, "{cpu}, {cpus} CPUs, {place}, pinned to CPU {pinned_to}")?;
        writeln!(f, "Linux {kernel}; Spectre v2: {spectre_v2}")?;
        for (program, count) in &self.verified_instructions {
            writeln!(f, "{program}: {count} instructions verified")?;
        }
        writeln!(f, "nanoseconds per packet, {} rounds of {} packets", self.rounds, self.packets)?;
        if self.rounds < 5 {
            writeln!(f, "few rounds: differences of less than a third mean nothing")?;
        }
        let width = self.rows.iter().map(|row| row.case.len()).max().unwrap_or_default();
        writeln!(
            f,
            "\n{:width$}  {:>9}  {:>5}  {:>6}  {:>5}  {:>8}  {:>14}",
            "case", "flows", "min", "median", "net", "to floor", "to hash + LRU"
        )?;
        let mut floors = true;
        for row in &self.rows {
            if floors && !row.floor {
                writeln!(f)?;
                floors = false;
            }
            let Row { case, flows, min, median, .. } = row;
            write!(f, "{case:width$}  {flows:>9}  ")?;
            if let Some(error) = &row.error {
                writeln!(f, "ERROR {error}")?;
                continue;
            }
            let net = row.net.map_or(String::new(), |net| net.to_string());
            let number = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.2}"));
            let (ratio, to_maps) = (number(row.ratio), number(row.to_maps));
            writeln!(f, "{min:>5}  {median:>6}  {net:>5}  {ratio:>8}  {to_maps:>14}")?;
        }
        Ok(())
    }
}
