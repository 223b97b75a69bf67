//! What came out, side by side.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::gateways::Kind;
use crate::report::Machine;

/// One thing that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    Packets,
    Connections,
    Requests,
    Bulk,
    Mail,
    OneWay,
    RoundTrip,
}

/// A figure of a measure. The first one of each is compared with plain routing's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: &'static str,
    /// Digits after the point.
    digits: usize,
}

const fn column(name: &'static str, digits: usize) -> Column {
    Column { name, digits }
}

impl Measure {
    pub const ALL: [Self; 7] = [
        Self::Packets,
        Self::Connections,
        Self::Requests,
        Self::Bulk,
        Self::Mail,
        Self::OneWay,
        Self::RoundTrip,
    ];

    pub const fn title(self) -> &'static str {
        match self {
            Self::Packets => "UDP packets of 64 bytes, 4,096 flows, as many as can be",
            Self::Connections => "TCP connections, one HTTP request on each",
            Self::Requests => "HTTP requests on connections that stay",
            Self::Bulk => "Bulk transfer on one TCP connection, to the server",
            Self::Mail => "Mails of 4 KiB by SMTP, one on each connection",
            Self::OneWay => {
                "Latency of UDP packets, one way, in bursts of 16, at half of what the slowest forwards"
            }
            Self::RoundTrip => {
                "Latency of exchanges of 64 bytes by TCP, there and back, at a quarter of the slowest's requests"
            }
        }
    }

    pub const fn is_latency(self) -> bool {
        matches!(self, Self::OneWay | Self::RoundTrip)
    }

    pub const fn columns(self) -> &'static [Column] {
        /// A rate with CPU for each, or what is in its place.
        macro_rules! rate {
            ($rate:literal, $digits:literal, $cpu:literal, $cpu_digits:literal) => {
                const { &[column($rate, $digits), column($cpu, $cpu_digits), column("CPU %", 0)] }
            };
        }
        match self {
            Self::Packets => rate!("packets/s", 0, "CPU ns each", 0),
            Self::Connections => rate!("connections/s", 0, "CPU µs each", 1),
            Self::Requests => rate!("requests/s", 0, "CPU µs each", 1),
            Self::Bulk => rate!("Gbit/s", 2, "CPU ns per KiB", 0),
            Self::Mail => rate!("mails/s", 0, "CPU µs each", 1),
            Self::OneWay => {
                const { &[column("p50 µs", 1), column("p99 µs", 1), column("p99.9 µs", 1), column("lost %", 2)] }
            }
            Self::RoundTrip => const { &[column("p50 µs", 1), column("p99 µs", 1), column("p99.9 µs", 1)] },
        }
    }
}

/// The figures of one gateway by one measure.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Cell {
    /// In the order of the measure's columns; empty if there are none.
    pub medians: Vec<f64>,
    /// The first figure by that of plain routing.
    pub to_routing: Option<f64>,
    /// CPU for each, likewise; not of latencies.
    pub cpu_to_routing: Option<f64>,
    /// In the order in which they were measured.
    pub rounds: Vec<Vec<f64>>,
    /// Why the figures are none.
    pub error: Option<String>,
}

/// A measure with all its gateways.
#[derive(Clone, Debug, Serialize)]
pub struct Section {
    pub measure: Measure,
    pub title: &'static str,
    pub columns: Vec<&'static str>,
    /// Packets or exchanges a second, where the rate was given.
    pub rate: Option<f64>,
    /// By the gateways' names, in their order.
    pub rows: Vec<(String, Cell)>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub machine: Machine,
    pub rounds: u32,
    /// Of each measurement.
    pub seconds: f64,
    pub quick: bool,
    pub sections: Vec<Section>,
    /// Gateways that this machine cannot have.
    pub unavailable: BTreeMap<String, String>,
}

/// What is collected round by round.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    cells: BTreeMap<(Measure, Kind), Cell>,
    pub rates: BTreeMap<Measure, f64>,
    pub unavailable: BTreeMap<Kind, String>,
}

impl Samples {
    /// One measurement, in the order of the measure's columns, or why it is none. The first error tells most.
    pub fn add(&mut self, measure: Measure, kind: Kind, outcome: anyhow::Result<Vec<f64>>) {
        let cell = self.cells.entry((measure, kind)).or_default();
        match outcome {
            Ok(figures) => cell.rounds.push(figures),
            Err(error) => cell.error = cell.error.take().or(Some(format!("{error:#}"))),
        }
    }

    /// The least of the gateways' medians, of the first column.
    pub fn slowest(&self, measure: Measure) -> Option<f64> {
        let of = |(key, cell): (&(Measure, Kind), &Cell)| {
            (key.0 == measure && cell.error.is_none())
                .then(|| median(cell.rounds.iter().filter_map(|r| r.first())))?
        };
        self.cells.iter().filter_map(of).min_by(f64::total_cmp)
    }

    /// Medians and ratios. A gateway has a line for every measure that any has figures of.
    pub fn sections(&self, kinds: &[Kind]) -> Vec<Section> {
        let measured = |measure: &Measure| self.cells.keys().any(|(one, _)| one == measure);
        Measure::ALL.into_iter().filter(measured).map(|measure| self.section(measure, kinds)).collect()
    }

    fn section(&self, measure: Measure, kinds: &[Kind]) -> Section {
        let finished = |kind: &Kind| {
            let mut cell = self.cells.get(&(measure, *kind)).cloned().unwrap_or_default();
            if cell.error.is_none() {
                let columns = 0..measure.columns().len();
                cell.medians =
                    columns.filter_map(|at| median(cell.rounds.iter().filter_map(|r| r.get(at)))).collect();
            }
            (*kind, cell)
        };
        let mut cells: Vec<(Kind, Cell)> = kinds.iter().map(finished).collect();
        let routing = cells.iter().find(|(kind, _)| *kind == Kind::Routing);
        let routing = routing.map(|(_, cell)| cell.medians.clone()).unwrap_or_default();
        let ratio = |cell: &Cell, at: usize| {
            let routing = routing.get(at).copied().filter(|value| *value > 0.0)?;
            Some(cell.medians.get(at)? / routing)
        };
        for (_, cell) in &mut cells {
            cell.to_routing = ratio(cell, 0);
            cell.cpu_to_routing = ratio(cell, 1).filter(|_| !measure.is_latency());
        }
        Section {
            measure,
            title: measure.title(),
            columns: measure.columns().iter().map(|column| column.name).collect(),
            rate: self.rates.get(&measure).copied(),
            rows: cells.into_iter().map(|(kind, cell)| (kind.name().to_owned(), cell)).collect(),
        }
    }
}

/// Of the middle two the lower one. `None` of nothing.
fn median<'a>(values: impl Iterator<Item = &'a f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.copied().collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied()
}

impl Report {
    /// Cells that are no measurements: measure, gateway, why.
    pub fn errors(&self) -> impl Iterator<Item = (&Section, &str, &str)> {
        self.sections.iter().flat_map(|section| {
            section
                .rows
                .iter()
                .filter_map(move |(name, cell)| Some((section, name.as_str(), cell.error.as_deref()?)))
        })
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.title)?;
        if let Some(rate) = self.rate {
            write!(f, ": {} a second", grouped(rate, 0))?;
        }
        writeln!(f)?;
        let width = Kind::ALL.iter().map(|kind| kind.name().len()).max().unwrap_or_default();
        let columns = self.measure.columns();
        write!(f, "{:width$}", "gateway")?;
        let latency = self.measure.is_latency();
        let compared = |at: usize| at == 0 || at == 1 && !latency;
        for (at, column) in columns.iter().enumerate() {
            write!(f, "  {:>14}", column.name)?;
            if compared(at) {
                write!(f, "  {:>10}", "to routing")?;
            }
        }
        writeln!(f)?;
        for (name, cell) in &self.rows {
            write!(f, "{name:width$}")?;
            if let Some(error) = &cell.error {
                writeln!(f, "  ERROR {error}")?;
                continue;
            }
            for (at, column) in columns.iter().enumerate() {
                let value = cell.medians.get(at);
                write!(f, "  {:>14}", value.map_or("–".to_owned(), |value| grouped(*value, column.digits)))?;
                if compared(at) {
                    let ratio = if at == 0 { cell.to_routing } else { cell.cpu_to_routing };
                    write!(f, "  {:>10}", ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}")))?;
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// What is true of all figures, and which differences they do not show.
const REMARKS: &str = "\
Two CPUs: one has the gateway, the other the client and both servers; the same for every gateway. CPU is the gateway's: of what
receives for it and of its programs. Where it is far from 100 %, the client and the servers were the limit: compare CPU instead.
The cables are veth pairs. What \"routing by XDP\" has lost against plain routing, every XDP program loses on them: each packet
wakes the CPU at the other end, and one from a socket is copied. Network cards do neither. \"–\": not this kind of traffic, or not
on this machine.";

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { cpu, cpus, virtual_machine, kernel, spectre_v2, .. } = &self.machine;
        let place = if *virtual_machine { "virtual machine" } else { "bare metal" };
        writeln!(f, "{cpu}, {cpus} CPUs, {place}")?;
        writeln!(f, "Linux {kernel}; Spectre v2: {spectre_v2}")?;
        writeln!(f, "medians of {} rounds of {} s each", self.rounds, self.seconds)?;
        writeln!(f, "{REMARKS}")?;
        if self.rounds < 3 {
            writeln!(f, "Few rounds: differences of less than a third mean nothing.")?;
        }
        for section in &self.sections {
            write!(f, "\n{section}")?;
        }
        for (name, why) in &self.unavailable {
            writeln!(f, "\n{name}: {why}")?;
        }
        Ok(())
    }
}

/// A number with its thousands apart.
fn grouped(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let (whole, rest) =
        text.split_once('.').map_or((text.as_str(), None), |(whole, rest)| (whole, Some(rest)));
    let mut out = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) && digit != '-' {
            out.push(',');
        }
        out.push(digit);
    }
    rest.map_or(out.clone(), |rest| format!("{out}.{rest}"))
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    fn samples() -> Samples {
        let mut samples = Samples::default();
        for round in [[1000.0, 900.0, 50.0], [3000.0, 800.0, 60.0], [2000.0, 700.0, 70.0]] {
            samples.add(Measure::Packets, Kind::Routing, Ok(round.into()));
            samples.add(Measure::Packets, Kind::Nat, Ok(round.map(|value| value * 2.0).into()));
        }
        samples
    }

    #[test]
    fn medians_are_compared_with_plain_routing() {
        let sections = samples().sections(&[Kind::Routing, Kind::Nat, Kind::Haproxy]);
        let [packets] = &sections[..] else { panic!("one measure, not {}", sections.len()) };
        let [(_, routing), (_, nat), (_, haproxy)] = &packets.rows[..] else { panic!("three gateways") };
        assert_eq!((routing.medians[0], routing.to_routing), (2000.0, Some(1.0)));
        assert_eq!((nat.medians[1], nat.to_routing), (1600.0, Some(2.0)));
        assert_eq!((haproxy.medians.len(), haproxy.to_routing), (0, None));
        let text = packets.to_string();
        assert!(text.lines().any(|line| line.starts_with("HAProxy, tcp") && line.contains('–')), "{text}");
        assert!(text.contains("4,000"), "{text}");
    }

    #[test]
    fn one_error_makes_a_cell_no_figure() {
        let mut samples = samples();
        samples.add(Measure::Packets, Kind::Nat, Err(anyhow!("went another way")));
        samples.add(Measure::Packets, Kind::Nat, Ok(vec![1.0, 1.0, 1.0]));
        let sections = samples.sections(&[Kind::Routing, Kind::Nat]);
        assert!(sections[0].rows[1].1.medians.is_empty());
        assert!(sections[0].to_string().contains("ERROR went another way"));
        assert_eq!(samples.slowest(Measure::Packets), Some(2000.0), "errors are no rates");
    }

    #[test]
    fn medians_and_numbers() {
        assert_eq!(median([3.0, 1.0, 2.0].iter()), Some(2.0));
        assert_eq!(median([3.0, 1.0].iter()), Some(1.0));
        assert_eq!(median([].iter()), None);
        assert_eq!(grouped(1_234_567.0, 0), "1,234,567");
        assert_eq!(grouped(123.456, 1), "123.5");
        assert_eq!(grouped(1000.0, 2), "1,000.00");
    }
}
