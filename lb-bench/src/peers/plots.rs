//! The figures as plots.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::table::{Cell, Measure, Report, Section};
use crate::plot::{Bars, Words, bars};

const THROUGHPUT: [(Measure, &str); 5] = [
    (Measure::Packets, "packets"),
    (Measure::Connections, "connections"),
    (Measure::Requests, "requests"),
    (Measure::Bulk, "bulk"),
    (Measure::Mail, "mail"),
];

/// Draws all of them into a directory, and returns their names. A plot of what was not measured is left out.
///
/// # Errors
/// When a file cannot be written.
pub fn draw(report: &Report, directory: &Path) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let mut drawn = Vec::new();
    let path = directory.join("peers-throughput.svg");
    let words = Words { title: "Throughput, plain routing is 1", x: "", y: "of plain routing" };
    drawn.extend(compare(report, &path, words, &|cell| cell.to_routing)?);

    let path = directory.join("peers-cpu.svg");
    let words =
        Words { title: "CPU time of the gateway for each, plain routing is 1", x: "", y: "of plain routing" };
    drawn.extend(compare(report, &path, words, &|cell| cell.cpu_to_routing)?);

    for (measure, name, title) in [
        (Measure::OneWay, "peers-one-way.svg", "Latency of UDP packets, one way"),
        (Measure::RoundTrip, "peers-round-trip.svg", "Latency of exchanges by TCP, there and back"),
    ] {
        let Some(section) = section(report, measure) else { continue };
        let series: Vec<Bars> = section
            .rows
            .iter()
            .map(|(name, cell)| Bars {
                name: name.clone(),
                values: (0..3).map(|at| cell.medians.get(at).copied()).collect(),
            })
            .collect();
        if series.iter().all(|one| one.values.iter().all(Option::is_none)) {
            continue;
        }
        let path = directory.join(name);
        bars(&path, Words { title, x: "", y: "µs" }, &["p50", "p99", "p99.9"], &series)?;
        drawn.push(path);
    }
    Ok(drawn)
}

fn section(report: &Report, measure: Measure) -> Option<&Section> {
    report.sections.iter().find(|section| section.measure == measure)
}

/// One bar of each gateway in each measure of throughput.
fn compare(
    report: &Report,
    path: &Path,
    words: Words<'_>,
    of: &dyn Fn(&Cell) -> Option<f64>,
) -> Result<Option<PathBuf>> {
    let measured: Vec<(&Section, &str)> =
        THROUGHPUT.iter().filter_map(|(measure, name)| Some((section(report, *measure)?, *name))).collect();
    let Some((first, _)) = measured.first() else { return Ok(None) };
    let series: Vec<Bars> = (0..first.rows.len())
        .map(|at| Bars {
            name: first.rows[at].0.clone(),
            values: measured.iter().map(|(section, _)| of(&section.rows.get(at)?.1)).collect(),
        })
        .collect();
    if series.iter().all(|one| one.values.iter().all(Option::is_none)) {
        return Ok(None);
    }
    let groups: Vec<&str> = measured.iter().map(|(_, name)| *name).collect();
    bars(path, words, &groups, &series)?;
    Ok(Some(path.to_owned()))
}
