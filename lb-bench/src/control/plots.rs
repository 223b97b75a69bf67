//! The figures over what grows.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::Row;
use crate::plot::{Line, Words, lines};

/// By the figures' units: the file and the title.
const PLOTS: [(&str, &str, &str); 3] = [
    ("ms", "control-times.svg", "What the control plane takes"),
    ("MiB", "control-memory.svg", "Memory of the daemon beside the maps"),
    ("%", "control-idle.svg", "CPU while nothing happens"),
];

/// Draws a plot for each unit into a directory, and returns their names.
///
/// # Errors
/// When a file cannot be written.
pub fn draw(rows: &[Row], directory: &Path) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let mut drawn = Vec::new();
    for (unit, name, title) in PLOTS {
        let series = series(rows.iter().filter(|row| row.unit == unit));
        if series.iter().all(|one| one.points.iter().all(|(_, figure)| *figure <= 0.0)) {
            continue;
        }
        let path = directory.join(name);
        lines(&path, Words { title, x: "how many", y: unit }, &series)?;
        drawn.push(path);
    }
    Ok(drawn)
}

/// A line for each thing that was measured, of medians.
fn series<'r>(rows: impl Iterator<Item = &'r Row>) -> Vec<Line> {
    let mut all: Vec<Line> = Vec::new();
    for row in rows {
        let name = format!("{}, by {}", row.what, row.of);
        let point = (f64::from(row.size), row.median);
        match all.iter_mut().find(|line| line.name == name) {
            Some(line) => line.points.push(point),
            None => all.push(Line { name, points: vec![point] }),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_is_a_line_over_its_sizes() {
        let row = |what, size, median| Row::new(what, size, "services", "ms", vec![median]);
        let rows = [row("reload", 1, 2.0), row("start", 1, 900.0), row("reload", 100, 3.0)];
        let lines = series(rows.iter());
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].name, "reload, by services");
        assert_eq!(lines[0].points, [(1.0, 2.0), (100.0, 3.0)]);
    }
}
